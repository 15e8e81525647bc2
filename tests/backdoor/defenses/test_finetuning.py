"""What every defense keeps to, fine-tuning, and data sets that are learnt from together."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from support.planted import QUICK, clean, count, planted, same, state, triggered
from support.scenes import scenes

from pycc import data, models, runs
from pycc.backdoor.defenses import distillation, neurons, pruning  # noqa: F401  (importing registers them)
from pycc.backdoor.defenses.base import Defense, TrainingSettings, defenses, twin
from pycc.backdoor.defenses.finetuning import FineTuning, clean_mixture
from pycc.commands.flags import Parser
from pycc.data.dataset import Dataset
from pycc.models import CounterModel
from pycc.models.families import untrained
from pycc.models.recipe import Crop
from pycc.settings import build, flags_of
from pycc.train import TrainConfig, fit, resolved
from pycc.train.config import with_own_truths
from pycc.train.held import measured
from pycc.train.items import Items, Joined
from pycc.types import Sample

pytestmark = pytest.mark.command

NAMES = ("fine-tuning", "fine-pruning", "nad", "anp")
BRIEF: dict[str, dict[str, Any]] = {
    "fine-tuning": {"epochs": 3, "lr": 1e-3},
    "fine-pruning": {"epochs": 3, "lr": 1e-3, "step_fraction": 0.3, "ema": 0.5},
    "nad": {"epochs": 3, "lr": 1e-3, "teacher_epochs": 2, "ema": 0.5},
    "anp": {"steps": 9, "every_minutes": 1e-9},
}


def brief(name: str, **changed: Any) -> Defense:
    return defenses[name](**{**QUICK, **BRIEF[name], **changed})


def test_the_registry_names_the_defenses() -> None:
    assert set(NAMES) <= set(defenses.names())
    for name in defenses.names():
        assert defenses[name].name == name


@pytest.mark.parametrize("name", NAMES)
def test_the_given_counter_is_left_as_it_was(name: str, tmp_path: Path) -> None:
    model = planted(norm=True).train()
    model.net[0].bias.requires_grad_(False)
    model.net[-1].bias.grad = torch.ones(1)
    before, modes = state(model), [module.training for module in model.modules()]
    learning = [parameter.requires_grad for parameter in model.parameters()]
    defended = brief(name)(model, clean(4), seed=1, out=tmp_path / "run")
    assert same(state(model), before)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == learning
    assert model.net[-1].bias.grad.tolist() == [1.0]
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(module.training for module in defended.modules())
    assert not any(module._forward_hooks for module in defended.modules())
    assert [p.requires_grad for p in defended.parameters()] == learning
    assert all(p._backward_hooks is None or not p._backward_hooks for p in defended.parameters())
    mine = {parameter.data_ptr() for parameter in model.parameters()}
    assert not mine & {parameter.data_ptr() for parameter in defended.parameters()}
    if name != "anp":  # which may find nothing to prune
        assert not same(state(defended), before)
    manifest = runs.read_manifest(tmp_path / "run")
    assert manifest["settings"]["seed"] == 1
    assert (tmp_path / "run/summary.json").exists()


@pytest.mark.parametrize("name", NAMES)
def test_stopped_and_resumed_it_is_the_same_counter(name: str, tmp_path: Path) -> None:
    samples = clean(4)
    done: list[int] = []
    uninterrupted = brief(name)(
        planted(), samples, out=tmp_path / "whole", progress=lambda *_: done.append(1)
    )
    assert len(done) >= 3

    class StoppedError(Exception):
        pass

    for where in {2, len(done) - 1}:
        left = [where]

        def stop(*_: object, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise StoppedError

        out = tmp_path / f"part-{where}"
        with pytest.raises(StoppedError):
            brief(name)(planted(), samples, out=out, progress=stop)
        again = brief(name)(planted(), samples, out=out, resume=True)
        assert same(state(again), state(uninterrupted))
        finished = brief(name)(planted(), samples, out=out, resume=True)
        assert same(state(finished), state(uninterrupted))
        theirs = json.loads((tmp_path / "whole/summary.json").read_text())
        assert json.loads((out / "summary.json").read_text()) == theirs


@pytest.mark.parametrize("name", NAMES)
def test_it_begins_where_there_is_nothing_to_resume(name: str, tmp_path: Path) -> None:
    brief(name)(planted(), clean(3), out=tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match="expected a new or empty folder"):
        brief(name)(planted(), clean(3), out=tmp_path / "run")


@pytest.mark.parametrize("name", NAMES)
def test_a_run_of_something_else_is_not_resumed(name: str, tmp_path: Path) -> None:
    brief(name)(planted(), clean(3), out=tmp_path / "run")
    with pytest.raises(ValueError, match=r"fingerprints\.data\.images was 3, is 4"):
        brief(name)(planted(), clean(4), out=tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match="batch was 4, is 2"):
        brief(name, batch=2)(planted(), clean(3), out=tmp_path / "run", resume=True)


@pytest.mark.parametrize("name", NAMES)
def test_fields_are_flags(name: str) -> None:
    parser = Parser("defend", "", "", flags_of(defenses[name]))
    text = parser.text(everything=True)
    for entry in fields(defenses[name]):
        assert f"--{entry.name.replace('_', '-')}" in text
    given = parser.given(["--batch", "3", "--crop", "64x32"])
    defense = build(defenses[name], {**given, "of no field": 1})
    assert (defense.batch, defense.crop) == (3, "64x32")
    assert (defense.plan().batch, defense.plan().crop) == (3, "64x32")


@pytest.mark.parametrize("name", NAMES)
def test_bad_input(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        brief(name, batch=0)
    with pytest.raises(ValueError, match="crop must be whole"):
        brief(name, crop="half")
    with pytest.raises(ValueError, match=r"at least one, got none|needs clean images"):
        brief(name)(planted(), [], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_published_settings_are_the_defaults() -> None:
    defense = FineTuning()
    assert (defense.epochs, defense.lr) == (100, None)
    recipe = models.create("csrnet", variant="commissarma").recipe()
    counter = models.create("csrnet", variant="commissarma")
    learnt_by = resolved(defense.plan(), counter, "shanghaitech_b")
    assert learnt_by.optimisers == recipe.optimisers
    assert (learnt_by.epochs, learnt_by.optimisers[0].kind, learnt_by.optimisers[0].lr) == (
        100,
        "adam",
        1e-5,
    )


def test_the_last_epoch_is_kept_unless_images_validate(tmp_path: Path) -> None:
    samples = clean(8)
    kept = {}
    for share in (0.0, 0.25):
        defense = brief("fine-tuning", epochs=4, lr=0.3, validation_share=share)
        defense(planted(), samples, out=tmp_path / str(share))
        kept[share] = json.loads((tmp_path / str(share) / "summary.json").read_text())
    assert kept[0.0]["best_epoch"] == 3
    assert kept[0.25]["best_epoch"] < 3
    assert kept[0.25]["validation"]["images"] == 2


def test_fine_tuning_is_a_training_on_the_clean_images(tmp_path: Path) -> None:
    model, samples = planted(), clean(4)
    tuned = brief("fine-tuning")(model, samples, seed=5, out=tmp_path / "a")
    by_hand = planted()
    plan = TrainConfig(**QUICK, epochs=3, lr=1e-3, validation_share=0.0)
    fit(by_hand, samples, plan, seed=5, out=tmp_path / "b")
    assert same(state(tuned), state(by_hand))


@pytest.mark.parametrize("name", ["fine-tuning", "nad"])
def test_a_backdoor_that_clean_images_see_something_of_fades(name: str, tmp_path: Path) -> None:
    """What the trigger adds to a count, on average, before and after learning on clean images."""
    model, samples = planted(threshold=-0.02), clean()

    def added(counter: CounterModel) -> float:
        both = [count(counter, triggered(sample)) - count(counter, sample) for sample in samples]
        return sum(both) / len(both)

    defended = brief(name, epochs=20, lr=1e-2)(model, samples, out=tmp_path / "run")
    assert added(model) > 25
    assert added(defended) < 0.25 * added(model)
    assert measured(defended, samples).mae < 2.0 < measured(model, samples).mae


def test_a_defense_that_trains_has_all_that_a_training_of_the_same_recipe_has() -> None:
    """So that nothing of the attack's settings is lost on the way; with the same help.

    But for the two of which a defense has a default of its own.
    """
    of_other_recipes = {"recipe", "k", "unit", "fill", "warmup", "decline", "patch_size",
                        "patch_steps", "patch_step_size"}  # fmt: skip
    defense, training, config = (
        {field.name: field for field in fields(settings)}
        for settings in (FineTuning, TrainingSettings, TrainConfig)
    )
    assert of_other_recipes <= set(config)
    assert set(config) - of_other_recipes == set(defense) == set(training)
    for name, field in defense.items():
        if name not in ("epochs", "validation_share"):
            assert field.metadata["help"] == config[name].metadata["help"]
    plan = FineTuning(clip=0.5, accumulate=2, amp=True, workers=3, ema=0.9).plan()
    assert (plan.clip, plan.accumulate, plan.amp, plan.workers, plan.ema) == (0.5, 2, True, 3, 0.9)


def test_a_twin_shares_nothing_and_claims_nothing() -> None:
    counter = models.load("mcnn-synthetic")
    other = twin(counter, "test")
    assert same(state(other), state(counter))
    assert counter.metadata
    assert not other.metadata
    assert other.origin.startswith("test of: ")
    other.net.fuse[0].conv.bias.data += 1
    assert not same(state(other), state(counter))


# --- data sets that are learnt from together


class Named(Dataset):
    """A list as a data set."""

    def __init__(self, name: str, samples: list[Sample], origin: str) -> None:
        self.name, self.samples, self.origin = name, samples, origin
        self.names = [sample.name for sample in samples]

    def _load(self, index: int) -> Sample:
        return self.samples[index]


PART_B = Named("part_B/train_data", scenes(6, (64, 96)), "shanghaitech_b")
PART_A = Named("part_A/train_data", scenes(9, (48, 64), heads=20), "shanghaitech_a")


def test_each_part_keeps_the_ground_truth_of_its_own_data_set() -> None:
    counter, plan = models.create("csrnet"), TrainConfig(crop="whole")
    joined = with_own_truths(clean_mixture(PART_B, PART_A, fraction=0.5), plan, counter)
    assert isinstance(joined, Joined)
    assert joined.rules == {PART_B.name: "fixed15_reflect", PART_A.name: "csrnet_adaptive"}
    together = Items(joined, range(9), resolved(plan, counter, ""), 8, seed=0)
    for index in range(9):
        item = together[0, index]
        part, name = item.name.rsplit("/", 1)
        of = PART_B if part == PART_B.name else PART_A
        assert (of is PART_B) == (index < 6)
        alone = Items(of, range(len(of)), resolved(plan, counter, of.origin), 8, seed=0)
        expected = alone[0, of.names.index(name)]
        assert torch.equal(item.target, expected.target)
        assert torch.equal(item.image, expected.image)
        assert torch.equal(item.points, expected.points)
    # The two ground truths are not the same.
    swapped = Items(PART_A, range(9), resolved(plan, counter, PART_B.origin), 8, seed=0)
    own = Items(PART_A, range(9), resolved(plan, counter, PART_A.origin), 8, seed=0)
    assert not torch.allclose(swapped[0, 0].target, own[0, 0].target, rtol=0.1)


def test_a_ground_truth_that_is_asked_for_is_that_of_all() -> None:
    joined = clean_mixture(PART_B, PART_A)
    truths = with_own_truths(joined, TrainConfig(density="shhb15"), models.create("csrnet"))
    assert isinstance(truths, Joined)
    assert set(truths.rules.values()) == {"shhb15"}
    assert with_own_truths(PART_B, TrainConfig(), models.create("csrnet")) is PART_B


def test_joined_data_sets_without_ground_truths_are_refused(tmp_path: Path) -> None:
    joined = Joined({"one": clean(2), "two": clean(2)})
    with pytest.raises(ValueError, match=r"one \+ two: joined data sets need a ground truth each"):
        fit(planted(), joined, TrainConfig(**{**QUICK, "epochs": 1}), out=tmp_path / "run")
    defended = brief("fine-tuning")(planted(), joined, out=tmp_path / "tuned")
    assert not same(state(defended), state(planted()))


@pytest.mark.parametrize("name", NAMES)
def test_every_defense_learns_from_joined_data_sets(name: str, tmp_path: Path) -> None:
    joined = Joined({"one": clean(3), "two": clean(2)})
    brief(name)(planted(), joined, out=tmp_path / "run")
    assert (tmp_path / "run/summary.json").exists()


def test_joined_samples() -> None:
    joined = Joined({"one": clean(3), "none": [], "two": PART_A})
    assert len(joined) == 12
    assert [joined[n].name for n in (0, 2, 3, -1)] == [
        "one/scene-0",
        "one/scene-2",
        f"two/{PART_A.names[0]}",
        f"two/{PART_A.names[-1]}",
    ]
    assert [sample.name for sample in joined[2:4]] == [joined[2].name, joined[3].name]
    for index in range(12):
        assert torch.equal(joined.points(index), joined[index].points)
    assert len({sample.name for sample in joined}) == 12
    with pytest.raises(IndexError):
        joined[12]
    with pytest.raises(ValueError, match="rules must be of the parts one, two, got one"):
        Joined({"one": [], "two": []}, {"one": "dots"})
    with pytest.raises(ValueError, match="must be at least one, got none"):
        Joined({})


def test_the_mixture_is_chosen_by_seed_and_names() -> None:
    mixed = clean_mixture(PART_B, PART_A, fraction=0.5, seed=2)
    assert len(mixed) == 9
    chosen = [mixed[n].name for n in range(6, 9)]
    backwards = Named(PART_A.name, PART_A.samples[::-1], PART_A.origin)
    again = clean_mixture(PART_B, backwards, fraction=0.5, seed=2)
    assert sorted(again[n].name for n in range(6, 9)) == sorted(chosen)
    others = {
        tuple(clean_mixture(PART_B, PART_A, fraction=0.5, seed=seed)[n].name for n in range(6, 9))
        for seed in range(6)
    }
    assert len(others) > 1
    assert len(clean_mixture(PART_B, PART_A)) == 7
    twice = clean_mixture(PART_A, PART_A)
    assert list(twice.parts) == [PART_A.name, f"{PART_A.name}, another"]
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"fraction must lie in \(0,1\]"):
            clean_mixture(PART_B, PART_A, fraction=share)
    with pytest.raises(ValueError, match="1 of 9 images are 9, but part_B/train_data has 6"):
        clean_mixture(PART_A, PART_B, fraction=1.0)


def test_the_published_mixture_of_shanghaitech(shared: Path) -> None:
    folders = [shared / "data/shanghaitech" / part for part in ("part_B", "part_A")]
    own, other = (data.open(folder, split="train") for folder in folders)
    mixed = clean_mixture(own, other)
    assert [len(part) for part in mixed.parts.values()] == [len(own), round(0.1 * len(own))]
    counter = models.create("csrnet", variant="commissarma")
    truths = with_own_truths(mixed, FineTuning().plan(), counter)
    assert isinstance(truths, Joined)
    assert list(truths.rules.values()) == ["shhb15", "csrnet_raw"]


def test_crops_of_the_clip_recipe_are_dots_for_all() -> None:
    """Whatever the data set, a classifier of blocks learns from whole numbers of heads."""
    recipe = untrained()["clip_ebc"].recipe()
    assert recipe.density == {"": "dots"}
    assert recipe.optimisers[0].lr == 1e-4
    assert isinstance(recipe.crop, Crop)
