"""What every command does: flags, help, earlier runs, ends, devices."""

from __future__ import annotations

import argparse
import json
import os
import re
import runpy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import pycc
from pycc import runs
from pycc.commands import COMMANDS, ROOT, main
from pycc.commands.arguments import argument
from pycc.commands.base import (
    DONE,
    Command,
    CommandGroup,
    Context,
    Entry,
    RunCommand,
)
from pycc.commands.flags import Parser, pair
from pycc.commands.machine import device_of_name, set_threads
from pycc.settings import Options, build, flag, flags_of, group, values_of


@dataclass(frozen=True)
class Small:
    depth: int = flag(1, "of kind a")


@dataclass(frozen=True)
class Large(Small):
    width: int = flag(2, "of kind b", advanced=True)


@dataclass(frozen=True)
class Settings:
    whole: int = flag(3, "a number, 5 % or so")
    share: float | None = flag(None, "none by default")
    side: tuple[int | float, ...] = flag((0.5,), "either")
    kind: str = flag("a", "which", choices=["a", "b"])
    place: tuple[int, int] | None = flag(None, "where")
    careful: bool = flag(True, "or not")
    weights: str | None = flag(None, "a file", names=lambda: ("built-in",))
    option: Options = flag(help="several", factory=dict)
    device: str = flag("cpu", "cpu or cuda[:N]")
    threads: int | None = flag(None, "how many")
    more: Small = group(Small, "more")


def parser() -> Parser:
    return Parser("test", "", "", flags_of(Settings), {"--width": "--width: expected --kind b"})


def parse(*argv: str) -> dict[str, Any]:
    return parser().given(argv)


class Example(RunCommand[Settings]):
    """Writes a run folder; stops in the middle for whole 13."""

    name = "example"
    summary = "An example."
    settings = Settings
    kind = "example"

    def variants(self, argv: Sequence[str]) -> Mapping[str, type[Any]]:
        return {"more": Large if argument(argv, "--kind") == "b" else Small}

    def as_arguments(self, flags: Mapping[str, Any]) -> list[str]:
        return ["--kind", flags["kind"]]

    def presets(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"depth": 10} if given.get("kind") == "b" else {}

    def run(self, settings: Settings, context: Context) -> int:
        run = runs.open_or_resume(
            context.run_folder, kind="example", settings={"flags": values_of(settings)},
            fingerprints={}, key=("n",), command=context.command, machine=self.machine,
            resume=context.resume,
        )  # fmt: skip
        run.close()
        if settings.whole == 13:
            raise KeyboardInterrupt
        return DONE


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(tmp_path)

    def run(*argv: str, command: Entry | None = None) -> tuple[int, str, str]:
        code = (command or Example()).main(argv, "pycc example")
        return code, *capsys.readouterr()

    return run


def stored(folder: str) -> dict[str, Any]:
    return runs.read_flags(folder, "example")


# Flags


def test_flags_come_from_the_fields() -> None:
    assert parse() == {}
    assert parse("--whole", "4", "--share", "1e-3", "--side", "20", "0.02", "--kind", "b") == {
        "whole": 4,
        "share": 1e-3,
        "side": [20, 0.02],
        "kind": "b",
    }
    assert parse("--place", "-1", "2", "--no-careful") == {"place": [-1, 2], "careful": False}
    assert parse("--option", "a=1", "--option", "b=x=y", "--option", "c=true")["option"] == {
        "a": 1,
        "b": "x=y",
        "c": True,
    }
    assert parse("--depth", "5") == {"depth": 5}, "of a group"


