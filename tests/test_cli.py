from __future__ import annotations

import argparse
import importlib
import io
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from pycc import cli, data, models
from pycc.checks import naming
from pycc.models import CounterModel


@dataclass
class Flags:
    whole: int = field(default=3, metadata={"help": "a number, 5 % or so"})
    share: float | None = field(default=None, metadata={"help": "none by default"})
    side: int | float = field(default=0.5, metadata={"help": "either", "many": True})
    kind: str = field(default="a", metadata={"help": "which", "choices": ["a", "b"]})
    place: tuple[int, int] | None = field(default=None, metadata={"help": "where"})
    careful: bool = field(default=True, metadata={"help": "or not"})
    option: dict[str, Any] = field(default_factory=dict, metadata={"help": "several"})


def parse(*argv: str) -> dict[str, Any]:
    parser = cli.Parser(prog="test")
    cli.add_fields(parser.add_argument_group("g"), Flags)
    return vars(parser.parse_args(list(argv)))


def test_flags_come_from_the_fields() -> None:
    assert parse() == {}
    assert parse("--whole", "4", "--share", "1e-3", "--sides", "20", "0.02", "--kind", "b") == {
        "whole": 4,
        "share": 1e-3,
        "sides": [20, 0.02],
        "kind": "b",
    }
    assert parse("--place", "-1", "2", "--no-careful") == {"place": [-1, 2], "careful": False}
    assert parse("--option", "a=1", "--option", "b=x=y", "--option", "c=true")["option"] == [
        ("a", 1),
        ("b", "x=y"),
        ("c", True),
    ]


@pytest.mark.parametrize(
    "argv",
    [["--whole", "1.5"], ["--kind", "c"], ["--place", "1"], ["--option", "a"], ["--who", "1"],
     ["--sides", "x"], ["more"]],
)  # fmt: skip
def test_bad_usage_is_raised(argv: list[str]) -> None:
    with pytest.raises(ValueError, match=argv[0]):
        parse(*argv)


def test_help_shows_defaults_and_per_cent() -> None:
    parser = cli.Parser(prog="test")
    cli.add_fields(parser.add_argument_group("g"), Flags)
    text = " ".join(parser.format_help().split())
    assert "a number, 5 % or so (default: 3)" in text
    assert "none by default --sides" in text


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(error: BaseException) -> int:
        raise error

    assert cli.command(lambda argv: len(argv), []) == 0
    assert cli.command(lambda argv: len(argv), ["--flag"]) == 1
    assert capsys.readouterr().err == ""
    assert cli.command(lambda _: fail(ValueError("two\n  lines")), []) == 2
    assert capsys.readouterr().err == "error: two lines\n"
    assert cli.command(lambda _: fail(PermissionError(13, "Permission denied", "/x")), []) == 2
    assert capsys.readouterr().err == "error: /x: Permission denied\n"
    assert cli.command(lambda _: fail(KeyboardInterrupt()), [], stopped=lambda: "; go on") == 130
    assert capsys.readouterr().err == "stopped; go on\n"


def too_much(_: list[str]) -> int:
    torch.empty(1 << 45)  # the allocator refuses 140 TB at once
    return 0


def by_the_machine(_: list[str]) -> int:
    raise MemoryError


