"""Add an attack: it then runs in the command too, with every location and check."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pycc import data, models
from pycc.attack import (
    BestTracker,
    OptimisedPatches,
    PatchAttack,
    Problem,
    attacks,
    look_at,
    run,
)
from pycc.settings import flag


@attacks.register("colours")
@dataclass(frozen=True)
class Colours(PatchAttack):
    """The best of a few patches of one colour each."""

    name = "colours"
    levels: int = flag(2, "levels of each colour channel that are tried")

    def optimise(
        self, problem: Problem, *, seed: int, step_done: Callable[[int], None]
    ) -> OptimisedPatches:
        """Try every colour and keep the best."""
        best = BestTracker(self, problem)
        channel = torch.linspace(0, 1, self.levels).to(problem.like)
        colours = torch.cartesian_prod(channel, channel, channel)
        looks = look_at(len(colours) - 1)  # the steps at which the loss history is noted
        for step, colour in enumerate(colours):
            best.look(colour[None, :, None, None].expand(len(problem), 3, *[problem.side] * 2))
            for _ in range(looks.count(step)):
                best.note()
            step_done(step + 1)
        return best.result()


if __name__ == "__main__":
    samples = data.open("synthetic", split="test", limit=1, shape=(192, 256))
    attack = Colours(patch_size=32, objective="over")
    done = run(models.load("mcnn-synthetic"), samples, attack, pgd=None, checks=False)
    for row in done.rows:
        print(f"{row.condition:8} {row.count:8.1f} people")
