from __future__ import annotations

import argparse
import io
import warnings
from dataclasses import dataclass, field
from typing import Any

import pytest

from pycc import cli


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

    assert cli.command(lambda: 0) == 0
    assert cli.command(lambda: 1) == 1
    assert capsys.readouterr().err == ""
    assert cli.command(lambda: fail(ValueError("two\n  lines"))) == 2
    assert capsys.readouterr().err == "error: two lines\n"
    assert cli.command(lambda: fail(PermissionError(13, "Permission denied", "/x"))) == 2
    assert capsys.readouterr().err == "error: /x: Permission denied\n"
    assert cli.command(lambda: fail(KeyboardInterrupt()), stopped=lambda: "; go on") == 130
    assert capsys.readouterr().err == "stopped; go on\n"
    with pytest.raises(RuntimeError, match="a bug"):
        cli.command(lambda: fail(RuntimeError("a bug")))


def test_a_warning_is_one_line_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        for _ in range(3):
            warnings.warn("three points\n dropped", stacklevel=1)
        warnings.warn("something of the code", DeprecationWarning, stacklevel=1)
        return 0

    assert cli.command(work) == 0
    assert capsys.readouterr().err == "warning: three points dropped\n"


def test_progress_as_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stream = io.StringIO()
    progress = cli.Progress("megapixels", stream, every=10)
    for step in range(1, 31):
        now[0] = step
        progress(0.5 * step, 4000.0, f"step {step}")
    progress.close()
    assert stream.getvalue().splitlines() == [
        "0 %, 0.50 megapixels/s, 2:13:10 left: step 10",
        "0 %, 0.50 megapixels/s, 2:13:00 left: step 20",
        "0 %, 0.50 megapixels/s, 2:12:50 left: step 30",
    ]


def test_progress_of_a_resumed_run_has_the_rate_of_this_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stream = io.StringIO()
    progress = cli.Progress("batches", stream, every=10)
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