@pytest.mark.parametrize(
    "argv",
    [["--whole", "1.5"], ["--kind", "c"], ["--place", "1"], ["--option", "a"], ["--who", "1"],
     ["--side", "x"], ["more"]],
)  # fmt: skip
def test_bad_usage_is_raised(argv: list[str]) -> None:
    with pytest.raises(ValueError, match=argv[0]):
        parse(*argv)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--sid", "1"], "unknown flag --sid; did you mean '--side'?"),
        (["--sid=1"], "unknown flag --sid; did you mean '--side'?"),
        (["--quux"], "unknown flag --quux"),
        (["--who"], "unknown flag --who; did you mean '--whole'?"),
        (["--kind", "c"], "--kind: expected one of a, b, got 'c'"),
        (["--kind", "a", "b"], "unexpected argument 'b': --kind takes one value, 'a'"),
        (["--width", "3"], "--width: expected --kind b"),
        (["--weights", "bild-in"], "--weights: bild-in does not exist; did you mean 'built-in'?"),
    ],
)
def test_what_is_mistyped_is_answered_with_the_nearest(argv: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        parse(*argv)


def test_paths_are_absolute_and_names_stay(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bild-in").write_text("")
    assert parse("--weights", "built-in") == {"weights": "built-in"}
    assert parse("--weights", "mine.pth") == {"weights": str(tmp_path / "mine.pth")}
    assert parse("--weights", "bild-in") == {"weights": str(tmp_path / "bild-in")}
    assert parse("--weights", "hf://org/counter") == {"weights": "hf://org/counter"}


def test_help_shows_defaults_per_cent_and_groups() -> None:
    text = " ".join(parser().text(everything=False).split())
    assert "a number, 5 % or so (default: 3)" in text
    assert "none by default --side" in text
    assert "more: --depth" in text


def test_help_all_shows_what_help_leaves_out(call) -> None:
    code, short, _ = call("--kind", "b", "--help")
    assert code == 0
    assert "--depth" in short
    assert "--width" not in short
    code, everything, _ = call("--kind", "b", "--help-all")
    assert code == 0
    assert "--width WIDTH" in everything
    assert "--width" not in call("--help-all")[1], "kind a has no such flag"
    assert call("-h")[1] == call("--help")[1]


def test_pairs() -> None:
    assert pair("a=[1, 2]") == ("a", [1, 2])
    assert pair("a=") == ("a", "")
    with pytest.raises(argparse.ArgumentTypeError, match="NAME=VALUE"):
        pair("=1")


def test_the_value_of_a_flag_before_parsing() -> None:
    assert argument(["--kind", "a", "x", "--kind=b"], "--kind") == "b"
    assert argument(["--kind=", "--kinds", "c"], "--kind") == ""
    assert argument(["--kind"], "--kind") is None


# Earlier runs


def test_a_run_stores_every_setting(call) -> None:
    assert call("--kind", "b", "--whole", "4", "--out", "one") == (0, "", "")
    flags = stored("one")
    assert flags == values_of(build(Settings, flags, {"more": Large}))
    assert (flags["kind"], flags["whole"], flags["width"]) == ("b", 4, 2)
    assert flags["depth"] == 10, "by the preset"
    assert call("--kind", "b", "--depth", "3", "--out", "two")[0] == 0
    assert stored("two")["depth"] == 3, "what is given wins over the preset"
    code, _, err = call("--out", "one")
    assert code == 2
    assert "new or empty folder" in err


def test_like_takes_an_earlier_runs_settings_as_defaults(call) -> None:
    call("--kind", "b", "--whole", "4", "--width", "8", "--out", "one")
    assert call("--like", "one", "--whole", "5", "--out", "two") == (0, "", "")
    assert stored("two") == {**stored("one"), "whole": 5}
    assert call("--like", "one", "--width", "9", "--out", "three")[0] == 0
    assert stored("three")["width"] == 9, "a flag of the variant that the earlier run chose"
    assert "expected a run folder" in call("--like", "nowhere", "--out", "four")[2]
    assert not Path("four").exists()


def test_settings_that_this_version_lacks_are_named(call) -> None:
    call("--kind", "b", "--whole", "4", "--out", "one")
    manifest = json.loads(Path("one/manifest.json").read_text())
    manifest["settings"]["flags"] |= {"old_flag": 3, "command": "example"}
    Path("one/manifest.json").write_text(json.dumps(manifest))
    code, _, err = call("--like", "one", "--out", "two")
    assert code == 0
    assert err == (
        "warning: --like one: left out, this version has no such flags: --command example, "
        "--old-flag 3\n"
    )
    assert stored("two")["whole"] == 4
    code, _, err = call("--resume", "one")
    assert code == 2, "a run goes on with all its settings or not at all"
    assert "flags.old_flag was 3" in err


def test_resume_keeps_settings_but_those_of_the_machine(call) -> None:
    call("--kind", "b", "--whole", "4", "--out", "one")
    assert call("--resume", "one") == (0, "", "")
    assert call("--resume", "one", "--whole", "4")[0] == 0
    code, _, err = call("--resume", "one", "--whole", "5")
    assert (code, err.count("\n")) == (2, 1)
    assert "--whole was 4, got 5" in err
    code, _, err = call("--resume", "one", "--device", "cuda:99")
    assert code == 2
    assert "expected a device of this machine" in err, "another device is allowed, if it exists"
    assert "neither --out nor --like" in call("--resume", "one", "--out", "two")[2]
    assert "neither --out nor --like" in call("--resume", "one", "--like", "one")[2]


def test_an_interrupt_says_how_to_continue(call) -> None:
    code, out, err = call("--whole", "13", "--out", "one")
    assert (code, out) == (130, "")
    assert err == "stopped; continue with: pycc example --resume one\n"


def test_the_default_folder_is_named_by_the_time(call) -> None:
    assert call()[0] == 0
    (run,) = Path("runs").iterdir()
    assert run.name.startswith("example-2")


def test_a_flag_without_default_is_needed(call) -> None:
    @dataclass(frozen=True)
    class Needed:
        size: int = flag(help="no default")

    class Needy(Command[Needed]):
        name, summary, settings = "needy", "", Needed

        def run(self, settings: Needed, context: Context) -> int:
            return settings.size

    assert call(command=Needy()) == (2, "", "error: --size is needed\n")
    assert call("--size", "1", command=Needy()) == (1, "", "")


# Ends


def test_debug_is_no_flag_of_the_work(call, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call("--debug", "--no-such-flag")
    assert code == 2
    assert "Traceback" in err
    assert call("--debug", "--whole", "4", "--out", "one") == (0, "", "")
    assert runs.read_manifest("one")["command"] == ["--whole", "4", "--out", "one"]


CONVERTED = ["attack", "data", "models"]


@pytest.mark.parametrize("name", CONVERTED)
def test_every_command_has_the_flag(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(name, ["--help"]) == 0
    assert "--help" in capsys.readouterr().out
    assert main(name, ["--debug", "--no-such-flag"]) == 2
    assert "Traceback" in capsys.readouterr().err
    assert main(name, ["--no-such-flag"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_root_names_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv=["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in COMMANDS)
    assert main(argv=["atack"]) == 2
    assert "got 'atack'; did you mean 'attack'?" in capsys.readouterr().err
    assert main(argv=[]) == 2
    assert "got none" in capsys.readouterr().err


def test_a_group_of_commands(call) -> None:
    class Group(CommandGroup):
        name, summary = "group", "Some."
        entries = (Example(),)

    assert call("example", "--out", "one", command=Group())[0] == 0
    assert "did you mean 'example'?" in call("exmple", command=Group())[2]
    assert "  example      An example." in call("--help", command=Group())[1]


@pytest.mark.parametrize("name", ["abacus", "cuda:99", "mps", "cpu:x", ""])
def test_no_such_device(name: str) -> None:
    with pytest.raises(ValueError, match="--device: expected"):
        device_of_name(name)


def test_a_resumed_run_stays_on_its_device(call) -> None:
    call("--out", "one")
    manifest = json.loads(Path("one/manifest.json").read_text())
    manifest["settings"]["flags"]["device"] = "cuda:99"
    Path("one/manifest.json").write_text(json.dumps(manifest))
    err = call("--resume", "one")[2]
    assert "expected a device of this machine, got 'cuda:99'" in err
    assert call("--resume", "one", "--device", "cpu")[0] == 0


def test_the_number_of_threads_belongs_to_the_settings(call, with_threads) -> None:
    """The order of sums depends on it. A run keeps the number that it began with."""
    with_threads(2)
    assert call("--out", "one")[0] == 0
    assert stored("one")["threads"] == 2
    with_threads(1)
    assert call("--resume", "one") == (0, "", "")
    assert torch.get_num_threads() == 2
    assert "--threads was 2, got 1" in call("--resume", "one", "--threads", "1")[2]
    more = 4 * (os.cpu_count() or 1) + 1  # of a larger machine
    manifest = runs.read_manifest("one")
    manifest["settings"]["flags"]["threads"] = more
    Path("one/manifest.json").write_text(json.dumps(manifest))
    assert "--threads must be within" in call("--threads", str(more), "--out", "two")[2]
    assert call("--resume", "one")[0] == 0
    assert torch.get_num_threads() == more
    assert call("--like", "one", "--threads", "1", "--out", "two")[0] == 0
    assert (stored("two")["threads"], torch.get_num_threads()) == (1, 1)


def run_commands(entries: Iterable[Entry]) -> Iterator[RunCommand[Any]]:
    for entry in (lazy.loaded() for lazy in entries):
        if isinstance(entry, CommandGroup):
            yield from run_commands(entry.entries)
        elif isinstance(entry, RunCommand):
            yield entry


def test_no_run_changes_its_threads() -> None:
    commands = {command.name: command for command in run_commands(ROOT.entries)}
    assert commands.keys() >= {"attack", "certify", "train", "run", "evaluate", "fine-tuning"}
    for name, command in commands.items():
        assert "threads" in {entry.name for entry in command.flags(())}, name
        assert "threads" not in command.machine, name


@pytest.mark.parametrize("threads", [0, -1, 10**6])
def test_no_such_number_of_threads(threads: int) -> None:
    before = torch.get_num_threads()
    with pytest.raises(ValueError, match=r"--threads must be within \[1, "):
        set_threads(threads)
    assert set_threads(None) == before


def test_it_runs_as_a_module(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["pycc", "--version"])
    with pytest.raises(SystemExit) as done:
        runpy.run_module("pycc", run_name="__main__", alter_sys=True)
    assert done.value.code == 0
    assert capsys.readouterr().out.startswith(f"pycc {pycc.__version__}\n")
