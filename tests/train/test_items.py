"""Training items: aligned crops, exact targets, and the same item whoever asks for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from train.scenes import scenes

from pycc import data, models
from pycc.models.recipe import Crop, Optimiser, Recipe
from pycc.random import Stream
from pycc.train.augment import augmentations, augmented
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
    found = items(replace(RECIPE, crop=crop))
    for number in range(len(found)):
        item = found[0, number]
        assert item.image.shape == (3, *shape)
        assert item.target.shape == (1, shape[0] // 4, shape[1] // 4)
        x, y = item.points.T
        assert bool(((x >= 0) & (x < shape[1]) & (y >= 0) & (y < shape[0])).all())


@pytest.mark.parametrize("kind", ["quarter_sides", "quadrant", "fixed"])
def test_a_crop_is_a_part_of_its_image_and_of_its_ground_truth(kind: str) -> None:
    crop = Crop(kind, number=4, size=(32, 40) if kind == "fixed" else None)  # type: ignore[arg-type]
    found = items(replace(RECIPE, crop=crop, flip=0.5))
    flips = 0
    for number in range(len(found)):
        item = found[3, number]
        sample = next(s for s in found.samples if s.name == item.name)
        full = data.density(sample.points, (72, 101), recipe="svishwa_window")
        places = [
            (y, x, flipped)
            for y in range(0, 73 - item.image.shape[1], 4)
            for x in range(0, 102 - item.image.shape[2], 4)
            for flipped in (False, True)
            if torch.equal(_part(sample.image, y, x, item.image.shape, flipped), item.image)
        ]
        assert len(places) == 1
        y, x, flipped = places[0]
        flips += flipped
        truth = _part(full[None], y, x, item.image.shape, flipped)
        cells = truth.unfold(1, 4, 4).unfold(2, 4, 4).sum((3, 4))
        torch.testing.assert_close(item.target, cells, rtol=1e-5, atol=1e-7)
    assert 0 < flips < len(found)


def _part(whole, y: int, x: int, shape, flipped: bool):
    part = whole[:, y : y + shape[1], x : x + shape[2]]
    return part.flip(2) if flipped else part


def test_dots_count_the_heads_of_a_crop_flipped_or_not() -> None:
    recipe = replace(
        RECIPE, density={"": "dots"}, flip=0.5, crop=Crop("fixed", number=6, size=(40, 48))
    )
    found = items(recipe)
    for number in range(len(found)):
        item = found[1, number]
        assert float(item.target.sum()) == len(item.points)
        for x, y in item.points.tolist():  # under each head stands its white square
            assert float(item.image[:, round(y) if round(y) < 40 else 39, int(x)].mean()) > 0.5


def test_scaled_crops_keep_their_heads_under_their_dots() -> None:
    crop = Crop("scaled", number=6, size=(48, 48), scale=(1.0, 1.4), multiple=4)
    found = items(replace(RECIPE, crop=crop, flip=0.5))
    bright = 0.0
    for number in range(len(found)):
        item = found[2, number]
        assert float(item.target.sum()) == len(item.points)
        values = [float(item.image[:, int(y), int(x)].mean()) for x, y in item.points.tolist()]
        bright += sum(value > 0.5 for value in values) / max(1, len(values))
    assert bright > 0.9 * len(found)


def test_an_item_is_a_function_of_its_number_alone() -> None:
    recipe = replace(RECIPE, flip=0.5, augmentation=models.create("cmtl").recipe().augmentation)
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
    found = items(
        replace(RECIPE, crop=Crop("whole")), ablation=Ablation(50, "pixel", (0.3,) * 3, 2)
    )
    assert found[1, 0].ablated is None
    kept = []
    for epoch in (2, 3):
        item = found[epoch, 0]
        shown = (item.ablated != 0.3).any(0)
        assert int(shown.sum()) == 50
        assert torch.equal(item.ablated[:, shown], item.image[:, shown])
        kept.append(shown)
    assert not torch.equal(*kept)
    one, other = found[2, 0].ablated, found[2, 1].ablated
    assert not torch.equal((one != 0.3).any(0), (other != 0.3).any(0))


def test_repeats_of_a_recipe_are_items() -> None:
    recipe = replace(RECIPE, augmentation={"repeats_per_epoch": 4})
    assert len(items(recipe)) == 4 * len(items())


def test_heads_outside_the_region_have_no_density() -> None:
    (sample,) = scenes(1, (64, 64))
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[:, :32] = True
    masked = Sample("one", sample.image, sample.points, mask)
    recipe = replace(RECIPE, crop=Crop("whole"))
    whole, part = (Items([s], [0], recipe, 4, seed=0)[0, 0].target for s in (sample, masked))
    assert torch.equal(part[..., :8], whole[..., :8])
    assert float(part[..., 8:].sum()) == 0 < float(whole[..., 8:].sum())


def test_images_smaller_than_a_cell_are_refused() -> None:
    tiny = Sample("tiny", torch.rand(3, 6, 40), torch.zeros(0, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match="tiny: images must be at least 8x8 pixels, got 6x40"):
        Items([tiny], [0], RECIPE, 4, seed=0)[0, 0]


@pytest.mark.parametrize("name", augmentations.names())
def test_augmentations_happen_with_their_probability(name: str) -> None:
    settings = {
        "uniform_noise": {"levels": 10.0, "of": 255.0},
        "colour_jitter": {"brightness": 0.1, "contrast": 0.1, "saturation": 0.1, "hue": 0.0},
        "gaussian_blur": {"kernel": 5, "sigma": [0.1, 5.0]},
        "pepper_and_salt": {"pepper": 0.01, "salt": 0.01},
    }[name]
    image = torch.rand(3, 24, 32, generator=torch.Generator().manual_seed(1)) * 0.8 + 0.1
    changed = 0
    for step in range(60):
        stream = Stream(1, "test", step=step)
        found = augmented(image, {name: {**settings, "probability": 0.5}}, stream)
        assert found.shape == image.shape
        assert float((found - image).abs().mean()) < 0.2
        changed += not torch.equal(found, image)
    assert 15 < changed < 45


def test_every_augmentation_of_a_published_recipe_is_known() -> None:
    for name in models.names():
        options = {} if name != "clip_ebc" else None
        if options is None:
            from pycc.models.clip_ebc import CLIPEBC

            recipe = CLIPEBC.recipe(CLIPEBC.__new__(CLIPEBC))
        else:
            recipe = models.create(name).recipe()
        augmented(
            torch.rand(3, 16, 16), recipe.augmentation, Stream(0, "test")
        )  # KeyError or ValueError for an unknown one
