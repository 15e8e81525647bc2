"""Ground truth at the resolution of a counter's map: people per cell, heads, regions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pycc import ops
from pycc.data import density, downsample
from pycc.grid import heads_in
from pycc.models.heads import Heads
from pycc.models.recipe import Boxes
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


def box_sides(points: Tensor, rule: Boxes) -> Tensor:
    """Sides [N] of the boxes around all heads [N,2] of an image; of one alone, the largest."""
    mean = ops.adaptive_sigma(points, neighbours=3, beta=1.0, single=rule.largest / rule.factor)
    return (rule.factor * mean.double()).clamp(rule.smallest, rule.largest)


def boxed(
    points: Tensor,
    boxes: Tensor,
    rule: Boxes,
    corner: tuple[int, int],
    sides: Sequence[int],
    shape: tuple[int, int],
) -> Heads:
    """The heads that a crop is counted for, of all heads [N,2] with boxes of sides [N].

    The crop has ``sides`` (h, w) and begins at ``corner`` (row, column) of an image of ``shape``.
    """
    moved = points - torch.tensor([corner[1], corner[0]], dtype=torch.float64)
    last = torch.tensor([sides[1], sides[0]], dtype=torch.float64)
    half = boxes[:, None] / 2
    inside = (torch.minimum(moved + half, last) - (moved - half).clamp_min(0.0)).clamp_min(0.0)
    part = (inside.prod(1) / boxes.square()).clamp(0.0, 1.0)
    kept = part >= rule.share
    people = torch.ones_like(part) if rule.whole else part
    return Heads(moved[kept], people[kept], float(min(shape)))


def _block_sums(full: Tensor, stride: int) -> Tensor:
    rows, columns = full.shape[0] // stride, full.shape[1] // stride
    return full.reshape(rows, stride, columns, stride).sum((1, 3))
