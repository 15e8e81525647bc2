"""What run folders say: of the weights in them, and of several side by side."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pycc import data
from pycc.backdoor.__main__ import main
from pycc.run import read_manifest

SCENES = ["--scene", "64x96", "--threads", "1"]
TRAINING = [*SCENES, "--limit", "2", "--epochs", "1", "--portion", "0.5"]
ATTACK = ["--strategy", "minus", "--amount", "5", "--trigger", "blend", "--seed", "3"]


def evaluated(weights: Path, out: Path, *more: str) -> dict[str, object]:
    """The settings of an evaluation."""
    argv = ["evaluate", *SCENES, "--test-limit", "1", "--no-pictures", "--weights", str(weights)]
    assert main([*argv, "--out", str(out), *more]) == 0
    found = read_manifest(out)["settings"]
    assert isinstance(found, dict)
    return found


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
    found = evaluated(weights, tmp_path / "same")
    assert (found["trigger"], found["strategy"], found["amount"]) == ("blend", "minus", 5)
    assert (found["seed"], found["defended"]) == (3, None)
    option = found["trigger_option"]
    assert option == {"alpha": 0.3, "picture": str(trained.parent / "picture.png")}
    assert "another poisoning" not in capsys.readouterr().err
    # The same picture under another name is the same trigger.
    (tmp_path / "moved.png").write_bytes((trained.parent / "picture.png").read_bytes())
    moved = ["--trigger-option", f"picture={tmp_path / 'moved.png'}"]
    evaluated(weights, tmp_path / "moved", *moved, "--trigger-option", "alpha=0.3")
    assert "another poisoning" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--seed", "4"], ["seed was 3, is 4"]),
        (["--amount", "6"], ["strategy.amount was 5, is 6"]),
        (["--strategy", "divide"], ["strategy.amount was 5, is None", "was 'minus', is 'divide'"]),
        (["--trigger-option", "alpha=0.1"], ["trigger.alpha was 0.3, is 0.1", "picture_content"]),
        (["--trigger", "noise"], ["trigger.trigger was 'blend', is 'noise'"]),
        (["--defended", "anp"], ["defended was None, is 'anp'"]),
    ],
)
def test_what_is_given_differently_is_taken_and_warned_of(
    capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path, more: list[str],
    told: list[str],
) -> None:  # fmt: skip
    weights = trained / "weights.npz"
    found = evaluated(weights, tmp_path / "other", *more)
    (said,) = [one for one in capsys.readouterr().err.splitlines() if "another poisoning" in one]
    assert said.startswith(f"warning: {weights}: trained with another poisoning than is tested: ")
    assert all(one in said for one in told)
    if not more[0].endswith("option"):
        assert str(found[more[0].removeprefix("--")]) == more[1]


def test_of_a_defended_counter_it_is_known_too(
    capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path
) -> None:
    argv = ["defend", "fine-tuning", *SCENES, "--limit", "2", "--epochs", "1"]
    before, out = trained / "weights.npz", tmp_path / "better"
    assert main([*argv, "--weights", str(before), "--out", str(out)]) == 0
    found = evaluated(out / "fine-tuning/weights.npz", tmp_path / "after")
    assert (found["strategy"], found["seed"]) == ("minus", 3)
    assert found["defended"] == "fine-tuning"
    assert "another poisoning" not in capsys.readouterr().err
    # Lone weights say nothing: the trigger is the scenes', and a strategy must be named.
    (tmp_path / "lone").mkdir()
    lone = tmp_path / "lone/weights.npz"
    lone.write_bytes(before.read_bytes())
    assert main(["evaluate", *SCENES, "--weights", str(lone), "--out", str(tmp_path / "x")]) == 2
    assert "--strategy: expected one of add" in capsys.readouterr().err
    assert evaluated(lone, tmp_path / "y", "--strategy", "add")["trigger"] == "sinusoid"
