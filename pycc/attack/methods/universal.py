"""One patch for all images: trained on some, measured on others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from pycc.attack.base import PatchAttack, attacks
from pycc.attack.methods.apam import APAM
from pycc.attack.optimiser import decays, optimisers
from pycc.attack.problem import Problem
from pycc.attack.tracker import OptimisedPatches, look_at
from pycc.data import quantize
from pycc.random import Stream


@attacks.register("universal")
@dataclass(frozen=True)
class Universal(APAM):
    """One patch that should work on unseen images.

    The loss of ``APAM``, summed over the images of a batch; each step takes the next batch of the
    training images, in an order drawn anew for each pass over them. The patch is evaluated on all
    training images, 20 times on the way and at the end, and the best is kept; then it is measured
    on the test images, which play no part in the choice. ``steps`` counts batches. The size must
    be the same in pixels in all images, and the place cannot be ``worst``: where one image is
    weakest says nothing of the others.

    >>> from pycc import data, models
    >>> from pycc.attack import run
    >>> test, train = (data.open("synthetic", split=s, limit=1) for s in ("test", "train"))
    >>> attack = Universal(patch_size=16, steps=1, objective="over")
    >>> counter = models.load("mcnn-synthetic")
    >>> done = run(counter, test, attack, train=train, pgd=None, compare=False, checks=False)
    >>> [row.condition for row in done.rows]
    ['clean', 'universal']
    """

    name = "universal"
    is_universal = True

    @property
    def per_image(self) -> PatchAttack | None:
        """``APAM`` with the same fields."""
        return APAM(**{entry.name: getattr(self, entry.name) for entry in fields(APAM)})

    def train(
        self,
        problems: Sequence[Callable[[], Problem]],
        *,
        seed: int,
        step_done: Callable[[int], None],
    ) -> OptimisedPatches:
        """One patch [1,3,p,p] for the images of all problems, which are made first and kept."""
        made = [make() for make in problems]
        total = sum(len(problem) for problem in made)
        patch_mask = self.patch_mask(made[0].side).to(made[0].like)
        best, least = None, float("inf")
        history: list[float] = []
        zero: list[float] = []
        for restart in range(self.restarts):
            patch = self.start([0], made[0].side, seed, restart).to(made[0].like)
            follow = optimisers[self.optimiser](self.momentum)
            looks = look_at(self.steps)
            order: list[int] = []
            restart_least = kept = float("inf")
            for step in range(self.steps + 1):
                for _ in range(looks.count(step)):
                    objective, loss = (
                        value / total for value in self._evaluated(made, patch, patch_mask)
                    )
                    if loss < least:
                        best, least = patch, loss
                    if loss < restart_least:
                        restart_least, kept = loss, objective
                    history.append(kept)
                if step == self.steps:
                    break
                if not order:
                    drawn = Stream(seed, "order", image=restart, step=step)
                    order = drawn.permutation(len(made)).tolist()
                problem = made[order.pop()]
                rate = self.step_size * decays[self.decay](step / self.steps)
                if not zero:
                    shared = patch.expand(len(problem), -1, -1, -1)
                    gradient = self.unpenalised.step_gradient(problem, shared, seed)
                    zero = self.zero_share(gradient.sum(0, keepdim=True))
                gradient = self.batch_gradient(problem, patch, seed, step, restart)
                patch = (patch - follow(gradient, rate)).clamp(0.0, 1.0)
                step_done(restart * self.steps + step + 1)
        assert best is not None
        return OptimisedPatches(quantize(best), (tuple(history),), None, tuple(zero))

    def batch_gradient(
        self, problem: Problem, patch: Tensor, seed: int, step: int, restart: int
    ) -> Tensor:
        """The gradient [1,3,p,p] of a batch's summed loss."""
        shared = patch.expand(len(problem), -1, -1, -1)
        return self.step_gradient(problem, shared, seed, step, restart).sum(0, keepdim=True)

    def _evaluated(
        self, problems: Sequence[Problem], patch: Tensor, patch_mask: Tensor
    ) -> tuple[float, float]:
        """The objective of all images, summed, in 8 bits and without transform; and the loss."""
        rounded = quantize(patch).to(patch)
        objectives, losses = [], []
        with torch.no_grad():
            for problem in problems:
                shared = rounded.expand(len(problem), -1, -1, -1)
                objective = self.objective_loss(problem, shared, patch_mask)
                objectives.append(objective.sum())
                losses.append((objective + self.penalty(problem, shared, patch_mask)).sum())
        loss = float(torch.stack(losses).sum())
        if not math.isfinite(loss):
            raise ValueError(f"Universal: the loss must be finite, got {loss}")
        return float(torch.stack(objectives).sum()), loss
