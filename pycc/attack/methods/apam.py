"""APAM: adversarial patch attack with momentum (Wu et al., arXiv 2104.10868)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from pycc.attack import patch as patches
from pycc.attack.base import PatchAttack, attacks
from pycc.attack.optimiser import decays, optimisers
from pycc.attack.patch import Place
from pycc.attack.problem import Problem
from pycc.attack.tracker import LOOKS, BestTracker, OptimisedPatches, look_at
from pycc.attack.transform import Drawn, draw, transforms
from pycc.local import Box
from pycc.settings import flag


@attacks.register("apam")
@dataclass(frozen=True)
class APAM(PatchAttack):
    """One patch per image, optimised white-box with sign steps and momentum.

    With the patch p, the gradient g of the loss L and the momentum q, a step is

        q <- momentum * q + g / |g|_1,    p <- clip(p - step_size * sign(q), 0, 1),

    |.|_1 over one patch; where g is 0, q only decays. L = J + smoothness * S: J is the objective
    (``pycc.attack.objective``), over several counters the mean of theirs (eq. 9) or the worst, and
    S the sum of squared differences of neighbouring patch pixels (eq. 6). The paper's J is half a
    sum over cells; where the objective here is a mean over cells, S is divided by their number
    too, or it would outweigh J by orders of magnitude and the patch would turn flat. The balance
    of the two is then the paper's up to the factor of a half.

    The gradient is taken through the transform and averaged over ``eot_samples`` draws of it
    (expectation over transformation). Patches are evaluated without transform, in 8 bits, 20 times
    on the way and at the end; the best of all restarts is kept, not the last. The paper states
    neither step size, momentum nor number of steps; 2/255 and 0.9 are those of the momentum attacks
    it builds on. Its density target also punishes people counted where nobody stands: to move the
    count as far as possible, use the objectives ``over``, ``under`` and ``target``.

    Raises ValueError for a field out of range.

    >>> from pycc import models
    >>> attack = APAM(patch_size=16, steps=1, objective="over")
    >>> result = attack(models.load("mcnn-synthetic"), torch.rand(1, 3, 64, 64))
    >>> list(result.images.shape), list(result.patches.shape)
    ([1, 3, 64, 64], [1, 3, 16, 16])
    """

    name = "apam"
    uses_gradient = True

    step_size: float = flag(2 / 255, "change of a patch pixel in one step, of [0,1]")
    decay: str = flag("none", "how the step size falls over the steps", choices=decays.names)
    optimiser: str = flag(
        "momentum",
        "how the patch follows its gradient",
        choices=optimisers.names,
        advanced=True,
    )
    momentum: float = flag(0.9, "share of the earlier direction that a step keeps", advanced=True)
    smoothness: float = flag(0.01, "weight of the patch's roughness in the loss", advanced=True)
    restarts: int = flag(
        1, "optimisations from different first patches; the best is kept", advanced=True
    )
    transform: str = flag(
        "published",
        "what the patch must withstand; published: rotation 5°, zoom 2.5 %, brightness 0.05; "
        "physical: print and camera",
        choices=transforms.names,
    )
    eot_samples: int = flag(1, "transforms whose gradients a step averages", advanced=True)
    sampling: str = flag(
        "single",
        "how transform published samples",
        choices=["single", "nested"],
        advanced=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("step_size", 0 < self.step_size <= 1, "in (0,1]")
        self.check("momentum", 0 <= self.momentum <= 1, "in [0,1]")
        self.check("smoothness", 0 <= self.smoothness <= 1e6, "in [0,1e6]")
        self.check("restarts", self.restarts >= 1, "at least 1")
        self.check("eot_samples", self.eot_samples >= 1, "at least 1")

    @property
    def cost(self) -> float:
        """Forward and backward passes over the patch's surroundings, per image."""
        return self.restarts * (self.steps * self.eot_samples + (LOOKS + 1) / 3)

    def extent(self, place: Place) -> Box:
        """The pixels that the transformed patch may cover, before clipping by the image."""
        margin = transforms[self.transform].margin(place.side)
        (y, x), side = place.top_left, place.side
        return Box(y - margin, x - margin, y + side + margin, x + side + margin)

    def optimise(
        self, problem: Problem, *, seed: int, step_done: Callable[[int], None]
    ) -> OptimisedPatches:
        """The best patches of all restarts."""
        best = BestTracker(self, problem)
        zero: list[float] = []
        for restart in range(self.restarts):
            best.begin()
            patch = self.start(problem.index, problem.side, seed, restart).to(problem.like)
            follow = optimisers[self.optimiser](self.momentum)
            looks = look_at(self.steps)
            for step in range(self.steps + 1):
                for _ in range(looks.count(step)):
                    best.look(patch)
                    best.note()
                if step == self.steps:
                    break
                if not zero:
                    zero = self.zero_share(self.unpenalised.step_gradient(problem, patch, seed))
                gradient = self.step_gradient(problem, patch, seed, step, restart)
                rate = self.step_size * decays[self.decay](step / self.steps)
                patch = (patch - follow(gradient, rate)).clamp(0.0, 1.0)
                step_done(restart * self.steps + step + 1)
        return best.result(zero)

    def loss(
        self, problem: Problem, patch: Tensor, seed: int, step: int = 0, restart: int = 0
    ) -> Tensor:
        """Compute L [N] of patches [N,3,p,p] under the transforms of a step."""
        drawn = draw(
            problem.index, seed=seed, step=step, eot_samples=self.eot_samples, restart=restart
        )
        return self.transformed_loss(problem, patch, drawn)

    def transformed_loss(self, problem: Problem, patch: Tensor, drawn: Drawn) -> Tensor:
        """Compute L [N] of patches [N,3,p,p] under the given transforms."""
        patch_mask = self.patch_mask(problem.side).to(problem.like)
        paste = transforms[self.transform].paste
        loss = problem.loss(
            lambda region: paste(region, patch, patch_mask, drawn, self.sampling),
            self.objective,
            self.aim,
        )
        loss = loss + self.penalty(problem, patch, patch_mask)
        if not torch.isfinite(loss).all():
            raise ValueError(f"{type(self).__name__}: the loss must be finite, got {loss.tolist()}")
        return loss

    def penalty(self, problem: Problem, patch: Tensor, patch_mask: Tensor) -> Tensor:
        """Compute smoothness · S [N], on the scale of the objective."""
        penalty = self.smoothness * patches.roughness(patch, patch_mask)
        return penalty / problem.regions[0].cells if self.goal.is_mean else penalty

    @property
    def unpenalised(self) -> Self:
        """The same attack on the objective alone: its gradient is the counter's own."""
        return replace(self, smoothness=0.0)

    @property
    def plain(self) -> PatchAttack:
        """The same attack without penalty and without transform."""
        return replace(self, smoothness=0.0, transform="none")

    @property
    def differentiable(self) -> PatchAttack:
        """The same attack with an exact gradient: the JPEG of transform physical has none."""
        return replace(self, transform="published") if self.transform == "physical" else self

    @property
    def single_start(self) -> PatchAttack:
        """The same attack with its first start alone."""
        return replace(self, restarts=1)
