"""Crops that are counted for heads by their boxes, and sizes of crops by data set."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support import narrow
from support.scenes import scenes
from torch import Tensor

from pycc import data, models
from pycc.backdoor.defenses.distillation import Distilled
from pycc.models import vgg, vgg19
from pycc.models.heads import Heads
from pycc.models.recipe import Boxes, Crop
from pycc.ranks import Ranks
from pycc.train import TrainConfig, fit
from pycc.train.config import resolved
from pycc.train.items import Items
from pycc.train.step import Stepper
from pycc.train.truth import box_sides, boxed, dots

VARIANTS = ["bl", "dm_count", "generalized_loss"]
RULE = Boxes(1.0, 4.0, 128.0, share=0.3)


def test_sides_are_mean_distances_within_limits() -> None:
    points = torch.tensor([[0, 0], [30, 0], [0, 40], [30, 40], [1000, 1000]]).double()
    expected = [40.0, 40.0, 40.0, 40.0, 128.0]  # (30 + 40 + 50) / 3
    assert box_sides(points, RULE).tolist() == pytest.approx(expected)
    smaller = replace(RULE, factor=0.8, largest=40.0)
    assert box_sides(points, smaller).tolist() == pytest.approx([32.0] * 4 + [40.0])
    assert box_sides(torch.full((5, 2), 7.0).double(), RULE).tolist() == [4.0] * 5
    assert box_sides(points[:1], RULE).tolist() == [128.0]
    assert box_sides(points[:0], RULE).tolist() == []


def test_heads_count_for_the_part_of_their_box_in_the_crop() -> None:
    """A crop of 64x48 pixels at row 10, column 20, of an image of 90x200."""
    points = torch.tensor([[40, 30], [20, 30], [15, 40], [13, 40], [68, 74], [67, 73]]).double()
    sides = torch.full((6,), 20.0, dtype=torch.float64)
    crop = boxed(points, sides, RULE, (10, 20), (64, 48), (90, 200))
    # In full, one half, 25 % (dropped), 15 % (dropped), a corner of 25 % (dropped), one of 36 %.
    assert crop.points.tolist() == [[20, 20], [0, 20], [47, 63]]
    torch.testing.assert_close(crop.people, torch.tensor([1.0, 0.5, 11 * 11 / 400]).double())
    assert crop.side == 90.0
    whole = boxed(points, sides, replace(RULE, whole=True), (10, 20), (64, 48), (90, 200))
    assert whole.people.tolist() == [1.0, 1.0, 1.0]
    assert whole.flipped(48).points.tolist() == [[28, 20], [48, 20], [1, 63]]


def crops(recipe_of: models.CounterModel, flip: float) -> list[tuple[Tensor, Heads]]:
    recipe = resolved(TrainConfig(crop="32x32", crops=20), recipe_of, "")
    (sample,) = scenes(1, (48, 96))
    items = Items([sample], [0], replace(recipe, flip=flip), 8, seed=1)
    return [(item.image, item.heads) for item in (items[0, n] for n in range(20))]


def test_items_hold_the_heads_of_their_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bright dots lie where the heads are, also in a mirror; some heads lie outside."""
    narrow.narrow(monkeypatch)
    counter = models.create("vgg19")
    outside = 0
    for flip in (0.0, 1.0):
        for image, heads in crops(counter, flip):
            assert heads is not None
            assert heads.side == 48.0
            for x, y in heads.points.tolist():
                inside = 2 <= x < 30 and 2 <= y < 30
                outside += not (0 <= x < 32 and 0 <= y < 32)
                if inside:  # a mirror moves the middle of a pixel by one
                    assert float(image[:, int(y), int(x) - 1 : int(x) + 2].amax()) > 0.9
    assert outside > 0
    plain = models.create("vgg19", variant="dm_count")
    assert all(heads is None for _, heads in crops(plain, 0.0))


