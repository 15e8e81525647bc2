"""A patch found by queries alone: random search without gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from pycc.attack.base import PatchAttack, attacks
from pycc.attack.problem import Problem
from pycc.attack.tracker import BestTracker, OptimisedPatches, look_at
from pycc.random import Stream
from pycc.settings import flag

_HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""After these shares of the steps the side of what is changed falls by a factor of √2."""


@attacks.register("query")
@dataclass(frozen=True)
class Query(PatchAttack):
    """Random search on the count, which sees nothing of the counter but its map.

    After the Square attack (Andriushchenko et al., arXiv 1912.00049), without a norm bound: each
    step paints one square of the patch, at a random place, in a random corner of the colour cube,
    and keeps it if the loss falls. The square's area starts as ``share`` of the patch's and
    shrinks in steps. The first patch is vertical stripes of random corners of the colour cube, or
    a picture. A check on white-box strength: an attack with gradients that does not do better has
    a broken gradient. ``steps`` are queries of the counter per image.

    >>> from pycc import models
    >>> attack = Query(patch_size=16, steps=5, objective="over")
    >>> result = attack(models.load("mcnn-synthetic"), torch.rand(1, 3, 64, 64))
    >>> list(result.patches.shape), len(result.clean_counts)
    ([1, 3, 16, 16], 1)
    """

    name = "query"

    steps: int = flag(1000, "queries per image")
    share: float = flag(0.8, "share of the patch that the first squares paint")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("share", 0 < self.share <= 1, "in (0,1]")
        self.check("location", self.location in ("centre", "random", "given"), "a fixed place")

    @property
    def cost(self) -> float:
        """Forward and backward passes over the patch's surroundings, per image."""
        return self.steps / 3

    def optimise(
        self, problem: Problem, *, seed: int, step_done: Callable[[int], None]
    ) -> OptimisedPatches:
        """The best patches of all queries."""
        best = BestTracker(self, problem)
        side = problem.side
        if self.init == "noise":
            stripes = [
                Stream(seed, "stripes", image=image, draw=side).integers(2, (3, side))
                for image in problem.index
            ]
            columns = torch.from_numpy(np.stack(stripes))[:, :, None, :]
            patch = columns.expand(-1, -1, side, -1).to(problem.like).contiguous()
        else:
            patch = self.start(problem.index, side, seed).to(problem.like)
        loss = best.look(patch)
        looks = look_at(self.steps)
        for _ in range(looks.count(0)):
            best.note()
        for step in range(1, self.steps + 1):
            painted = patch.clone()
            edge = self.edge(side, step / self.steps)
            for row, image in enumerate(problem.index):
                y, x, *colour = Stream(seed, "square", image=image, step=step).uniform(size=5)
                top, left = (math.floor(at * (side - edge + 1)) for at in (y, x))
                corner = torch.tensor([float(c >= 0.5) for c in colour]).to(patch)
                painted[row, :, top : top + edge, left : left + edge] = corner[:, None, None]
            queried = best.look(painted)
            better = (queried < loss)[:, None, None, None]
            patch = torch.where(better, painted, patch)
            loss = torch.minimum(queried, loss)
            for _ in range(looks.count(step)):
                best.note()
            step_done(step)
        return best.result()

    def edge(self, side: int, done: float) -> int:
        """Side of the square that is painted when a share of the steps is done."""
        halvings = sum(done > share for share in _HALVINGS)
        area = self.share * 0.5**halvings
        return max(1, round(math.sqrt(area) * side))
