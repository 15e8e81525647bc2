"""Samples on the counter's grid: the region of interest and the true density, cell by cell."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from pycc import ops
from pycc.attack.survey import counted_points
from pycc.types import Sample


def cell_weight(sample: Sample, cells: Sequence[int], stride: int) -> Tensor:
    """[h,w] float32: the share of each cell's pixels that lies in the region of interest.

    ``cells`` is (h, w). A count is the sum of weight times density, so a cell that the region's
    border cuts counts in proportion.
    """
    height, width = cells
    if sample.mask is None:
        return torch.ones(height, width)
    region = sample.mask.float()[None, None]
    pooled = functional.avg_pool2d(region, stride, ceil_mode=True)
    return pooled[0, 0, :height, :width]


def cell_density(sample: Sample, cells: Sequence[int], stride: int) -> Tensor:
    """[h,w], people per cell: the ground truth, each head a Gaussian of mass 1.

    Geometry-adaptive widths (β 0.3, three neighbours); heads near the border keep their mass.
    """
    height, width = sample.image.shape[1:]
    points = counted_points(sample)
    sigma = ops.adaptive_sigma(points, single=(height + width) / 8)
    if tuple(cells) == (height // stride, width // stride):
        return ops.density_map(
            points, sigma, (height, width), boundary="renormalize", stride=stride
        )
    # A counter that keeps a last, incomplete cell: sum what there is of it.
    fine = ops.density_map(points, sigma, (height, width), boundary="renormalize")
    missing = (0, cells[1] * stride - width, 0, cells[0] * stride - height)
    padded = functional.pad(fine, missing)
    return functional.avg_pool2d(padded[None], stride)[0] * stride**2
