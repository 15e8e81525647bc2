"""The commands: ``pycc NAME`` or ``python -m pycc NAME``; packages also run by their own names."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from pycc.commands.entry import DEBUG, DONE, CommandGroup, Entry, ended

if TYPE_CHECKING:
    from pycc.commands.base import Command, Context, RunCommand

COMMANDS = {
    "count": "Count people in images or folders of images.",
    "attack": "Attack a counter with patches and measure what they do.",
    "certify": "Certify intervals that no patch can push a count out of.",
    "train": "Train a counter, plainly or against patches.",
    "backdoor": "Poison training data, measure backdoors, and defend against them.",
    "data": "Inspect a data set, or write it in another layout.",
    "report": "Write a page about runs, or about many runs, for people to look at.",
    "models": "List counters, check weights, and export them.",
    "completion": "Print the script that completes pycc's flags in bash or zsh.",
}
"""The commands and what help says about them; each is the module of its name in this package."""

__all__ = ["COMMANDS", "ROOT", "Command", "CommandGroup", "Context", "Entry", "RunCommand", "main"]


def __getattr__(name: str) -> object:
    """Import the base of the commands, and with it torch, when it is used."""
    if name in ("Command", "Context", "RunCommand"):
        return getattr(import_module("pycc.commands.base"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Lazy(Entry):
    """A command whose module is imported when it is called."""

    def __init__(self, name: str, summary: str) -> None:
        self.name, self.summary = name, summary

    def main(self, argv: Sequence[str], prog: str) -> int:
        """Import the command and the code that it is to know, and run it."""
        return ended(lambda: self._run(argv, prog), debug=DEBUG in argv)

    def _run(self, argv: Sequence[str], prog: str) -> int:
        from pycc.commands.plugins import import_installed, with_imports

        command = self.loaded()
        import_installed()
        return command.main(with_imports(argv), prog)

    def loaded(self) -> Entry:
        """The command, imported."""
        command: Entry = import_module(f"pycc.commands.{self.name}").command
        return command


class _Root(CommandGroup):
    name = "pycc"
    summary = "Measure how badly a crowd counter can fail, and make it fail less."
    entries: Sequence[Entry] = tuple(_Lazy(*entry) for entry in COMMANDS.items())

    def main(self, argv: Sequence[str], prog: str) -> int:
        """Run a command; ``--version`` prints the version and what is compiled."""
        if "--version" in argv[:1]:
            return ended(_print_version)
        return super().main(argv, prog)


def _print_version() -> int:
    from pycc._compiled import version

    print(version(), flush=True)
    return DONE


ROOT = _Root()
"""``pycc`` itself: the group of all commands."""


def main(name: str | None = None, argv: Sequence[str] | None = None) -> int:
    """Run ``pycc``, or its command ``name``, with ``argv`` (default: the process's).

    Returns the exit code.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    return ROOT.main(arguments if name is None else [name, *arguments], "pycc")
