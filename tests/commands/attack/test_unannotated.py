"""Images without annotation are counted and attacked; errors against heads stay unknown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

UNKNOWN = ("mae", "rmse", "bias", "mae_low", "mae_high", "mae_by_seed", "gain_over_noise")


@pytest.fixture
def pictures(folder: Path) -> Path:
    """The folder of images without its points."""
    for file in folder.glob("*.csv"):
        file.unlink()
    return folder


def test_counting(call, folder: Path, weights: Path, tmp_path: Path, refused) -> None:
    flags = ["--attack", "clean", "--data", folder, "--weights", weights]
    known = call(*flags, "--out", tmp_path / "known")
    done = call(*flags, "--unannotated", "--out", tmp_path / "bare")
    assert done.code == 0
    (row,) = json.loads((tmp_path / "bare/summary.json").read_text())["rows"]
    (before,) = json.loads((tmp_path / "known/summary.json").read_text())["rows"]
    assert {name: row[name] for name in UNKNOWN} == dict.fromkeys(UNKNOWN)
    for name in ("images", "mean_count", "error_rate", "area", "seeds"):
        assert row[name] == before[name], "the counts are those of the same images"
    line = done.out.splitlines()[2].split()
    assert line[:5] == ["clean", "-", "-", "-", "-"]
    assert "images without annotation: errors against their heads are unknown" in done.out
    assert "images without annotation" not in known.out
    # Without the flag, a missing annotation is an error.
    for file in folder.glob("*.csv"):
        file.unlink()
    assert "scene_0.png: image without annotation" in refused(*flags)
    again = call(*flags, "--unannotated", "--out", tmp_path / "again")
    assert again.out.splitlines()[:-1] == done.out.splitlines()[:-1]


@pytest.mark.parametrize("wanted", [["over"], ["under"], ["target", "--target-count", "3"]])
def test_attacks_with_checks_and_a_resumed_run(
    wanted, call, pictures: Path, weights: Path, tmp_path: Path
) -> None:
    flags = ["--data", pictures, "--weights", weights, "--unannotated", "--objective", *wanted]
    flags += ["--steps", "4", "--patch-size", "8", "--pgd-steps", "2"]
    pictures_too = wanted == ["over"]
    flags += [] if pictures_too else ["--no-pictures"]
    done = call(*flags, "--out", tmp_path / "run")
    assert done.err == ""
    before = (tmp_path / "run/summary.json").read_bytes()
    summary = json.loads(before)
    assert [row["condition"] for row in summary["rows"]] == [
        "clean", "pgd", "grey", "black", "noise", "crowd", "apam",
    ]  # fmt: skip
    for row in summary["rows"]:
        assert {name: row[name] for name in UNKNOWN} == dict.fromkeys(UNKNOWN)
        assert row["error_rate"] >= 0
    verdicts = {check["name"]: check["verdict"] for check in summary["checks"]}
    assert verdicts["gradient agrees with finite differences"] == "pass"
    assert verdicts["finds a planted weakness"] in ("pass", "fail")  # of four steps
    assert (tmp_path / "run/pictures/0000-scene_0.png").exists() == pictures_too
    # Stopped in the middle and resumed: the same bytes.
    lines = (tmp_path / "run/results.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run/results.jsonl").write_text("".join(lines[:7]) + lines[7][:20])
    (tmp_path / "run/summary.json").unlink()
    assert call("--resume", tmp_path / "run").code == done.code
    assert (tmp_path / "run/summary.json").read_bytes() == before
    assert json.loads((tmp_path / "run/manifest.json").read_text())["settings"]["flags"][
        "unannotated"
    ]


@pytest.mark.parametrize("objective", ["density", "pap", "target"])
def test_objectives_about_heads_are_refused(
    objective: str, refused, pictures: Path, weights: Path
) -> None:
    flags = ["--data", pictures, "--weights", weights, "--unannotated", "--objective", objective]
    message = refused(*flags, "--patch-size", "8")
    assert f"scene_0: not annotated, and objective {objective} is about annotated heads" in message


def test_a_resumed_run_keeps_what_is_known(call, refused, folder, weights, tmp_path) -> None:
    out = tmp_path / "run"
    call("--attack", "clean", "--data", folder, "--weights", weights, "--out", out)
    assert "unannotated" in refused("--resume", out, "--unannotated")
