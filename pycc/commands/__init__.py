"""The commands: ``pycc NAME``, and ``python -m pycc.NAME`` where a package of that name exists."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from pycc.commands.base import Command, CommandGroup, Context, Entry, RunCommand

COMMANDS = {
    "count": "Count people in images or folders of images.",
    "attack": "Attack a counter with patches and measure what they do.",
    "certify": "Certify intervals that no patch can push a count out of.",
    "train": "Train a counter, plainly or against patches.",
    "backdoor": "Poison training data, measure backdoors, and defend against them.",
    "data": "Inspect a data set, or write it in another layout.",
    "report": "Write a page about runs, or about many runs, for people to look at.",
    "models": "List counters, check weights, and export them.",
}
"""The commands and what help says about them; each is the module of its name in this package."""

__all__ = ["COMMANDS", "Command", "CommandGroup", "Context", "Entry", "RunCommand", "main"]


class _Lazy(Entry):
    """A command whose module is imported when it is called."""

    def __init__(self, name: str, summary: str) -> None:
        self.name, self.summary = name, summary

    def main(self, argv: Sequence[str], prog: str) -> int:
        """Import the command and run it."""
        command: Entry = import_module(f"pycc.commands.{self.name}").command
        return command.main(argv, prog)


class _Root(CommandGroup):
    name = "pycc"
    summary = "Measure how badly a crowd counter can fail, and make it fail less."
    entries: Sequence[Entry] = tuple(_Lazy(*entry) for entry in COMMANDS.items())


def main(name: str | None = None, argv: Sequence[str] | None = None) -> int:
    """Run ``pycc``, or its command ``name``, with ``argv`` (default: the process's).

    Returns the exit code.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if name is None:
        return _Root().main(arguments, "pycc")
    return _Root().main([name, *arguments], "pycc")
