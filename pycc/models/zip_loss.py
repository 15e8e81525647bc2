"""ZIP's loss: classes of blocks, a zero-inflated Poisson likelihood, and counts at three scales."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pycc.models.zip_bins import Bins
from pycc.models.zip_net import Scores

_NEVER_ZERO = 1e-8
_SCALES = {1: 0.25, 2: 0.5, 4: 1.0}
"""Weights of the differences between maps averaged over so many cells a side."""


class Terms(NamedTuple):
    """The terms of the loss, each [N], one value per image; their sum is its loss."""

    classes: Tensor
    likelihood: Tensor
    maps: Tensor
    counts: Tensor

    def total(self) -> Tensor:
        """Compute the loss [N] of each image."""
        return torch.stack([*self]).sum(0)


def zip_loss(
    scores: Scores,
    rates: Tensor,
    density: Tensor,
    target: Tensor,
    bins: Bins,
    *,
    region: Tensor | None = None,
) -> Terms:
    """Compute the published loss of each image.

    ``rates`` and ``density`` [N,1,h,w] are people per block, ``target`` [N,1,h,w] heads per block,
    whole numbers. Its terms are

    * the cross-entropy of the bins, summed over blocks with heads;
    * the negative logarithm of the zero-inflated Poisson likelihood, without the factorial, summed
      over blocks;
    * the absolute differences of the maps and of their means over 2x2 and 4x4 blocks, each summed
      and multiplied by 1/4, 1/2 and 1;
    * the absolute difference of the counts.

    ``region`` [N,1,h,w] is the share of each block that counts for the first two (None: all of it);
    ``density`` and ``target`` must be 0 outside. ValueError for a target that is not a number of
    heads.
    """
    weight = torch.ones_like(density) if region is None else region
    classes = bins.of(target)[:, 0].to(scores.bins.device)
    entropy = functional.cross_entropy(scores.bins, (classes - 1).clamp(min=0), reduction="none")[
        :, None
    ]
    target = target.to(density)
    shares = scores.empty.softmax(1)
    empty, inhabited = shares[:, :1], shares[:, 1:]
    nobody = -torch.log(empty + inhabited * torch.exp(-rates) + _NEVER_ZERO)
    somebody = rates - target * torch.log(rates + _NEVER_ZERO) - torch.log(inhabited + _NEVER_ZERO)
    differences = [
        factor * _summed(functional.avg_pool2d(density, side) - functional.avg_pool2d(target, side))
        for side, factor in _SCALES.items()
        if side <= min(density.shape[2:])
    ]
    return Terms(
        (entropy * weight * (classes[:, None] > 0)).sum((1, 2, 3)),
        (torch.where(target > 0, somebody, nobody) * weight).sum((1, 2, 3)),
        torch.stack(differences).sum(0),
        (density.sum((1, 2, 3)) - target.sum((1, 2, 3))).abs(),
    )


def _summed(differences: Tensor) -> Tensor:
    return differences.abs().sum((1, 2, 3))
