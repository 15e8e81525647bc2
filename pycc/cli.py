"""What all commands share: flags, one-line errors, warnings, progress."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
import traceback
import types
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, TextIO

import torch

from pycc.checks import lacks_memory

DONE, FAILED, BAD_INPUT, STOPPED = 0, 1, 2, 130
"""Exit codes: done; a check or certificate failed; bad usage or input, out of memory, or whatever
else ended the work; stopped by the keyboard."""
ENDS = "2 bad usage or input, out of memory, or anything else that stopped the work"
"""Exit code 2 as the help of every command explains it."""
DEBUG = "--debug"
"""The flag of every command that shows tracebacks; ``command`` takes it off the arguments."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are raised, so that bad usage ends like bad input: in one line.

    Flags that are not given leave no attribute behind: what was asked for is told from defaults.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(argument_default=argparse.SUPPRESS, allow_abbrev=False, **options)
        self.add_argument(DEBUG, action="store_true", help="show the traceback of an error")

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise ValueError(message)


def number(text: str) -> int | float:
    """An int where it is written as one, else a float: 20 is pixels, 0.02 a share."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def pair(text: str) -> tuple[str, Any]:
    """NAME=VALUE; the value is read as JSON where it is JSON, else as it stands."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def add_fields(group: argparse._ArgumentGroup, flags: type[Any]) -> None:
    """One flag for each field of a dataclass.

    The type comes from the annotation; ``help``, ``choices`` and ``metavar`` from the field's
    metadata. ``patch_size`` has its plural as name and takes several values.
    """
    hints = typing.get_type_hints(flags)
    for entry in fields(flags):
        options: dict[str, Any] = {
            name: value
            for name, value in entry.metadata.items()
            if value is not None and name not in ("advanced", "names", "positional")
        }
        many = entry.name == "patch_size"
        text = str(options.pop("help"))
        if entry.default not in (None, MISSING) and not many:
            shown = f"{entry.default:.4g}" if isinstance(entry.default, float) else entry.default
            text += f" (default: {shown})"
        options |= _conversion(hints[entry.name])
        name = "--" + entry.name.replace("_", "-") + ("s" if many else "")
        if many:
            options |= {"nargs": "+", "metavar": entry.name.upper()}
        group.add_argument(name, help=text.replace("%", "%%"), **options)


def _conversion(annotation: Any) -> dict[str, Any]:
    """How argparse reads a field of this type."""
    kinds = [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        kinds = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
    if kinds == [int, float]:
        return {"type": number}
    (kind,) = kinds
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)
        return {"type": inner[0], "nargs": len(inner)}
    if typing.get_origin(kind) is list:
        return {"type": typing.get_args(kind)[0], "nargs": "+"}
    if typing.get_origin(kind) is dict:
        return {"type": pair, "action": "append", "metavar": "NAME=VALUE"}
    return {"type": kind}


def command(
    work: Callable[[list[str]], int], argv: Sequence[str], *, stopped: Callable[[], str] = str
) -> int:
    """Run a command's work on its arguments and turn its end into an exit code.

    Bad input (ValueError, OSError, a missing library), a lack of memory and every other exception
    are one line on stderr and exit code 2, with a traceback before it under ``--debug`` alone. A
    keyboard interrupt is 130 with what ``stopped`` says; a warning is one line, said once.
    """
    debug = DEBUG in argv
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = _Warnings().show
        try:
            return work([one for one in argv if one != DEBUG])
        except KeyboardInterrupt:
            say(f"stopped{stopped()}")
            return STOPPED
        except BrokenPipeError:  # the reader of the output has closed it, as head does
            sys.stdout = None  # nothing is left to flush at exit
            return BAD_INPUT
        except Exception as error:  # whatever it is: exit code 1 is for a check that failed
            if debug:
                traceback.print_exc()
            say(f"error: {_reason(error)}")
            return BAD_INPUT


def say(text: str, stream: TextIO | None = None) -> None:
    """One line on stderr."""
    print(" ".join(text.split()), file=stream or sys.stderr, flush=True)


