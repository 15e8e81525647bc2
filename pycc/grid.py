"""Pixels and cells: the part of a map or of the heads in a region, and the reach of a patch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from pycc.types import Counter

__all__ = [
    "cell_weight",
    "check_cells",
    "field_margin",
    "heads_in",
    "in_region",
    "minimum_side",
    "period_of",
    "reached_window",
    "window_field",
]


def cell_weight(roi: Tensor | None, cells: Sequence[int], stride: int) -> Tensor:
    """Compute the weight [h,w], float32 in [0,1], of each cell of a density map in a region.

    Cell (i, j) covers the pixels ``stride * i`` to ``stride * i + stride - 1``, and likewise for j.
    Its weight is the share of those pixels that lies in the region. Of a last cell that the image's
    border cuts, only the existing pixels count, so a region that is the whole image weighs 1
    everywhere. A count is the sum of weight times density.

    Args:
        roi: [H,W] bool, the region of interest; None for the whole image.
        cells: height and width (h, w) of the map.
        stride: pixels per cell.

    Raises:
        ValueError: ``roi`` is not [H,W] bool, or an image of its size has no map of ``cells``.

    >>> cell_weight(torch.tensor([[True, True, True, False, True]]), (1, 3), 2).tolist()
    [[1.0, 0.5, 1.0]]
    """
    if roi is None:
        return torch.ones(*cells)
    if roi.ndim != 2 or roi.dtype != torch.bool:
        raise ValueError(f"cell_weight: roi must be [H,W] bool, got {list(roi.shape)} {roi.dtype}")
    check_cells("cell_weight", cells, roi.shape, stride)
    pooled = functional.avg_pool2d(roi.float()[None], stride, ceil_mode=True)
    return pooled[0, : cells[0], : cells[1]]


def check_cells(op: str, cells: Sequence[int], shape: Sequence[int], stride: int) -> None:
    """Check that an image of ``shape`` (H,W) can have a map of ``cells`` (h,w) of a stride.

    Networks differ in whether a last, incomplete cell is kept: both numbers are right. ValueError,
    naming ``op``, for another map and for a stride below 1.

    >>> check_cells("game", (2, 3), (16, 20), 8)
    >>> check_cells("game", (2, 4), (16, 20), 8)
    Traceback (most recent call last):
    ...
    ValueError: game: an image of 16x20 pixels has 2x2 to 2x3 cells of stride 8, got 2x4
    """
    if stride < 1:
        raise ValueError(f"{op}: stride must be at least 1, got {stride}")
    least = [pixels // stride for pixels in shape]
    most = [-(-pixels // stride) for pixels in shape]
    if all(low <= n <= high for low, n, high in zip(least, cells, most, strict=True)):
        return
    whole, cut, got, size = ("x".join(map(str, pair)) for pair in (least, most, cells, shape))
    expected = whole if whole == cut else f"{whole} to {cut}"
    raise ValueError(
        f"{op}: an image of {size} pixels has {expected} cells of stride {stride}, got {got}"
    )


def in_region(density: Tensor, roi: Tensor | None, stride: int) -> Tensor:
    """Multiply each cell of density maps [N,1,h,w] by its ``cell_weight``.

    All maps belong to images of one size. ``roi`` is [H,W] bool, or None if the whole image counts:
    the maps are then returned unchanged. ValueError as for ``cell_weight``.

    >>> roi = torch.tensor([[True, True, False, False], [True, False, False, False]])
    >>> in_region(torch.full((1, 1, 1, 2), 4.0), roi, 2).tolist()
    [[[[3.0, 0.0]]]]
    """
    if roi is None:
        return density
    return density * cell_weight(roi, density.shape[-2:], stride).to(density)


def field_margin(stride: int, receptive_field: int) -> int:
    """Compute how many pixels beyond its own a cell can depend on, on each side.

    The margin is ceil((r - s) / 2) for stride s and receptive field r, or 0 for a field within the
    cell.

    >>> field_margin(8, 21), field_margin(8, 8)
    (7, 0)
    """
    return max(0, -(-(receptive_field - stride) // 2))


def reached_window(patch_size: int, stride: int, receptive_field: int) -> int:
    """Compute the largest number of cells along an axis that a patch can reach, at any place.

    A cell of stride s depends on its own pixels and on m = ``field_margin`` more on each side, so a
    patch of p pixels reaches at most ceil((p + s + 2 m - 1) / s) cells, wherever it lies. Every set
    of cells that a square patch reaches is part of a square window of this side.

    Args:
        patch_size: side of the patch, pixels.
        stride: pixels per cell.
        receptive_field: side in pixels of the square, centred on its cell, that a cell depends on.

    Raises:
        ValueError: a number below 1.

    >>> reached_window(1, 8, 8), reached_window(2, 8, 8), reached_window(1, 1, 3)
    (1, 2, 3)
    """
    numbers = {"patch_size": patch_size, "stride": stride, "receptive_field": receptive_field}
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"reached_window: {name} must be at least 1 pixel, got {number}")
    margin = field_margin(stride, receptive_field)
    return -(-(patch_size + stride + 2 * margin - 1) // stride)


def period_of(counter: Counter) -> int:
    """Return the pixels by which an image must move for its map to move with it.

    ``counter.period`` if the counter has it, else its stride: a counter whose network enlarges a
    coarser grid has a larger one.

    >>> from pycc import models
    >>> period_of(models.load("mcnn-synthetic"))
    4
    """
    return int(getattr(counter, "period", counter.stride))


def minimum_side(counter: Counter) -> int:
    """Return the smallest side, in pixels, of an image that a counter takes.

    ``counter.minimum_side`` if the counter has it, else its stride: a map needs a cell.

    >>> from pycc import models
    >>> minimum_side(models.load("mcnn-synthetic"))
    4
    """
    return int(getattr(counter, "minimum_side", counter.stride))


def window_field(counter: Counter) -> int | None:
    """Return the receptive field with which a window of an image has the image's own cells.

    Pass it to ``pycc.local.influence`` where a window is counted in place of its image. None if the
    receptive field is unbounded, and if the counter's period is larger than its stride: windows
    begin at multiples of the stride, and such a counter counts them differently.

    >>> from pycc import models
    >>> counter = models.load("mcnn-synthetic")
    >>> window_field(counter) == counter.receptive_field
    True
    """
    return counter.receptive_field if period_of(counter) == counter.stride else None


def heads_in(points: Tensor, roi: Tensor | tuple[int, int]) -> Tensor:
    """Return whether each head annotation lies in the image and its region of interest: [N] bool.

    A head lies in the pixel (row int(y), column int(x)). ``points`` is [N,2] (x, y) in pixels;
    ``roi`` is [H,W] bool, or the size (H, W) of an image that counts as a whole. NaN is never
    inside.

    >>> heads_in(torch.tensor([[0.5, 0.5], [3.0, 0.0], [-0.5, 0.0]]), (2, 3)).tolist()
    [True, False, False]
    """
    height, width = roi.shape if isinstance(roi, Tensor) else roi
    x, y = points.unbind(1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    if isinstance(roi, Tensor):
        column, row = points[inside].long().unbind(1)
        inside[inside.clone()] = roi[row, column]
    return inside
