"""Geometry-adaptive widths of Gaussian kernels (Zhang et al., MCNN, CVPR 2016, section 2.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from pycc.ops import _check, _native

_OP = "adaptive_sigma"
MAX_NEIGHBOURS = 32
_MAX_SIGMA = 1e9
"""Upper limit of beta and single: with coordinates within ±2^30, no result is then infinite."""


def _checked(
    points: Tensor, neighbours: int, beta: float, single: float | None
) -> tuple[Tensor, Tensor | None]:
    """Return the points as float64, and the result if N <= 1, which needs no neighbour."""
    points = _check.points(_OP, points)
    _check.integer(_OP, "neighbours", neighbours, 1, MAX_NEIGHBOURS)
    _check.number(_OP, "beta", beta, 0.0, _MAX_SIGMA)
    if single is not None:
        _check.number(_OP, "single", single, 0.0, _MAX_SIGMA)
    if len(points) == 0:
        return points, torch.zeros(0, dtype=torch.float32, device=points.device)
    if len(points) == 1:
        if single is None:
            raise ValueError(
                f"{_OP}: one point has no neighbour; pass single=, the sigma of a lone head "
                "(published: (H + W) / 8)"
            )
        return points, torch.full((1,), single, dtype=torch.float32, device=points.device)
    return points.detach().to(torch.float64).contiguous(), None


def adaptive_sigma(
    points: Tensor, *, neighbours: int = 3, beta: float = 0.3, single: float | None = None
) -> Tensor:
    """Compute the width of each head's Gaussian from the distances to its nearest heads.

    Args:
        points: [N,2] head annotations (x, y), float32 or float64, in pixels. Points at the same
            place are each other's neighbours at distance 0.
        neighbours: number of nearest other heads to average over, 1 to 32; all others if there are
            fewer.
        beta: factor on the mean distance, 0 to 1e9.
        single: sigma of the only head if N is 1, in pixels, 0 to 1e9. The published rule is
            (H + W) / 8.

    Returns:
        [N] float32, in pixels: beta times the mean distance. Never NaN or infinite. Not
        differentiable: gradients and tangents of points are dropped.

    Raises:
        ValueError, TypeError: a bad argument, or one point and no ``single``.

    Source:
        Zhang et al., "Single-image crowd counting via multi-column convolutional neural network",
        CVPR 2016, section 2.2.

    Example:
        >>> import torch
        >>> from pycc import ops
        >>> points = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 20.0]])
        >>> ops.adaptive_sigma(points, neighbours=1)
        tensor([3., 3., 6.])
    """
    if _native.use_reference():
        return adaptive_sigma_reference(points, neighbours=neighbours, beta=beta, single=single)
    exact, answer = _checked(points, neighbours, beta, single)
    if answer is not None:
        return answer
    sigma: Tensor = _adaptive_sigma(exact, int(neighbours), float(beta))
    return sigma


def adaptive_sigma_reference(
    points: Tensor, *, neighbours: int = 3, beta: float = 0.3, single: float | None = None
) -> Tensor:
    """Compute :func:`adaptive_sigma` in pure torch over all pairs of points, in blocks of rows.

    Time O(N^2); at most max(N, 2^22) distances are in memory at once.

    Example:
        >>> import torch
        >>> from pycc import ops
        >>> ops.adaptive_sigma_reference(torch.tensor([[0.0, 0.0], [10.0, 0.0]]))
        tensor([3., 3.])
    """
    exact, answer = _checked(points, neighbours, beta, single)
    if answer is not None:
        return answer
    count = len(exact)
    wanted = min(neighbours, count - 1)
    rows = max(1, (1 << 22) // count)
    means = []
    for first in range(0, count, rows):
        offsets = exact[first : first + rows, None, :] - exact[None, :, :]
        squared = offsets.square().sum(2)
        index = torch.arange(len(squared), device=exact.device)
        squared[index, first + index] = float("inf")  # not its own neighbour
        nearest = squared.topk(wanted, dim=1, largest=False).values
        means.append(nearest.sqrt().sum(1) / wanted)
    return (beta * torch.cat(means)).to(torch.float32)


@torch.library.custom_op("pycc::adaptive_sigma", mutates_args=())
def _adaptive_sigma(points: Tensor, neighbours: int, beta: float) -> Tensor:
    # The search for neighbours relies on an order of the points, which NaN would not have.
    _check.points(_OP, points)
    points = _check.raw(_OP, "points", points, torch.float64, (None, 2), points.device)
    _check.integer(_OP, "neighbours", neighbours, 1, MAX_NEIGHBOURS)
    _check.number(_OP, "beta", beta, 0.0, _MAX_SIGMA)
    _check.integer(_OP, "N", len(points), 2, 1 << 40)
    sigma = torch.empty(len(points), dtype=torch.float32, device=points.device)
    _native.run(_OP, points.device, sigma, points, len(points), neighbours, beta)
    return sigma


@_adaptive_sigma.register_fake
def _(points: Tensor, neighbours: int, beta: float) -> Tensor:
    return points.new_empty(points.shape[0], dtype=torch.float32)