def test_the_loss_receives_them(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow.narrow(monkeypatch)
    counter = narrow.create("vgg19")
    seen: list[object] = []
    loss = counter.loss

    def watched(*args: object, **given: object) -> Tensor:
        seen.append(given.get("heads"))
        return loss(*args, **given)  # type: ignore[arg-type]

    counter.loss = watched  # type: ignore[method-assign]
    config = TrainConfig(crop="32x32", crops=2)
    recipe = resolved(config, counter, "")
    items = Items(scenes(2), [0, 1], recipe, 8, seed=1)
    batch = [items[0, n] for n in range(4)]
    value = Stepper(counter, config, 0, Ranks(), None).gradient(0, 0, 4, batch)
    (heads,) = seen
    assert isinstance(heads, list)
    assert heads is not None
    assert [len(known.points) for known in heads] == [len(item.heads.points) for item in batch]
    distilled = Distilled(counter, counter, layers=["features.2"], beta=1.0)
    assert distilled.period == 16
    Stepper(distilled, config, 0, Ranks(), None).gradient(0, 0, 4, batch)
    assert seen[-1] is not None
    alone = [Stepper(counter, config, 0, Ranks(), None).gradient(0, 0, 1, [item]) for item in batch]
    assert value == pytest.approx(sum(alone) / 4, rel=1e-4)


def test_recipes_by_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow.narrow(monkeypatch)
    bayesian = models.create("vgg19")
    assert resolved(TrainConfig(), bayesian, "ucf_qnrf").boxes == {"": RULE}
    chinese = resolved(TrainConfig(), bayesian, "shanghaitech_a").boxes[""]
    assert (chinese.factor, chinese.largest, chinese.share, chinese.whole) == (0.8, 40, 0.5, True)
    matching = models.create("vgg19", variant="dm_count")
    sizes = {"": (512, 512), "shanghaitech_a": (256, 256), "nwpu": (384, 384)}
    for origin, size in sizes.items():
        assert resolved(TrainConfig(), matching, origin).crop == Crop("fixed", size=size)
    assert resolved(TrainConfig(crop="64x96"), matching, "nwpu").crop.size == (64, 96)
    assert resolved(TrainConfig(), matching, "").boxes == {}
    general = models.create("vgg19", variant="generalized_loss").recipe()
    rates = [general.optimisers[0].lr, general.optimisers[0].weight_decay, general.schedule.warmup]
    assert rates == [1e-5, 1e-5, 9]


@pytest.mark.command
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_short_training_lowers_the_loss(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a network that counts 20 times too many people."""
    narrow.narrow(monkeypatch)
    torch.manual_seed(0)
    counter = narrow.positive(models.create("vgg19", variant=variant))
    config = TrainConfig(epochs=8, batch=4, lr=2e-3, crop="48x64", validation_share=0.25)
    run = fit(counter, scenes(12), config)
    held = [row.errors.mae for row in run.validations]
    assert run.epochs[-1].loss < 0.75 * run.epochs[0].loss
    assert held[-1] == min(held) < 0.75 * held[0]


@pytest.mark.long
@pytest.mark.parametrize(
    ("variant", "lr", "share"),
    [("bl", 5e-4, 0.8), ("dm_count", 1e-3, 0.6), ("generalized_loss", 1e-3, 0.4)],
)
def test_it_learns_on_the_built_in_scenes(
    variant: str, lr: float, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sixteenth of the width: the loss falls, and the map rises where heads are."""
    monkeypatch.setattr(vgg, "TRUNK_19", tuple(c and max(8, c // 16) for c in vgg.TRUNK_19))
    monkeypatch.setattr(vgg19, "HEAD", (16, 8))
    torch.manual_seed(0)
    counter = models.create("vgg19", variant=variant)
    samples = data.open("synthetic", split="train", limit=24, shape=(96, 128))
    before = correlation(counter)
    config = TrainConfig(epochs=20, batch=2, lr=lr, crop="96x128", validation_share=0.0)
    losses = [row.loss for row in fit(counter, samples, config).epochs]
    assert sum(losses[-3:]) / 3 < share * losses[0]
    assert correlation(counter) > before + 0.15


@torch.no_grad()
def correlation(counter: models.CounterModel) -> float:
    """Of cells and numbers of heads in them, on scenes that no training shows."""
    pairs = []
    counter.eval()
    for sample in data.open("synthetic", split="test", limit=6, shape=(96, 128)):
        cells = counter(sample.image[None])[0, 0]
        heads = dots(sample.points, (96, 128), counter.stride)
        pairs.append(torch.stack([cells.flatten(), heads.flatten()]))
    return float(torch.corrcoef(torch.cat(pairs, 1))[0, 1])
