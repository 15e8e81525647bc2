"""Commands as processes of their own, on a machine of any load."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

HANG = 3600.0
"""Seconds after which a process hangs, however busy the machine is."""

_PROGRESS = re.compile(r"\d+ %(, \S+ \S+/s, \d+:\d\d:\d\d left)?: .*")


def messages(stderr: str) -> list[str]:
    """The lines of a command's stderr, without its progress, which comes by the clock."""
    return [line for line in stderr.splitlines() if not _PROGRESS.fullmatch(line)]


def environment() -> dict[str, str]:
    """One thread per process, on the loopback address; tests can be imported."""
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]
    return {
        **os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }  # fmt: skip


def python(*program: object, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """``python PROGRAM``, in several processes of torchrun if there are to be more than one."""
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
                   str(processes)]  # fmt: skip
    return subprocess.run(
        [*launch, *map(str, program)],
        capture_output=True, text=True, env=environment(), timeout=HANG,
    )  # fmt: skip


def two_nodes(*program: object) -> list[subprocess.CompletedProcess[str]]:
    """``python PROGRAM`` by two launchers, as on two machines, which meet on the loopback address.

    Two machines that share a folder see the same files, as these do.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank",
             str(rank), "--master-addr", "127.0.0.1", "--master-port", str(port),
             "--nproc-per-node", "1", *map(str, program)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
        )
        for rank in range(2)
    ]  # fmt: skip
    printed = [node.communicate(timeout=HANG) for node in nodes]
    return [
        subprocess.CompletedProcess(node.args, node.returncode, *texts)
        for node, texts in zip(nodes, printed, strict=True)
    ]


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
