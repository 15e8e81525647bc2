"""The best patches of an optimisation, and what an optimisation returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pycc.attack.problem import Problem
from pycc.data import quantize

if TYPE_CHECKING:
    from pycc.attack.base import PatchAttack

LOOKS = 20
"""Number of evaluations of the patches during one optimisation."""


def look_at(steps: int) -> Sequence[int]:
    """List the numbers of steps after which patches are evaluated: evenly spaced, 0 to ``steps``.

    >>> look_at(40)[:3], look_at(40)[-1], len(look_at(40))
    ([0, 2, 4], 40, 21)
    """
    return [round(steps * look / LOOKS) for look in range(LOOKS + 1)]


@dataclass(frozen=True, eq=False)
class OptimisedPatches:
    """The patches that an attack has optimised, one for each image, and their history.

    >>> patches = OptimisedPatches(torch.ones(1, 3, 8, 8), ((2.0, 1.5),), torch.tensor([3.0]))
    >>> patches.loss_history[0][-1], patches.zero_gradient
    (1.5, ())
    """

    patches: Tensor
    """[N,3,p,p], multiples of 1/255 in [0,1]: the best of all steps and restarts."""
    loss_history: tuple[tuple[float, ...], ...]
    """N times the objective's loss of the best patch so far, after each of ``look_at(steps)``
    steps; one restart after the other, each by itself. The best patch is chosen by the loss with
    its penalty; the penalty is no part of these losses, which measure the counter alone."""
    unrounded: Tensor | None
    """[N], people that the patches add to the count before they are rounded to 8 bits; None if
    that depends on the image."""
    zero_gradient: tuple[float, ...] = ()
    """N times the share of patch pixels where the objective's first gradient is exactly 0; ()
    without gradient."""


class BestTracker:
    """The best patches so far, evaluated as they will be measured: in 8 bits, untransformed.

    An attack on people that are not there, by a counter that counts bright pixels:

    >>> from pycc.attack import APAM, AttackedRegion
    >>> from pycc.local import Box, Local
    >>> counter = torch.nn.Conv2d(3, 1, 1, bias=False).eval().requires_grad_(False)
    >>> _ = counter.weight.fill_(1.0)
    >>> image, ones = torch.zeros(1, 3, 8, 8), torch.ones(1, 1, 8, 8)
    >>> local, number = Local(counter, image, Box(0, 0, 8, 8)), torch.ones(1)
    >>> place = torch.zeros(1, 2, dtype=torch.int64)
    >>> region = AttackedRegion(local, image, place, 0 * ones, ones, 64 * number, number, number)
    >>> tracker = BestTracker(APAM(patch_size=4, objective="over"), Problem([region], (0,), 4))
    >>> for level in (0.2, 1.0, 0.4):
    ...     _ = tracker.look(torch.full((1, 3, 4, 4), level))
    ...     tracker.note()
    >>> tracker.result().unrounded  # of the best, 3 * 16 white values
    tensor([48.])
    """

    def __init__(self, attack: PatchAttack, problem: Problem) -> None:
        self._attack, self._problem = attack, problem
        self._mask = attack.patch_mask(problem.side).to(problem.like)
        self.loss = torch.full((len(problem),), torch.inf, device=problem.like.device)
        self._patch = problem.like.new_zeros(len(problem), 3, problem.side, problem.side)
        self._history: list[Tensor] = []  # objectives of the best of this restart
        self.begin()

    def begin(self) -> None:
        """Begin another restart: its history is separate."""
        self._restart_loss = torch.full_like(self.loss, torch.inf)
        self._objective = self._restart_loss

    def look(self, patch: Tensor) -> Tensor:
        """Evaluate patches [N,3,p,p] and keep those that are better; returns their losses [N]."""
        rounded = quantize(patch).to(patch)
        with torch.no_grad():
            objective = self._attack.objective_loss(self._problem, rounded, self._mask)
            loss = objective + self._attack.penalty(self._problem, rounded, self._mask)
        if not torch.isfinite(loss).all():
            kind = type(self._attack).__name__
            raise ValueError(f"{kind}: the loss must be finite, got {loss.tolist()}")
        better = loss < self.loss
        self.loss = torch.where(better, loss, self.loss)
        self._objective = torch.where(loss < self._restart_loss, objective, self._objective)
        self._restart_loss = torch.minimum(loss, self._restart_loss)
        self._patch = torch.where(better[:, None, None, None], patch, self._patch)
        return loss

    def note(self) -> None:
        """Append the best losses of this restart to the history."""
        self._history.append(self._objective)

    def result(self, zero_gradient: Sequence[float] = ()) -> OptimisedPatches:
        """The best patches and their history."""
        with torch.no_grad():
            added = self._problem.added(self._patch, self._mask)
        history = torch.stack(self._history, dim=1).double().tolist()
        return OptimisedPatches(
            quantize(self._patch), tuple(tuple(row) for row in history), added, tuple(zero_gradient)
        )