def _reason(error: Exception) -> str:
    """What went wrong, in one line, with the image at hand where ``naming`` knows it."""
    text = str(error) or type(error).__name__
    if lacks_memory(error):
        notes = getattr(error, "__notes__", [])
        asked = re.search(r"allocate (\d+) bytes", text)
        least = f"at least {int(asked[1]) / 1e9:.2g} GB more are needed; " if asked else ""
        at = "".join(f" at {note}" for note in notes)
        fewer = "smaller images (python -m pycc.data export --max-side N), fewer at once, or "
        if any(note.startswith("weights ") for note in notes):  # no image is at hand yet
            fewer = ""
        return f"out of memory{at}: {least}take {fewer}a machine with more memory"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ValueError | OSError | ImportError):
        return text
    frames = traceback.extract_tb(error.__traceback__)
    here = Path(__file__)
    own = [f for f in frames if here.parent in Path(f.filename).parents and f.filename != str(here)]
    at = f" in {Path(own[-1].filename).name}, line {own[-1].lineno}" if own else ""
    notes = "".join(f"; {note}" for note in getattr(error, "__notes__", []))
    return f"unexpected {type(error).__name__}{at}: {text}{notes}; {DEBUG} shows the traceback"


class _Warnings:
    """Says each user warning once, in one line; those about code are for its authors."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def show(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """In place of ``warnings.showwarning``."""
        text = str(message)
        if issubclass(category, UserWarning) and text not in self._said:
            self._said.add(text)
            say(f"warning: {text}")


def device(name: str) -> torch.device:
    """The device of this name; ValueError if there is none."""
    try:
        found = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device: expected cpu or cuda[:N], got {name!r}") from None
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"--device: expected cpu or cuda[:N], got {name!r}")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device: expected a device that is there, got {name!r}")
    return found


def device_of(given: Mapping[str, Any], stored: object) -> torch.device:
    """The device asked for, else that of the run that goes on (its settings), else the CPU."""
    settings = {**(stored if isinstance(stored, Mapping) else {}), **given}
    return device(str(settings.get("device", "cpu")))


def check_same(stored: Mapping[str, Any], given: Mapping[str, Any], folder: str) -> None:
    """Refuse flags that contradict the settings of the run that is resumed; names the first."""
    for name, value in given.items():
        now = json.loads(json.dumps(value))
        if stored.get(name) != now:
            raise ValueError(
                f"--resume {folder}: a resumed run keeps its settings; "
                f"--{name.replace('_', '-')} was {stored.get(name)!r}, got {now!r}"
            )


def set_threads(threads: int | None) -> int:
    """Set torch's number of threads, or leave it at None; returns what it then is.

    ValueError for none, or more than four a core.
    """
    if threads is not None:
        most = 4 * (os.cpu_count() or 1)
        if not isinstance(threads, int) or not 1 <= threads <= most:
            raise ValueError(f"--threads must be within [1, {most}], got {threads!r}")
        torch.set_num_threads(threads)
    return torch.get_num_threads()


class Progress:
    """How far a command is, with rate and time left: a bar on a terminal, else plain lines.

    ``every`` is the seconds between two lines; ``clock`` returns seconds that never go back, by
    default those of ``Progress.clock``.
    """

    clock: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(
        self,
        unit: str,
        stream: TextIO | None = None,
        *,
        every: float = 10.0,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._unit = unit
        self._stream = stream or sys.stderr
        self._every = every
        self._clock = clock or self.clock
        self._last = self._clock()
        self._first: tuple[float, float] | None = None
        self._bar: Any = None
        if self._stream.isatty() and find_spec("tqdm") is not None:
            from tqdm import tqdm

            self._bar = tqdm(
                file=self._stream,
                total=1.0,
                bar_format="{percentage:3.0f}%|{bar}| {elapsed}<{remaining}, {postfix}",
            )

    def __call__(self, done: float, total: float, label: str, /) -> None:
        """Tell that ``done`` of ``total`` units are through; ``label`` says what goes on.

        The rate is that since the first call: what was done before a resumed run began is no work
        of this one.
        """
        now = self._clock()
        before, start = self._first = self._first or (done, now)
        share = min(1.0, done / total) if total > 0 else 1.0
        rate = (done - before) / max(now - start, 1e-9)
        if self._bar is not None:
            self._bar.set_postfix_str(f"{rate:.2f} {self._unit}/s, {label}", refresh=False)
            self._bar.update(share - self._bar.n)
        elif now - self._last >= self._every:
            self._last = now
            told = [f"{100 * share:.0f} %"]
            if rate > 0:
                left = round((total - done) / rate)
                clock = f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
                told += [f"{rate:.2f} {self._unit}/s", clock]
            say(f"{', '.join(told)}: {label}", self._stream)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.close()
