"""``pycc certify`` as users run it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.deep import two_depths

from pycc import certify, data
from pycc.certify import certificates
from pycc.commands import main
from pycc.commands.progress import TerminalProgress


@pytest.fixture(autouse=True)
def no_progress_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time stands still for progress, so that what a command prints is its own."""
    monkeypatch.setattr(TerminalProgress, "clock", staticmethod(lambda: 0.0))


QUICK = ["--max-images", "2", "--calibration-max-images", "2", "--no-pictures"]


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main("certify", argv)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_default_is_the_masked_count(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    code, text, _ = run(capsys, *QUICK, "--patch-size", "20", "81", "--out", str(out))
    assert code == 0
    assert "20     masked" in text
    assert "allowance for 81 pixels: " in text
    assert "2 images of synthetic, train" in text
    summary = json.loads((out / "summary.json").read_text())
    for row in summary["rows"]:
        assert row["clean_mae"] <= row["certified_mae"]
        assert row["width"] > 0
    # Stopped before its last result and continued: the same bytes.
    before = (out / "summary.json").read_bytes()
    lines = (out / "results.jsonl").read_text().splitlines(keepends=True)
    (out / "results.jsonl").write_text("".join(lines[:-1]))
    (out / "summary.json").unlink()
    # What was calibrated is kept: it cannot come out differently.
    monkeypatch.setattr(certify, "calibrate", lambda *_, **__: pytest.fail("calibrated again"))
    assert run(capsys, "--resume", str(out))[0] == 0
    assert (out / "summary.json").read_bytes() == before
    (out / "calibration.json").write_text('{"allowances": 3}')
    (out / "summary.json").unlink()
    code, _, err = run(capsys, "--resume", str(out))
    assert code == 2
    assert "calibration.json: expected the calibration of a run, got" in err
    (out / "calibration.json").write_text('{"numbers": [], "fill": null, "data": null}')
    code, _, err = run(capsys, "--resume", str(out))
    assert code == 2
    assert "the allowance for 20 pixels and counter 1 is missing" in err


def test_every_method_and_an_attack(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, text, _ = run(
        capsys, "--max-images", "1", "--calibration-max-images", "2", "--no-pictures",
        "--patch-size", "40", "--masks", "4", "--ablation-samples", "12", "--alpha", "0.2",
        "--method", "masked", "additive", "two-mask", "quantile", "fixed-ablations",
        "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert code == 0
    rows = json.loads((tmp_path / "run/summary.json").read_text())["rows"]
    assert {row["method"] for row in rows} == {
        "masked", "additive", "two-mask", "quantile", "fixed-ablations"
    }  # fmt: skip
    assert "\ncap: " in text
    assert "\nblock cap: " in text


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    """The flags of one small scene, and of another to calibrate on."""
    flags = []
    for name, seed in (("--data", 0), ("--calibration-data", 1)):
        folder = tmp_path / name.strip("-")
        folder.mkdir()
        (sample,) = data.open("synthetic", shape=(96, 128), seed=seed, limit=1)
        data.save_image(folder / f"{sample.name}.png", sample.image)
        (folder / f"{sample.name}.json").write_text(json.dumps(sample.points.tolist()))
        flags += [name, str(folder)]
    return [*flags, "--split", "all", "--calibration-split", "all", "--no-pictures"]


METHODS = {
    "masked": [],
    "additive": [],
    "two-mask": ["--masks", "4"],
    "fixed-ablations": ["--k", "3000"],
}


SLOW = [pytest.param(name, marks=pytest.mark.long) for name in ("two-mask", "fixed-ablations")]


@pytest.mark.parametrize("method", ["masked", "additive", *SLOW])
def test_attacked_counts_are_held_against_their_intervals(
    method: str, small: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    flags = [*small, "--weights", "mcnn-synthetic", "--patch-size", "24", "--method", method]
    flags += ["--attack", "--steps", "2", "--ablation-samples", "5", *METHODS[method]]
    code, text, err = run(capsys, *flags, "--out", str(tmp_path / "run"))
    assert code == 0, err
    (row,) = json.loads((tmp_path / "run/summary.json").read_text())["attacks"]
    assert row["violations"] == 0
    assert row["attacked_mae"] > 0
    # An interval that is too narrow is found out.
    kind = certificates[method]
    sound = kind.interval

    def narrow(*arguments):
        interval = sound(*arguments)
        return replace(interval, low=interval.count, high=interval.count)

    monkeypatch.setattr(kind, "interval", narrow)
    code, text, _ = run(capsys, *flags, "--out", str(tmp_path / "narrow"))
    assert code == 1
    assert f"VIOLATED: {method}, 24 pixels" in text


def test_a_given_allowance_needs_no_calibration_images(
    small: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A folder without splits serves as each split: its images are not left out of any."""
    flags = [*small[:2], "--weights", "mcnn-synthetic", "--patch-size", "24", "--no-pictures"]
    code, text, err = run(capsys, *flags, "--allowance", "10", "--out", str(tmp_path / "given"))
    assert (code, err) == (0, "")
    assert "allowance for 24 pixels: 10 people, given" in text
    code, text, err = run(capsys, *flags, "--out", str(tmp_path / "calibrated"))
    assert code == 2
    others = "no image is left to calibrate on; give other images than the certified ones"
    assert f"{others}, or the numbers that they fix: allowance\n" in err
    for method, numbers in (
        (["masked", "additive"], ", or the numbers that they fix: cap and block_cap"),
        (["two-mask"], ""),
    ):
        out = ["--out", str(tmp_path / method[-1])]
        code, text, err = run(capsys, *flags, "--allowance", "2", "--method", *method, *out)
        assert (code, text) == (2, "")
        assert f"{others}{numbers}\n" in err


def test_the_reason_of_an_unbounded_interval_stands_below_the_table(
    small: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flags = [*small, "--weights", "mcnn-synthetic", "--patch-size", "24", "--method", "quantile",
             "--ablation-samples", "3", "--k", "5"]  # fmt: skip
    code, text, _ = run(capsys, *flags, "--out", str(tmp_path / "run"))
    assert code == 0
    assert "unbounded on 1" in text
    assert "quantile, 24 pixels, 1 of 1 images: unbounded below: 3 draws are too few for" in text


def test_pictures(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run(
        capsys, "--max-images", "1", "--patch-size", "40", "--allowance", "10",
        "--out", str(tmp_path / "run"),
    )  # fmt: skip
    names = sorted(path.name for path in (tmp_path / "run/pictures").iterdir())
    assert names == ["0000-masked-40.png", "curve.png"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--patch-size", "2000"], "patch_size must fit into the image of"),
        (["--alpha", "1"], "quantile: alpha must be inside (0, 1), got 1"),
        (["--method", "quantile", "--k", "100000000"], ", got 100000000"),
        (["--k", "0"], "k must be at least 1, got 0"),
        (
            ["--calibration-split", "test"],
            "expected another part than the certified one, or --force",
        ),
        (["--methods", "masked"], "unknown flag --methods; did you mean '--method'?"),
        (["--method", "addtive"], "got 'addtive'; did you mean 'additive'?"),
        (["--method", "magic"], "--method: expected one of "),
        (["--weights", "none.pth"], "no such file"),
        (["--option", "resize=4"], "count isolated tiles (pycc.defense.tiled, --tile)"),
        (["--resume", "nowhere"], "nowhere"),
        (["--patch-size", "0"], "--patch-size must be at least 1 pixel, got 0"),
        (["--masks", "5"], "masks"),
        (
            ["--allowance", "nan"],
            "masked: allowance must be a finite number of people at least 0, got nan",
        ),
        (
            ["--block-cap", "-3"],
            "additive: block_cap must be a finite number of people above 0, got -3",
        ),
        (["--step-size", "nan"], "--step-size must lie in (0,1], got nan"),
        (["--threads", "0"], "--threads must be within [1, "),
        (["--calibration-data", "/nowhere"], "/nowhere"),
        (["--calibration-max-images", "0"], "limit must be at least 1, got 0"),
        (["--method", "fixed-ablations", "--calibration-split", "test"], "--force-calibration"),
    ],
)
def test_bad_usage(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, argv: list[str], message: str
) -> None:
    out = [] if "--resume" in argv else ["--out", str(tmp_path / "run")]
    code, text, err = run(capsys, *QUICK, *argv, *out)
    assert (code, text) == (2, "")
    assert message in err
    assert sum(line.startswith("error: ") for line in err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_no_image_that_is_left_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    for sample in data.open("synthetic", split="train", limit=2, shape=(64, 96)):
        data.save_image(folder / f"{sample.name}.png", sample.image)
        (folder / f"{sample.name}.json").write_text(json.dumps(sample.points.tolist()))
    code, _, err = run(
        capsys, *QUICK, "--patch-size", "81", "--calibration-data", str(folder),
        "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert code == 2
    assert (
        "an allowance for 81 pixels must be fixed on images at least as large, got none among 2; "
        "give larger calibration images, or the allowance"
    ) in err


def test_a_region_of_interest(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = data.open

    def masked(*arguments, **options):
        return [replace(s, roi=s.image[0] > 0.5) for s in opened(*arguments, **options)]

    monkeypatch.setattr(data, "open", masked)
    flags = [*QUICK, "--patch-size", "20"]
    code, _, err = run(capsys, *flags, "--attack", "--out", str(tmp_path / "attacked"))
    assert code == 2
    assert "an attack needs images without a region of interest" in err
    assert not (tmp_path / "attacked").exists()
    assert run(capsys, *flags, "--out", str(tmp_path / "run"))[0] == 0
    monkeypatch.setattr(data, "open", opened)
    assert run(capsys, *flags, "--out", str(tmp_path / "whole"))[0] == 0
    part, whole = (
        json.loads((tmp_path / name / "summary.json").read_text())["rows"][0]
        for name in ("run", "whole")
    )
    assert part["width"] < whole["width"]


def test_the_mean_of_two_counters(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A counter with itself is that counter; half of each interval makes a whole."""
    flags = [*QUICK, "--patch-size", "40", "--attack", "--steps", "2", "--max-images", "1"]
    code, _, err = run(
        capsys, *flags, "--ensemble", "mcnn-synthetic", "--out", str(tmp_path / "two")
    )
    assert code == 0, err
    assert run(capsys, *flags, "--out", str(tmp_path / "one"))[0] == 0
    two, one = (json.loads((tmp_path / n / "summary.json").read_text()) for n in ("two", "one"))
    for key in ("clean_mae", "certified_mae", "width"):
        assert two["rows"][0][key] == pytest.approx(one["rows"][0][key], rel=1e-4)
    assert len(two["calibration"]) == 2
    assert two["attacks"][0]["violations"] == 0
    code, _, err = run(
        capsys,
        *flags,
        "--ensemble",
        "mcnn-synthetic",
        "--ensemble-weights",
        "1",
        "--out",
        str(tmp_path / "bad"),
    )
    assert code == 2
    assert "a share for each of 2 counters, got 1" in err


def test_calibration_on_another_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The same split of another folder is no leak, of the same folder it is."""
    folder = tmp_path / "scenes"
    folder.mkdir()
    for sample in data.open("synthetic", split="train", limit=2, shape=(192, 256)):
        data.save_image(folder / f"{sample.name}.png", sample.image)
        (folder / f"{sample.name}.json").write_text(json.dumps(sample.points.tolist()))
    flags = [*QUICK, "--patch-size", "40", "--calibration-split", "test"]
    code, text, _ = run(
        capsys, *flags, "--calibration-data", str(folder), "--out", str(tmp_path / "run")
    )
    assert code == 0
    assert "2 images of scenes, test" in text
    code, _, err = run(
        capsys, *flags, "--data", str(folder), "--calibration-data", str(folder),
        "--out", str(tmp_path / "other"),
    )  # fmt: skip
    assert code == 2
    assert "expected another part than the certified one" in err


def test_forced_calibration_is_marked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, text, err = run(
        capsys, *QUICK, "--patch-size", "40", "--calibration-split", "test", "--force-calibration",
        "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert code == 0
    assert "warning: calibrated on the certified images themselves" in err
    assert "test (the certified part itself)" in text


def test_images_without_annotation(
    small: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flags = [*small, "--patch-size", "24", "--method", "masked", "additive"]
    assert run(capsys, *flags, "--out", str(tmp_path / "known"))[0] == 0
    for file in (tmp_path / "data").glob("*.json"):
        file.unlink()
    code, _, err = run(capsys, *flags, "--out", str(tmp_path / "refused"))
    assert code == 2
    assert "image without annotation" in err
    out = tmp_path / "bare"
    flags += ["--attack", "--steps", "2", "--out", str(out)]
    code, text, err = run(capsys, *flags, "--unannotated")
    assert code == 0, err
    before = (out / "summary.json").read_bytes()
    summary = json.loads(before)
    known = json.loads((tmp_path / "known/summary.json").read_text())
    assert summary["undefended_mae"] is None
    assert summary["calibration"] == known["calibration"]
    for row, other in zip(summary["rows"], known["rows"], strict=True):
        assert row["clean_mae"] is row["certified_mae"] is None
        assert {n: row[n] for n in ("width", "vacuous", "unbounded")} == {
            n: other[n] for n in ("width", "vacuous", "unbounded")
        }
    assert [(r["attacked_mae"], r["violations"]) for r in summary["attacks"]] == [(None, 0)] * 2
    assert [line.split()[2:5] for line in text.splitlines()[3:5]] == [["-"] * 3] * 2
    lines = (out / "results.jsonl").read_text().splitlines(keepends=True)
    (out / "results.jsonl").write_text("".join(lines[:-1]))
    (out / "summary.json").unlink()
    assert run(capsys, "--resume", str(out))[0] == 0
    assert (out / "summary.json").read_bytes() == before


def test_the_bit_depth_of_pictures(
    small: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """8 bits in 16, calibrated and certified, are what the same values in 8 are."""
    eight, sixteen = two_depths(tmp_path / "data")
    summaries = []
    for folder in (eight, sixteen):
        out = tmp_path / f"run-{folder.name}"
        flags = ["--data", str(folder), "--calibration-data", str(folder), *small[4:],
                 "--patch-size", "24", "--force-calibration", "--bit-depth", "8",
                 "--out", str(out)]  # fmt: skip
        assert run(capsys, *flags)[0] == 0
        summaries.append(json.loads((out / "summary.json").read_text()))
    assert summaries[0]["rows"] == summaries[1]["rows"]
    code, _, err = run(capsys, "--resume", str(out), "--bit-depth", "9")
    assert code == 2
    assert "--bit-depth was 8, got 9" in err


def test_only_allowances_need_heads_of_the_same_folder(
    small: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for file in tmp_path.glob("*/*.json"):
        file.unlink()
    (tmp_path / "data").rename(tmp_path / "test")
    (tmp_path / "calibration-data").rename(tmp_path / "train")
    flags = ["--data", str(tmp_path), "--unannotated", "--patch-size", "24", "--no-pictures"]
    code, _, err = run(capsys, *flags, "--out", str(tmp_path / "masked"))
    assert code == 2
    assert "image without annotation" in err
    given = ["--allowance", "3", "--method", "masked", "additive"]
    code, text, err = run(capsys, *flags, *given, "--out", str(tmp_path / "given"))
    assert code == 0, err
    assert "allowance for 24 pixels: 3 people, given" in text
    assert "1 images of" in text  # the caps
