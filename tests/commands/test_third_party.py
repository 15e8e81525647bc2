"""What a user adds outside the package runs through the command: attack, model and data set."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.crowds import make_sample
from support.third_party import registered, small_dots, write_heads_in_text

from pycc import models
from pycc.attack.base import LOCATIONS
from pycc.commands import main


@pytest.fixture(autouse=True)
def known() -> Iterator[None]:
    """The attack, the model and the layout are registered."""
    with registered():
        yield


@pytest.fixture
def flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_threads) -> list[str]:
    """The attack, the model and the data set, by their flags."""
    monkeypatch.chdir(tmp_path)
    with_threads(1)
    samples = [make_sample(index, (48, 64), heads=5 + index) for index in range(2)]
    root = write_heads_in_text(tmp_path / "crowd", samples)
    models.save(small_dots(), tmp_path / "dots.npz", metadata={})
    return ["--attack", "sign", "--data", str(root), "--split", "all", "--model", "dots",
            "--weights", "dots.npz", "--no-pictures"]  # fmt: skip


def test_help_names_it_and_its_flags(flags, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("attack", ["--attack", "sign", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "sign" in text.partition("--preset")[0]
    assert "--step-size STEP_SIZE change of a patch pixel in one step, of [0,1]" in text
    assert "--decay" not in text
    assert main("attack", ["--attack", "sgin"]) == 2
    assert "did you mean 'sign'?" in capsys.readouterr().err
    assert main("attack", [*flags, "--patch-size", "0"]) == 2
    assert "SignDescent: patch_size must be" in capsys.readouterr().err


@pytest.mark.parametrize("location", LOCATIONS)
def test_every_location_with_all_checks(location: str, flags) -> None:
    more = ["--patch-size", "8", "--steps", "20", "--objective", "over", "--pgd-steps", "0"]
    more += ["--location", location, "--out", "run", "--no-checks"]
    more += ["--top-left", "3", "4"] if location == "given" else []
    assert main("attack", [*flags, *more]) == 0
    summary = json.loads(Path("run/summary.json").read_text())
    count = {row["condition"]: row["mean_count"] for row in summary["rows"]}
    assert count["sign"] > max(count["noise"], count["clean"])
    verdicts = {check["name"]: check["verdict"] for check in summary["checks"]}
    assert len(verdicts) == 16
    assert verdicts["gradient agrees with finite differences"] == "pass"
    assert verdicts["the counter stays as it was"] == "pass"
    settings = json.loads(Path("run/manifest.json").read_text())["settings"]
    assert [method["name"] for method in settings["attacks"]] == ["sign"]
    if location != "worst":  # whose places are not searched again
        return
    before = Path("run/summary.json").read_bytes()
    assert main("attack", ["--resume", "run", "--no-checks"]) == 0
    assert Path("run/summary.json").read_bytes() == before


def test_the_model_and_the_data_set_serve_other_commands(
    flags, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [*flags[2:4], "--patch-size", "8", "--split", "all", "--calibration-split", "all",
             "--force-calibration"]  # fmt: skip
    code = main("certify", [*where, *flags[6:10], "--no-pictures", "--out", "certified"])
    assert code == 0, capsys.readouterr().err
    capsys.readouterr()
    assert main("count", [flags[3], *flags[6:10], "--json"]) == 0
    counted = json.loads(capsys.readouterr().out)
    assert [row["truth"] for row in counted["rows"]] == [5, 6]
    with torch.no_grad():
        image = make_sample(0, (48, 64), heads=5).image[None]
        wanted = float(small_dots()(image).sum())
    assert counted["rows"][0]["count"] == pytest.approx(wanted, rel=1e-5)
