"""The true density of a sample on the counter's grid."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from pycc import ops
from pycc.attack.evaluation.checked import counted_points
from pycc.types import Sample


def cell_density(sample: Sample, cells: Sequence[int], stride: int) -> Tensor:
    """Compute the true density [h,w] in people per cell, each head a Gaussian of mass 1.

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
