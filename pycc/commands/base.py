"""The base of every command: parse, resume, make the run folder, start the processes, end.

A command is a subclass of ``Command``, or of ``RunCommand`` if it writes a run folder, with a
frozen dataclass of settings; only this file and ``pycc.settings`` know values by name.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch

from pycc import runs
from pycc.commands.arguments import earlier_run
from pycc.commands.entry import (
    BAD_INPUT,
    DEBUG,
    DONE,
    FAILED,
    FAILURE,
    HELP,
    HELP_ALL,
    STOPPED,
    CommandGroup,
    Entry,
    ended,
    exit_codes,
    reason,
)
from pycc.commands.flags import Parser
from pycc.commands.machine import device_of_name, set_threads
from pycc.commands.progress import TerminalProgress
from pycc.ranks import Ranks, own_device, ranks
from pycc.settings import Flag, build, flag, flags_of, values_of

__all__ = [
    "BAD_INPUT",
    "DEBUG",
    "DONE",
    "FAILED",
    "FAILURE",
    "HELP",
    "HELP_ALL",
    "MACHINE",
    "STOPPED",
    "Command",
    "CommandGroup",
    "Context",
    "Entry",
    "RunCommand",
    "RunFlags",
    "ended",
    "folder_by_time",
]

S = TypeVar("S")

MACHINE = frozenset({"device", "pictures"})
"""Flags that a resumed run may change. Commands may have more or fewer. The number of threads is
none of them: the order of sums depends on it."""


@dataclass(frozen=True)
class Context:
    """The circumstances of a command's run, besides its settings."""

    command: tuple[str, ...] = ()
    """The arguments of the command line, for the manifest."""
    given: frozenset[str] = frozenset()
    """Names of the flags that were given."""
    ranks: Ranks = Ranks()
    """The processes of the run."""
    device: torch.device = torch.device("cpu")
    """This process's device."""
    folder: Path | None = None
    """The run folder; None for a command that writes none."""
    resume: bool = False
    """Whether to continue the run in that folder."""

    @property
    def run_folder(self) -> Path:
        """The run folder of a command that writes one."""
        assert self.folder is not None
        return self.folder

    @contextmanager
    def progress(self, unit: str) -> Iterator[TerminalProgress | None]:
        """Progress on the terminal in ``unit``; None for all processes but the first."""
        if not self.ranks.first:
            yield None
            return
        shown = TerminalProgress(unit)
        try:
            yield shown
        finally:
            shown.close()


