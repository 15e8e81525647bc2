"""Learning rates, optimisers and shares as their sources state them."""

from __future__ import annotations

import itertools

import pytest
import torch

from pycc import models
from pycc.models.families import untrained
from pycc.models.recipe import Optimiser, Recipe, Schedule
from pycc.train.config import TABLE_6, TrainConfig, resolved
from pycc.train.schedule import clean_share, made, optimiser_at, rate_at, set_rate


def test_the_share_of_clean_loss_falls_from_one_to_a_half() -> None:
    """arXiv 2104.10868, under eq. 18: m epochs of 1, then down to 0.5 in n, then 0.5."""
    assert [clean_share(e, 3, 4) for e in range(9)] == [
        1, 1, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.5,
    ]  # fmt: skip
    assert clean_share(0, 0, 0) == 0.5


def test_rates() -> None:
    assert rate_at(1e-3, Schedule(), 7) == 1e-3
    step = Schedule("step", period=20, factor=0.1)
    assert [rate_at(1.0, step, e) for e in (0, 19, 20, 40)] == pytest.approx([1, 1, 0.1, 0.01])
    geometric = Schedule(warmup=2, warmup_lr=0.01, geometric=True)
    assert [rate_at(1.0, geometric, e) for e in range(3)] == pytest.approx([0.01, 0.1, 1.0])
    cosine = Schedule("cosine_restarts", period=5, factor=2.0, floor=0.1, warmup=4, warmup_lr=0.0)
    rates = [rate_at(1.0, cosine, e) for e in range(20)]
    assert rates[:5] == pytest.approx([0, 0.25, 0.5, 0.75, 1.0])
    assert rates[9] == pytest.approx(1.0)  # restarted after 5 epochs
    assert rates[19] == pytest.approx(1.0)  # and after 10 more
    assert all(a > b for a, b in itertools.pairwise(rates[4:9]))
    assert all(a > b for a, b in itertools.pairwise(rates[9:19]))
    assert min(rates[4:]) > 0.1


def test_the_learning_rates_are_torchs() -> None:
    cosine = Schedule("cosine_restarts", period=3, factor=2.0, floor=0.01)
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimiser, 3, 2, eta_min=0.01)
    for epoch in range(15):
        assert rate_at(1.0, cosine, epoch) == pytest.approx(theirs.get_last_lr()[0])
        optimiser.step()
        theirs.step()


