"""Geometry-adaptive kernel widths (Zhang et al., MCNN, CVPR 2016, section 2.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from pycc.ops import _check, _native

_OP = "adaptive_sigma"
_MAX_NEIGHBOURS = 32
_MAX_SIGMA = 1e9
"""Largest beta and single: with coordinates within ±2^30 no result is infinite."""


def _checked(
    points: Tensor, neighbours: int, beta: float, single: float | None
) -> tuple[Tensor, Tensor | None]:
    """Points as float64, and the answer where it needs no neighbour."""
    points = _check.points(_OP, points)
    _check.integer(_OP, "neighbours", neighbours, 1, _MAX_NEIGHBOURS)
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
    """Width of each head's Gaussian from the distances to its nearest heads.

    Args:
        points: [N,2] head annotations (x, y), float32 or float64, in pixels. Points at the same
            place are each other's neighbours at distance 0.
        neighbours: how many of the nearest others to average over, 1 to 32; all the others where
            there are fewer.
        beta: factor on the mean distance.
        single: sigma of the only head where N is 1.

    Returns:
        [N] float32, in pixels: beta times the mean distance. Never NaN or infinite. Not
        differentiable: no gradient or tangent of points reaches it.

    Raises:
        ValueError, TypeError: a bad argument, or one point and no ``single``.
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
    """The twin of :func:`adaptive_sigma` in pure torch: all pairs, in blocks of rows."""
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
    # Points that are NaN or infinite are in no order, which the search for neighbours relies on.
    _check.points(_OP, points)
    points = _check.raw(_OP, "points", points, torch.float64, (None, 2), points.device)
    _check.integer(_OP, "neighbours", neighbours, 1, _MAX_NEIGHBOURS)
    _check.number(_OP, "beta", beta, 0.0, _MAX_SIGMA)
    _check.integer(_OP, "N", len(points), 2, 1 << 40)
    sigma = torch.empty(len(points), dtype=torch.float32, device=points.device)
    _native.run(_OP, points.device, sigma, points, len(points), neighbours, beta)
    return sigma


@_adaptive_sigma.register_fake
def _(points: Tensor, neighbours: int, beta: float) -> Tensor:
    return points.new_empty(points.shape[0], dtype=torch.float32)
