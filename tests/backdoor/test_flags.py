"""What the flags of the commands ask for: defaults, those of the built-in scenes, the paper's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.deep import two_depths

from pycc import data, models
from pycc.backdoor import FineTuning, Sinusoid, flags, settings, strategies
from pycc.backdoor.__main__ import main
from pycc.backdoor.evaluation.verdict import MEDIAN
from pycc.models import CounterModel
from pycc.models.recipe import Recipe
from pycc.runs import read_manifest
from pycc.train import resolved


def test_defenses_take_what_is_the_attacks() -> None:
    given = {"defense": ["fine-tuning", "anp"], "lr": 3e-4, "crops": 2, "clip": 0.5,
             "validation_share": 0.25,
             "defense_option": {"fine-tuning.lr": 1e-3, "anp.steps": 7}}  # fmt: skip
    chosen = flags.defaults("run", given)
    counter = models.load("mcnn-synthetic")
    (tuning, anp), detector = settings.defenses_of(chosen, counter)
    assert detector is None
    assert isinstance(tuning, FineTuning)
    changed = {"lr": 1e-3, "epochs": chosen["defense_epochs"], "validation_share": 0.0}
    assert tuning.plan() == replace(settings.plan_of(chosen, counter), **changed)
    assert (tuning.clip, tuning.ema) == (0.5, flags.QUICK["ema"])
    assert (anp.crops, anp.steps) == (2, 7)
    alone = {**chosen, "defense_epochs": None, "epochs": None, "defense_option": {}}
    (tuning, _), _ = settings.defenses_of(alone, counter)
    assert (tuning.epochs, tuning.lr) == (100, 3e-4)


class _CLIP(CounterModel):
    """What is asked of CLIP-EBC here: its name, and that it is trained with Adam."""

    name = "clip_ebc"

    def __init__(self) -> None:
        super().__init__(torch.nn.Conv2d(3, 1, 8, stride=8), stride=8, receptive_field=8)

    def recipe(self) -> Recipe:
        return models.create("csrnet", variant="commissarma").recipe()


def test_what_is_not_asked_for_is_as_the_paper_has_it() -> None:
    """CSRNet: Adam, 1e-5, 100 epochs; CLIP-EBC: 4e-4, batches of 8, 150 epochs; defense: 1e-4."""
    run = flags.defaults("run", {"data_b": "folder", "model": "csrnet"})
    csrnet = settings.counter_of(run)
    assert isinstance(csrnet, CounterModel)
    found = resolved(settings.plan_of(run, csrnet), csrnet, "shanghaitech_b")
    assert (found.optimisers[0].kind, found.optimisers[0].lr, found.epochs) == ("adam", 1e-5, 100)
    assert found.density == {"": "shhb15"}
    clip = _CLIP()
    plan = settings.plan_of(run, clip)
    assert (plan.lr, plan.batch, plan.epochs) == (4e-4, 8, 150)
    (tuning,), _ = settings.defenses_of(run, clip)
    assert (tuning.plan().lr, tuning.plan().batch, tuning.plan().epochs) == (1e-4, 8, 100)
    asked = {**run, "lr": 1e-3, "epochs": 7}
    plan = settings.plan_of(asked, clip)
    (tuning,), _ = settings.defenses_of(asked, clip)
    assert (plan.lr, plan.epochs) == (tuning.plan().lr, tuning.plan().epochs) == (1e-3, 7)
    # SGD's rates are none of Adam's: the authors' variant keeps its own.
    other = models.create("csrnet", variant="leeyeehoo")
    assert settings.plan_of(run, other).lr is None
    assert settings.plan_of(run, other).epochs == 100


@pytest.mark.parametrize("command", ["run", "train", "evaluate", "defend"])
def test_the_bit_depth_of_pictures(command: str, tmp_path: Path) -> None:
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    for sample in data.open("synthetic", limit=2, shape=(64, 96)):
        data.save_image(scenes / f"{sample.name}.png", sample.image)
        (scenes / f"{sample.name}.csv").write_text("1,2\n")
    opened = []
    for folder in two_depths(scenes):
        given = {"data_b": str(folder), "bit_depth": 8, "defense": "fine-tuning"}
        chosen = flags.defaults(command, given)
        assert chosen["max_image_pixels"] == 178_956_970
        opened.append(settings.tested(chosen) if command == "evaluate" else settings.own(chosen))
    for one, two in zip(*opened, strict=True):
        assert torch.equal(one.image, two.image)


def test_no_image_validates_unless_asked() -> None:
    for command in ("run", "train"):
        assert flags.defaults(command, {"data_b": "folder"})["validation_share"] == 0.0


def test_scenes_have_settings_of_their_own_and_what_is_given_counts() -> None:
    chosen = flags.defaults("run", {})
    assert {name: chosen[name] for name in flags.QUICK} == flags.QUICK
    for name, value in (("model", "mcnn"), ("weights", "own.npz"), ("option", {"resize": 4})):
        assert flags.defaults("run", {name: value}) == {
            **chosen, "lr": None, "weights": None, "option": {}, name: value
        }  # fmt: skip
    assert flags.defaults("run", {"lr": 1.0})["option"] == flags.QUICK["option"]
    assert flags.defaults("run", {"scene": "96x128"})["crop"] == "whole"
    own = flags.defaults("run", {"data_b": "folder"})
    assert sorted(own["strategy"]) == sorted(strategies.names())
    assert own["portion"] == 0.1
    assert own["epochs"] is None
    assert (own["trigger"], own["trigger_option"]) == ("blend", {})
    defend = flags.defaults("defend", {"defense": "fine-pruning"})
    assert defend["epochs"] == flags.QUICK["defense_epochs"]
    assert defend["portion"] == 0.05


def test_names_of_the_stages_are_of_no_strategy() -> None:
    assert not {"clean", "clean-defended", "pictures"} & set(strategies.names())
    assert MEDIAN not in flags.defaults("run", {})["defense"]


@pytest.mark.parametrize("given", [{}, {"scale": 0.5}, {"scene": "192x256"}])
def test_the_grating_of_the_scenes_fits_images_of_any_size(given: dict[str, object]) -> None:
    chosen = flags.defaults("run", {**given, "test_limit": 1})
    (sample,) = settings.tested(chosen)
    width = sample.image.shape[2]
    assert width == (256 if given else 512)
    trigger = settings.trigger_of(chosen)
    same = Sinusoid(0.1, frequency=width / 4)
    assert torch.equal(*(one(sample.image, seed=0, name="a") for one in (trigger, same)))


@pytest.mark.parametrize(
    ("more", "rate"),
    [
        ([], None),  # grey of 0…255: the counter's own
        (["--option", "input=gray_unit"], flags.QUICK["lr"]),
        (["--option", "input=gray_unit", "--lr", "1e-5"], 1e-5),
    ],
)
def test_a_defense_on_scenes_has_the_rate_of_its_counter(
    tmp_path: Path, more: list[str], rate: float | None
) -> None:
    argv = ["defend", "fine-tuning", "--scene", "64x96", "--limit", "2", "--epochs", "1",
            "--weights", "mcnn-synthetic", "--threads", "1", *more]  # fmt: skip
    assert main([*argv, "--out", str(tmp_path)]) == 0
    assert read_manifest(tmp_path)["settings"]["flags"]["lr"] == rate
    assert read_manifest(tmp_path / "fine-tuning")["settings"]["plan"]["lr"] == rate


@pytest.mark.parametrize(
    ("argv", "needed"),
    [
        (["run", "--assumed", "1"], "--partitions"),
        (["run", "--share", "0.1"], "--data-a"),
        (["run", "--limit-a", "40"], "--data-a"),
        (["defend", "anp", "--split-a", "train"], "--data-a"),
        (["run", "--references", "32"], "--defense blend-consistency"),
        (["run", "--defend-clean", "--defense", "none"], "--defense of "),
        (["run", "--defend-clean", "--defense", "blend-consistency"], "--defense of "),
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
    flag = next(one for one in argv if one.startswith("--"))
    assert main([str(tmp_path / "out") if one == "OUT" else one for one in argv]) == 2
    assert f"error: {flag} does nothing without {needed}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_flags_beside_what_they_need_and_defaults_are_fine() -> None:
    for given in (
        {},
        {"assumed": 0, "partitions": 3},
        {"share": 0.5, "limit_a": 4, "split_a": "test", "data_a": "synthetic"},
        {"references": 8, "defense": ["anp", "blend-consistency"], "defend_clean": True},
        {"defend_clean": False, "defense": ["none"]},
        {"amount": 5, "strategy": ["divide", "minus"]},
        {"layer": ["x"], "picture_image": "y"},
    ):
        settings.check_needs(given, flags.defaults("run", given))


@pytest.mark.parametrize("argv", [["run"], ["train"], ["defend", "anp"], ["report", "."]])
def test_many_processes_are_refused(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(argv) == 2
    said = "error: torchrun: this command runs on one process, got WORLD_SIZE 2\n"
    assert capsys.readouterr().err == said
    assert not list(tmp_path.iterdir())