def test_optimisers_change_where_a_recipe_says() -> None:
    recipe = models.create("mask_aware").recipe()
    first, later = (optimiser_at(recipe, epoch) for epoch in (0, 99))
    assert later[0] == len(recipe.optimisers) - 1
    assert first[1] == recipe.optimisers[0]
    parameter = torch.nn.Parameter(torch.zeros(1))
    frozen = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
    sgd = made(Optimiser("sgd", 0.1, momentum=0.9, weight_decay=1e-3), [parameter, frozen])
    assert len(sgd.param_groups[0]["params"]) == 1
    assert sgd.param_groups[0]["momentum"] == 0.9
    for kind, theirs in (("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)):
        optimiser = made(Optimiser(kind, 0.1, weight_decay=0.5), [parameter])  # type: ignore[arg-type]
        assert type(optimiser) is theirs
        assert optimiser.param_groups[0]["weight_decay"] == 0.5
    backbone = torch.nn.Parameter(torch.zeros(1))
    slower = made(Optimiser("adam", 0.1, backbone=0.25), [backbone, parameter], [backbone])
    set_rate(slower, 0.4)
    assert [(g["params"], g["lr"]) for g in slower.param_groups] == [
        ([parameter], 0.4), ([backbone], 0.1),
    ]  # fmt: skip


def test_table_6_is_the_ablation_recipes_preset() -> None:
    for name, (rate, epochs, kind) in {
        "mcnn": (1e-5, 800, "adam"), "csrnet": (1e-5, 800, "adam"), "can": (1e-7, 1000, "sgd"),
        "cmtl": (1e-5, 800, "adam"), "danet": (1e-5, 800, "adam"),
    }.items():  # fmt: skip
        optimiser, number = TABLE_6[name]
        assert (optimiser.lr, number, optimiser.kind) == (rate, epochs, kind)
    for recipe in ("ablation", "adversarial"):
        preset = resolved(TrainConfig(recipe=recipe), models.create("mcnn"), "shanghaitech_a")
        assert (preset.epochs, preset.batch, preset.optimisers[0].lr) == (800, 1, 1e-5)


def test_a_recipe_needs_epochs_after_its_warm_up() -> None:
    model = models.create("mcnn")
    problem = "400 epochs leave none to the adversarial recipe after 50 of warm-up and 350 of decl"
    with pytest.raises(ValueError, match=problem):
        resolved(TrainConfig(recipe="adversarial", epochs=400), model, "")
    assert resolved(TrainConfig(recipe="adversarial", epochs=401), model, "").epochs == 401
    with pytest.raises(ValueError, match="5 epochs leave none to the ablation recipe after 5 of"):
        resolved(TrainConfig(recipe="ablation", epochs=5, warmup=5), model, "")
    assert resolved(TrainConfig(epochs=1, warmup=5), model, "").epochs == 1


def test_whole_images_are_one_crop_each() -> None:
    model = models.create("mcnn")
    assert resolved(TrainConfig(), model, "").crop.number == 9
    assert resolved(TrainConfig(crop="quadrant"), model, "").crop.number == 9
    assert resolved(TrainConfig(crop="whole"), model, "").crop.number == 1
    assert resolved(TrainConfig(crop="whole", crops=3), model, "").crop.number == 3


def test_a_plan_changes_what_it_asks_for_and_nothing_else() -> None:
    model = models.create("csrnet")
    published = model.recipe()
    recipe = resolved(TrainConfig(epochs=7, lr=0.5, batch=3), model, "shanghaitech_b")
    assert (recipe.epochs, recipe.batch, recipe.optimisers[0].lr) == (7, 3, 0.5)
    assert recipe.optimisers[0].momentum == published.optimisers[0].momentum
    assert recipe.density == {"": "fixed15_reflect"}
    assert resolved(TrainConfig(), model, "shanghaitech_a").density == {"": "csrnet_adaptive"}
    aware = models.create("mask_aware")
    assert resolved(TrainConfig(), aware, "ucf_cc_50").crop.number == 60
    assert resolved(TrainConfig(), aware, "shanghaitech_a").crop.number == 200
    assert resolved(TrainConfig(crops=3), aware, "ucf_cc_50").crop.number == 3
    cropped = resolved(TrainConfig(crop="128x96", crops=5), model, "shanghaitech_a").crop
    assert (cropped.kind, cropped.size, cropped.number) == ("fixed", (128, 96), 5)


def test_a_cosine_over_the_whole_training_keeps_its_end() -> None:
    model = models.create("narrow")
    recipe = resolved(TrainConfig(epochs=12), model, "shanghaitech_a")
    assert recipe.schedule.period == 12
    rates = [rate_at(1.0, recipe.schedule, epoch) for epoch in range(12)]
    assert rates[0] == 1.0
    assert rates[11] < 0.02


def test_fewer_epochs_shorten_the_warm_up_and_end_in_one_cosine() -> None:
    """CLIP-EBC: 50 of 2600 epochs of warm-up, then cycles; of 150 epochs, 3 and one cycle."""
    model = untrained()["clip_ebc"]
    published = resolved(TrainConfig(), model, "")
    assert published.schedule == model.recipe().schedule
    recipe = resolved(TrainConfig(epochs=150, lr=4e-4), model, "")
    assert (recipe.schedule.warmup, recipe.schedule.period) == (3, 147)
    rates = [rate_at(4e-4, recipe.schedule, epoch) for epoch in range(150)]
    assert rates[0] == 1e-6
    assert max(rates) == rates[3] == pytest.approx(4e-4)
    assert all(a > b for a, b in itertools.pairwise(rates[3:]))
    assert rates[-1] < 1e-3 * 4e-4
    assert resolved(TrainConfig(epochs=1), model, "").schedule.period == 1


def test_a_variant_without_recipe_is_reported_and_other_errors_stay() -> None:
    with pytest.warns(
        UserWarning, match="csrnet: no published training recipe of this variant; it"
    ):
        recipe = resolved(TrainConfig(), models.create("csrnet", variant="c3"), "")
    assert recipe.crop.kind == "quarter_sides"

    class Broken(models.CounterModel):
        def recipe(self) -> Recipe:
            raise ValueError("a recipe with a mistake")

    with pytest.raises(ValueError, match="a recipe with a mistake"):
        resolved(TrainConfig(), Broken(torch.nn.Conv2d(3, 1, 1), stride=1, receptive_field=1), "")


def test_a_model_without_recipe_trains_as_mcnn() -> None:
    net = torch.nn.Conv2d(3, 1, 1)
    recipe = resolved(TrainConfig(), models.wrap(net, stride=1, receptive_field=1), "")
    assert "none is published" in recipe.source
    assert recipe.crop.kind == "quarter_sides"
