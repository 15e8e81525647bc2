"""The entries of the command line, called by name, and the end of every call.

It imports no torch, so that ``pycc --help`` and a mistyped name are answered at once.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import traceback
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TextIO

from pycc.commands.progress import say
from pycc.registry import nearest

HELP, HELP_ALL, DEBUG, IMPORT = "--help", "--help-all", "--debug", "--import"
DONE, FAILED, BAD_INPUT, STOPPED, TERMINATED = 0, 1, 2, 130, 143
"""Exit codes: done; a check or certificate failed; bad usage or input, out of memory, or anything
else that stopped the work; interrupted from the keyboard; terminated by a signal (SIGTERM)."""
FAILURE = "a check or certificate failed"
"""The meaning of the exit code 1, unless a command states another."""


def exit_codes(failure: str = FAILURE) -> str:
    """The sentence of the help about exit codes; 1 is for a ``failure``."""
    return (
        f"Exit codes: {DONE} done, {FAILED} {failure}, {BAD_INPUT} bad usage or input, out of "
        f"memory, or anything else that stopped the work, {STOPPED} interrupted, "
        f"{TERMINATED} terminated."
    )


class Entry(ABC):
    """An entry of the command line, called by name: a command, or a group of commands."""

    name: str
    """The word after ``pycc``."""
    summary: str
    """One sentence."""

    @abstractmethod
    def main(self, argv: Sequence[str], prog: str) -> int:
        """Run with these arguments; returns the exit code. ``prog`` is how help names it."""

    def loaded(self) -> Entry:
        """The entry itself, imported if it is not yet."""
        return self


class CommandGroup(Entry):
    """Commands behind one name, as in ``pycc models list``."""

    @property
    @abstractmethod
    def entries(self) -> Sequence[Entry]:
        """The commands."""

    def main(self, argv: Sequence[str], prog: str) -> int:
        """Run the command that the first argument names."""
        if argv and argv[0] not in (HELP, HELP_ALL, "-h"):
            for entry in self.entries:
                if entry.name == argv[0]:
                    return entry.main(argv[1:], f"{prog} {entry.name}")
        return ended(lambda: self._help(argv, prog), debug=DEBUG in argv)

    def _help(self, argv: Sequence[str], prog: str) -> int:
        names = [entry.name for entry in self.entries]
        if not argv or argv[0] not in (HELP, HELP_ALL, "-h"):
            got = f"got {argv[0]!r}{nearest(argv[0], names)}" if argv else "got none"
            raise ValueError(f"{prog}: expected one of {', '.join(names)}, {got}")
        print(f"usage: {prog} COMMAND ...\n\n{self.summary}\n\ncommands:")
        for entry in self.entries:
            print(f"  {entry.name:12} {entry.summary}")
        print(f"\n{prog} COMMAND {HELP} shows the flags of a command. {exit_codes()}", flush=True)
        return DONE


def ended(work: Callable[[], int], *, debug: bool = False, stopped: Callable[[], str] = str) -> int:
    """Do a command's work and turn its end into an exit code.

    Bad input (ValueError, OSError, a missing library), a lack of memory and every other exception
    are one line on stderr and exit code 2, with a traceback before it if ``debug``. An interrupt
    from the keyboard is 130 and a termination 143, with what ``stopped`` returns. A warning is one
    line, printed once.
    """
    with warnings.catch_warnings(), _heeding_termination():
        warnings.simplefilter("always")
        warnings.showwarning = _Warnings().show
        try:
            return work()
        except KeyboardInterrupt as stop:
            say(f"stopped{stopped()}")
            return TERMINATED if isinstance(stop, _Terminated) else STOPPED
        except BrokenPipeError:  # the reader of the output has closed it, as head does
            sys.stdout = None  # nothing is left to flush at exit
            return BAD_INPUT
        except Exception as error:  # exit code 1 is for a check that failed
            if debug:
                traceback.print_exc()
            say(f"error: {reason(error)}")
            return BAD_INPUT


class _Terminated(KeyboardInterrupt):
    """A SIGTERM, which stops the work as an interrupt from the keyboard does."""


@contextmanager
def _heeding_termination() -> Iterator[None]:
    """Raise ``_Terminated`` on SIGTERM inside the block, unless somebody handles the signal.

    Not under torchrun, whose agent terminates processes that may wait for each other.
    """
    heeds = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        and "TORCHELASTIC_RUN_ID" not in os.environ
    )
    if not heeds:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def reason(error: Exception) -> str:
    """Describe an error in one line, with the current image if ``naming`` knows it."""
    text = str(error) or type(error).__name__
    if isinstance(error, ValueError | ImportError):
        return text
    from pycc.checks import lacks_memory  # which imports torch

    if lacks_memory(error):
        notes = getattr(error, "__notes__", [])
        asked = re.search(r"allocate (\d+) bytes", text)
        least = f"at least {int(asked[1]) / 1e9:.2g} GB more are needed; " if asked else ""
        at = "".join(f" at {note}" for note in notes)
        fewer = "smaller images (pycc data convert --max-side N), fewer at once, or "
        if any(note.startswith("weights ") for note in notes):  # no image is at hand yet
            fewer = ""
        return f"out of memory{at}: {least}take {fewer}a machine with more memory"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if getattr(error, "one_line", False) or isinstance(error, OSError):
        return text
    root = Path(__file__).parents[1]
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if root in Path(frame.filename).parents and frame.filename != __file__
    ]
    at = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    notes = "".join(f"; {note}" for note in getattr(error, "__notes__", []))
    return f"unexpected {type(error).__name__}{at}: {text}{notes}; {DEBUG} shows the traceback"


class _Warnings:
    """Prints each user warning once, in one line; those about code are for its authors."""

    def __init__(self) -> None:
        self._printed: set[str] = set()

    def show(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """Replace ``warnings.showwarning``."""
        text = str(message)
        if issubclass(category, UserWarning) and text not in self._printed:
            self._printed.add(text)
            say(f"warning: {text}")
