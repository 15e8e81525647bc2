"""Intervals on the count of a region of interest: a patch outside it or across its border too."""

from __future__ import annotations

import math
import random

import pytest
import torch
from support.patched import counter_of, patched

from pycc import certify, defense
from pycc.defense.capping import Caps, capped_maps
from pycc.defense.masking import masked_maps
from pycc.defense.region import Regional
from pycc.defense.windows import window_of
from pycc.grid import cell_weight
from pycc.types import Sample

PATCH = 3


@torch.no_grad()
@pytest.mark.parametrize("seed", range(6))
def test_no_patch_leaves_the_interval(seed: int) -> None:
    draw = random.Random(seed)
    counter = counter_of(seed, side=3, stride=2)
    generator = torch.Generator().manual_seed(seed)
    image = (torch.rand(3, 17, 21, generator=generator) * 255).round() / 255
    mask = torch.zeros(17, 21, dtype=torch.bool)
    mask[3:12, 5:16] = True  # cells at its border lie in it in part
    sample = Sample("scene", image, torch.tensor([[6.0, 4.0]], dtype=torch.float64), mask)
    cells = counter(image[None])[0, 0]
    weight = cell_weight(sample.roi, cells.shape, 2)
    assert ((weight > 0) & (weight < 1)).any()
    inside = cells * weight
    allowance, cap = 0.2 * float(inside.sum()), 0.6 * float(cells.max())
    calibration = certify.Calibration(
        (
            certify.CalibratedNumber("allowance", allowance, "here", 1, PATCH, 0),
            certify.CalibratedNumber("cap", cap, "here", 1),
            certify.CalibratedNumber("block cap", 1e6, "here", 1),
        ),
        (0.4, 0.4, 0.4),
    )
    methods = [
        "masked", "additive", certify.TwoMask(masks=4),
        certify.FixedAblations(k=3, ablation_samples=5),
    ]  # fmt: skip
    result = certify.run(
        counter, [sample], method=methods, patch_sizes=[PATCH], calibration=calibration
    )
    regional = Regional(counter, weight)
    victims = {
        "two-mask": defense.two_mask(regional, patch_size=PATCH, masks=4, fill=0.4),
        "fixed-ablations": defense.ablated(
            regional, 3, draws=5, fill=0.4, combine="median", seed=0
        ),
    }
    images = patched(image, PATCH, 60, 1, draw)
    maps = (counter(images)[:, 0] * weight).contiguous()
    size = window_of(counter, PATCH, (17, 21), (cells.shape[0], cells.shape[1]))
    counts = {
        "masked": masked_maps(maps, size, allowance).double().sum((1, 2)),
        "additive": capped_maps(maps, Caps(cap, 1e6)).double().sum((1, 2)),
        **{name: victim(images).double().sum((1, 2, 3)) for name, victim in victims.items()},
    }
    computed = {record["method"]: record for record in result.records}
    assert computed["clean"]["count"] == pytest.approx(float(inside.double().sum()), rel=1e-5)
    for method, values in counts.items():
        low, high = computed[method]["low"], computed[method]["high"]
        high = math.inf if high is None else high
        assert low - 1e-6 <= float(values.min()), method
        assert float(values.max()) <= high + 1e-6, method
        if method in ("masked", "additive"):
            assert float(values.max()) > float(values.min())  # the patches do something


def test_a_map_of_another_size_is_refused() -> None:
    regional = Regional(counter_of(0, side=3, stride=2), torch.ones(4, 5))
    with pytest.raises(ValueError, match=r"the region's \[4, 5\] cells, got \[8, 10\]"):
        regional(torch.rand(1, 3, 16, 20))
