"""Allowances and caps come from other images, and say so."""

from __future__ import annotations

import pytest
import torch

from pycc.certify.calibration import CalibratedNumber, cap_of
from pycc.defense.masking import allowance_of, masked_bounds


def error(maps, truths, windows, allowance: float) -> float:
    total = 0.0
    for cells, truth, window in zip(maps, truths, windows, strict=True):
        bounds = masked_bounds(cells[None], window, allowance)
        total += max(abs(float(bounds.high[0]) - truth), abs(float(bounds.low[0]) - truth))
    return total / len(maps)


def test_no_other_allowance_is_much_better() -> None:
    generator = torch.Generator().manual_seed(1)
    maps = [torch.rand(12, 15, generator=generator) ** 4 for _ in range(6)]
    truths = [float(m.sum()) * 1.05 for m in maps]
    windows = [(5, 5)] * len(maps)
    chosen = allowance_of(maps, truths, windows)
    result = error(maps, truths, windows, chosen)
    others = [
        error(maps, truths, windows, value) for value in (0.0, *torch.linspace(0.5, 9, 60).tolist())
    ]
    assert result <= 1.02 * min(others)
    assert result < error(maps, truths, windows, 0.0)
    # It is no larger than it need be: the error has begun to rise.
    assert error(maps, truths, windows, 1.5 * chosen) > result


def test_an_allowance_needs_images() -> None:
    with pytest.raises(ValueError, match="as many maps as counts and windows, got 0, 0 and 0"):
        allowance_of([], [], [])
    with pytest.raises(ValueError, match="got 1, 2 and 1"):
        allowance_of([torch.rand(3, 3)], [1.0, 2.0], [(1, 1)])


def test_a_cap_is_a_quantile_of_cells_with_somebody() -> None:
    cells = torch.cat([torch.zeros(900), torch.arange(1, 101) / 100.0])
    assert cap_of([cells.view(40, 25)], share=1.0) == pytest.approx(1.0)
    assert cap_of([cells.view(40, 25)], share=0.5) == pytest.approx(0.505)
    ones = torch.ones(4, 6)
    ones[:2, :3] = 0
    assert cap_of([ones], block=3, share=1.0) == 9.0
    assert cap_of([ones], block=3, share=0.5) == 3.0  # three blocks of 3, two of them at the edge
    for maps, share, message in (
        ([torch.zeros(2, 2)], 0.9, "training cells that are not empty"),
        ([], 0.9, "training cells that are not empty"),
        ([torch.ones(2, 2)], 0.0, r"share must lie in \(0, 1\], got 0\.0"),
    ):
        with pytest.raises(ValueError, match=message):
            cap_of(maps, share=share)


def test_a_calibration_is_kept_with_its_source() -> None:
    assert CalibratedNumber("cap", 0.5, "part_A, train", 300).json() == {
        "kind": "cap", "value": 0.5, "source": "part_A, train", "images": 300,
        "patch_size": None, "counter": None,
    }  # fmt: skip
