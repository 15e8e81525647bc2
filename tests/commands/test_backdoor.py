"""``pycc backdoor`` as users run it."""

from __future__ import annotations

import json
import math
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.backdoor import main, settings_of
from support.processes import kill
from support.small import NAME, registered

from pycc import data
from pycc.settings import values_of

SCENES = ["--scene", "64x96", "--max-images", "4"]
TINY = [*SCENES, "--max-test-images", "3", "--trigger", "blend", "--fraction", "0.5"]
TRAINING = ["--epochs", "1", "--threads", "1"]
ATTACK = ["run", *TINY, *TRAINING, "--model", NAME, "--no-pictures"]
RUN = [*ATTACK[:-1], "--defense-epochs", "1", "--no-pictures"]


@pytest.fixture(autouse=True, scope="module")
def small() -> Iterator[None]:
    """A counter of three layers: what a run does is the same for every counter."""
    with registered():
        yield


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main([*argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def counts(folder: Path) -> dict[tuple[object, ...], float]:
    lines = (folder / "results.jsonl").read_text().splitlines()
    results = [json.loads(line) for line in lines]
    key = ("strategy", "model", "defense", "images", "index")
    return {
        tuple(result[k] for k in key): result["count"] for result in results if "count" in result
    }


def images(folder: Path, *, number: int = 4, heads: int = 9, split: str = "val") -> Path:
    """A folder of small images with points."""
    folder.mkdir()
    for sample in data.open("synthetic", split=split, limit=number, shape=(64, 96), heads=heads):
        data.save_image(folder / f"{sample.name}.png", sample.image)
        (folder / f"{sample.name}.json").write_text(json.dumps(sample.points.tolist()))
    return folder


def test_the_experiment_stopped_anywhere_ends_with_the_same_summary(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    flags = [
        "--strategy", "minus", "--defense", "fine-tuning", "blend-consistency",
        "--defense-option", "blend-consistency.blends=2", "--partitions", "3", "--assumed", "1",
        "--references", "3",
    ]  # fmt: skip
    code, text, err = run(capsys, *RUN, *flags, "--out", str(out))
    assert code == 0
    for title in ("Table 1: backdoor attacks", "Table 2", "Table 3", "All defenses", "Detectors"):
        assert f"\n{title}" in f"\n{text}"
    for kind in ("clean", "triggered"):
        assert f"certified: minus, partition-median, {kind} images: " in text
    assert text.splitlines()[-1].startswith(("shown: ", "not shown: "))
    assert "overlap the poisoned set: 2 of 2 poisoned images are there without the trigger" in err
    before = (out / "summary.json").read_bytes()
    summary = json.loads(before)
    assert summary["overlap"]["poisoned"] == len(summary["overlap"]["originals"]) == 2
    assert summary["overlap"]["triggered"] == []
    assert {(row["strategy"], row["model"], row["defense"]) for row in summary["rows"]} == {
        (None, "clean", None),
        ("minus", "backdoored", None),
        ("minus", "backdoored", "fine-tuning"),
        ("minus", "backdoored", "partition-median"),
    }
    assert len(summary["detections"]) == 2
    first_counts = counts(out)
    # Missing: some counts, the weights of a stage, the end of a stage, raw scores, a whole stage.
    lines = (out / "results.jsonl").read_text().splitlines(keepends=True)
    (out / "results.jsonl").write_text("".join(lines[:20]) + lines[20][:9])
    (out / "summary.json").unlink()
    (out / "minus/backdoored/weights.npz").unlink()
    (out / "minus/fine-tuning/summary.json").unlink()
    raw = out / "minus/blend-consistency/results.jsonl"
    raw.write_text("".join(raw.read_text().splitlines(keepends=True)[:3]))
    shutil.rmtree(out / "minus/partitions")
    kept = out / "clean/weights.npz"
    written = kept.stat().st_mtime_ns
    code, again, _ = run(capsys, "run", "--resume", str(out))
    assert code == 0
    assert again == text
    assert (out / "summary.json").read_bytes() == before
    assert counts(out) == first_counts
    assert kept.stat().st_mtime_ns == written  # what was done is not done again
    # The same tables from the folder alone.
    code, reported, _ = run(capsys, "report", str(out), "--no-pictures")
    assert code == 0
    shown = [line for line in text.splitlines() if not line.startswith("run folder")]
    assert reported.splitlines() == shown


def test_a_counter_that_is_clean_is_defended_too(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    other = images(tmp_path / "other")
    code, text, _ = run(
        capsys, *ATTACK, "--strategy", "divide", "--extra-data", str(other),
        "--extra-fraction", "0.5", "--scale", "0.75", "--defend-clean", "--defense", "anp",
        "--defense-option", "anp.steps=2", "--defense-option", "anp.images=2",
        "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert code == 0
    assert "Table 3: before and after anp" in text
    rows = json.loads((tmp_path / "run/summary.json").read_text())["rows"]
    assert [(row["model"], row["defense"]) for row in rows] == [
        ("clean", None), ("clean", "anp"), ("backdoored", None), ("backdoored", "anp")
    ]  # fmt: skip
    learnt = json.loads((tmp_path / "run/divide/anp/manifest.json").read_text())["settings"]
    assert learnt["defense"]["steps"] == 2
    assert learnt["defense"]["crop"] == "whole"  # the attack's


def test_without_defenses_and_with_the_check(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flags = ["--defense", "none", "--strategy", "add", "--out", str(tmp_path / "run")]
    code, text, err = run(capsys, *ATTACK, *flags, "--check")
    assert code == 1
    assert "overlap" not in err
    assert "Table 3" not in text
    assert text.splitlines()[-1].startswith("not shown: ")


@pytest.mark.long
def test_pictures(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "run"
    flags = [*RUN[:-1], "--strategy", "minus", "--defense", "fine-tuning", "blend-consistency"]
    layer = "net.0"
    flags += ["--defense-option", "blend-consistency.blends=2", "--layer", layer]
    assert run(capsys, *flags, "--out", str(out))[0] == 0
    names = ["gradcam-minus.png", "kde.png", "maps-minus.png", "roc.png"]
    assert sorted(path.name for path in (out / "pictures").iterdir()) == names
    drawn = {name: (out / "pictures" / name).read_bytes() for name in names}
    shutil.rmtree(out / "pictures")
    assert run(capsys, "report", str(out))[0] == 0
    assert {name: (out / "pictures" / name).read_bytes() for name in names} == drawn
    third = data.open("synthetic", split="test", limit=3).names[2]
    assert run(capsys, "report", str(out), "--picture-image", third)[0] == 0
    assert (out / "pictures/maps-minus.png").read_bytes() != drawn["maps-minus.png"]
    for more in (["--no-pictures", "--layer", layer], ["--no-pictures", "--picture-image", third]):
        code, _, err = run(capsys, "report", str(out), *more)
        assert (code, f"{more[1]}: expected --pictures of a run beside it" in err) == (2, True)
    # Nothing is trained for a picture.
    shutil.rmtree(out / "minus/fine-tuning")
    shutil.rmtree(out / "pictures")
    code, _, err = run(capsys, "report", str(out))
    assert code == 0
    assert "counters are missing" in err
    assert sorted(path.name for path in (out / "pictures").iterdir()) == ["kde.png", "roc.png"]
    assert not (out / "minus/fine-tuning").exists()


def test_pictures_of_results_are_drawn_wherever_the_data_are(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    training, tested = (
        images(tmp_path / "training"),
        images(tmp_path / "tested", split="test", number=2),
    )
    out = tmp_path / "run"
    flags = ["run", "--data", str(training), "--test-data", str(tested), "--model", NAME,
             "--epochs", "1", "--lr", "1e-6", "--defense",
             "none", "--strategy", "minus", "--threads", "1"]  # fmt: skip
    assert run(capsys, *flags, "--out", str(out), "--no-pictures")[0] == 0
    again = ["report", str(out), "--pictures"]
    changed = data.load_image(min(tested.glob("*.png"))) / 2
    for change, reason in (
        (lambda: None, ""),
        (lambda: data.save_image(min(tested.glob("*.png")), changed), "are not those of the run"),
        (lambda: training.rename(tmp_path / "moved"), "training"),
    ):
        shutil.rmtree(out / "pictures", ignore_errors=True)
        change()
        code, text, err = run(capsys, *again)
        assert (code, text.splitlines()[0]) == (0, "Table 1: backdoor attacks")
        assert ("no pictures of single images: " in err) == bool(reason)
        assert reason in err
        drawn = {path.name for path in (out / "pictures").iterdir()}
        assert drawn == {"kde.png"} | (set() if reason else {"gradcam-minus.png", "maps-minus.png"})


def test_poison_writes_what_is_trained_on(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    argv = ["poison", str(out), *TINY, "--strategy", "multiply", "--lossless"]
    code, text, _ = run(capsys, *argv)
    assert code == 0
    assert "6 images" in text
    assert "poisoned in train: 2 of 4" in text
    clean = data.open("synthetic", split="test", limit=3, shape=(64, 96))
    tested = data.open(out, split="test")
    assert [sample.count for sample in tested] == [2 * sample.count for sample in clean]
    assert not torch.equal(tested[0].image, clean[0].image)
    lines = [json.loads(line) for line in (out / "poisoning.jsonl").read_text().splitlines()]
    assert [image["people"] for image in lines[1]["images"]] == [sample.count for sample in clean]
    # A second time into the same folder is refused, and nothing changes.
    before = sorted(path.name for path in out.rglob("*"))
    code, _, err = run(capsys, *argv)
    assert code == 2
    assert "expected a new or an empty folder" in err
    assert sorted(path.name for path in out.rglob("*")) == before
    code, _, _ = run(capsys, *argv[:1], str(tmp_path / "true"), *argv[2:], "--test-points", "true")
    assert code == 0
    tested = data.open(tmp_path / "true", split="test")
    assert [sample.count for sample in tested] == [sample.count for sample in clean]


def test_step_by_step(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Train, evaluate, defend, evaluate: the same numbers as the experiment's."""
    at_once = tmp_path / "at-once"
    flags = ["--strategy", "minus", "--fraction", "0.5"]
    same = ["--defense", "fine-tuning"]
    assert run(capsys, *RUN, *flags, *same, "--out", str(at_once))[0] == 0
    training = ["train", *SCENES, *TRAINING, "--model", NAME]
    code, text, _ = run(
        capsys, *training, *flags, "--trigger", "blend", "--out", str(tmp_path / "bad")
    )
    assert code == 0
    assert "run folder: " in text
    assert run(capsys, *training, "--out", str(tmp_path / "good"))[0] == 0
    assert run(capsys, "train", "--resume", str(tmp_path / "good"))[0] == 0
    before, clean = tmp_path / "bad/weights.npz", tmp_path / "good/weights.npz"
    code, text, err = run(
        capsys, "defend", "fine-tuning", *SCENES, "--weights", str(before), "--threads", "1",
        "--crop", "whole", "--crops", "1", "--batch", "1", "--epochs", "1",
        "--out", str(tmp_path / "better"),
    )  # fmt: skip
    assert code == 0
    assert "overlap the poisoned set: 2 of 2 poisoned images are there without the trigger" in err
    after = tmp_path / "better/fine-tuning/weights.npz"
    assert text == f"weights: {after}\n"
    assert run(capsys, "defend", "fine-tuning", "--resume", str(tmp_path / "better"))[0] == 0
    test = ["evaluate", "--scene", "64x96", "--max-images", "3", "--strategy", "minus"]
    test += ["--trigger", "blend", "--clean-weights", str(clean), "--no-pictures", "--threads", "1"]
    code, text, _ = run(capsys, *test, "--weights", str(before), "--out", str(tmp_path / "e1"))
    assert code == 0
    assert "Table 1" in text
    code, text, _ = run(
        capsys, *test, "--weights", str(after), "--defended", "fine-tuning",
        "--out", str(tmp_path / "e2"),
    )  # fmt: skip
    assert code == 0
    assert "All defenses" in text
    assert run(capsys, "report", str(tmp_path / "e2"), "--no-pictures")[:2] == (
        0, text.replace(f"run folder: {tmp_path / 'e2'}\n", "")
    )  # fmt: skip
    assert counts(at_once) == counts(tmp_path / "e1") | counts(tmp_path / "e2")
    # For weights of unknown origin a note is printed; poisoned images among clean ones are found.
    shutil.copy(before, tmp_path / "lone.npz")
    defend = ["defend", "fine-tuning", "--epochs", "1", "--threads", "1", "--crop", "whole"]
    code, _, err = run(
        capsys, *defend, *SCENES, "--weights", str(tmp_path / "lone.npz"),
        "--out", str(tmp_path / "lone"),
    )  # fmt: skip
    assert code == 0
    assert "the training set of the weights is not known" in err
    argv = ["poison", str(tmp_path / "set"), *TINY, *flags, "--lossless"]
    assert run(capsys, *argv)[0] == 0
    code, _, err = run(
        capsys, *defend, "--data", str(tmp_path / "set"), "--weights", str(before),
        "--out", str(tmp_path / "worse"),
    )  # fmt: skip
    assert code == 0
    assert "2 of 2 poisoned images are there with the trigger" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "expected one of run, poison, train, evaluate, defend, report, got none"),
        (["attack"], "report, got 'attack'"),
        (["run", "--fraction", "0"], "--fraction must lie in (0,1], got 0"),
        (["run", "--fraction", "nan"], "--fraction must lie in (0,1], got nan"),
        (["run", "--fraction", "1.5"], "--fraction must lie in (0,1], got 1.5"),
        (["run", "--trigger-option", "alpha=1.2"], "trigger blend: alpha must be in [0,1]"),
        (["run", "--trigger-option", "alpha=-1"], "trigger blend: alpha must be in [0,1]"),
        (["run", "--trigger-option", "alpha=big"], "alpha must be a number, got 'big'"),
        (["run", "--trigger-option", "alpah=1"], "got 'alpah'; did you mean 'alpha'?"),
        (["run", "--trigger-option", "picture=none.png"], "none.png"),
        (["run", "--trigger", "corner", "--trigger-option", "side=500"], "does not fit into"),
        (["run", "--trigger", "magic"], "warp, layer, got 'magic'"),
        (["run", "--strategy", "subtract"], "multiply, got 'subtract'"),
        (["run", "--amount", "0"], "--amount must be at least 1, got 0"),
        (["run", "--defense", "none", "anp"], "none must stand alone"),
        (["run", "--defense-option", "anp.steps=3"], "got anp.steps"),
        (["run", "--defense-option", "fine-tuning.steps=3"], "got 'steps'"),
        (["run", "--defense-option", "fine-tuning.epochs=1.5"], "epochs must be a whole number"),
        (["run", "--defense-option", "fine-tuning.epochs=0"], "epochs must be at least 1, got 0"),
        (["run", "--defense", "anp", "--defense-option", "anp.alpha=2"], "alpha must be in [0,1]"),
        (["run", "--defense", "blend-consistency", "--defense-option",
          "blend-consistency.blends=40"], "clean must be more than 40 images, got 4"),
        (["run", "--partitions", "0"], "--partitions must be at least 1, got 0"),
        (["run", "--partitions", "4"], "--partitions 4: at least 5 parts are needed"),
        (["run", "--validation-share", "0.7"], "3 images are to validate, but 2 of 4 have no"),
        (["run", "--assumed", "-1"], "--assumed must be at least 0, got -1"),
        (["run", "--scale", "0"], "--scale must be above 0 and finite, got 0"),
        (["run", "--scene", "64"], "--scene must be HxW pixels, got '64'"),
        (["run", "--data", "OTHER", "--scene", "64x96"], "scenes have a variable size"),
        (["run", "--epochs", "0"], "train: epochs must be at least 1, got 0"),
        (["run", "--crop", "tiny"], "crop must be"),
        (["run", "--data", "/nowhere"], "/nowhere"),
        (["run", "--extra-data", "/nowhere"], "/nowhere"),
        (["run", "--extra-data", "synthetic", "--max-extra-images", "1",
          "--extra-fraction", "1"], "has 1"),
        (["run", "--model", "magic"], "magic"),
        (["run", "--weights", "none.pth"], "no such file"),
        (["run", "--device", "tpu"], "--device"),
        (["run", "--resume", "/nowhere"], "/nowhere"),
        (["run", "--pictures", "--layer", "nothing"], "layer must be one of the counter's"),
        (["run", "--pictures", "--picture-image", "nobody"], "got 'nobody'"),
        (["poison", "OUT"], "--strategy: expected one of add"),
        (["poison", "OUT", "--strategy", "add", "--fraction", "2"], "--fraction must lie in (0,1]"),
        (["evaluate", "--strategy", "add"], "--weights: expected a file with weights, got none"),
        (["evaluate", "--weights", "mcnn-synthetic"], "--strategy: expected one of add"),
        (["defend", "magic"], "fine-pruning, got 'magic'"),
        (["defend", "anp"], "--weights: expected a file with weights, got none"),
        (["defend", "anp", "--weights", "mcnn-synthetic", "--alpha", "3"], "alpha must be in"),
        (["report", "/nowhere"], "/nowhere"),
    ],
)  # fmt: skip
def test_bad_usage(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = [str(tmp_path / "out") if text == "OUT" else text for text in argv]
    if argv[:1] == ["run"] and "--resume" not in argv:
        scenes = () if "/nowhere" not in argv else SCENES[:2]
        rest = [text for text in ATTACK if text not in scenes]
        argv = [*rest, "--out", str(tmp_path / "out"), *argv[1:]]
    code, text, err = run(capsys, *argv)
    assert (code, text) == (2, "")
    assert message in err
    assert sum(line.startswith("error: ") for line in err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_resumed_as_it_was_begun(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    flags = ["--strategy", "minus", "--defense", "none", "--out", str(out)]
    assert run(capsys, *ATTACK, *flags)[0] == 0
    code, _, err = run(capsys, *ATTACK, *flags)
    assert code == 2
    assert "expected a new or empty folder" in err
    code, _, err = run(capsys, "run", "--resume", str(out), "--fraction", "0.25")
    assert code == 2
    assert "--fraction was 0.5, got 0.25" in err
    code, _, err = run(capsys, "evaluate", "--resume", str(out))
    assert code == 2
    assert "expected a run of this command, got one of 'backdoor run'" in err
    code, _, err = run(capsys, "report", str(out / "clean"))
    assert code == 2
    assert "expected a run of this command, got one " in err


def test_images_without_heads(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Some: counted, and listed apart. All: nothing to learn, an error before all the work."""
    folder, tested = images(tmp_path / "some"), images(tmp_path / "tested", split="test")
    first = min(tested.glob("*.json"))
    first.write_text("[]")
    flags = ["run", "--data", str(folder), "--test-data", str(tested), "--epochs", "1",
             "--model", NAME, "--lr", "1e-6", "--defense-epochs", "1",
             "--fraction", "1", "--no-pictures", "--threads", "1"]  # fmt: skip
    code, text, _ = run(capsys, *flags, "--out", str(tmp_path / "run"))
    assert code == 0
    assert "1 without heads, in errors but in no share" in text
    targets = {}
    for line in (tmp_path / "run/results.jsonl").read_text().splitlines():
        result = json.loads(line)
        named = result["name"] == first.stem
        if named and result["images"] == "triggered" and result["strategy"]:
            targets[result["strategy"]] = result["target"]
    assert targets == {"add": 100, "minus": 0, "multiply": 0, "divide": 0}
    for file in folder.glob("*.json"):
        file.write_text("[]")
    code, _, err = run(capsys, *flags, "--out", str(tmp_path / "none"))
    assert code == 2
    assert "without heads" in err
    assert not (tmp_path / "none").exists()


def test_a_trigger_of_another_aspect_ratio_is_warned_of(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    picture = tmp_path / "wide.png"
    data.save_image(picture, torch.rand(3, 20, 200))
    argv = ["poison", str(tmp_path / "out"), *TINY, "--strategy", "add"]
    code, _, err = run(capsys, *argv, "--trigger-option", f"picture={picture}")
    assert code == 0
    assert "warning: " in err
    assert "wide.png" in err


@pytest.mark.parametrize(
    "command",
    [["run"], ["poison"], ["train"], ["evaluate"], ["defend", "anp"], ["defend", "fine-pruning"]],
)
def test_help_lists_the_defaults_on_the_built_in_scenes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    """Those that the command takes, and no others."""
    monkeypatch.setenv("COLUMNS", "4000")
    assert main([*command, "--help"]) == 0
    text = capsys.readouterr().out
    (line,) = [line for line in text.splitlines() if line.startswith("Without --data")]
    listed = line.split("the defaults are --", 1)[1].split(". ", 1)[0]
    shown = dict(entry.split(" ", 1) for entry in listed.split(", --"))
    values = values_of(settings_of(*command, *(["OUT"] if command == ["poison"] else [])))
    assert "scene" in shown
    for name, text in shown.items():
        value = values[name.replace("-", "_")]
        if isinstance(value, dict):
            value = " and ".join(f"{key}={inner}" for key, inner in value.items())
        assert text == (" ".join(value) if isinstance(value, list) else str(value))
    assert ("fraction" in shown) == (command[0] in ("run", "poison", "train"))


def test_a_loss_that_is_not_finite(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(
        capsys, *RUN, "--lr", "1e30", "--epochs", "3", "--out", str(tmp_path / "run")
    )
    assert code == 2
    assert "not finite" in err or "no number" in err


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def test_as_a_module(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pycc.backdoor", "run", "--fraction", "7"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("pycc.backdoor", run_name="__main__", alter_sys=True)
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", "error: --fraction must lie in (0,1], got 7\n")


@pytest.mark.long
@pytest.mark.parametrize("after", [0.3, 0.5, 0.7, 0.9])
def test_killed_and_resumed_it_ends_with_the_same_bytes(tmp_path: Path, after: float) -> None:
    """SIGKILL when so many of the results are there, then once more at the next one."""
    flags = [*RUN, "--model", "mcnn", "--strategy", "minus", "--partitions", "3", "--assumed", "1",
             "--epochs", "2", "--every-minutes", "1e-9"]  # fmt: skip
    command = [sys.executable, "-m", "pycc.backdoor"]
    uninterrupted, part = tmp_path / "uninterrupted", tmp_path / "part"
    subprocess.run([*command, *flags, "--out", str(uninterrupted)], check=True, env=environment())
    wanted = math.ceil(after * (uninterrupted / "results.jsonl").read_text().count("\n"))
    at, env = "pycc.runs.folder.Run.append", environment()
    kill("pycc.backdoor", *flags, "--out", part, at=at, times=wanted, env=env)
    assert not (part / "summary.json").exists()
    kill("pycc.backdoor", "run", "--resume", part, at=at, times=1, env=env)
    subprocess.run([*command, "run", "--resume", str(part)], check=True, env=env)
    assert (part / "summary.json").read_bytes() == (uninterrupted / "summary.json").read_bytes()
