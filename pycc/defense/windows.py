"""Which cells of a map a patch can touch, and the sums over such windows."""

from __future__ import annotations

import torch
from torch import Tensor

from pycc.types import Counter


def window_of(
    counter: Counter, patch: int, shape: tuple[int, int], cells: tuple[int, int]
) -> tuple[int, int]:
    """Sides (height, width) in cells of the window that a square patch can touch at most.

    ``patch`` is its side in pixels, ``shape`` the image's (H, W), ``cells`` the map's (h, w). A
    cell of stride s sees its own pixels and m = ceil((r - s) / 2) more on every side, where r is
    the receptive field, so a patch of p pixels touches at most ceil((p + s + 2 m - 1) / s) cells
    of an axis, wherever it lies. Every set of cells that a patch touches is then part of a window
    of this size that lies inside the map.

    ValueError for a patch that is larger than the image, and for a counter without a bounded
    receptive field: no window holds what a patch can change there.
    """
    check_patch(patch, shape)
    if counter.receptive_field is None:
        raise ValueError(
            "certify: a counter without a bounded receptive field has no window that holds what a "
            "patch can change; count isolated tiles (pycc.defense.tiled)"
        )
    stride = counter.stride
    rim = max(0, -(-(counter.receptive_field - stride) // 2))
    side = -(-(patch + stride + 2 * rim - 1) // stride)
    return min(side, cells[0]), min(side, cells[1])


def check_patch(patch: int, shape: tuple[int, int]) -> None:
    """ValueError unless a square patch of that many pixels fits into an image of ``shape``."""
    if isinstance(patch, bool) or not isinstance(patch, int) or patch < 1:
        raise ValueError(
            f"certify: patch must be a whole number of pixels from 1 on, got {patch!r}"
        )
    if patch > min(shape):
        raise ValueError(
            f"certify: patch must fit into the image of {shape[0]}x{shape[1]}, got {patch} pixels"
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