class Command(Entry, Generic[S]):
    """A command: its settings, and the work that is done with them."""

    settings: type[S]
    """A frozen dataclass; its fields are the flags (``pycc.settings``)."""
    epilog: str = ""
    """The text below the flags in the help."""
    failure: ClassVar[str] = FAILURE
    """The meaning of the exit code 1."""
    shared: ClassVar[bool] = False
    """Whether processes of torchrun share the work. Otherwise the first does all of it, and the
    others wait for it and end as it does."""

    @abstractmethod
    def run(self, settings: S, context: Context) -> int:
        """Do the work; returns the exit code."""

    def variants(self, argv: Sequence[str]) -> Mapping[str, type[Any]]:
        """Dataclasses for groups of flags that other flags choose (``pycc.settings.flags_of``)."""
        return {}

    def presets(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Defaults that depend on the flags that were given, by name."""
        return {}

    def check(self, settings: S, given: frozenset[str]) -> S:
        """The settings, completed; ValueError for what is wrong, before anything is written."""
        return settings

    def main(self, argv: Sequence[str], prog: str) -> int:
        """Parse, check and run; every way to end is an exit code and at most one line."""
        left = [argument for argument in argv if argument != DEBUG]
        return ended(
            lambda: self._main(left, prog), debug=DEBUG in argv, stopped=self.how_to_continue
        )

    def how_to_continue(self) -> str:
        """Return the advice that an interrupted command prints."""
        return ""

    def _main(self, argv: list[str], prog: str) -> int:
        if {HELP, HELP_ALL, "-h"} & {*argv}:
            parser = self.parser(argv, prog)
            print(parser.text(everything=HELP_ALL in argv), flush=True)
            return DONE
        settings, given = self.parsed(argv, prog)
        return self.start(settings, Context(command=tuple(argv), given=given))

    def flags(self, argv: Sequence[str]) -> list[Flag]:
        """The command's flags, as far as ``argv`` chooses them."""
        return flags_of(self.settings, self.variants(argv))

    def elsewhere(self, argv: Sequence[str]) -> Mapping[str, str]:
        """Flags that exist, but not beside these arguments, and the error for each."""
        return {}

    def parser(self, argv: Sequence[str], prog: str) -> Parser:
        """The parser of the command's flags, as far as ``argv`` chooses them."""
        text = f"{self.epilog} {exit_codes(self.failure)}".strip()
        return Parser(prog, self.summary, text, self.flags(argv), self.elsewhere(argv))

    def parsed(self, argv: Sequence[str], prog: str) -> tuple[S, frozenset[str]]:
        """The settings that ``argv`` asks for, checked, and the names of the flags in it."""
        given = self.parser(argv, prog).given(argv)
        return self.completed(given, {}, self.variants(argv))

    def completed(
        self, given: Mapping[str, Any], earlier: Mapping[str, Any], variants: Mapping[str, type]
    ) -> tuple[S, frozenset[str]]:
        """Settings from what was given, over an earlier run's, over presets and defaults."""
        names = frozenset(given)
        chosen = {**earlier, **given}
        values = {**self.presets(chosen), **chosen}
        for entry in flags_of(self.settings, variants):
            if entry.name == "threads" and values.get("threads") is None:
                values["threads"] = torch.get_num_threads()  # a manifest stores the number
            if entry.default is MISSING and entry.name not in values:
                raise ValueError(f"{entry.shown} is needed")
            entry.checked(values.get(entry.name, entry.default)) if entry.name in values else None
        return self.check(build(self.settings, values, variants), names), names

    def start(self, settings: S, context: Context) -> int:
        """Run on the device and with the threads of the settings, if it has such flags."""
        values = values_of(settings)
        device = own_device(device_of_name(str(values.get("device", "cpu"))))
        set_threads(values.get("threads"), given="threads" in context.given)
        with ranks(device) as processes:
            if self.shared:
                return self.run(settings, self.context(settings, context, processes, device))
            code = DONE
            if processes.first:
                code = self.run(settings, self.context(settings, context, Ranks(), device))
            return processes.agreed(code)

    def context(
        self, settings: S, context: Context, processes: Ranks, device: torch.device
    ) -> Context:
        """The context once the processes are known."""
        return Context(
            context.command, context.given, processes, device, context.folder, context.resume
        )


@dataclass(frozen=True)
class RunFlags:
    """The folder of a run."""

    out: str | None = flag(
        None, "run folder, where report.html is (default: runs/COMMAND-TIME)", metavar="RUN"
    )
    resume: str | None = flag(None, "continue the run in this folder", metavar="RUN")
    like: str | None = flag(None, "take the settings of an earlier run as defaults", metavar="RUN")


class RunCommand(Command[S]):
    """A command that writes a run folder and can be resumed.

    A finished run gets a page, ``report.html``, and a card, ``card.json``. Its manifest's
    ``settings.flags`` are ``values_of`` the settings.
    """

    kind: ClassVar[str]
    """The kind of run in the manifest."""
    machine: ClassVar[frozenset[str]] = MACHINE
    """Flags that a resumed run may change."""
    shared = True
    stated: ClassVar[frozenset[str]] = frozenset()
    """Names that a manifest states among the flags without being flags."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._first = True
        self._out_given = False
        self._prog = f"pycc {self.name}"

    def how_to_continue(self) -> str:
        """Return how to resume, if there is a run to resume."""
        if self._folder is None or not (self._folder / runs.MANIFEST).exists():
            return ""
        return f"; continue with: {self._prog} --resume {self._folder}"

    def new_folder(self) -> str:
        """The run folder if none is given."""
        return folder_by_time(self._prog.removeprefix("pycc ").replace(" ", "-"))

    def draws(self, settings: S) -> bool:
        """Whether the page of the run has pictures."""
        return True

    def matches(self, flags: Mapping[str, Any]) -> bool:
        """Whether a run with these stored flags is one of this command, beyond its kind."""
        return True

    def flags(self, argv: Sequence[str]) -> list[Flag]:
        """The command's flags and those of the run folder."""
        return [*super().flags(argv), *flags_of(RunFlags, title="run")]

    def parser(self, argv: Sequence[str], prog: str) -> Parser:
        """The parser of the flags, as far as ``argv`` or the earlier run chooses them."""
        return super().parser(self._chosen(argv), prog)

    def _chosen(self, argv: Sequence[str]) -> list[str]:
        """The arguments, with those of the run that is resumed or taken as a model before them."""
        named = earlier_run(argv)
        if named is None:
            return list(argv)
        name, path = named
        return [*self.as_arguments(self._flags_of_run(path, name)), *argv]

    def as_arguments(self, flags: Mapping[str, Any]) -> list[str]:
        """Those of an earlier run's flags that ``variants`` depends on, as arguments."""
        return []

    def _flags_of_run(self, path: str, name: str) -> dict[str, Any]:
        flags = runs.read_flags(path, self.kind, flag=name)
        if not self.matches(flags):
            raise ValueError(f"{name} {path}: {runs.another_command(runs.read_manifest(path))}")
        return flags

    def _main(self, argv: list[str], prog: str) -> int:
        if {HELP, HELP_ALL, "-h"} & {*argv}:
            return super()._main(argv, prog)
        self._prog = prog
        given = self.parser(argv, prog).given(argv)
        out, resume, like = (given.pop(name, None) for name in ("out", "resume", "like"))
        if resume is not None and (out is not None or like is not None):
            raise ValueError("--resume: expected neither --out nor --like beside it")
        earlier: dict[str, Any] = {}
        if resume is not None or like is not None:
            name = "--like" if resume is None else "--resume"
            earlier = self._flags_of_run(str(resume or like), name)
        if resume is not None:
            fixed = {name: value for name, value in given.items() if name not in self.machine}
            runs.check_flags(earlier, fixed, str(resume))
        if like is not None:
            self._warn_of_unknown(earlier, argv, str(like))
        settings, names = self.completed(given, earlier, self.variants(self._chosen(argv)))
        folder = Path(resume or out or self.new_folder())
        self._folder = folder
        started = Context(tuple(argv), names, folder=folder, resume=resume is not None)
        self._out_given = out is not None or resume is not None
        code = self.start(settings, started)
        if self._first:
            _write_page(folder, self.kind, pictures=self.draws(settings))
        return code

    def _warn_of_unknown(self, earlier: Mapping[str, Any], argv: Sequence[str], run: str) -> None:
        """Warn of an earlier run's settings that this version lacks: a new run is without them.

        What only another method has is no news: its method was changed.
        """
        chosen = self._chosen(argv)
        others = {shown.removeprefix("--").replace("-", "_") for shown in self.elsewhere(chosen)}
        unknown = {*earlier} - {flag.name for flag in self.flags(chosen)} - others - self.stated
        if unknown:
            values = (f"{name.replace('_', '-')} {earlier[name]}" for name in sorted(unknown))
            warnings.warn(
                f"--like {run}: left out, this version has no such flags: --{', --'.join(values)}",
                stacklevel=2,
            )

    def context(
        self, settings: S, context: Context, processes: Ranks, device: torch.device
    ) -> Context:
        """The context, with a run folder that a new run can have."""
        if processes.world > 1 and not self._out_given:
            raise ValueError("torchrun: processes meet in a run folder, give --out")
        self._first = processes.first
        if processes.first and not context.resume:
            runs.check_new(context.run_folder)
        return super().context(settings, context, processes, device)


def _write_page(folder: Path, kind: str, *, pictures: bool) -> None:
    """Write the page and the card of a finished run; a failure is a warning: the run is done."""
    import pycc.commands.report  # noqa: F401  (registers the page of every kind)
    from pycc.report import page

    if kind not in page.contents.names() or not (folder / runs.SUMMARY).exists():
        return
    try:
        page.write_run(folder, page.Options(pictures=pictures))
    except Exception as error:
        warnings.warn(
            f"{folder}: no {page.REPORT}: {reason(error)}; try again with: pycc report {folder}",
            stacklevel=2,
        )


def folder_by_time(name: str) -> str:
    """The run folder of a command if none is given."""
    return f"runs/{name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
