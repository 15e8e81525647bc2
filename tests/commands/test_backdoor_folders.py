"""Run folders: the poisoning of the weights in them, and reports of several runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from support.backdoor import main

from pycc import data
from pycc.runs import read_manifest

SCENES = ["--scene", "64x96", "--threads", "1"]
TRAINING = [*SCENES, "--max-images", "2", "--epochs", "1", "--fraction", "0.5"]
ATTACK = ["--strategy", "minus", "--amount", "5", "--trigger", "blend", "--seed", "3"]


def evaluated(weights: Path, out: Path, *more: str) -> dict[str, object]:
    """The settings of an evaluation."""
    argv = ["evaluate", *SCENES, "--max-images", "1", "--no-pictures", "--weights", str(weights)]
    assert main([*argv, "--out", str(out), *more]) == 0
    flags = read_manifest(out)["settings"]["flags"]
    assert isinstance(flags, dict)
    return flags


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a counter trained on a set that a picture poisoned."""
    out = tmp_path_factory.mktemp("trained")
    data.save_image(out / "picture.png", torch.full((3, 8, 12), 0.5))
    option = ["--trigger-option", f"picture={out / 'picture.png'}", "--trigger-option", "alpha=0.3"]
    assert main(["train", *TRAINING, *ATTACK, *option, "--out", str(out / "bad")]) == 0
    return out / "bad"


def test_an_evaluation_takes_what_the_weights_were_poisoned_with(
    capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path
) -> None:
    weights = trained / "weights.npz"
    flags = evaluated(weights, tmp_path / "same")
    assert (flags["trigger"], flags["strategy"], flags["amount"]) == ("blend", "minus", 5)
    assert (flags["seed"], flags["defended"]) == (3, None)
    option = flags["trigger_option"]
    assert option == {"alpha": 0.3, "picture": str(trained.parent / "picture.png")}
    assert "another poisoning" not in capsys.readouterr().err
    # The same picture under another name is the same trigger.
    (tmp_path / "moved.png").write_bytes((trained.parent / "picture.png").read_bytes())
    moved = ["--trigger-option", f"picture={tmp_path / 'moved.png'}"]
    evaluated(weights, tmp_path / "moved", *moved, "--trigger-option", "alpha=0.3")
    assert "another poisoning" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["--seed", "4"], ["seed was 3, is 4"]),
        (["--amount", "6"], ["strategy.amount was 5, is 6"]),
        (["--strategy", "divide"], ["strategy.amount was 5, is None", "was 'minus', is 'divide'"]),
        (["--trigger-option", "alpha=0.1"], ["trigger.alpha was 0.3, is 0.1", "picture_content"]),
        (["--trigger", "noise"], ["trigger.trigger was 'blend', is 'noise'"]),
        (["--defended", "anp"], ["defended was None, is 'anp'"]),
    ],
)
def test_flags_that_differ_are_used_and_warned_of(
    capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path, more: list[str],
    parts: list[str],
) -> None:  # fmt: skip
    weights = trained / "weights.npz"
    flags = evaluated(weights, tmp_path / "other", *more)
    (warning,) = [
        line for line in capsys.readouterr().err.splitlines() if "another poisoning" in line
    ]
    assert warning.startswith(
        f"warning: {weights}: trained with another poisoning than is tested: "
    )
    assert all(part in warning for part in parts)
    if not more[0].endswith("option"):
        assert str(flags[more[0].removeprefix("--")]) == more[1]


def test_the_poisoning_of_a_defended_counter_is_known(
    capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path
) -> None:
    argv = ["defend", "fine-tuning", *SCENES, "--max-images", "2", "--epochs", "1"]
    before, out = trained / "weights.npz", tmp_path / "better"
    assert main([*argv, "--weights", str(before), "--out", str(out)]) == 0
    flags = evaluated(out / "fine-tuning/weights.npz", tmp_path / "after")
    assert (flags["strategy"], flags["seed"]) == ("minus", 3)
    assert flags["defended"] == "fine-tuning"
    assert "another poisoning" not in capsys.readouterr().err
    # Weights without a manifest: the trigger is that of the scenes, a strategy must be named.
    (tmp_path / "lone").mkdir()
    lone = tmp_path / "lone/weights.npz"
    lone.write_bytes(before.read_bytes())
    assert main(["evaluate", *SCENES, "--weights", str(lone), "--out", str(tmp_path / "x")]) == 2
    assert "--strategy: expected one of add" in capsys.readouterr().err
    assert evaluated(lone, tmp_path / "y", "--strategy", "add")["trigger"] == "sinusoid"


