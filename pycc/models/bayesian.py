"""Bayesian Loss: each head's expected count under a posterior over cells.

Ma et al., "Bayesian Loss for Crowd Count Estimation with Point Supervision", ICCV 2019. A cell
belongs to a head with a probability that falls with their distance; the cells of a head, weighted
with it, should sum to one person, and those of the background to none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from pycc.models.heads import Heads
from pycc.models.options import choice

Distance = Literal["quotient", "difference"]
DISTANCES: tuple[Distance, ...] = ("quotient", "difference")

SIGMA = 8.0
"""Standard deviation of a head's likelihood, in pixels."""
_NEVER_ZERO = 1e-5


def bayesian_loss(
    density: Tensor,
    heads: Sequence[Heads],
    *,
    sigma: float = SIGMA,
    background: float | None = 1.0,
    distance: Distance = "quotient",
    stride: int = 8,
) -> Tensor:
    """Compute the mean over images of summed absolute errors of the expected counts; a scalar.

    ``density`` [N,1,h,w] are people per cell, ``heads`` those of each image. An image without heads
    has the absolute value of its count. ``background``, ``distance``: see ``posterior``. ValueError
    for another number of images, and for an unknown distance.

    >>> heads = Heads(torch.tensor([[20.0, 20.0]]), torch.ones(1), side=64.0)
    >>> density = torch.zeros(1, 1, 8, 8)
    >>> nobody = bayesian_loss(density, [heads])
    >>> density[0, 0, 2, 2] = 1.0
    >>> float(nobody), round(float(bayesian_loss(density, [heads])), 6)
    (1.0, 0.0)
    """
    if len(heads) != len(density):
        raise ValueError(
            f"bayesian_loss: heads must be those of {len(density)} images, got {len(heads)}"
        )
    total = density.new_zeros(())
    for cells, known in zip(density[:, 0], heads, strict=True):
        if not len(known.points):
            total = total + cells.sum().abs()
            continue
        shares = posterior(
            known, (cells.shape[0], cells.shape[1]), sigma=sigma, background=background,
            distance=distance, stride=stride,
        ).to(cells)  # fmt: skip
        expected = shares @ cells.flatten()
        people = torch.zeros_like(expected)
        people[: len(known.people)] = known.people.to(expected)
        total = total + (people - expected).abs().sum()
    return total / len(density)


@torch.no_grad()
def posterior(
    heads: Heads,
    cells: tuple[int, int],
    *,
    sigma: float = SIGMA,
    background: float | None = 1.0,
    distance: Distance = "quotient",
    stride: int = 8,
) -> Tensor:
    """Compute the probability [M+1,h*w], float64, that each cell belongs to each of M heads.

    The last row is the background, which is missing if ``background`` is None. A cell's squared
    distance to it is, with d = ``background`` times the short side of the image and D the cell's
    squared distance to the nearest head, d² / (D + 1e-5) (``"quotient"``, as Bayesian Loss is
    published), or (d - √D)² (``"difference"``, the paper's, as M-SFANet is trained).

    Distances are of the cells' centres, in pixels.
    """
    choice("bayesian_loss", "distance", distance, DISTANCES)
    # Differences of squared distances of 1e5 pixels² decide: single precision is not enough.
    points = heads.points.double()
    rows, columns = (
        stride * torch.arange(number, dtype=torch.float64, device=points.device) + stride / 2
        for number in cells
    )
    down, across = (points[:, 1:] - rows).square(), (points[:, :1] - columns).square()
    squared = (down[:, :, None] + across[:, None, :]).flatten(1)  # [M,h*w]
    if background is not None:
        nearest = squared.amin(0, keepdim=True)
        far = background * heads.side
        if distance == "quotient":
            beyond = far**2 / (nearest + _NEVER_ZERO)
        else:
            beyond = (far - nearest.sqrt()).square()
        squared = torch.cat([squared, beyond])
    return torch.softmax(-squared / (2.0 * sigma**2), 0)
