"""Where a patch does most harm: the best few of all places, tried out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from pycc import ops
from pycc.attack.apam import APAM
from pycc.attack.patch import Place
from pycc.attack.scenes import Problem, as_it_is
from pycc.attack.stage import Stage
from pycc.attack.survey import Item
from pycc.types import Sample

Candidates = Callable[[Sample, int], Sequence[tuple[int, int]]]
"""First rows and columns (y, x) where a patch of so many pixels may do most harm."""

CANDIDATES = 8
SHARE = 0.1
"""Of the attack's steps, for trying a candidate out."""


def worst_place(
    attack: APAM, stage: Stage, item: Item, *, seed: int, candidates: Candidates | None = None
) -> Place:
    """The place of an image where the patch is expected to do most harm.

    The squared gradient of the loss by the clean image's pixels, summed over the patch's square,
    ranks all places; the best few, each by what those before it do not cover, and the centre are
    each attacked for a tenth of the steps, and the one that is then best is taken. Where the
    gradient is zero everywhere: the centre. Who knows better where a defended counter is weak gives
    ``candidates`` in place of those.
    """
    side = attack.side(item.shape)
    if candidates is None:
        places = _by_gradient(attack, stage, item, side)
    else:
        corners = dict.fromkeys(candidates(stage.samples[item.index], side))
        places = [Place(side, corner) for corner in corners]
    centre = attack.place(item.shape, seed=seed, image=item.index)
    if not places:
        return centre
    places.append(centre)
    trial = replace(
        attack, steps=max(1, round(SHARE * attack.steps)), restarts=1, location="centre"
    )
    losses = []
    for place in places:
        found = trial.optimise(
            stage.problem(trial, [item], [place]), seed=seed, step_done=lambda _: None
        )
        losses.append(found.path[0][-1])
    return places[losses.index(min(losses))]


def _by_gradient(attack: APAM, stage: Stage, item: Item, side: int) -> list[Place]:
    problem = stage.whole(attack, item)
    energy = torch.zeros(item.shape, dtype=torch.float64)
    for scenes in problem.scenes:
        pixels = scenes.pixels.clone().requires_grad_()
        alone = Problem([scenes], problem.index, 1)
        loss = alone.loss(partial(as_it_is, pixels), attack.objective, attack.aim)
        (gradient,) = torch.autograd.grad(loss.sum(), pixels)
        squares = gradient[0].double().square().sum(0).cpu()
        # Counters of an ensemble weigh alike, whatever the scale of their gradients.
        energy += squares / squares.sum().clamp(min=1e-300)
    places = []
    for _ in range(CANDIDATES):
        most, (corner,) = ops.max_window_sum(energy.float()[None], (side, side))
        if not float(most) > 0:
            break
        y, x = corner.tolist()
        places.append(Place(side, (y, x)))
        energy[y : y + side, x : x + side] = 0.0
    return places


def cost(attack: APAM) -> float:
    """Passes over the patch's surroundings that the trials take."""
    return (CANDIDATES + 1) * max(1, round(SHARE * attack.steps))
