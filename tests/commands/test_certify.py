"""``pycc certify`` as users run it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import small
from support.deep import two_depths
from support.scenes import scenes

from pycc import certify, data, defense, models
from pycc.certify import Additive, Calibration, Masked, certificates
from pycc.certify.engine import CALIBRATION
from pycc.commands import main
from pycc.runs import read_records
from pycc.types import Sample

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def small_counter() -> Iterator[None]:
    with small.registered():
        yield


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of two annotated images in each of its parts, and weights of a small counter."""
    folder = tmp_path_factory.mktemp("certify") / "crowd"
    samples = scenes(4, (64, 80))
    stored(folder / "test", samples[:2])
    stored(folder / "train", samples[2:])
    torch.manual_seed(1)
    with small.registered():
        models.save(small.Small(), folder.with_name("small.npz"), metadata={})
    return folder


def stored(folder: Path, samples: Sequence[Sample]) -> None:
    folder.mkdir(parents=True)
    for sample in samples:
        data.save_image(folder / f"{sample.name}.png", sample.image)
        (folder / f"{sample.name}.json").write_text(json.dumps(sample.points.tolist()))


@pytest.fixture
def flags(crowd: Path) -> list[str]:
    """The flags of a run on the data set, the counter's weights, and a quick method."""
    return ["--data", str(crowd), "--weights", str(crowd.with_name("small.npz")), "--no-pictures",
            "--method", "masked"]  # fmt: skip


def run(capsys: Capture, *argv: str) -> tuple[int, str, str]:
    code = main("certify", argv)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def stopped_before_its_last_result(folder: Path) -> None:
    lines = (folder / "results.jsonl").read_text().splitlines(keepends=True)
    (folder / "results.jsonl").write_text("".join(lines[:-1]))
    (folder / "summary.json").unlink()


