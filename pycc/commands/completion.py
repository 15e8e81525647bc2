"""``pycc completion``: the script with which a shell completes commands, flags and values."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pycc.commands import ROOT
from pycc.commands.base import DONE, HELP, Command, CommandGroup, Context, Entry
from pycc.commands.entry import IMPORT
from pycc.settings import flag

SHELLS = ("bash", "zsh")


@dataclass(frozen=True)
class CompletionSettings:
    """The shell that completes."""

    shell: str = flag(help="the shell", positional=True, choices=SHELLS)


class Completion(Command[CompletionSettings]):
    """``pycc completion``."""

    name = "completion"
    summary = "Print the script with which a shell completes pycc's commands, flags and values."
    settings = CompletionSettings
    epilog = (
        'bash: eval "$(pycc completion bash)" in ~/.bashrc, or the output in a file that it '
        "sources. zsh: the output in a file _pycc of a folder in $fpath."
    )

    def run(self, settings: CompletionSettings, context: Context) -> int:
        """Print it: the shell then completes without starting Python."""
        try:
            import shtab
        except ImportError:
            raise ImportError("completion needs shtab: pip install 'pycc[completion]'") from None
        print(shtab.complete(everything(shtab.FILE), shell=settings.shell), flush=True)
        return DONE


command = Completion()


def everything(files: Any) -> argparse.ArgumentParser:
    """One parser of all commands and flags; ``files`` marks the flags that name files."""
    parser = argparse.ArgumentParser("pycc", add_help=False)
    parser.add_argument("--version", action="store_true", help="show what is compiled")
    _add(parser, ROOT.entries, files)
    return parser


def _add(parser: argparse.ArgumentParser, entries: Iterable[Entry], files: Any) -> None:
    parser.add_argument(HELP, action="store_true", help="show the commands")
    commands = parser.add_subparsers()
    for lazy in entries:
        entry = lazy.loaded()
        about = entry.summary.replace("%", "%%")
        if isinstance(entry, CommandGroup):
            _add(commands.add_parser(entry.name, help=about, add_help=False), entry.entries, files)
        elif isinstance(entry, Command):
            flags = [_parser(entry, files)]
            commands.add_parser(entry.name, help=about, add_help=False, parents=flags)


def _parser(command: Command[Any], files: Any) -> argparse.ArgumentParser:
    """The command's parser with all that flags can be, and the flags that other flags bring."""
    parser = command.parser([], "pycc")
    for action in parser._actions:
        if IMPORT in action.option_strings:
            action.complete = files  # type: ignore[attr-defined]
        entry = parser.flags.get(action.dest)
        if entry is None:
            continue
        action.choices = entry.choices
        if entry.names is not None or entry.metavar in ("FOLDER", "RUN"):
            action.complete = files  # type: ignore[attr-defined]
    known = parser._option_string_actions
    for name in command.elsewhere([]):
        if name not in known:
            parser.add_argument(name)
    return parser
