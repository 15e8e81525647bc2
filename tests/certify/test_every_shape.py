"""Every deterministic certificate, of images of any size: no patch at any place leaves it."""

from __future__ import annotations

import random

import pytest
import torch
from support.marks import long
from support.patched import counter_of, patched
from torch import nn

from pycc import certify, defense, models

SEEDS = [0]
"""A counter of stride 4."""
FURTHER = long(1, 2, 3, 4, 5, 6, 7)


@torch.no_grad()
@pytest.mark.parametrize("seed", [*SEEDS, *FURTHER])
def test_no_patch_leaves_any_interval(seed: int) -> None:
    draw = random.Random(seed)
    stride = draw.choice([1, 2, 3, 4])
    counter = counter_of(seed, side=draw.choice([3, 5]), stride=stride)
    shape = draw.randint(13, 31), draw.randint(13, 31)
    patch, patches = draw.randint(1, 6), draw.randint(1, 3)
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(3, *shape, generator=generator)
    cells = counter(image[None])[0, 0]
    allowance = float(cells.sum()) * draw.choice([0, 0.1, 0.3, 1])
    cap = float(cells.max()) * draw.uniform(0.3, 1.5) + 1e-3
    each = torch.rand(cells.shape, generator=generator) * cap + 1e-3
    side, block_cap = draw.randint(1, 5), draw.uniform(0.2, 3) * cap
    masks = draw.choice([1, 4, 9, (2, 3), (3, 1)])
    draws, k, width = draw.choice([11, 20, 31]), draw.randint(1, 4), draw.randint(1, 5)
    fixed = {"fill": 0.4, "draws": draws, "seed": seed}
    kept = {"patch_size": patch, "patches": patches, **fixed}
    cases = [
        (certify.masked(counter, image, patch_size=patch, allowance=allowance),
         defense.masked(counter, patch_size=patch, allowance=allowance), 1),
        (certify.additive(counter, image, patch_size=patch, caps=cap, patches=patches),
         defense.clipped(counter, cap), patches),
        (certify.additive(counter, image, patch_size=patch, caps=each, block_cap=block_cap,
                          block=side, patches=patches),
         defense.clipped(counter, each, block_cap=block_cap, block=side), patches),
        (certify.additive(counter, image, patch_size=patch, block_cap=block_cap, block=side),
         defense.clipped(counter, block_cap=block_cap, block=side), 1),
        (certify.two_mask(counter, image, patch_size=patch, masks=masks, fill=0.4),
         defense.two_mask(counter, patch_size=patch, masks=masks, fill=0.4), 1),
        (certify.fixed_ablations(counter, image, k=k, **kept),
         defense.ablated(counter, k, combine="median", **fixed), patches),
        (certify.fixed_ablations(counter, image, band=width, **kept),
         defense.banded(counter, width, combine="median", **fixed), patches),
        (certify.fixed_ablations(counter, image, block=width, **kept),
         defense.blocked(counter, width, combine="median", **fixed), patches),
        (certify.fixed_ablations(counter, image, patch_size=patch, band=width,
                                 **{**fixed, "draws": None}),
         defense.banded(counter, width, combine="median", **{**fixed, "draws": None}), 1),
    ]  # fmt: skip
    for interval, defended, number in cases:
        trials = 60 if interval.method in ("masked", "additive") else 5
        counts = defended(patched(image, patch, trials, number, draw)).double().sum((1, 2, 3))
        clean = float(defended(image[None]).double().sum())
        assert clean == pytest.approx(interval.count, rel=1e-3, abs=1e-3), interval
        assert interval.low <= float(counts.min()), interval
        assert float(counts.max()) <= interval.high, interval


def brightness() -> models.CounterModel:
    """A counter of light: each cell is its pixel's mean of RGB."""
    net = nn.Conv2d(3, 1, 1, bias=False)
    nn.init.constant_(net.weight, 1 / 3)
    return models.wrap(net, stride=1, receptive_field=1).eval()


@torch.no_grad()
@pytest.mark.parametrize("patches", [1, 2])
def test_the_bound_of_fixed_masks_is_reached(patches: int) -> None:
    """Bands, each place once, of a dim image that grows brighter: a white patch in the dark.

    The patch is as high as the image. Every band that it touches was below the median and is then
    brighter than any that it does not touch.
    """
    height, width, band = 6, 60, 4
    image = (0.2 * torch.arange(width) / width).expand(3, height, width).contiguous()
    counter = brightness()
    options = {"fill": 0.0, "draws": None}
    interval = certify.fixed_ablations(
        counter, image, patch_size=height, band=band, patches=patches, **options
    )
    attacked = image.clone()
    for number in range(patches):  # so far apart that no band meets both
        left = 4 + number * (height + band - 1)
        attacked[..., left : left + height] = 1.0
    defended = defense.banded(counter, band, combine="median", **options)
    count = float(defended(attacked[None]).sum())
    shown = [image.roll(-x, 2)[..., :band].mean(0).sum() for x in range(width)]
    ordered = torch.stack(shown).sort().values
    reached = (width - 1) // 2 + patches * (height + band - 1)
    assert count == pytest.approx(float(ordered[reached]), abs=1e-4)
    assert count <= interval.high < count + 0.02
    assert float(ordered[reached - 1]) < count - 0.02


@torch.no_grad()
def test_the_bound_of_two_masks_is_reached() -> None:
    """Masks brighter than the image: the row that hides a white patch is the least of all rows."""
    image = torch.full((3, 20, 24), 0.2)
    counter = brightness()
    interval = certify.two_mask(counter, image, patch_size=5, masks=9, fill=1.0)
    attacked = image.clone()
    attacked[:, 1:6, 1:6] = 1.0
    count = float(defense.two_mask(counter, patch_size=5, masks=9, fill=1.0)(attacked[None]).sum())
    assert count == pytest.approx(interval.high, abs=0.05)
    assert interval.count <= interval.high