def test_the_masked_count_and_a_resumed_run(
    flags: list[str], capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    code, text, _ = run(capsys, *flags, "--patch-size", "8", "20", "--out", str(out))
    assert code == 0
    assert "20     masked" in text
    assert "allowance for 20 pixels: " in text
    assert "2 images of crowd, train" in text
    for row in summary_of(out)["rows"]:
        assert row["clean_mae"] <= row["certified_mae"]
        assert row["width"] > 0
    before = (out / "summary.json").read_bytes()
    stopped_before_its_last_result(out)
    # The calibration is kept: it cannot come out differently.
    monkeypatch.setattr(certify, "calibrate", lambda *_, **__: pytest.fail("calibrated again"))
    assert run(capsys, "--resume", str(out))[0] == 0
    assert (out / "summary.json").read_bytes() == before
    for calibration, message in (
        ('{"allowances": 3}', "calibration.json: expected the calibration of a run, got"),
        ('{"numbers": [], "fill": null, "data": null}',
         "the allowance for 8 pixels and counter 1 is missing"),
    ):  # fmt: skip
        (out / "calibration.json").write_text(calibration)
        code, _, err = run(capsys, "--resume", str(out))
        assert code == 2
        assert message in err


def test_completion_is_the_default_and_keeps_its_network(
    flags: list[str], capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    code, text, err = run(capsys, *flags[:-2], "--patch-size", "12", "--out", str(out))
    assert code == 0, err
    assert "12     completion" in text
    assert "completion network for 12 pixels: 2 images of crowd, train, windows of " in text
    before = (out / "summary.json").read_bytes()
    stopped_before_its_last_result(out)
    monkeypatch.setattr(certify, "calibrate", lambda *_, **__: pytest.fail("calibrated again"))
    assert run(capsys, "--resume", str(out))[0] == 0
    assert (out / "summary.json").read_bytes() == before
    calibration = json.loads((out / CALIBRATION).read_text())
    calibration["completions"][0]["patch_size"] = 13
    (out / CALIBRATION).write_text(json.dumps(calibration))
    stopped_before_its_last_result(out)
    code, _, err = run(capsys, "--resume", str(out))
    assert code == 2
    assert "the completion network for 12 pixels and counter 1 is missing" in err


def test_python_gives_the_same(
    flags: list[str], crowd: Path, capsys: Capture, tmp_path: Path
) -> None:
    counter = defense.clipped(models.load(crowd.with_name("small.npz")))
    methods = {"method": [Masked(), Additive(block_cap=30.0)], "patch_sizes": (12,)}
    training, test = data.open(crowd, split="train"), data.open(crowd, split="test", limit=1)
    calibration = certify.calibrate(counter, training, source="crowd, train", **methods)
    attack = certify.adaptive_attack(steps=1)
    result = certify.run(counter, test, calibration=calibration, attack=attack, **methods)
    code, _, err = run(
        capsys, *flags, "--method", "masked", "additive", "--block-cap", "30", "--patch-size", "12",
        "--max-images", "1", "--attack", "--steps", "1", "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert code == 0, err
    assert summary_of(tmp_path / "run") == json.loads(json.dumps(result.summary.json()))
    assert Calibration.load(tmp_path / "run" / CALIBRATION) == calibration

    def untimed(records) -> list[dict]:
        return sorted(({**record, "seconds": 0} for record in records), key=str)

    assert untimed(read_records(tmp_path / "run")) == untimed(result.records) != []
    assert not result.violated
    assert {row.method for row in result.summary.attacks} == {"masked", "additive"}
    assert {row.images for row in result.summary.attacks} == {1}


def test_every_method(flags: list[str], capsys: Capture, tmp_path: Path) -> None:
    methods = certificates.names()
    code, text, _ = run(
        capsys, *flags, "--max-images", "1", "--patch-size", "20", "--masks", "4",
        "--ablation-samples", "12", "--alpha", "0.2", "--false-alarms", "0.5", "--method", *methods,
        "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert code == 0
    assert {row["method"] for row in summary_of(tmp_path / "run")["rows"]} == {*methods}
    assert "\ncap: " in text
    assert "\nblock cap: " in text


def test_alarms_are_counted_beside_the_errors(
    flags: list[str], capsys: Capture, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    flags = [*flags[:-1], "alarm", "--patch-size", "12", "--max-images", "1", "--attack",
             "--steps", "1", "--out", str(out)]  # fmt: skip
    code, _, err = run(capsys, *flags)
    assert code == 2
    assert "crowd, train: a margin for 12 pixels and a rate of 0.05 false alarms needs 55" in err
    code, text, err = run(capsys, *flags, "--false-alarms", "0.5")
    assert code == 0, err
    assert "\nrate of false alarms: 0.5, given\nmargin for 12 pixels: " in text
    assert " scales of a window, 1 images of crowd, train\n" in text
    assert "\ncompletion network of alarm for 12 pixels: 1 images of crowd, train, windows" in text
    summary = summary_of(out)
    (row,), (attacked,) = summary["rows"], summary["attacks"]
    assert row["false_alarms"] in (0.0, 1.0)
    assert attacked["violations"] == 0
    attacks = [r for o in ("over", "under") for r in read_records(out / f"attacks/alarm-12-{o}")]
    raised = [r["alarm"] for r in attacks if r["condition"] != "clean"]
    assert attacked["alarms"] == sum(raised) / len(raised)
    assert (
        f"alarm, 12 pixels: {100 * row['false_alarms']:.0f} % false alarms, "
        f"alarms on {100 * attacked['alarms']:.0f} % of the attacked images; "
    ) in text
    code = main("report", [str(out), "--out", str(tmp_path / "page.html")])
    assert (code, capsys.readouterr().err) == (0, "")
    page = (tmp_path / "page.html").read_text()
    assert "false alarms" in page
    assert "out of its interval without an alarm" in page


METHODS = {
    "masked": [],
    "additive": [],
    "two-mask": ["--masks", "4"],
    "fixed-ablations": ["--k", "1200", "--ablation-samples", "5"],
}


SLOW = [pytest.param(name, marks=pytest.mark.long) for name in ("two-mask", "fixed-ablations")]


@pytest.mark.parametrize("method", ["masked", "additive", *SLOW])
def test_attacked_counts_are_compared_with_their_intervals(
    method: str, flags: list[str], capsys: Capture, tmp_path: Path
) -> None:
    flags = [*flags, "--patch-size", "12", "--max-images", "1", "--method", method, "--attack",
             "--steps", "2", *METHODS[method]]  # fmt: skip
    code, _, err = run(capsys, *flags, "--out", str(tmp_path / "run"))
    assert code == 0, err
    (row,) = summary_of(tmp_path / "run")["attacks"]
    assert row["violations"] == 0
    assert row["attacked_mae"] > 0
    interval = next(r for r in read_records(tmp_path / "run") if r["method"] == method)
    for objective in ("over", "under"):  # both attacks move the count, inside the interval
        counts = [
            r["count"]
            for r in read_records(tmp_path / f"run/attacks/{method}-12-{objective}")
            if r["condition"] != "clean"
        ]
        assert any(abs(count - interval["count"]) > 1e-3 for count in counts)
        high = math.inf if interval["high"] is None else interval["high"]
        assert interval["low"] <= min(counts) <= max(counts) <= high


def test_an_interval_that_is_too_narrow_is_violated(
    flags: list[str], capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = Masked.interval

    def narrow(*arguments):
        interval = sound(*arguments)
        return replace(interval, low=interval.count, high=interval.count)

    monkeypatch.setattr(Masked, "interval", narrow)
    flags = [*flags, "--patch-size", "12", "--max-images", "1", "--attack", "--steps", "2"]
    code, text, _ = run(capsys, *flags, "--out", str(tmp_path / "narrow"))
    assert code == 1
    assert "VIOLATED: masked, 12 pixels" in text


def test_a_given_allowance_needs_no_calibration_images(
    flags: list[str], crowd: Path, capsys: Capture, tmp_path: Path
) -> None:
    """A folder without splits serves as each split: its images are not left out of any."""
    flags = ["--data", str(crowd / "test"), *flags[2:], "--patch-size", "12"]
    code, text, err = run(capsys, *flags, "--allowance", "10", "--out", str(tmp_path / "given"))
    assert (code, err) == (0, "")
    assert "allowance for 12 pixels: 10 people, given" in text
    code, text, err = run(capsys, *flags, "--out", str(tmp_path / "calibrated"))
    assert code == 2
    others = "no image is left to calibrate on; give other images than the certified ones"
    assert f"{others}, or the numbers that they fix: allowance\n" in err
    given = ["--allowance", "2"]
    for method, numbers in (
        (["masked", "additive", *given], ", or the numbers that they fix: cap and block_cap"),
        (["two-mask"], ""),
    ):
        out = ["--out", str(tmp_path / method[0])]
        code, text, err = run(capsys, *flags, "--method", *method, *out)
        assert (code, text) == (2, "")
        assert f"{others}{numbers}\n" in err


def test_the_reason_of_an_unbounded_interval_stands_below_the_table(
    flags: list[str], capsys: Capture, tmp_path: Path
) -> None:
    code, text, _ = run(
        capsys, *flags, "--max-images", "1", "--patch-size", "12", "--method", "quantile",
        "--ablation-samples", "3", "--k", "5", "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert code == 0
    assert "unbounded on 1" in text
    assert "quantile, 12 pixels, 1 of 1 images: unbounded below: 3 draws are too few for" in text


def test_pictures_of_the_built_in_scenes(capsys: Capture, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run(
        capsys, "--max-images", "1", "--patch-size", "40", "--allowance", "10",
        "--method", "masked",
        "--out", str(tmp_path / "run"),
    )  # fmt: skip
    names = sorted(path.name for path in (tmp_path / "run/pictures").iterdir())
    assert names == ["0000-masked-40.png", "curve.png"]


BUILT_IN = ["--max-images", "2", "--calibration-max-images", "2", "--no-pictures"]


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
        (["--patch-size", "0"], "--patch-size must be at least 1, got 0"),
        (["--masks", "5"], "masks"),
        (["--allowance", "5"], "--allowance: expected --method masked beside it, got completion"),
        (
            ["--method", "masked", "--ablation-samples", "9"],
            "expected --method fixed-ablations or quantile beside it, got masked",
        ),
        (
            ["--patches", "2"],
            "expected --method additive or fixed-ablations or quantile beside it, got completion",
        ),
        (["--method", "additive", "--patches", "0"], "additive: patches must be at least 1, got 0"),
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
        (["--calibration-max-images", "0"], "--calibration-max-images must be at least 1, got 0"),
        (["--method", "fixed-ablations", "--calibration-split", "test"], "--force-calibration"),
    ],
)
def test_bad_usage(capsys: Capture, tmp_path: Path, argv: list[str], message: str) -> None:
    out = [] if "--resume" in argv else ["--out", str(tmp_path / "run")]
    code, text, err = run(capsys, *BUILT_IN, *argv, *out)
    assert (code, text) == (2, "")
    assert message in err
    assert sum(line.startswith("error: ") for line in err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_calibration_images_that_are_too_small(
    flags: list[str], capsys: Capture, tmp_path: Path
) -> None:
    stored(tmp_path / "small", scenes(2, (32, 40)))
    code, _, err = run(
        capsys, *flags, "--patch-size", "40", "--calibration-data", str(tmp_path / "small"),
        "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert code == 2
    assert (
        "an allowance for 40 pixels must be fixed on images at least as large, got none among 2; "
        "give larger calibration images, or the allowance"
    ) in err


def test_a_region_of_interest(
    flags: list[str], capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = data.open

    def in_region(*arguments, **options):
        return [replace(s, roi=s.image[0] > 0.1) for s in opened(*arguments, **options)]

    monkeypatch.setattr(data, "open", in_region)
    flags = [*flags, "--patch-size", "12"]
    attack = ["--attack", "--steps", "1"]
    assert run(capsys, *flags, *attack, "--out", str(tmp_path / "region"))[0] == 0
    (attacked,) = summary_of(tmp_path / "region")["attacks"]
    assert (attacked["violations"], attacked["images"]) == (0, 2)
    monkeypatch.setattr(data, "open", opened)
    assert run(capsys, *flags, "--out", str(tmp_path / "image"))[0] == 0
    region, image = (summary_of(tmp_path / name)["rows"][0] for name in ("region", "image"))
    assert region["width"] < image["width"]


def test_the_mean_of_two_counters(
    flags: list[str], crowd: Path, capsys: Capture, tmp_path: Path
) -> None:
    """The mean of a counter and itself is that counter: half of each interval makes one."""
    flags = [*flags, "--patch-size", "12", "--max-images", "1"]
    twice = ["--ensemble", str(crowd.with_name("small.npz"))]
    attack = ["--attack", "--steps", "1"]
    code, _, err = run(capsys, *flags, *twice, *attack, "--out", str(tmp_path / "two"))
    assert code == 0, err
    assert run(capsys, *flags, "--out", str(tmp_path / "single"))[0] == 0
    two, single = summary_of(tmp_path / "two"), summary_of(tmp_path / "single")
    for key in ("clean_mae", "certified_mae", "width"):
        assert two["rows"][0][key] == pytest.approx(single["rows"][0][key], rel=1e-4)
    assert len(two["calibration"]) == 2
    assert two["attacks"][0]["violations"] == 0
    code, _, err = run(
        capsys, *flags, *twice, "--ensemble-weights", "1", "--out", str(tmp_path / "bad")
    )
    assert code == 2
    assert "a share for each of 2 counters, got 1" in err


def test_calibration_on_another_folder(
    flags: list[str], crowd: Path, capsys: Capture, tmp_path: Path
) -> None:
    """The same split of another folder is no leak, of the same folder it is."""
    stored(tmp_path / "scenes", scenes(6, (64, 80))[4:])
    flags = [*flags, "--patch-size", "12", "--calibration-split", "test"]
    other = ["--calibration-data", str(tmp_path / "scenes")]
    code, text, _ = run(capsys, *flags, *other, "--out", str(tmp_path / "run"))
    assert code == 0
    assert "2 images of scenes, test" in text
    same = ["--calibration-data", str(crowd)]
    code, _, err = run(capsys, *flags, *same, "--out", str(tmp_path / "other"))
    assert code == 2
    assert "expected another part than the certified one" in err


def test_forced_calibration_is_marked(flags: list[str], capsys: Capture, tmp_path: Path) -> None:
    code, text, err = run(
        capsys, *flags, "--patch-size", "12", "--calibration-split", "test", "--force-calibration",
        "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert code == 0
    assert "warning: calibrated on the certified images themselves" in err
    assert "test (the certified part itself)" in text


def test_images_without_annotation(
    flags: list[str], crowd: Path, capsys: Capture, tmp_path: Path
) -> None:
    shutil.copytree(crowd / "test", tmp_path / "data")
    flags = ["--data", str(tmp_path / "data"), "--calibration-data", str(crowd / "train"),
             *flags[2:], "--split", "all", "--calibration-split", "all", "--patch-size", "12",
             "--max-images", "1", "--method", "masked", "additive"]  # fmt: skip
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
    summary, known = json.loads(before), summary_of(tmp_path / "known")
    assert summary["undefended_mae"] is None
    assert summary["calibration"] == known["calibration"]
    for row, other in zip(summary["rows"], known["rows"], strict=True):
        assert row["clean_mae"] is row["certified_mae"] is None
        assert {n: row[n] for n in ("width", "vacuous", "unbounded")} == {
            n: other[n] for n in ("width", "vacuous", "unbounded")
        }
    assert [(r["attacked_mae"], r["violations"]) for r in summary["attacks"]] == [(None, 0)] * 2
    assert [line.split()[2:5] for line in text.splitlines()[3:5]] == [["-"] * 3] * 2
    stopped_before_its_last_result(out)
    assert run(capsys, "--resume", str(out))[0] == 0
    assert (out / "summary.json").read_bytes() == before


def test_the_bit_depth_of_pictures(
    flags: list[str], crowd: Path, capsys: Capture, tmp_path: Path
) -> None:
    """8 bits in 16, calibrated and certified, are what the same values in 8 are."""
    shutil.copytree(crowd / "test", tmp_path / "data")
    summaries = []
    for folder in two_depths(tmp_path / "data"):
        out = tmp_path / f"run-{folder.name}"
        code, _, err = run(
            capsys, *flags[2:], "--data", str(folder), "--patch-size", "12", "--split", "all",
            "--calibration-split", "all", "--force-calibration", "--bit-depth", "8",
            "--out", str(out),
        )  # fmt: skip
        assert code == 0, err
        summaries.append(summary_of(out))
    assert summaries[0]["rows"] == summaries[1]["rows"]
    code, _, err = run(capsys, "--resume", str(out), "--bit-depth", "9")
    assert code == 2
    assert "--bit-depth was 8, got 9" in err


def test_only_allowances_need_heads_of_the_same_folder(
    flags: list[str], crowd: Path, capsys: Capture, tmp_path: Path
) -> None:
    shutil.copytree(crowd, tmp_path / "bare", ignore=shutil.ignore_patterns("*.json"))
    flags = ["--data", str(tmp_path / "bare"), *flags[2:], "--unannotated", "--patch-size", "12"]
    code, _, err = run(capsys, *flags, "--out", str(tmp_path / "masked"))
    assert code == 2
    assert "image without annotation" in err
    given = ["--allowance", "3", "--method", "masked", "additive"]
    code, text, err = run(capsys, *flags, *given, "--out", str(tmp_path / "given"))
    assert code == 0, err
    assert "allowance for 12 pixels: 3 people, given" in text
    assert "2 images of" in text  # the caps
