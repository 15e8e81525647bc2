"""Windows of cells that a patch can touch, and sums over such windows."""

from __future__ import annotations

import torch
from torch import Tensor

from pycc.checks import check_whole
from pycc.grid import reached_window
from pycc.types import Counter


def window_of(
    counter: Counter, patch_size: int, shape: tuple[int, int], cells: tuple[int, int]
) -> tuple[int, int]:
    """Compute the sides (height, width), in cells, of a window that contains what a patch affects.

    A cell of stride s depends on its own pixels and m = ceil((r - s) / 2) more on every side, where
    r is the receptive field. So a patch of p pixels affects at most ceil((p + s + 2 m - 1) / s)
    cells of an axis (``pycc.grid.reached_window``), wherever it lies, and every set of cells that
    a patch affects is part of a window of this size inside the map.

    Args:
        counter: a counter with a bounded receptive field.
        patch_size: side of the square patch, in pixels.
        shape: (H, W) of the image, in pixels.
        cells: (h, w) of the map, in cells.

    Raises:
        ValueError: a patch that is larger than the image, or a counter without a bounded receptive
            field, for which no window contains what a patch can change.

    Example:
        >>> import torch
        >>> from pycc import models
        >>> from pycc.defense.windows import window_of
        >>> pool = torch.nn.AvgPool2d(8).eval()
        >>> counter = models.wrap(pool, preprocess=lambda x: x[:, :1], stride=8, receptive_field=8)
        >>> window_of(counter, 81, (768, 1024), (96, 128))
        (11, 11)
    """
    check_patch("certify", patch_size, shape)
    if counter.receptive_field is None:
        raise ValueError(
            "certify: the counter must have a bounded receptive field, got none: no window "
            "contains what a patch can change; count isolated tiles (pycc.defense.tiled)"
        )
    side = reached_window(patch_size, counter.stride, counter.receptive_field)
    return min(side, cells[0]), min(side, cells[1])


def check_patch(op: str, patch_size: int, shape: tuple[int, int]) -> None:
    """Raise ValueError unless a square patch of this side fits into an image (H, W).

    TypeError for a side that is not a whole number; both errors name ``op``.
    """
    if check_whole(op, "patch_size", patch_size, 1) > min(shape):
        raise ValueError(
            f"{op}: patch_size must fit into the image of {shape[0]}x{shape[1]}, "
            f"got {patch_size} pixels"
        )


def window_sums(maps: Tensor, window: tuple[int, int]) -> Tensor:
    """Sum over all windows (height, width) in maps [N,h,w]: [N,h-height+1,w-width+1] float64."""
    high, wide = window
    table = torch.zeros(
        (maps.shape[0], maps.shape[1] + 1, maps.shape[2] + 1),
        dtype=torch.float64,
        device=maps.device,
    )
    table[:, 1:, 1:] = maps.double().cumsum(1).cumsum(2)
    rows = table[:, high:] - table[:, :-high]
    return rows[:, :, wide:] - rows[:, :, :-wide]


def check_maps(op: str, maps: Tensor) -> Tensor:
    """Return density maps [N,1,h,w] as [N,h,w]; ValueError for negative or non-finite cells."""
    if not torch.isfinite(maps).all():
        raise ValueError(f"{op}: the counter's map must be finite, got NaN or infinity")
    least = float(maps.detach().min()) if maps.numel() else 0.0
    if least < 0:
        raise ValueError(
            f"{op}: cells must not be negative, got {least:.3g}; count with "
            "pycc.defense.clipped(counter)"
        )
    return maps[:, 0]
