"""The backdoor commands in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pycc import commands
from pycc.commands import Command, CommandGroup, Entry
from pycc.commands.backdoor import command as backdoor


def main(argv: Sequence[str]) -> int:
    """``pycc backdoor ARGV``; returns the exit code."""
    return commands.main("backdoor", argv)


def command_of(argv: Sequence[str]) -> tuple[Command[Any], list[str]]:
    """The command that the first arguments name, and the others."""
    entry: Entry = backdoor
    rest = list(argv)
    while isinstance(entry, CommandGroup):
        name = rest.pop(0)
        entry = next(inner for inner in entry.entries if inner.name == name)
    assert isinstance(entry, Command)
    return entry, rest


def settings_of(*argv: str) -> object:
    """The settings that these arguments of ``pycc backdoor`` come to."""
    command, rest = command_of(argv)
    return command.parsed(rest, "pycc backdoor")[0]
