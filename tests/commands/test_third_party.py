"""An attack from outside the package runs through the command, at every location, with checks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from support.crowds import write_folder, write_weights

from pycc.attack import PatchAttack, Problem, attacks
from pycc.attack.base import LOCATIONS, Best, Found
from pycc.commands import main
from pycc.settings import flag


@dataclass(frozen=True)
class Colours(PatchAttack):
    """The best of a few patches of one colour each."""

    name = "colours"
    levels: int = flag(2, "levels of each colour channel that are tried")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("levels", self.levels >= 1, "at least 1")

    def optimise(self, problem: Problem, *, seed: int, step_done: Callable[[int], None]) -> Found:
        best = Best(self, problem)
        channel = torch.linspace(0, 1, self.levels).to(problem.like)
        colours = torch.cartesian_prod(channel, channel, channel)
        for step, colour in enumerate(colours, start=1):
            shape = len(problem), 3, problem.side, problem.side
            best.look(colour[None, :, None, None].expand(shape))
            best.note()
            step_done(step)
        return best.found()

    @property
    def rounds(self) -> int:
        return self.levels**3


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The attack is registered; flags that name a data set and weights."""
    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    attacks.register("colours")(Colours)
    folder, weights = write_folder(tmp_path / "crowd"), write_weights(tmp_path / "weights.npz")
    yield ["--data", str(folder), "--weights", str(weights), "--no-pictures"]
    del attacks._entries["colours"]
    torch.set_num_threads(before)


def test_help_names_it_and_its_flags(data, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("attack", ["--attack", "colours", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "{apam,universal,query,colours,clean}" in text
    assert "--levels LEVELS levels of each colour channel that are tried (default: 2)" in text
    assert "--step-size" not in text
    assert main("attack", ["--attack", "colour"]) == 2
    assert "did you mean 'colours'?" in capsys.readouterr().err
    assert main("attack", [*data, "--attack", "colours", "--levels", "0"]) == 2
    assert capsys.readouterr().err == "error: Colours: levels must be at least 1, got 0\n"
    assert main("attack", [*data, "--levels", "1"]) == 2
    assert "--levels: expected --attack colours beside it" in capsys.readouterr().err


SEARCHED = pytest.mark.xfail(reason="the search for the worst place takes APAM alone")


@pytest.mark.parametrize(
    "location",
    [pytest.param(name, marks=SEARCHED) if name == "worst" else name for name in LOCATIONS],
)
def test_at_every_location_with_all_checks(
    location: str, data, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*data, "--attack", "colours", "--patch-size", "8", "12", "--levels", "3"]
    flags += ["--location", location, "--max-images", "2", "--pgd-steps", "0", "--out", "run"]
    flags += ["--top-left", "3", "4"] if location == "given" else []
    assert main("attack", [*flags, "--no-checks"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("preset strong: --objective target\n")
    summary = json.loads(Path("run/summary.json").read_text())
    attacked = {row["size"] for row in summary["rows"] if row["condition"] == "colours"}
    assert attacked == {8, 12}
    verdicts = {check["name"]: check["verdict"] for check in summary["gates"]}
    assert verdicts["survives 8-bit PNG"] == "pass"
    assert verdicts["the counter stays as it was"] == "pass"
    settings = json.loads(Path("run/manifest.json").read_text())["settings"]
    assert settings["flags"]["levels"] == 3
    assert [one["levels"] for one in settings["attacks"]] == [3, 3]
    before = Path("run/summary.json").read_bytes()
    assert main("attack", ["--resume", "run", "--no-checks"]) == 0
    assert Path("run/summary.json").read_bytes() == before