def test_built_in_weights_are_not_those_of_the_current_folder(
    capsys: pytest.CaptureFixture[str],
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(trained)
    argv = ["--weights", "mcnn-synthetic", *SCENES, "--out", str(tmp_path / "run")]
    assert main(["evaluate", *argv]) == 2
    assert "--strategy: expected one of add" in capsys.readouterr().err
    assert main(["defend", "fine-tuning", *argv, "--max-images", "2", "--epochs", "1"]) == 0
    assert "the training set of the weights is not known" in capsys.readouterr().err


@pytest.fixture(scope="module")
def steps(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Evaluations of the counter before and after a defense, with the same clean counter."""
    out = tmp_path_factory.mktemp("steps")
    defend = ["defend", "fine-tuning", *SCENES, "--max-images", "2", "--epochs", "1"]
    assert main([*defend, "--weights", str(trained / "weights.npz"), "--out", str(out / "d")]) == 0
    clean = ["--clean-weights", "mcnn-synthetic"]
    evaluated(trained / "weights.npz", out / "before", *clean)
    evaluated(out / "d/fine-tuning/weights.npz", out / "after", *clean)
    return out / "before", out / "after"


def reported(capsys: pytest.CaptureFixture[str], *folders: Path) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["report", *map(str, folders), "--no-pictures"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_evaluations_before_and_after_a_defense_are_reported_together(
    capsys: pytest.CaptureFixture[str], steps: tuple[Path, Path]
) -> None:
    code, text, _ = reported(capsys, *steps)
    assert code == 0
    two, three = (text.split(f"Table {k}: ")[1].split("\n\n")[1] for k in (2, 3))
    assert [line.split("  ")[1].strip() for line in two.splitlines()[2:4]] == [
        "minus", "minus, fine-tuning"
    ]  # fmt: skip
    (attacked,) = [line for line in three.splitlines() if line.startswith("mcnn   minus")]
    assert " - " not in f"{attacked} ", "before and after are known"
    assert text.splitlines()[-1].startswith(("shown: ", "not shown: a backdoor"))
    assert "minus +" in text.splitlines()[-1] or "minus -" in text.splitlines()[-1]
    assert reported(capsys, steps[1], steps[0], steps[1])[1] == text, "in any order, each once"


def test_evaluations_of_two_models_are_reported_side_by_side(
    capsys: pytest.CaptureFixture[str], steps: tuple[Path, Path], tmp_path: Path
) -> None:
    other = [tmp_path / folder.name for folder in steps]
    for folder, copy in zip(steps, other, strict=True):
        shutil.copytree(folder, copy)
        manifest = json.loads((copy / "manifest.json").read_text())
        (copy / "manifest.json").write_text(
            json.dumps({**manifest, "settings": {**manifest["settings"], "model": "csrnet"}})
        )
    code, text, _ = reported(capsys, *steps, *other)
    assert code == 0
    for table in (1, 2, 3):
        lines = text.split(f"Table {table}: ")[1].split("\n\n")[1].splitlines()
        order = [line.split()[0] for line in lines if line.startswith(("mcnn  ", "csrnet  "))]
        assert order == sorted(order, reverse=True)
        assert order.count("mcnn") == order.count("csrnet") == 2
    assert "published, ShanghaiTech B" in text
    last = text.splitlines()[-2:]
    assert [line.split(": ")[0] for line in last] == ["mcnn", "csrnet"]
    assert last[0].split(": ", 1)[1] == last[1].split(": ", 1)[1]


def test_runs_that_do_not_belong_together_are_refused(
    capsys: pytest.CaptureFixture[str], steps: tuple[Path, Path], trained: Path, tmp_path: Path
) -> None:
    weights = trained / "weights.npz"
    more = ["--max-images", "2"]
    evaluated(weights, tmp_path / "more", *more)
    evaluated(weights, tmp_path / "trigger", "--trigger", "noise")
    evaluated(trained.parent / "bad/weights.npz", tmp_path / "clean", "--clean-weights",
              str(weights))  # fmt: skip
    for name, message in (
        ("more", "got others: test.images was "),
        ("trigger", "trigger.trigger was 'blend', is 'noise'"),
        ("clean", "image test-0-0, clean, got another: count was "),
    ):
        code, text, err = reported(capsys, steps[0], tmp_path / name)
        assert (code, text) == (2, "")
        assert err.startswith(f"error: {tmp_path / name}: expected ")
        assert message in err
