"""The masked count of a map, and its bounds.

S is the sum of a map whose cells are not negative, S_W the sum of a window W of cells, and every
set of cells that a patch can touch is part of such a window. ``pycc.certify`` has the proofs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pycc import ops
from pycc.defense.windows import window_sums


@dataclass(frozen=True)
class Bounds:
    """Lower and upper bounds of N counts, [N] float64 each, in people."""

    low: Tensor
    high: Tensor


def masked_maps(maps: Tensor, window: tuple[int, int], allowance: float) -> Tensor:
    """Reduce the fullest window of each of maps [N,h,w] to ``allowance``.

    The cells of that window (of equal ones the first) are scaled, so that the map's sum becomes
    S - max(0, max_W S_W - allowance). Differentiable; the dtype of the maps is kept.
    """
    sums = window_sums(maps, window)
    most, place = sums.flatten(1).max(1)
    columns = sums.shape[2]
    factor = torch.where(
        most > allowance, allowance / most.clamp(min=1e-300), torch.ones_like(most)
    )
    rows = torch.arange(maps.shape[1], device=maps.device)
    across = torch.arange(maps.shape[2], device=maps.device)
    top, left = place // columns, place % columns
    inside = _between(rows, top, window[0])[:, :, None] & _between(across, left, window[1])[:, None]
    return torch.where(inside, maps * factor.to(maps.dtype)[:, None, None], maps)


def _between(cells: Tensor, first: Tensor, length: int) -> Tensor:
    return (cells >= first[:, None]) & (cells < first[:, None] + length)


def masked_bounds(maps: Tensor, window: tuple[int, int], allowance: float) -> Bounds:
    """Bound the masked count [N] of all maps that differ from these in one window (certificate C3).

    The lower bound is S - omega, with omega = max_{W*} [S_{W*} + max(0, max_W S_{W without W*} -
    allowance)] (:func:`pycc.ops.max_pair_sum`); it is attained if W* is set to 0. The upper bound
    is S - min_W S_W + allowance. Both are rounded outward. Not differentiable.

    Raises:
        ValueError: maps [N,h,w] that are not float32, or have a cell that is negative or not
            finite; an allowance that is negative or NaN.
    """
    omega, _ = ops.max_pair_sum(maps, window, allowance)
    total = maps.detach().double().sum((1, 2))
    least = window_sums(maps.detach(), window).flatten(1).min(1).values
    # The rounding error of omega is below 12 (h + w) 2^-53 S, those of S and S_W below a third.
    rounding = total * (16 * (maps.shape[1] + maps.shape[2]) * 2.0**-53)
    low = (total - omega - rounding).clamp(min=0.0)  # no masked count is negative
    return Bounds(low, total - least + allowance + rounding)
