"""The end of every call: exit codes, one line for each error, warnings, a closed output."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pycc import data, models
from pycc.checks import naming
from pycc.commands import main
from pycc.commands.entry import ended
from pycc.models import CounterModel


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(error: BaseException) -> int:
        raise error

    assert ended(lambda: 0) == 0
    assert ended(lambda: 1) == 1
    assert capsys.readouterr().err == ""
    assert ended(lambda: fail(ValueError("two\n  lines"))) == 2
    assert capsys.readouterr().err == "error: two lines\n"
    assert ended(lambda: fail(PermissionError(13, "Permission denied", "/x"))) == 2
    assert capsys.readouterr().err == "error: /x: Permission denied\n"
    assert ended(lambda: fail(KeyboardInterrupt()), stopped=lambda: "; go on") == 130
    assert capsys.readouterr().err == "stopped; go on\n"


def test_a_termination_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)

    def terminated() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        return 0

    assert ended(terminated, stopped=lambda: "; go on") == 143
    assert capsys.readouterr().err == "stopped; go on\n"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    handled: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: handled.append(number))
    try:  # of a program that calls a command
        assert ended(lambda: os.kill(os.getpid(), signal.SIGTERM) or 0) == 0
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert handled == [signal.SIGTERM]


def too_much() -> int:
    torch.empty(1 << 45)  # the allocator refuses 140 TB at once
    return 0


def by_the_machine() -> int:
    raise MemoryError


@pytest.mark.parametrize(
    ("work", "least"), [(too_much, "at least 1.4e+05 GB more are needed; "), (by_the_machine, "")]
)
def test_a_lack_of_memory_is_one_line_with_the_image(
    work: Callable[[], int], least: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def at_an_image() -> int:
        with naming("all of them"), naming("IMG_7", (3, 4000, 5000)):
            return work()

    rest = f"{least}take smaller images (pycc data convert --max-side N), fewer at once, "
    rest += "or a machine with more memory\n"
    assert ended(at_an_image) == 2
    printed = capsys.readouterr().err
    assert printed == f"error: out of memory at image IMG_7 of 4000x5000 pixels: {rest}"
    assert ended(work) == 2
    assert capsys.readouterr().err == f"error: out of memory: {rest}"


def test_a_bug_is_one_line_and_no_failed_check(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        with naming("IMG_7"):
            return data.open("synthetic", limit=1)[0].image.foo  # type: ignore[attr-defined]

    assert ended(work) == 2
    assert capsys.readouterr().err == (
        "error: unexpected AttributeError: 'Tensor' object has no attribute 'foo'; image IMG_7; "
        "--debug shows the traceback\n"
    )
    assert ended(work, debug=True) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback (most recent call last):")
    assert printed.splitlines()[-1].startswith("error: unexpected AttributeError: ")

    def inside() -> int:
        return len(data.open("synthetic", limit=1)["first"])  # type: ignore[call-overload]

    assert ended(inside) == 2
    assert re.match(
        r"error: unexpected TypeError in dataset\.py, line \d+: .*; --debug shows the traceback\n",
        capsys.readouterr().err,
    )


MEMORY = {
    "attack": ["--attack", "clean", "--data", "one", "--out", "run"],
    "attack patch": ["--data", "one", "--patch-size", "8", "--steps", "1", "--out", "run"],
    "attack photo": ["--photo", "one", "other", "--out", "run"],
}


@pytest.mark.parametrize("name", MEMORY)
def test_a_counter_that_needs_too_much_ends_every_command(
    name: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        (sample,) = data.open("synthetic", limit=1, shape=(64, 96), heads=3)
        data.save_image(tmp_path / folder / "huge.png", sample.image)
        (tmp_path / folder / "huge.json").write_text(json.dumps(sample.points.tolist()))
    monkeypatch.chdir(tmp_path)

    def run(self: object, x: torch.Tensor) -> torch.Tensor:
        return torch.empty(1 << 45) if x.shape[-2:] == (64, 96) else network(self, x)

    network = CounterModel.run
    models.save(models.create("mcnn"), "weights.npz", metadata={})
    monkeypatch.setattr(CounterModel, "run", run)
    assert main(name.split()[0], [*MEMORY[name], "--weights", "weights.npz"]) == 2
    (error,) = (e for e in capsys.readouterr().err.splitlines() if e.startswith("error: "))
    assert re.match(r"error: out of memory at image (.*/)?huge(\.png)? of 64x96 pixels: ", error)


def test_a_warning_is_one_line_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        for _ in range(3):
            warnings.warn("three points\n dropped", stacklevel=1)
        warnings.warn("something of the code", DeprecationWarning, stacklevel=1)
        return 0

    assert ended(work) == 0
    assert capsys.readouterr().err == "warning: three points dropped\n"


def test_a_reader_that_closes_the_output_is_no_error() -> None:
    """As ``pycc models list | head -1``."""
    code = (
        "import os, sys; read, write = os.pipe(); os.close(read); os.dup2(write, 1)\n"
        "from pycc.commands import main\n"
        "sys.exit(main('models', ['list']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "")


# The machine
