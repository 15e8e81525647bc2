"""The masked count of a map, and its bounds.

S is the sum of a map whose cells are not negative, S_W the sum of a window W of cells, and every
set of cells that a patch can touch is part of such a window. ``pycc.certify`` has the proofs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pycc import ops
from pycc.defense.windows import window_sums

_STEPS = 60
"""Number of allowances that are tried."""
_FLAT = 1.002
"""Largest ratio of an allowance's error to the least error."""


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
    inside = _inside(maps, torch.stack((place // columns, place % columns), 1), window)
    return torch.where(inside, maps * factor.to(maps.dtype)[:, None, None], maps)


def _inside(maps: Tensor, corners: Tensor, window: tuple[int, int]) -> Tensor:
    """Return for maps [N,h,w] the cells, bool, of the windows with these corners [N,2] (y, x)."""
    rows, columns = (torch.arange(side, device=maps.device) for side in maps.shape[1:])
    down, across = (
        (cells >= first[:, None]) & (cells < first[:, None] + length)
        for cells, first, length in zip((rows, columns), corners.unbind(1), window, strict=True)
    )
    return down[:, :, None] & across[:, None]


def masked_bounds(maps: Tensor, window: tuple[int, int], allowance: float) -> Bounds:
    """Bound the masked count [N] of all maps that differ from these in one window (certificate C3).

    The lower bound is S - omega, with omega = max_{W*} [S_{W*} + max(0, max_W S_{W without W*} -
    allowance)] (:func:`pycc.ops.max_pair_sum`); it is attained if W* is set to 0. The upper bound
    is S - min_W S_W + allowance. Both are rounded outward. The gradient is that of the sums at the
    windows that attain the bounds, a subgradient.

    Raises:
        ValueError: maps [N,h,w] that are not float32, or have a cell that is negative or not
            finite; an allowance that is negative or NaN.
    """
    plain = maps.detach()
    omega, pair = ops.max_pair_sum(plain, window, allowance)
    total = plain.double().sum((1, 2))
    sums = window_sums(plain, window)
    least, emptiest = sums.flatten(1).min(1)
    # The rounding error of omega is below 12 (h + w) 2^-53 S, those of S and S_W below a third.
    rounding = total * (16 * (maps.shape[1] + maps.shape[2]) * 2.0**-53)
    low = (total - omega - rounding).clamp(min=0.0)  # no masked count is negative
    bounds = Bounds(low, total - least + allowance + rounding)
    if not (torch.is_grad_enabled() and maps.requires_grad):
        return bounds
    first, second = (_inside(plain, corners, window) for corners in pair.unbind(1))
    hidden = first | (second & (pair[:, 1, :1] >= 0)[:, :, None])  # else W* alone attains omega
    columns = sums.shape[2]
    place = torch.stack((emptiest // columns, emptiest % columns), 1)
    return Bounds(
        low + _gradient_only(maps, ~hidden & (low > 0)[:, None, None]),
        bounds.high + _gradient_only(maps, ~_inside(plain, place, window)),
    )


def _gradient_only(maps: Tensor, cells: Tensor) -> Tensor:
    """Return zeros [N] with the gradient of the sum over some cells, bool, of maps [N,h,w]."""
    total = torch.where(cells, maps, torch.zeros_like(maps)).double().sum((1, 2))
    return total - total.detach()


def allowance_of(
    maps: Sequence[Tensor], truths: Sequence[float], windows: Sequence[tuple[int, int]]
) -> float:
    """Choose the allowance with the least mean certified error over training images.

    ``maps`` are [h,w] in people per cell, ``truths`` the annotated counts, and ``windows`` the
    sides (height, width) in cells of the window that a patch can touch in each map. The candidates
    are 0 and values on a geometric scale from 1 person to the sum of the fullest window. The error
    is flat around its minimum: of the candidates within 0.2 % of it, the largest is returned, which
    changes clean counts least. ValueError for no images or lists of different lengths.

    >>> import torch
    >>> from pycc.certify import allowance_of
    >>> maps = [torch.ones(4, 4), 2 * torch.ones(4, 4)]
    >>> allowance_of(maps, truths=[16.0, 32.0], windows=[(2, 2), (2, 2)])
    8.0
    """
    if not maps or not len(maps) == len(truths) == len(windows):
        raise ValueError(
            f"certify: an allowance needs as many maps as counts and windows, got {len(maps)}, "
            f"{len(truths)} and {len(windows)}"
        )
    fullest = [float(window_sums(m[None], w).max()) for m, w in zip(maps, windows, strict=True)]
    tried = np.unique([0.0, *np.geomspace(1.0, max(2.0, *fullest), _STEPS - 1)])
    errors = np.zeros((len(maps), len(tried)))
    for row, (cells, truth, window) in enumerate(zip(maps, truths, windows, strict=True)):
        for column, value in enumerate(tried):
            bounds = masked_bounds(cells[None], window, float(value))
            low, high = max(0.0, float(bounds.low[0])), float(bounds.high[0])
            errors[row, column] = max(abs(high - truth), abs(low - truth))
    mean = errors.mean(0)
    return float(tried[mean <= _FLAT * mean.min()].max())
