"""Add an attack: it then runs in the command too, with every location and check."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pycc import attack, data, models
from pycc.settings import flag


@attack.attacks.register("colours")
@dataclass(frozen=True)
class Colours(attack.PatchAttack):
    """The best of a few patches of one colour each."""

    name = "colours"
    levels: int = flag(2, "levels of each colour channel that are tried")

    def optimise(
        self, problem: attack.Problem, *, seed: int, step_done: Callable[[int], None]
    ) -> attack.OptimisedPatches:
        """Try every colour and keep the best."""
        best = attack.BestTracker(self, problem)
        channel = torch.linspace(0, 1, self.levels).to(problem.like)
        colours = torch.cartesian_prod(channel, channel, channel)
        looks = attack.look_at(len(colours) - 1)  # the steps at which the loss history is noted
        for step, colour in enumerate(colours):
            best.look(colour[None, :, None, None].expand(len(problem), 3, *[problem.side] * 2))
            for _ in range(looks.count(step)):
                best.note()
            step_done(step + 1)
        return best.result()


samples = data.open("synthetic", split="test", limit=1, shape=(192, 256))
colours = Colours(patch_size=32, objective="over")
result = colours(models.load("mcnn-synthetic"), samples[0].image[None])
data.save_image("add_attack.png", result.images[0])
print(f"colours {result.clean_counts[0]:.1f} to {result.attacked_counts[0]:.1f} people")
