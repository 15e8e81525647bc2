"""A run killed with SIGKILL, again and again, and resumed gives the bytes of one that was not."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.processes import kill

import pycc
from pycc.commands import main

SETTINGS = [
    "--preset", "paper", "--patch-size", "10", "0.3", "--steps", "20", "--threads", "1",
    "--pgd-steps", "2", "--no-checks", "--no-pictures",
]  # fmt: skip
RESULTS = 3 * (1 + 1 + 2 * 5)
APPEND = "pycc.runs.folder.Run.append"
IMAGE = "pycc.attack.evaluation.recorder.save_image"
"""After an image is written, and before the result that it belongs to."""


def lines(out: Path) -> int:
    return (out / "results.jsonl").read_bytes().count(b"\n")


@pytest.mark.long
def test_killed_and_resumed(folder: Path, mcnn_weights: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "killed"
    asked = ["--data", str(folder), "--weights", str(mcnn_weights), *SETTINGS]
    assert main("attack", [*asked, "--out", str(whole)]) == 0

    env = {"PYTHONPATH": str(Path(pycc.__file__).parents[1])}
    kill("pycc.attack", *asked, "--out", out, at=APPEND, times=3, env=env)
    assert lines(out) == 3
    kill("pycc.attack", "--resume", out, at=IMAGE, times=2, env=env)
    assert lines(out) == 4
    kill("pycc.attack", "--resume", out, at=APPEND, times=RESULTS - 8, env=env)
    assert lines(out) == RESULTS - 4
    with (out / "results.jsonl").open("ab") as file:
        file.write(b'{"area": 0.25, "condition": "ap')
    assert not (out / "summary.json").exists()
    assert main("attack", ["--resume", str(out)]) == 0

    for name in ("results.jsonl", "summary.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    for kind in ("images", "patches"):
        for file in (whole / kind).iterdir():
            assert (out / kind / file.name).read_bytes() == file.read_bytes()
