"""Generalized Loss: unbalanced entropic transport between a density map and heads.

Wan et al., "A Generalized Loss Function for Crowd Counting and Localization", CVPR 2021. People
move from cells to heads at a cost that grows exponentially with the distance, more slowly where
perspective makes heads large; creating or losing people has a price of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pycc.models.heads import Heads

_BLUR = 0.01
"""Entropic regularisation at the end; also the weight of the plan's entropy."""
_REACH = 0.5
"""Price of creating or losing a person."""
_SCALING = 0.5
"""Factor between the regularisations of two sweeps."""
_MARGINALS = 0.1
"""Weight of the plan's deviations from map and heads."""
_TINY = 1e-20
_LEAST = 1e-12
"""People of a cell that holds none: the logarithm of 0 would make the plan infinite."""


def generalized_loss(
    density: Tensor, heads: Sequence[Heads], *, crop: int, stride: int = 8
) -> Tensor:
    """Compute the mean over images of transport cost, marginal errors and the plan's entropy.

    It is a scalar. ``density`` [N,1,h,w] are people per cell, not negative; ``heads`` those of each
    image; ``crop`` is the length in pixels that is 1 in the published units, the side of a crop. An
    image without heads has 1.2 times the absolute value of its count. ValueError for another number
    of images.

    >>> heads = Heads(torch.tensor([[20.0, 20.0]]), torch.ones(1), side=64.0)
    >>> density = torch.zeros(1, 1, 8, 8)
    >>> density[0, 0, 2, 2] = 1.0
    >>> there = generalized_loss(density, [heads], crop=64)
    >>> bool(there < generalized_loss(density.flip(3), [heads], crop=64))
    True
    """
    if len(heads) != len(density):
        raise ValueError(
            f"generalized_loss: heads must be those of {len(density)} images, got {len(heads)}"
        )
    total = density.new_zeros(())
    for cells, known in zip(density[:, 0], heads, strict=True):
        if len(known.points):
            total = total + _image_loss(cells, known, crop, stride)
        else:
            total = total + (1.0 + 2.0 * _MARGINALS) * cells.sum().abs()
    return total / len(density)


def _image_loss(cells: Tensor, heads: Heads, crop: int, stride: int) -> Tensor:
    heads = heads.to(cells.device)
    people = heads.people.to(cells)
    cost = _cost((cells.shape[0], cells.shape[1]), heads.points, crop, stride)  # [h*w,M]
    weights = cells.flatten()
    grid = (heads.points.new_tensor([cells.shape[1], cells.shape[0]]) - 1) * stride
    corners = torch.stack([grid * 0, grid]) + stride / 2
    spread = torch.cat([corners, heads.points]) / crop
    diameter = float((spread.amax(0) - spread.amin(0)).norm())
    of_cells, of_heads = transport_potentials(weights.detach(), heads.people, cost, diameter)
    price = _REACH + _BLUR / 2
    paid = price * (1 - torch.exp(-of_cells / _REACH)).to(cells)
    kept = price * (1 - torch.exp(-of_heads / _REACH)).to(cells)
    value = (weights * paid).sum() + (people * kept).sum()
    moved = torch.exp((of_cells[:, None] + of_heads - cost) / _BLUR).to(cells)
    plan = moved * weights[:, None] * people
    marginals = (plan.sum(1).detach() - weights).square().sum() + (plan.sum(0) - people).abs().sum()
    entropy = ((plan + _TINY) * torch.log(plan + _TINY)).mean()
    return value + _MARGINALS * marginals + _BLUR * entropy


def _cost(cells: tuple[int, int], points: Tensor, crop: int, stride: int) -> Tensor:
    """Compute [h*w,M]: exp(d / s) - 1, d the distance and s 0.5 + 0.1 (y + y')."""
    rows, columns = (
        (stride * torch.arange(number, dtype=torch.float64, device=points.device) + stride / 2)
        / crop
        for number in cells
    )
    x, y = (points.double() / crop).unbind(1)
    down = (rows[:, None] - y)[:, None, :]  # [h,1,M]
    across = (columns[:, None] - x)[None, :, :]  # [1,w,M]
    scale = 0.5 + 0.1 * (rows[:, None] + y)[:, None, :]
    return torch.expm1(torch.sqrt(down.square() + across.square()) / scale).flatten(0, 1)


@torch.no_grad()
def transport_potentials(
    weights: Tensor, people: Tensor, cost: Tensor, diameter: float
) -> tuple[Tensor, Tensor]:
    """Compute the dual potentials [K] and [M], float64, of unbalanced entropic transport.

    ``weights`` [K] of cells and ``people`` [M] of heads move at ``cost`` [K,M] per person. Source:
    Séjourné et al., "Sinkhorn Divergences for Unbalanced Optimal Transport", with symmetric updates
    while the regularisation falls geometrically from ``diameter`` to ``_BLUR``.
    """
    from_cells, from_heads = (mass.double().clamp_min(_LEAST).log() for mass in (weights, people))
    largest = max(diameter, _BLUR)
    steps = math.ceil(math.log(_BLUR / largest) / math.log(_SCALING))
    schedule = [largest, *(largest * _SCALING**n for n in range(steps)), _BLUR]

    def smoothed(epsilon: float, logs: Tensor, transposed: bool) -> Tensor:
        costs = cost.T if transposed else cost
        damping = 1.0 / (1.0 + epsilon / _REACH)
        return -damping * epsilon * torch.logsumexp(logs - costs / epsilon, 1)

    of_heads = smoothed(largest, from_cells, True)
    of_cells = smoothed(largest, from_heads, False)
    for epsilon in schedule:
        heads = smoothed(epsilon, from_cells + of_cells / epsilon, True)
        cells = smoothed(epsilon, from_heads + of_heads / epsilon, False)
        of_heads, of_cells = (of_heads + heads) / 2, (of_cells + cells) / 2
    return (
        smoothed(_BLUR, from_heads + of_heads / _BLUR, False),
        smoothed(_BLUR, from_cells + of_cells / _BLUR, True),
    )
