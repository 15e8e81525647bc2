"""Ground truth at the resolution of a counter's map: people per cell, heads, regions."""

from __future__ import annotations

import torch
from torch import Tensor

from pycc.data import density, downsample
from pycc.grid import heads_in
from pycc.types import Sample


def target(
    sample: Sample, sides: tuple[int, int], stride: int, *, rule: str, down_sampling: str | None
) -> Tensor:
    """People per cell [1,h//s,w//s] of the top left part of a sample, with ``sides`` (h, w).

    ``sides`` are multiples of the stride s. ``rule`` is a recipe of ``pycc.data.density`` for the
    whole image, or ``"dots"``; ``down_sampling`` a published rule, or ``"sum"`` (None means sum).
    Published rules sample the map on a grid: the part is cut out first, so that a cell's sample
    points lie in the cell. The density outside the region of interest is dropped.
    """
    if rule == "dots":
        return dots(heads(sample), sides, stride)[None]
    shape = (sample.image.shape[1], sample.image.shape[2])
    full = density(sample.points, shape, recipe=rule)
    if sample.roi is not None:
        full = full * sample.roi
    full = full[: sides[0], : sides[1]]
    if down_sampling in (None, "sum") or stride == 1:
        return _block_sums(full, stride)[None]
    return downsample(full, str(down_sampling))[None]


def heads(sample: Sample) -> Tensor:
    """Head annotations [N,2] (x, y) in the region of interest, or all if there is none."""
    if sample.roi is None:
        return sample.points
    return sample.points[heads_in(sample.points, sample.roi)]


def dots(points: Tensor, shape: tuple[int, int], stride: int) -> Tensor:
    """Heads per cell [h,w] of points [N,2] (x, y) in pixels; points outside are dropped."""
    rows, columns = shape[0] // stride, shape[1] // stride
    cells = torch.zeros(rows * columns)
    x, y = (points[:, axis].div(stride).floor().long() for axis in (0, 1))
    inside = (x >= 0) & (y >= 0) & (x < columns) & (y < rows)
    return cells.index_add_(
        0, (y * columns + x)[inside], torch.ones(int(inside.sum()))
    ).reshape(rows, columns)  # fmt: skip


def _block_sums(full: Tensor, stride: int) -> Tensor:
    rows, columns = full.shape[0] // stride, full.shape[1] // stride
    return full.reshape(rows, stride, columns, stride).sum((1, 3))
