"""Commands as processes of their own, on a machine of any load."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping

HANG = 3600.0
"""Seconds after which a process hangs, however busy the machine is."""

_PROGRESS = re.compile(r"\d+ %(, \S+ \S+/s, \d+:\d\d:\d\d left)?: .*")


def messages(stderr: str) -> list[str]:
    """The lines of a command's stderr, without its progress, which comes by the clock."""
    return [line for line in stderr.splitlines() if not _PROGRESS.fullmatch(line)]


_DYING = """
import os, pkgutil, runpy, signal, sys

owner, _, name = sys.argv[1].rpartition(".")
owner, left = pkgutil.resolve_name(owner), int(sys.argv[2])
call = getattr(owner, name)


def dying(*arguments, **options):
    global left
    result = call(*arguments, **options)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return result


setattr(owner, name, dying)
sys.argv = sys.argv[3:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def dying(module: str, *argv: object, at: str, times: int) -> list[str]:
    """``python -m MODULE ARGV`` that gets a SIGKILL as soon as ``at`` has returned so often.

    ``at`` is the dotted name of a function or method, where it is looked up when it is called. No
    test then races a process to kill it in time.
    """
    return [sys.executable, "-c", _DYING, at, str(times), module, *map(str, argv)]


def kill(
    module: str, *argv: object, at: str, times: int, env: Mapping[str, str] | None = None
) -> None:
    """Run a command until it is killed there; AssertionError if it ends before."""
    done = subprocess.run(
        dying(module, *argv, at=at, times=times),
        env={**os.environ, **(env or {})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=HANG,
    )
    assert done.returncode == -signal.SIGKILL, "it was over before it was killed"
