from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pycc import certify, data, defense, models, ops
from pycc.certify.fixed import fixed_ablations_bounds
from pycc.defense.retained import Bands, Blocks, Elements, Kind, Pixels, corners, most_touched
from pycc.ops import ablation_indices, mask_hits

MEDIANS = ("mean", "lower", "upper")


def medians(values: np.ndarray, kind: str) -> np.ndarray:
    ordered, masks = np.sort(values, axis=-1), values.shape[-1]
    low, high = ordered[..., (masks - 1) // 2], ordered[..., masks // 2]
    return {"lower": low, "upper": high, "mean": (low + high) / 2}[kind]


@pytest.mark.parametrize("kind", MEDIANS)
@pytest.mark.parametrize("masks", [1, 2, 7, 8, 25, 40])
def test_no_violation_whatever_the_touched_counts_become(kind: str, masks: int) -> None:
    rng = np.random.default_rng(masks)
    trials, violations = 0, 0
    for hits in range((masks + 1) // 2):
        counts = rng.gamma(2.0, 50.0, masks).round(rng.integers(0, 3))
        interval = fixed_ablations_bounds(counts, hits, median=kind)
        assert not interval.vacuous
        repeats = 1 + 12_000 // ((masks + 1) // 2)
        attacked = np.tile(counts, (repeats, 1))
        touched = np.argsort(rng.random((repeats, masks)), axis=1)[:, :hits]
        content = rng.choice([0.0, 1e9, 1.0, counts.max(), counts.min()], (repeats, hits))
        content[::2] = rng.gamma(2.0, 80.0, content[::2].shape)
        np.put_along_axis(attacked, touched, content, 1)
        after = medians(attacked, kind)
        violations += int(((after < interval.low) | (after > interval.high)).sum())
        trials += repeats
    assert trials >= 12_000  # 18 cases: more than 200,000 trials
    assert violations == 0


@pytest.mark.parametrize("kind", MEDIANS)
@pytest.mark.parametrize("masks", [7, 8])
def test_every_bound_is_reached_and_one_hit_less_is_too_few(kind: str, masks: int) -> None:
    counts = np.arange(1.0, masks + 1) * 10
    for hits in range((masks + 1) // 2):
        interval = fixed_ablations_bounds(counts, hits, median=kind)
        high, low = counts.copy(), counts.copy()
        high[:hits] = 1e9
        low[masks - hits :] = 0.0
        assert medians(high, kind) == interval.high
        assert medians(low, kind) == interval.low
        if hits:
            understated = fixed_ablations_bounds(counts, hits - 1, median=kind)
            assert medians(high, kind) not in understated
            assert medians(low, kind) not in understated


def test_a_real_family_of_masks_and_a_patch_at_its_worst_place() -> None:
    shape, patch, k, masks = (16, 20), 4, 6, 31
    kept = [ablation_indices(shape[0] * shape[1], k, seed=3, draw=m) for m in range(masks)]
    hits, top, left = mask_hits(kept, shape, patch).tolist()
    assert 0 < hits < masks / 2

    generator = torch.Generator().manual_seed(0)
    image = torch.rand(shape, generator=generator)

    def counts(image: torch.Tensor) -> np.ndarray:
        return np.array([float(image.flatten()[pixels].sum()) for pixels in kept])

    clean = counts(image)
    result = fixed_ablations_bounds(clean, hits)
    assert result.count == np.median(clean)
    understated = fixed_ablations_bounds(clean, 0)
    escaped = False
    for content in (0.0, 1.0, 1e6):
        attacked = image.clone()
        attacked[top : top + patch, left : left + patch] = content
        moved = counts(attacked)
        assert (moved != clean).sum() <= hits
        assert float(np.median(moved)) in result
        escaped |= float(np.median(moved)) not in understated
    assert escaped


@pytest.mark.parametrize("kind", MEDIANS)
def test_half_of_the_masks_is_too_much(kind: str) -> None:
    for masks in range(1, 12):
        for hits in range(masks + 1):
            interval = fixed_ablations_bounds(np.arange(masks, dtype=float), hits, median=kind)
            assert interval.vacuous == (hits >= masks / 2)
            assert (interval.reason is not None) == interval.vacuous
            assert interval.deterministic
            assert interval.confidence == 1.0
            if interval.vacuous:
                assert (interval.low, interval.high) == (0.0, math.inf)
                assert f"{hits} of {masks} masks" in interval.reason


def test_it_widens_with_hits_and_patches() -> None:
    counts = np.random.default_rng(0).gamma(2.0, 50.0, 60)
    widths = [fixed_ablations_bounds(counts, hits).width for hits in range(30)]
    assert widths == sorted(widths)
    assert fixed_ablations_bounds(counts, 4, patches=3) == fixed_ablations_bounds(counts, 12)
    assert fixed_ablations_bounds(counts, 15, patches=2).vacuous


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"counts": []}, "counts must be"),
        ({"counts": [[1.0]]}, r"counts must be \[n\] and not empty, got \[1, 1\]"),
        ({"counts": [1.0, -1.0]}, "not negative, got -1"),
        ({"counts": [1.0, math.nan]}, "finite"),
        ({"hits": -1}, "hits must be"),
        ({"hits": 4}, r"hits must be within \[0, 3\], got 4"),
        ({"patches": 0}, "patches must be"),
        ({"median": "middle"}, "median must be"),
    ],
)
def test_bad_input(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fixed_ablations_bounds(**{"counts": [1.0, 2.0, 3.0], "hits": 1, **arguments})


def test_bad_types() -> None:
    for arguments in ({"hits": 1.0}, {"hits": True}, {"hits": 1, "patches": 2.0}):
        with pytest.raises(TypeError, match="must be a whole number"):
            fixed_ablations_bounds([1.0, 2.0, 3.0], **arguments)


@pytest.mark.parametrize("kind", [Pixels(3), Bands(4), Blocks(3)])
@pytest.mark.parametrize("patch", [1, 3, 8])
def test_what_one_patch_can_touch_is_counted_place_by_place(kind: Kind, patch: int) -> None:
    shape, draws = (8, 13), 30
    image = torch.ones(1, 3, *shape)
    if isinstance(kind, Pixels):
        shown = ops.ablate(image, kind.k, seed=5, fill=0.0, draws=draws)
    else:
        places = corners(kind, shape, draws=draws, first_draw=0, seed=5)
        shown = ops.keep_windows(image, torch.tensor(places), kind.window(shape), fill=0.0)
    kept = shown[:, 0] > 0
    hits = [
        int(kept[:, y : y + patch, x : x + patch].flatten(1).any(1).sum())
        for y in range(shape[0] - patch + 1)
        for x in range(shape[1] - patch + 1)
    ]
    assert most_touched(kind, shape, patch_size=patch, draws=draws, seed=5) == max(hits)


@pytest.mark.parametrize("patch", [1, 3, 8])
def test_of_all_places_the_overlaps_are_counted(patch: int) -> None:
    shape = (8, 13)
    for kind in (Bands(4), Blocks(3), Blocks(7)):
        places = corners(kind, shape, draws=None, first_draw=0, seed=0)
        shown = ops.keep_windows(
            torch.ones(1, 3, *shape), torch.tensor(places), kind.window(shape), fill=0.0
        )
        most = int((shown[:, 0, :patch, :patch] > 0).flatten(1).any(1).sum())  # all are alike
        assert most_touched(kind, shape, patch_size=patch, draws=None, seed=0) == most


def test_draws_that_cannot_be_counted_are_refused() -> None:
    with pytest.raises(ValueError, match="draws must be a number where pixels are kept, got None"):
        most_touched(Pixels(3), (8, 13), patch_size=3, draws=None, seed=0)
    with pytest.raises(ValueError, match="entries of channels"):
        most_touched(Elements(3), (8, 13), patch_size=3, draws=5, seed=0)


@pytest.mark.long
def test_an_image_is_certified_by_the_draws_that_its_counter_takes() -> None:
    counter = models.load("mcnn-synthetic")
    image = data.open("synthetic", shape=(96, 128))[0].image
    interval = certify.fixed_ablations(
        counter, image, patch_size=8, band=24, draws=25, fill=0.45, seed=2
    )
    defended = defense.banded(counter, 24, draws=25, fill=0.45, combine="median", seed=2)
    with torch.no_grad():
        count = float(defended(image[None]).sum())
    assert interval.count == pytest.approx(count, rel=1e-4)
    assert interval.deterministic
    assert not interval.vacuous
    assert certify.fixed_ablations(
        counter, image, patch_size=90, band=24, draws=25, fill=0.45, seed=2
    ).vacuous
