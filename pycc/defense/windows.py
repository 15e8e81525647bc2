"""The windows of a map that a patch can reach, their sums, and checks of what they rest on."""

from __future__ import annotations

import torch
from torch import Tensor

from pycc.grid import reached_window
from pycc.types import Counter


def window_of(
    counter: Counter, patch_size: int, shape: tuple[int, int], cells: tuple[int, int]
) -> tuple[int, int]:
    """Sides (height, width) in cells of the largest window of a map that a square patch can reach.

    ``patch_size`` is its side in pixels, ``shape`` the image's (H, W), ``cells`` the map's (h, w).
    Every set of cells that a patch reaches is part of a window of this size inside the map
    (``pycc.grid.reached_window``).

    ValueError for a patch that is larger than the image, and for a counter without a bounded
    receptive field: a patch can then change every cell.
    """
    check_patch(patch_size, shape)
    if counter.receptive_field is None:
        raise ValueError(
            "certify: the counter must have a bounded receptive field, got none: a patch can "
            "change every cell; count isolated tiles (pycc.defense.tiled)"
        )
    side = reached_window(patch_size, counter.stride, counter.receptive_field)
    return min(side, cells[0]), min(side, cells[1])


def check_patch(patch_size: int, shape: tuple[int, int]) -> None:
    """ValueError unless a square patch of that many pixels fits into an image of ``shape``."""
    if isinstance(patch_size, bool) or not isinstance(patch_size, int) or patch_size < 1:
        raise ValueError(
            f"certify: patch_size must be a whole number of pixels from 1 on, got {patch_size!r}"
        )
    if patch_size > min(shape):
        raise ValueError(
            f"certify: the patch must fit into the image of {shape[0]}x{shape[1]}, "
            f"got {patch_size} pixels"
        )


def window_sums(maps: Tensor, window: tuple[int, int]) -> Tensor:
    """Sums [N,h-wh+1,w-ww+1] float64 over all windows (height, width) inside maps [N,h,w]."""
    high, wide = window
    table = torch.zeros(
        (maps.shape[0], maps.shape[1] + 1, maps.shape[2] + 1),
        dtype=torch.float64,
        device=maps.device,
    )
    table[:, 1:, 1:] = maps.double().cumsum(1).cumsum(2)
    rows = table[:, high:] - table[:, :-high]
    return rows[:, :, wide:] - rows[:, :, :-wide]


def check_maps(maps: Tensor) -> Tensor:
    """Maps [N,h,w] of density maps [N,1,h,w]; ValueError for negative or non-finite cells."""
    if not torch.isfinite(maps).all():
        raise ValueError("certify: the counter's map must be finite, got NaN or infinity")
    least = float(maps.min()) if maps.numel() else 0.0
    if least < 0:
        raise ValueError(
            f"certify: cells must not be negative, got {least:.3g}; count with "
            "pycc.defense.clipped(counter)"
        )
    return maps[:, 0]