@pytest.mark.parametrize(
    ("work", "least"), [(too_much, "at least 1.4e+05 GB more are needed; "), (by_the_machine, "")]
)
def test_a_lack_of_memory_is_one_line_with_the_image(
    work: Callable[[list[str]], int], least: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def at_an_image(argv: list[str]) -> int:
        with naming("all of them"), naming("IMG_7", (3, 4000, 5000)):
            return work(argv)

    rest = f"{least}take smaller images (python -m pycc.data export --max-side N), fewer at once, "
    rest += "or a machine with more memory\n"
    assert cli.command(at_an_image, []) == 2
    said = capsys.readouterr().err
    assert said == f"error: out of memory at image IMG_7 of 4000x5000 pixels: {rest}"
    assert cli.command(work, []) == 2
    assert capsys.readouterr().err == f"error: out of memory: {rest}"


def test_a_bug_is_one_line_and_no_failed_check(capsys: pytest.CaptureFixture[str]) -> None:
    def work(argv: list[str]) -> int:
        assert argv == ["--flag"]
        with naming("IMG_7"):
            return data.open("synthetic", limit=1)[0].image.foo  # type: ignore[attr-defined]

    assert cli.command(work, ["--flag"]) == 2
    said = capsys.readouterr().err
    assert said == (
        "error: unexpected AttributeError: 'Tensor' object has no attribute 'foo'; image IMG_7; "
        "--debug shows the traceback\n"
    )
    assert cli.command(work, ["--debug", "--flag"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last):")
    assert said.splitlines()[-1].startswith("error: unexpected AttributeError: ")

    def inside(_: list[str]) -> int:
        return len(data.open("synthetic", limit=1)["first"])  # type: ignore[call-overload]

    assert cli.command(inside, []) == 2
    assert re.match(
        r"error: unexpected TypeError in dataset\.py, line \d+: .*; --debug shows the traceback\n",
        capsys.readouterr().err,
    )


@pytest.mark.parametrize("module", ["attack", "certify", "train"])
def test_every_command_has_the_flag(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    main = importlib.import_module(f"pycc.{module}.__main__").main
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--debug" in capsys.readouterr().out
    assert main(["--debug", "--no-such-flag"]) == 2
    assert "Traceback" in capsys.readouterr().err
    assert main(["--no-such-flag"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


COMMANDS = {
    "attack": ["--attack", "none", "--data", "one"],
    "attack patch": ["--data", "one", "--sizes", "8", "--steps", "1"],
    "attack photo": ["--photo", "one", "other"],
    "certify": ["--data", "one", "--patch", "8", "--allowance", "1"],
    "train": ["--data", "one", "--validation-share", "0", "--epochs", "1", "--crop", "whole"],
    "backdoor evaluate": ["--data", "one", "--strategy", "minus", "--no-pictures"],
}


@pytest.mark.parametrize("name", COMMANDS)
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
    module, *mode = name.split()
    main = importlib.import_module(f"pycc.{module}.__main__").main
    if module == "backdoor":
        main = partial(main, module)
    models.save(models.create("mcnn"), "weights.npz", metadata={})
    monkeypatch.setattr(CounterModel, "run", run)
    steps = mode if module == "backdoor" else []
    assert main([*steps, *COMMANDS[name], "--weights", "weights.npz", "--out", "run"]) == 2
    (error,) = (e for e in capsys.readouterr().err.splitlines() if e.startswith("error: "))
    assert re.match(r"error: out of memory at image (.*/)?huge(\.png)? of 64x96 pixels: ", error)


def test_a_warning_is_one_line_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    def work(_: list[str]) -> int:
        for _ in range(3):
            warnings.warn("three points\n dropped", stacklevel=1)
        warnings.warn("something of the code", DeprecationWarning, stacklevel=1)
        return 0

    assert cli.command(work, []) == 0
    assert capsys.readouterr().err == "warning: three points dropped\n"


def test_progress_as_lines() -> None:
    now = [0.0]
    stream = io.StringIO()
    progress = cli.Progress("megapixels", stream, every=10, clock=lambda: now[0])
    for step in range(1, 31):
        now[0] = step
        progress(0.5 * step, 4000.0, f"step {step}")
    progress.close()
    assert stream.getvalue().splitlines() == [
        "0 %, 0.50 megapixels/s, 2:13:10 left: step 10",
        "0 %, 0.50 megapixels/s, 2:13:00 left: step 20",
        "0 %, 0.50 megapixels/s, 2:12:50 left: step 30",
    ]


def test_progress_of_a_resumed_run_has_the_rate_of_this_one() -> None:
    now = [0.0]
    stream = io.StringIO()
    progress = cli.Progress("batches", stream, every=10, clock=lambda: now[0])
    for second in range(21):
        now[0] = second
        progress(30_001 + 2 * second, 40_041, f"batch {second}")
    assert stream.getvalue().splitlines() == [
        "75 %, 2.00 batches/s, 1:23:30 left: batch 10",
        "75 %, 2.00 batches/s, 1:23:20 left: batch 20",
    ]


def test_progress_as_a_bar() -> None:
    pytest.importorskip("tqdm")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    progress = cli.Progress("megapixels", stream)
    progress(2.0, 4.0, "half")
    progress(4.0, 4.0, "whole")
    progress.close()
    assert "100%" in stream.getvalue()
    assert "megapixels/s, whole" in stream.getvalue()


def test_progress_without_work() -> None:
    cli.Progress("megapixels", io.StringIO(), every=0)(0.0, 0.0, "nothing")


@pytest.mark.parametrize("name", ["abacus", "cuda:99", "mps", "cpu:x", ""])
def test_no_such_device(name: str) -> None:
    with pytest.raises(ValueError, match="--device: expected"):
        cli.device(name)


def test_a_resumed_run_stays_on_its_device() -> None:
    stored = {"device": "cuda:99"}
    with pytest.raises(ValueError, match="expected a device that is there, got 'cuda:99'"):
        cli.device_of({}, stored)
    assert cli.device_of({"device": "cpu"}, stored).type == "cpu"
    assert cli.device_of({}, None).type == "cpu"


def test_check_same_names_the_flag() -> None:
    cli.check_same({"step_size": 0.1, "sizes": [1, 2]}, {"sizes": (1, 2)}, "run")
    with pytest.raises(ValueError, match=r"--step-size was 0\.1, got 0\.2"):
        cli.check_same({"step_size": 0.1}, {"step_size": 0.2}, "run")


def test_pairs() -> None:
    assert cli.pair("a=[1, 2]") == ("a", [1, 2])
    assert cli.pair("a=") == ("a", "")
    with pytest.raises(argparse.ArgumentTypeError, match="NAME=VALUE"):
        cli.pair("=1")


def test_a_reader_that_closes_the_output_is_no_error(tmp_path: Path) -> None:
    """As ``python -m pycc.models list | head -1``."""
    code = (
        "import os, sys; read, write = os.pipe(); os.close(read); os.dup2(write, 1)\n"
        "from pycc.models.__main__ import main\n"
        "sys.exit(main(['list']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "")
