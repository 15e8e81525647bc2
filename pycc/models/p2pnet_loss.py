"""P2PNet's loss: every head is matched with one proposal, and proposals learn from the match.

Song et al., "Rethinking Counting and Localization in Crowds: A Purely Point-Based Framework", ICCV
2021, section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

_DISTANCE = 0.05
"""Cost of a match per pixel between proposal and head."""
_NOBODY = 0.5
"""Weight of proposals without a head in the cross-entropy."""
_MOST_COST = 1e9


class Terms(NamedTuple):
    """The two terms of the loss, scalars."""

    scores: Tensor
    """Cross-entropy of the scores."""
    places: Tensor
    """Squared pixels between proposals and their heads, per head."""


@torch.no_grad()
def matched(logits: Tensor, points: Tensor, heads: Tensor) -> tuple[Tensor, Tensor]:
    """Match every head with one proposal, or every proposal with one head if heads are more.

    The assignment has the least sum of costs: 0.05 per pixel of distance, minus the score.

    Args:
        logits: [n,2], "nobody" and "a person".
        points: [n,2] (x, y) of the proposals, in pixels.
        heads: [M,2] (x, y), in pixels.

    Returns:
        Numbers of proposals, ascending, and of their heads; [min(n, M)] int64 each.

    >>> proposals = torch.tensor([[2.0, 2.0], [6.0, 2.0], [2.0, 6.0]])
    >>> matched(torch.zeros(3, 2), proposals, torch.tensor([[2.0, 7.0], [5.0, 2.0]]))
    (tensor([1, 2]), tensor([1, 0]))
    """
    apart = torch.cdist(
        points.double(), heads.double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    cost = _DISTANCE * apart - logits.double().softmax(-1)[:, 1:]
    # Numbers that are not finite reach the loss, and are reported there.
    cost = cost.nan_to_num(0.0).clamp(-_MOST_COST, _MOST_COST)
    rows, columns = linear_sum_assignment(cost.cpu().numpy())
    return torch.from_numpy(rows).to(logits.device), torch.from_numpy(columns).to(logits.device)


def p2pnet_loss(
    logits: Tensor,
    points: Tensor,
    heads: Sequence[Tensor],
    *,
    weight: Tensor | None = None,
) -> Terms:
    """Compute the two terms of P2PNet's loss over a batch.

    Proposals that are matched with a head are to be persons, all others nobody: a cross-entropy in
    which nobody weighs a half, divided by the sum of the weights. Matched proposals are to lie on
    their heads: the sum of the squared differences of both coordinates, divided by the number of
    heads in the batch (at least 1).

    Args:
        logits: [N,n,2], "nobody" and "a person".
        points: [N,n,2] (x, y) of the proposals, in pixels.
        heads: of each of the N images [M,2] (x, y), in pixels.
        weight: [N,n], 0 to 1: how much each proposal counts (None: 1). Those of weight 0 are not
            matched.

    >>> points = torch.tensor([[[2.0, 2.0], [6.0, 2.0]]])
    >>> terms = p2pnet_loss(torch.zeros(1, 2, 2), points, [torch.tensor([[3.0, 2.0]])])
    >>> [round(float(term), 4) for term in terms]
    [0.6931, 1.0]
    """
    weight = logits.new_ones(logits.shape[:2]) if weight is None else weight.to(logits)
    labels = torch.zeros(logits.shape[:2], dtype=torch.long, device=logits.device)
    places = points.new_zeros(())
    for number, given in enumerate(heads):
        wanted = given.to(points)
        free = weight[number].nonzero()[:, 0]
        rows, columns = matched(logits[number, free], points[number, free], wanted)
        labels[number, free[rows]] = 1
        places = places + (points[number, free[rows]] - wanted[columns]).square().sum()
    # A proposal's weight, and a half of it if it is nobody.
    weight = torch.where(labels == 1, weight, _NOBODY * weight)
    entropy = functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    scores = (weight * entropy).sum() / weight.sum().clamp(min=_NOBODY)
    return Terms(scores, places / max(1, sum(map(len, heads))))
