"""The masked count and its bounds, from one map.

D is a map of cells that are not negative, S its sum, S_W the sum of a window W of cells, and every
set of cells that a patch can touch is part of such a window. Proofs: ``pycc.certify``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pycc import ops
from pycc.defense.windows import window_sums


@dataclass(frozen=True)
class Bounds:
    """[N] lower and upper bounds in people, float64, and what is lost and gained at most."""

    low: Tensor
    high: Tensor


def masked_maps(maps: Tensor, window: tuple[int, int], allowance: float) -> Tensor:
    """Maps [N,h,w] less what their fullest window holds beyond ``allowance``.

    The cells of that window (of equal ones the first) are scaled, so that the map's sum is
    S - max(0, max_W S_W - allowance). Differentiable; cells keep their type.
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
    """Bounds [N] of the masked count of every image that differs in one window (C3).

    Low is S - omega, omega = max_{W*} [S_{W*} + max(0, max_W S_{W without W*} - allowance)]
    (:func:`pycc.ops.max_pair_sum`), which erasing W* attains; high is S - min_W S_W + allowance.
    Both are rounded outward. Not differentiable.

    ValueError for maps [N,h,w] that are not float32, or have a cell that is negative or not finite,
    and for an allowance that is negative or NaN.
    """
    omega, _ = ops.max_pair_sum(maps, window, allowance)
    total = maps.detach().double().sum((1, 2))
    least = window_sums(maps.detach(), window).flatten(1).min(1).values
    # The rounding of omega is below 12 (h + w) 2^-53 S, that of S and of S_W below a third of it.
    rounding = total * (16 * (maps.shape[1] + maps.shape[2]) * 2.0**-53)
    low = (total - omega - rounding).clamp(min=0.0)  # no masked count is negative
    return Bounds(low, total - least + allowance + rounding)
