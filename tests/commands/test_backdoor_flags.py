"""What the flags of the backdoor commands ask for: defaults, those of the scenes, the paper's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.backdoor import main, settings_of
from support.deep import two_depths

from pycc import data, models
from pycc.backdoor import FinePruning, FineTuning, Sinusoid, strategies
from pycc.backdoor.defenses.base import Retraining
from pycc.backdoor.evaluation.training import PUBLISHED
from pycc.backdoor.evaluation.verdict import MEDIAN
from pycc.commands.backdoor_settings import (
    DefendSettings,
    EvaluateSettings,
    RunSettings,
    TrainSettings,
)
from pycc.commands.scenes import BACKDOOR
from pycc.models import CounterModel
from pycc.models.recipe import Recipe
from pycc.runs import read_manifest
from pycc.settings import values_of
from pycc.train import TrainConfig, resolved


def run_settings(*argv: str) -> RunSettings:
    settings = settings_of("run", *argv, "--no-pictures")
    assert isinstance(settings, RunSettings)
    return settings


def plan_of(settings: RunSettings, counter: CounterModel) -> TrainConfig:
    return settings.training.with_published(PUBLISHED, counter).plan()


def test_defenses_take_what_is_the_attacks() -> None:
    given = ["--defense", "fine-tuning", "anp", "--lr", "3e-4", "--crops", "2", "--clip", "0.5",
             "--validation-share", "0.25"]  # fmt: skip
    options = ["--defense-option", "fine-tuning.lr=1e-3", "--defense-option", "anp.steps=7"]
    settings = run_settings(*given, *options)
    counter = models.load("mcnn-synthetic")
    (tuning, anp), detector = settings.defenses.made(settings.training, counter)
    assert detector is None
    assert isinstance(tuning, FineTuning)
    changed = {"lr": 1e-3, "epochs": settings.defenses.defense_epochs, "validation_share": 0.0}
    assert tuning.plan() == replace(plan_of(settings, counter), **changed)
    assert (tuning.clip, tuning.ema) == (0.5, BACKDOOR.ema)
    assert (anp.crops, anp.steps) == (2, 7)  # type: ignore[attr-defined]
    training = replace(settings.training, epochs=None)
    alone = replace(settings.defenses, defense_epochs=None, defense_option={})
    (tuning, _), _ = alone.made(training, counter)
    assert isinstance(tuning, FineTuning)
    assert (tuning.epochs, tuning.lr) == (100, 3e-4)


class _CLIP(CounterModel):
    """The properties of CLIP-EBC that matter here: its name, and that Adam trains it."""

    name = "clip_ebc"

    def __init__(self) -> None:
        super().__init__(torch.nn.Conv2d(3, 1, 8, stride=8), stride=8, receptive_field=8)

    def recipe(self) -> Recipe:
        return models.create("csrnet", variant="commissarma").recipe()


def test_what_is_not_asked_for_is_as_the_paper_has_it() -> None:
    """CSRNet: Adam, 1e-5, 100 epochs; CLIP-EBC: 4e-4, batches of 8, 150 epochs; defense: 1e-4."""
    run = run_settings("--data", "folder", "--model", "csrnet")
    csrnet = run.start.counter(0)
    recipe = resolved(plan_of(run, csrnet), csrnet, "shanghaitech_b")
    optimiser = recipe.optimisers[0]
    assert (optimiser.kind, optimiser.lr, recipe.epochs) == ("adam", 1e-5, 100)
    assert recipe.density == {"": "shhb15"}
    clip = _CLIP()
    plan = plan_of(run, clip)
    assert (plan.lr, plan.batch, plan.epochs) == (4e-4, 8, 150)
    (tuning,), _ = run.defenses.made(run.training, clip)
    assert (tuning.plan().lr, tuning.plan().batch, tuning.plan().epochs) == (1e-4, 8, 100)
    settings = run_settings(
        "--data", "folder", "--model", "csrnet", "--lr", "1e-3", "--epochs", "7"
    )
    plan = plan_of(settings, clip)
    (tuning,), _ = settings.defenses.made(settings.training, clip)
    assert (plan.lr, plan.epochs) == (tuning.plan().lr, tuning.plan().epochs) == (1e-3, 7)
    # SGD's rates are none of Adam's: the authors' variant keeps its own.
    other = models.create("csrnet", variant="leeyeehoo")
    assert plan_of(run, other).lr is None
    assert plan_of(run, other).epochs == 100


@pytest.mark.parametrize("command", [["run"], ["train"], ["evaluate"], ["defend", "fine-tuning"]])
def test_the_bit_depth_of_pictures(command: Sequence[str], tmp_path: Path) -> None:
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    for sample in data.open("synthetic", limit=2, shape=(64, 96)):
        data.save_image(scenes / f"{sample.name}.png", sample.image)
        (scenes / f"{sample.name}.csv").write_text("1,2\n")
    opened = []
    for folder in two_depths(scenes):
        settings = settings_of(*command, "--data", str(folder), "--bit-depth", "8")
        assert isinstance(settings, RunSettings | TrainSettings | EvaluateSettings | DefendSettings)
        assert settings.images.max_image_pixels == 178_956_970
        tests = isinstance(settings, EvaluateSettings)
        images = settings.images
        opened.append(images.tested() if tests else images.training())  # type: ignore[union-attr]
    for one, two in zip(*opened, strict=True):
        assert torch.equal(one.image, two.image)


def test_no_image_validates_unless_asked() -> None:
    for command in ("run", "train"):
        assert values_of(settings_of(command, "--data", "folder"))["validation_share"] == 0.0


def test_scenes_have_settings_of_their_own_and_what_is_given_counts() -> None:
    values = values_of(run_settings())
    scenes = {**vars(BACKDOOR), "strategy": list(BACKDOOR.strategy)}
    assert {name: values[name] for name in scenes} == scenes
    for given in (["--model", "mcnn"], ["--weights", "mcnn-synthetic"], ["--option", "resize=4"]):
        name = given[0].removeprefix("--")
        changed = {"option": {"resize": 4}}.get(name, given[1])
        assert values_of(run_settings(*given)) == {
            **values, "lr": None, "weights": None, "option": {}, name: changed
        }  # fmt: skip
    assert run_settings("--lr", "1").start.option == BACKDOOR.option
    assert run_settings("--scene", "96x128").training.crop == "whole"
    own = run_settings("--data", "folder")
    assert sorted(own.attack.strategy) == sorted(strategies.names())
    assert own.attack.fraction == 0.1
    assert own.training.epochs is None
    assert (own.attack.trigger, own.attack.trigger_option) == ("blend", {})
    defend = settings_of("defend", "fine-pruning")
    assert isinstance(defend, DefendSettings)
    assert isinstance(defend.defense, FinePruning)
    assert defend.defense.epochs == BACKDOOR.defense_epochs
    assert defend.defense.step_fraction == 0.05


def test_names_of_the_stages_are_of_no_strategy() -> None:
    assert not {"clean", "clean-defended", "pictures"} & set(strategies.names())
    assert MEDIAN not in run_settings().defenses.defense


@pytest.mark.parametrize("given", [[], ["--scale", "0.5"], ["--scene", "192x256"]])
def test_the_grating_of_the_scenes_fits_images_of_any_size(given: Sequence[str]) -> None:
    settings = run_settings(*given, "--max-test-images", "1")
    (sample,) = settings.images.tested()
    width = sample.image.shape[2]
    assert width == (256 if given else 512)
    trigger = settings.attack.made_trigger()
    same = Sinusoid(0.1, frequency=width / 4)
    assert torch.equal(*(marker(sample.image, seed=0, name="a") for marker in (trigger, same)))


@pytest.mark.parametrize(
    ("more", "rate"),
    [
        ([], None),  # grey of 0…255: the counter's own
        (["--option", "input=gray_unit"], BACKDOOR.lr),
        (["--option", "input=gray_unit", "--lr", "1e-5"], 1e-5),
    ],
)
def test_a_defense_on_scenes_has_the_rate_of_its_counter(
    tmp_path: Path, more: list[str], rate: float | None
) -> None:
    argv = ["defend", "fine-tuning", "--scene", "64x96", "--max-images", "2", "--epochs", "1",
            "--weights", "mcnn-synthetic", "--threads", "1", *more]  # fmt: skip
    assert main([*argv, "--out", str(tmp_path)]) == 0
    assert read_manifest(tmp_path)["settings"]["flags"]["lr"] == rate
    assert read_manifest(tmp_path / "fine-tuning")["settings"]["config"]["lr"] == rate


@pytest.mark.parametrize(
    ("argv", "needed"),
    [
        (["run", "--assumed", "1"], "--partitions"),
        (["run", "--extra-fraction", "0.1"], "--extra-data"),
        (["run", "--max-extra-images", "40"], "--extra-data"),
        (["defend", "anp", "--extra-split", "train"], "--extra-data"),
        (["run", "--references", "32"], "--defense blend-consistency"),
        (["run", "--defend-clean", "--defense", "none"], "--defense of "),
        (["run", "--defend-clean", "--defense", "blend-consistency"], "--defense of "),
        (["run", "--defense-epochs", "3", "--defense", "anp"], "--defense of fine-tuning, "),
        (["run", "--amount", "50", "--strategy", "divide", "multiply"], "--strategy add or minus"),
        (["poison", "OUT", "--amount", "50", "--strategy", "divide"], "--strategy add or minus"),
        (["train", "--trigger", "blend"], "--strategy"),
        (["train", "--trigger-option", "alpha=0.2"], "--strategy"),
        (["run", "--layer", "x", "--no-pictures"], "--pictures of a run"),
        (["run", "--picture-image", "x", "--no-pictures"], "--pictures of a run"),
    ],
)
def test_a_flag_that_does_nothing_is_refused(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
    needed: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    flag = next(text for text in argv if text.startswith("--"))
    assert main([str(tmp_path / "out") if text == "OUT" else text for text in argv]) == 2
    assert (err := capsys.readouterr().err).startswith(f"error: {flag}: expected {needed}")
    assert err.endswith(" beside it, got none\n")
    assert not list(tmp_path.iterdir())


def test_flags_beside_what_they_need_and_defaults_are_fine() -> None:
    for given in (
        [],
        ["--assumed", "0", "--partitions", "3"],
        ["--extra-fraction", "0.5", "--max-extra-images", "4", "--extra-split", "test",
         "--extra-data", "synthetic"],
        ["--references", "8", "--defense", "anp", "blend-consistency", "--defend-clean"],
        ["--no-defend-clean", "--defense", "none"],
        ["--amount", "5", "--strategy", "divide", "minus"],
        ["--defense-epochs", "3", "--defense", "anp", "nad"],
    ):  # fmt: skip
        run_settings(*given)
    pytest.importorskip("matplotlib")
    settings_of("run", "--layer", "x", "--picture-image", "y")


def test_every_field_of_a_training_is_a_defenses_too() -> None:
    """So a defense trains by what the attack was trained by."""
    run = values_of(run_settings().training)
    assert run.keys() <= values_of(Retraining.__subclasses__()[0]()).keys()
