"""Training items: aligned crops, exact targets, and the same item in every process."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.scenes import scenes

from pycc import data, models, ops
from pycc.data.density import rules
from pycc.models.recipe import Crop, Optimiser, Recipe
from pycc.random import Stream
from pycc.train.items import Ablation, Items
from pycc.types import Sample

RECIPE = Recipe(
    source="test", optimisers=(Optimiser("adam", 1e-3),), epochs=1, batch=1,
    density={"": "svishwa_window"}, down_sampling="sum",
    crop=Crop("quarter_sides", number=3, multiple=8),
)  # fmt: skip


def items(recipe: Recipe = RECIPE, **options: object) -> Items:
    samples = scenes(5, (72, 101))
    return Items(samples, [4, 1, 2], recipe, 4, seed=9, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("crop", "shape"),
    [
        (Crop("whole"), (72, 100)),
        (Crop("whole", multiple=16), (64, 96)),
        (Crop("quarter_sides", multiple=8), (16, 24)),
        (Crop("quadrant"), (36, 48)),
        (Crop("fixed", size=(40, 32)), (40, 32)),
        (Crop("fixed", size=(160, 192)), (160, 192)),
        (Crop("scaled", size=(48, 48), scale=(1.0, 2.0), multiple=4), (48, 48)),
    ],
)
def test_sides_of_crops_and_their_targets(crop: Crop, shape: tuple[int, int]) -> None:
    crops = items(replace(RECIPE, crop=crop))
    for number in range(len(crops)):
        item = crops[0, number]
        assert item.image.shape == (3, *shape)
        assert item.target.shape == (1, shape[0] // 4, shape[1] // 4)
        x, y = item.points.T
        assert bool(((x >= 0) & (x < shape[1]) & (y >= 0) & (y < shape[0])).all())


@pytest.mark.parametrize("rule", ["sum", *rules.names()])
@pytest.mark.parametrize("kind", ["quarter_sides", "quadrant", "fixed"])
def test_a_crop_is_a_part_of_its_image_and_of_its_ground_truth(kind: str, rule: str) -> None:
    """With sides of 72x101 that are multiples of no stride: cells lie where their pixels are."""
    stride = 4 if rule == "sum" else rules[rule][0]
    size = (32, 48) if kind == "fixed" else None
    crop = Crop(kind, number=4, size=size, multiple=8)  # type: ignore[arg-type]
    recipe = replace(RECIPE, crop=crop, flip=0.5, down_sampling=rule)
    samples = scenes(5, (72, 101))
    crops = Items(samples, [4, 1, 2], recipe, stride, seed=9)
    flips = 0
    for number in range(len(crops)):
        item = crops[3, number]
        sample = next(s for s in samples if s.name == item.name)
        y, x, flipped = _place(sample, item.image, stride)
        flips += flipped
        full = data.density(sample.points, (72, 101), recipe="svishwa_window")
        cut = full[: 72 // stride * stride, : 101 // stride * stride]
        cells = (
            cut.unfold(0, stride, stride).unfold(1, stride, stride).sum((2, 3))
            if rule == "sum"
            else data.downsample(cut, rule)
        )
        shape = tuple(side // stride for side in item.image.shape)
        truth = _part(cells[None], y // stride, x // stride, shape, flipped)
        torch.testing.assert_close(item.target, truth, rtol=1e-5, atol=1e-7)
    assert 0 < flips < len(crops)


def _place(sample: Sample, image, step: int) -> tuple[int, int, bool]:
    """The only place of a crop in its image, and whether it is flipped."""
    (place,) = [
        (y, x, flipped)
        for y in range(0, sample.image.shape[1] + 1 - image.shape[1], step)
        for x in range(0, sample.image.shape[2] + 1 - image.shape[2], step)
        for flipped in (False, True)
        if torch.equal(_part(sample.image, y, x, image.shape, flipped), image)
    ]
    return place


def _part(image, y: int, x: int, shape, flipped: bool):
    part = image[:, y : y + shape[1], x : x + shape[2]]
    return part.flip(2) if flipped else part


def test_dots_count_the_heads_of_a_crop_flipped_or_not() -> None:
    recipe = replace(
        RECIPE, density={"": "dots"}, flip=0.5, crop=Crop("fixed", number=6, size=(40, 48))
    )
    crops = items(recipe)
    for number in range(len(crops)):
        item = crops[1, number]
        assert float(item.target.sum()) == len(item.points)
        for x, y in item.points.tolist():  # under each head stands its white square
            assert float(item.image[:, round(y) if round(y) < 40 else 39, int(x)].mean()) > 0.5


def test_scaled_crops_keep_their_heads_under_their_dots() -> None:
    crop = Crop("scaled", number=6, size=(48, 48), scale=(1.0, 1.4), multiple=4)
    crops = items(replace(RECIPE, crop=crop, flip=0.5))
    bright = 0.0
    for number in range(len(crops)):
        item = crops[2, number]
        assert float(item.target.sum()) == len(item.points)
        values = [float(item.image[:, int(y), int(x)].mean()) for x, y in item.points.tolist()]
        bright += sum(value > 0.5 for value in values) / max(1, len(values))
    assert bright > 0.9 * len(crops)


def test_an_item_is_a_function_of_its_number_alone() -> None:
    recipe = replace(RECIPE, flip=0.5, augmentations=models.create("cmtl").recipe().augmentations)
    ablation = Ablation(50, "pixel", (0.2, 0.4, 0.6), 1)
    first, second = items(recipe, ablation=ablation), items(recipe, ablation=ablation)
    order = first.order(5)
    assert sorted(order) == list(range(len(first)))
    assert order != first.order(6)
    for number in reversed(order):
        second[5, number]
    for number in order:
        a, b = first[5, number], second[5, number]
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.target, b.target)
        assert torch.equal(a.ablated, b.ablated)


def test_each_sample_is_ablated_anew_each_epoch_after_the_warm_up() -> None:
    recipe = replace(RECIPE, crop=Crop("whole"))
    crops = Items(
        scenes(5, (72, 100)), [4, 1, 2], recipe, 4, seed=9,
        ablation=Ablation(50, "pixel", (0.3,) * 3, 2),
    )  # fmt: skip
    assert crops[1, 0].ablated is None
    kept = []
    for epoch in (2, 3):
        item = crops[epoch, 0]
        shown = (item.ablated != 0.3).any(0)
        assert int(shown.sum()) == 50
        assert torch.equal(item.ablated[:, shown], item.image[:, shown])
        kept.append(shown)
    assert not torch.equal(*kept)
    first, other = crops[2, 0].ablated, crops[2, 1].ablated
    assert not torch.equal((first != 0.3).any(0), (other != 0.3).any(0))


@pytest.mark.parametrize("unit", ["pixel", "element"])
@pytest.mark.parametrize("kind", ["whole", "quarter_sides", "quadrant"])
def test_a_crop_shows_what_the_ablation_of_the_whole_image_leaves_in_it(
    kind: str, unit: str
) -> None:
    """k is of the image as it is tested: all of its 72x101 pixels."""
    fill = (0.2, 0.4, 0.6)
    recipe = replace(RECIPE, crop=Crop(kind, number=4, multiple=8), flip=0.5)  # type: ignore[arg-type]
    crops = items(recipe, ablation=Ablation(900, unit, fill, 0))
    for number in range(len(crops)):
        item = crops[3, number]
        sample = next(s for s in crops.samples if s.name == item.name)
        y, x, flipped = _place(sample, item.image, 8)
        seed = int(Stream(9, "train, ablation", step=3, draw=number).words(1)[0])
        ablated = ops.ablate(
            sample.image[None], 900, seed=seed, fill=torch.tensor(fill), unit=unit
        )[0]  # fmt: skip
        assert torch.equal(item.ablated, _part(ablated, y, x, item.image.shape, flipped))


def test_scaled_crops_show_their_share_of_the_image_at_their_scale() -> None:
    """Of an image shown at half its size, a crop with a ninth of the area shows a ninth of k."""
    crop = Crop("scaled", number=40, size=(24, 32), scale=(2.0, 2.0), multiple=4)
    samples = scenes(2, (144, 192))
    ablation = Ablation(900, "pixel", (0.9,) * 3, 0)
    crops = Items(samples, [0, 1], replace(RECIPE, crop=crop), 4, seed=1, ablation=ablation)
    assert crops.smallest((144, 192)) == (72, 96)
    shown = [int((crops[0, n].ablated != 0.9).any(0).sum()) for n in range(len(crops))]
    assert sum(shown) / len(shown) == pytest.approx(100, rel=0.05)


def test_crops_beyond_their_image_show_the_fill_there() -> None:
    recipe = replace(RECIPE, crop=Crop("fixed", size=(80, 112), multiple=8))
    everything = Ablation(72 * 96, "pixel", (0.5,) * 3, 0)
    item = Items(scenes(1, (72, 96)), [0], recipe, 8, seed=1, ablation=everything)[0, 0]
    assert torch.equal(item.ablated[:, :72, :96], item.image[:, :72, :96])
    assert (item.ablated[:, 72:] == 0.5).all()
    assert (item.image[:, 72:] == 0).all()


def test_repeats_of_a_recipe_are_items() -> None:
    recipe = replace(RECIPE, repeats=4)
    assert len(items(recipe)) == 4 * len(items())


def test_heads_outside_the_region_have_no_density() -> None:
    (sample,) = scenes(1, (64, 64))
    roi = torch.zeros(64, 64, dtype=torch.bool)
    roi[:, :32] = True
    masked = Sample("one", sample.image, sample.points, roi)
    recipe = replace(RECIPE, crop=Crop("whole"))
    everywhere, part = (Items([s], [0], recipe, 4, seed=0)[0, 0].target for s in (sample, masked))
    assert torch.equal(part[..., :8], everywhere[..., :8])
    assert float(part[..., 8:].sum()) == 0 < float(everywhere[..., 8:].sum())


@pytest.mark.parametrize(
    ("crop", "rule"),
    [
        (Crop("whole"), "dots"),
        (Crop("quarter_sides", number=12), "dots"),
        (Crop("quarter_sides", number=12), "svishwa_window"),
        (Crop("fixed", number=3, size=(80, 96)), "svishwa_window"),
        (Crop("scaled", number=12, size=(32, 32), scale=(1.0, 2.0)), "dots"),
    ],
    ids=["whole", "dots", "maps", "beyond", "scaled"],
)
def test_a_region_goes_with_its_crop(crop: Crop, rule: str) -> None:
    """Heads, targets and shares of cells: all of a crop that lies left of column 30."""
    samples = [
        Sample(s.name, s.image, s.points, torch.arange(80).expand(64, 80) < 30)
        for s in scenes(3, (64, 80), heads=20)
    ]
    recipe = replace(RECIPE, crop=crop, density={"": rule}, flip=0.5)
    crops = Items(samples, range(3), recipe, 4, seed=2)
    partly = 0
    for number in range(len(crops)):
        item = crops[1, number]
        assert item.region is not None
        assert item.region.shape == item.target.shape
        assert float(item.region.min()) >= 0
        assert float(item.region.max()) <= 1
        assert (item.target[item.region == 0] == 0).all()
        if rule == "dots":
            assert float(item.target.sum()) == len(item.points)
        x, y = (item.points / 4).long().T
        assert (item.region[0, y, x] > 0).all()
        partly += int(0 < float(item.region.mean()) < 1)
        if crop.kind == "whole":
            assert len(item.points) == int((samples[number].points[:, 0] < 30).sum())
            columns = item.region[0, 0].tolist()
            assert sorted(columns, reverse=True) == pytest.approx([1.0] * 7 + [0.5] + [0.0] * 12)
    assert partly


def test_images_smaller_than_a_cell_are_refused() -> None:
    tiny = Sample("tiny", torch.rand(3, 6, 40), torch.zeros(0, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match="tiny: images must be at least 8x8 pixels, got 6x40"):
        Items([tiny], [0], RECIPE, 4, seed=0)[0, 0]
