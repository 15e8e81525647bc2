"""A run killed with SIGKILL, again and again, and resumed gives the bytes of one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pycc import cli
from pycc.attack.__main__ import main

SETTINGS = [
    "--sizes", "10", "0.3", "--steps", "20", "--threads", "1", "--pgd-steps", "2", "--no-gates",
    "--no-pictures",
]  # fmt: skip
RESULTS = 3 * (1 + 1 + 2 * 5)


def start(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "pycc.attack", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def lines(out: Path) -> int:
    file = out / "results.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def kill_after(process: subprocess.Popen[bytes], out: Path, wanted: int) -> int:
    """SIGKILL as soon as so many results are there; returns how many there then are."""
    deadline = time.monotonic() + 120
    while lines(out) < wanted and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "it was over before it could be killed"
    return lines(out)


@pytest.mark.slow
def test_killed_and_resumed(folder: Path, weights: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "killed"
    asked = ["--data", str(folder), "--weights", str(weights), *SETTINGS]
    assert main([*asked, "--out", str(whole)]) == 0

    first = kill_after(start(*asked, "--out", out), out, 3)
    second = kill_after(start("--resume", out), out, first + 1)
    third = kill_after(start("--resume", out), out, RESULTS - 4)
    assert 3 <= first < second <= third < RESULTS
    with (out / "results.jsonl").open("ab") as file:
        file.write(b'{"area": 0.25, "condition": "ap')
    assert not (out / "summary.json").exists()
    assert main(["--resume", str(out)]) == 0

    for name in ("results.jsonl", "summary.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    for kind in ("images", "patches"):
        for file in (whole / kind).iterdir():
            assert (out / kind / file.name).read_bytes() == file.read_bytes()
