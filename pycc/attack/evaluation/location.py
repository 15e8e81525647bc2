"""The search for the worst place of a patch: the best few of all places are tried."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from pycc import ops
from pycc.attack.base import PatchAttack
from pycc.attack.evaluation.builder import ProblemBuilder
from pycc.attack.evaluation.checked import CheckedImage
from pycc.attack.evaluation.plan import Surrogates
from pycc.attack.patch import Place
from pycc.attack.problem import Problem, replaced
from pycc.checks import naming
from pycc.runs import Record
from pycc.types import Sample

Candidates = Callable[[Sample, int], Sequence[tuple[int, int]]]
"""First rows and columns (y, x) where a patch of so many pixels may gain most."""

CANDIDATES = 8


def worst_place(
    attack: PatchAttack,
    builder: ProblemBuilder,
    item: CheckedImage,
    *,
    seed: int,
    candidates: Candidates | None = None,
) -> Place:
    """The place in an image where the patch is expected to gain most.

    The squared gradient of the loss by the clean image's pixels, summed over the patch's square,
    ranks all places; the best few, each by what those before it do not cover, and the centre are
    each tried with ``attack.trial``, and the one of the least loss is taken. If the gradient is
    zero everywhere: the centre. ``candidates`` replaces the ranking for callers that know where a
    defended counter is weak.
    """
    side = attack.side(item.shape)
    if candidates is None:
        places = _by_gradient(attack, builder, item, side)
    else:
        corners = dict.fromkeys(candidates(builder.samples[item.index], side))
        places = [Place(side, corner) for corner in corners]
    centre = attack.place(item.shape, seed=seed, image=item.index)
    if not places:
        return centre
    places.append(centre)
    trial, losses = attack.trial, []
    for place in places:
        problem = builder.problem(trial, [item], [place])
        optimised = trial.optimise(problem, seed=seed, step_done=lambda _: None)
        losses.append(optimised.loss_history[0][-1])
    return places[losses.index(min(losses))]


def _by_gradient(
    attack: PatchAttack, builder: ProblemBuilder, item: CheckedImage, side: int
) -> list[Place]:
    problem = builder.full_image(attack, item)
    energy = torch.zeros(item.shape, dtype=torch.float64)
    for region in problem.regions:
        pixels = region.pixels.clone().requires_grad_()
        alone = Problem([region], problem.index, 1)
        loss = alone.loss(partial(replaced, pixels), attack.objective, attack.aim)
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


def search_cost(attack: PatchAttack) -> float:
    """Passes over the patch's surroundings that the trials take, per image."""
    return (CANDIDATES + 1) * attack.trial.cost


class PatchPlaces:
    """The place of each patch in each image; the search for a worst place is done once."""

    def __init__(
        self,
        attacks: Sequence[PatchAttack],
        surrogates: Sequence[Surrogates],
        builders: Sequence[ProblemBuilder],
        records: Sequence[Record],
        candidates: Candidates | None,
        advance: Callable[[float, str], None],
    ) -> None:
        """Take the worst places from ``records``, the results of a stopped run, if there are any.

        ``advance`` is called with the megapixels of a search and a text.
        """
        self._attacks, self._builders = attacks, builders
        self._candidates, self._advance = candidates, advance
        self._known: dict[tuple[int, int, int, int], Place] = {}
        numbers = {(a.name, a.patch_size): n for n, a in enumerate(attacks)}
        labels = {made_on.label: n for n, made_on in enumerate(surrogates)}
        for record in records:
            number = numbers.get((record["condition"], record["patch_size"]))
            if number is not None and attacks[number].location == "worst":
                key = record["index"], number, record["seed"], labels[record["surrogates"]]
                self._known[key] = Place(record["side"], tuple(record["top_left"]))

    def __call__(self, item: CheckedImage, attack: int, seed: int, made_on: int = 0) -> Place:
        """The place for an image, the number of an attack, a seed and the number of surrogates."""
        chosen = self._attacks[attack]
        if chosen.location != "worst":
            return chosen.place(item.shape, seed=seed, image=item.index)
        key = item.index, attack, seed, made_on
        if key not in self._known:
            builder = self._builders[made_on]
            with naming(item.name, item.shape):
                self._known[key] = worst_place(
                    chosen, builder, item, seed=seed, candidates=self._candidates
                )
            pixels = builder.pixels(chosen, item, self._known[key])
            self._advance(
                item.shape[0] * item.shape[1] + search_cost(chosen) * pixels,
                f"searching the worst place of {item.name}",
            )
        return self._known[key]
