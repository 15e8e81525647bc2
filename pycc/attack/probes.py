"""Gates that have to try something: on a few images, beside the run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pycc import ops
from pycc.attack.apam import APAM
from pycc.attack.base import Found, PatchAttack
from pycc.attack.baseline import baselines
from pycc.attack.cells import cell_density
from pycc.attack.gates import (
    DOUBLED,
    TOLERANCE,
    Gate,
    Results,
    judged,
    no_less,
    not_applicable,
)
from pycc.attack.objective import harm
from pycc.attack.patch import Place
from pycc.attack.pgd import PGD
from pycc.attack.scenes import NoGradientError, Problem, Scenes
from pycc.attack.stage import Clean, Member, Stage
from pycc.attack.survey import Item, Shelf
from pycc.attack.transform import draw
from pycc.attack.universal import Universal
from pycc.attack.work import Work
from pycc.data import quantize
from pycc.grid import cell_weight
from pycc.runs import Record
from pycc.types import Sample

IMAGES = 2
"""How many images a probe tries."""


def more_steps(work: Work, results: Results) -> Gate:
    """1 and 7: twice the steps do no less harm, and hardly more."""
    name = "twice the steps bring little"
    seed, items = work.seeds[0], work.items[:IMAGES]
    least, most, figures = np.inf, -np.inf, []
    for number, attack in enumerate(work.attacks):
        if attack.steps == 0 or not attack.per_image:
            continue
        longer = replace(attack, steps=2 * attack.steps)
        gains = []
        for item, record in attacked(work, results, attack, items):
            problem = work.stages[0].problem(longer, [item], [work.place(item, number, seed)])
            found = longer.optimise(problem, seed=seed, step_done=quiet)
            gains.append((results.harm(record), harm_of(work, attack, item, found, problem)))
        if not gains:
            continue
        usual, twice = (float(np.mean(values)) for values in zip(*gains, strict=True))
        if usual <= 0:
            return judged(name, False, f"size {attack.size}: no harm with the usual steps")
        ratio = twice / usual
        least, most = min(least, ratio), max(most, ratio)
        figures.append(f"{ratio - 1:+.1%}")
    if not figures:
        return not_applicable(name, "no steps an image, or nothing to gain")
    fine = least >= 1 - TOLERANCE and most <= 1 + DOUBLED
    text = f"harm on {_images(items)} {', '.join(figures)} by size; "
    text += f"within -{TOLERANCE:.0%} and +{DOUBLED:.0%}"
    return judged(name, fine, text if fine or least < 1 - TOLERANCE else f"not converged: {text}")


def more_restarts(work: Work, results: Results) -> Gate:
    """1: all restarts do no less harm than the first alone."""
    name = "restarts bring no loss"
    seed, items = work.seeds[0], work.items[:IMAGES]
    pairs = []
    for number, attack in enumerate(work.attacks):
        if isinstance(attack, APAM) and attack.restarts > 1 and attack.per_image:
            single = replace(attack, restarts=1)
            for item, record in attacked(work, results, attack, items):
                problem = work.stages[0].problem(single, [item], [work.place(item, number, seed)])
                found = single.optimise(problem, seed=seed, step_done=quiet)
                pairs.append((results.harm(record), harm_of(work, attack, item, found, problem)))
    if not pairs:
        return not_applicable(name, "one start, or nothing to gain")
    every, first = (float(np.mean(values)) for values in zip(*pairs, strict=True))
    text = f"{every:,.1f} against {first:,.1f} people of the first, on {_images(items)}"
    return no_less(name, [(every, first)], text)


def whole_image(work: Work, results: Results) -> Gate:
    """2: a patch as large as the image reaches the target, and gains something."""
    name = "an image-sized patch reaches the target"
    victim = work.victims[0]
    if not work.sources[0].is_white_box(victim) or not work.attacks:
        return not_applicable(name, "no white-box attack")
    attack, steps = work.attacks[0], min(30, max(20, work.attacks[0].steps))
    clean_results = [r for r in results.records if r["condition"] == "none"]
    known = {r["index"] for r in clean_results if r["victim"] == victim.label and results.room(r)}
    possible = [item for item in work.items if item.index in known]
    if not possible:
        return not_applicable(name, "every clean count is already what is wanted")
    item = smallest(possible)
    stage = Stage([victim], work.samples, work.clean)
    weight = stage.whole(attack, item).scenes[0].weight[0].double()
    clean, _ = work.clean(victim, item, work.samples)

    def count(image: Tensor) -> float:
        return float((victim.map(image, item.name)[0].double() * weight).sum())

    def reached(people: float) -> float:
        return harm(attack.objective, attack.aim, count=people, clean=clean, truth=item.heads)

    try:
        found = count(PGD(epsilon=1.0, steps=steps).attack(stage, item, attack))
    except NoGradientError:
        return not_applicable(name, "a counter without gradient")
    figure = f"{item.name}: {clean:,.1f} becomes {found:,.1f}, harm {reached(found):,.1f}"
    gains = reached(found) > 0
    figure += "" if gains else ", which must be above 0"
    if attack.objective in ("target", "density"):
        wanted = float(attack.aim.wanted(torch.tensor(item.heads)))
        # A mean of squares over cells is not a count: it is asked to come near.
        share = 0.05 if attack.objective == "target" else 0.25
        fine = abs(found - wanted) <= share * abs(clean - wanted) + 0.5
        figure = f"{figure}; {wanted:,.1f} within {share:.0%} of the way"
        return judged(name, fine and gains, figure)
    side = max(item.shape)
    rivals = {
        label: reached(count(quantize(patch[:, : item.shape[0], : item.shape[1]])))
        for label in ("grey", "black", "noise")
        if (patch := baselines[label](side, seed=work.seeds[0], item=item)) is not None
    }
    rivals["a patch"] = max(
        (
            results.harm(r)
            for r in results.attacked
            if (r["index"], r["victim"]) == (item.index, victim.label)
        ),
        default=0.0,
    )
    best = max(rivals, key=lambda label: rivals[label])
    fine = reached(found) >= rivals[best] - TOLERANCE * abs(rivals[best])
    figure = f"{figure}; at least the {rivals[best]:,.1f} of {best}"
    return judged(name, fine and gains, figure)


def per_image(work: Work, results: Results) -> Gate:
    """5: a patch made for one image does at least the harm of one made for all."""
    name = "per-image beats universal"
    chosen = [(n, a) for n, a in enumerate(work.attacks) if isinstance(a, Universal)]
    if not chosen:
        return not_applicable(name, "no universal patch")
    means, items, seed = [], work.items[:IMAGES], work.seeds[0]
    for number, attack in chosen:
        pairs = []
        for item, record in attacked(work, results, attack, items):
            place = work.place(item, number, seed)
            problem = work.stages[0].problem(attack, [item], [place])
            found = APAM.optimise(attack, problem, seed=seed, step_done=quiet)
            pairs.append((harm_of(work, attack, item, found, problem), results.harm(record)))
        if pairs:
            own, shared = (float(np.mean(values)) for values in zip(*pairs, strict=True))
            means.append((own, shared))
    if not means:
        return not_applicable(name, "nothing to gain")
    figure = ", ".join(f"{own:,.1f} against {shared:,.1f}" for own, shared in means)
    return no_less(name, means, f"people by size, {_images(items)}: {figure}")


def finite_differences(work: Work, results: Results) -> Gate:
    """6: the local gradient agrees with differences of the full image's loss, in float64.

    Of the objective alone, as the loss's penalty has a gradient on any counter. A gradient of
    exactly 0 agrees with nothing, and neither does one where the differences are.
    """
    name = "gradient agrees with finite differences"
    counter = work.sources[0].members[0].counter
    chosen = [(n, a) for n, a in enumerate(work.attacks) if isinstance(a, APAM)]
    if not chosen:
        return not_applicable(name, "an attack without gradient")
    if not isinstance(counter, nn.Module):
        return not_applicable(name, "a counter that cannot be had in float64")
    if chosen[0][1].objective == "pap":
        return not_applicable(name, "objective pap holds its weights fixed in the gradient")
    places = [
        (attack.unpenalised, item, work.place(item, number, work.seeds[0]))
        for number, attack in chosen
        if (item := weakest(work, results, attack)) is not None
    ]
    if not places:
        return not_applicable(name, "no cell that a patch can change")
    double = copy.deepcopy(counter).double().eval().requires_grad_(False)
    try:
        slopes = _slopes(work, Member(double), places)
    except RuntimeError as error:  # types that do not meet: a float32 kept somewhere inside
        reason = " ".join(str(error).split())[:80]
        return not_applicable(name, f"a counter that cannot be had in float64: {reason}")
    for own, slope in slopes:
        if own == 0 or slope == 0:
            silent = "the gradient is" if own == 0 else "differences are"
            return judged(name, False, f"{silent} exactly 0; slopes {own:.1e} and {slope:.1e}")
    worst = max(abs(own - slope) / max(abs(own), abs(slope)) for own, slope in slopes)
    return judged(name, worst <= 1e-3, f"off by {worst:.1e} at most; bound 1e-3")


_NUDGE = 1e-7
"""Of a finite difference: far above float64's rounding, and rarely across a kink."""


def _slopes(
    work: Work, exact: Member, places: Sequence[tuple[APAM, Item, Place]]
) -> list[tuple[float, float]]:
    """The objective's slopes along one direction: by the gradient, and by differences."""
    seed, slopes = work.seeds[0], []
    fulls: dict[int, _Full] = {}
    with ops.reference():
        stage = Stage([exact], work.samples, Clean())
        for attack, item, place in places:
            if item.index not in fulls:
                fulls[item.index] = _Full(exact, work.samples[item.index], item)
            full = fulls[item.index]
            if attack.transform == "physical":  # whose JPEG has no gradient of its own
                attack = replace(attack, transform="published")
            problem = stage.problem(attack, [item], [place])
            patch = attack.start([item.index], place.side, seed).to(problem.like)
            gradient = attack.gradient(problem, patch, seed, 0)
            random = np.random.default_rng(0).uniform(-1, 1, tuple(patch.shape))
            direction = torch.where(
                gradient == 0, torch.from_numpy(random).to(gradient).sign(), gradient.sign()
            )
            drawn = draw([item.index], seed=seed, step=0, draws=attack.draws)
            with torch.no_grad():
                ends = [
                    attack.loss(full.problem(place), patch + way * _NUDGE * direction, drawn)
                    for way in (1, -1)
                ]
            slope = float(ends[0] - ends[1]) / (2 * _NUDGE)
            slopes.append((float((gradient * direction).sum()), slope))
    return slopes


class _Full:
    """One full image as scenes from which nothing is cut, in place of their local evaluation."""

    def __init__(self, member: Member, sample: Sample, item: Item) -> None:
        self._counter = member.counter
        pixels = quantize(sample.image).to(member.like)[None]
        with torch.no_grad():
            self.clean = member.counter(pixels)
        shape, stride = (self.clean.shape[-2], self.clean.shape[-1]), member.counter.stride
        weight = cell_weight(sample.roi, shape, stride).to(pixels)
        density = torch.zeros(shape)  # without annotation no objective asks for it
        if sample.annotated:
            density = cell_density(sample, shape, stride)
        count = (self.clean * weight).sum()[None]
        local: Any = self
        self._index = item.index
        self._scenes = Scenes(
            local=local,
            pixels=pixels,
            top_left=torch.zeros(1, 2, dtype=torch.int64),
            density=density.to(pixels)[None, None],
            weight=weight[None, None],
            cells=weight.sum().clamp(min=1.0)[None],
            count=count,
            truth=torch.tensor([item.heads]).to(pixels),
        )

    def __call__(self, pixels: Tensor) -> Tensor:
        return self._counter(pixels)

    def problem(self, place: Place) -> Problem:
        """With the patch at this place."""
        scenes = replace(self._scenes, top_left=torch.tensor([place.top_left]))
        return Problem([scenes], (self._index,), place.side)


class Planted(nn.Module):
    """A counter with a planted weakness: it adds people where the image turns red.

    Everywhere else it counts the same few people a cell; where a cell of 4x4 pixels is pure red it
    counts ``people`` a cell more (for the objective ``under``: fewer).
    """

    stride, receptive_field = 4, 4
    people, floor = 1.0, 2.0

    def __init__(self, sign: float = 1.0) -> None:
        super().__init__()
        self.sign = sign

    def forward(self, images: Tensor) -> Tensor:
        """[N,1,h,w]."""
        red, green, blue = images.unbind(1)
        seen = nn.functional.avg_pool2d((red * (1 - green) * (1 - blue))[:, None], 4)
        return self.floor + self.sign * self.people * seen


def planted(work: Work, results: Results) -> Gate:
    """8: the attack with its steps and optimiser finds a weakness that is known to be there."""
    name = "finds a planted weakness"
    if not work.attacks or work.attacks[0].steps == 0:
        return not_applicable(name, "no steps")
    side, attack = 16, work.attacks[0]
    if isinstance(attack, Universal):
        attack = APAM(**{f: getattr(attack, f) for f in attack.settings() if f != "init_content"})
    changes: dict[str, Any] = {
        "size": side, "location": "centre", "top_left": None, "init": "noise",
    }  # fmt: skip
    if attack.objective in ("target", "density", "pap"):
        changes |= {"objective": "over", "target_count": None}
    attack = replace(attack, **changes)
    sample = Sample(
        "planted", torch.full((3, 64, 64), 0.5), torch.full((1, 2), 32.0, dtype=torch.float64)
    )
    member = Member(Planted(-1.0 if attack.objective == "under" else 1.0))
    stage, item = Stage([member], Shelf([sample]), Clean()), Item(0, "planted", (64, 64), 1)
    problem = stage.problem(attack, [item], [attack.place((64, 64), seed=0, image=0)])
    found = attack.optimise(problem, seed=work.seeds[0], step_done=quiet)
    assert found.unrounded is not None
    gained = float((-1 if attack.objective == "under" else 1) * found.unrounded[0])
    # Of what a red patch would add, less what the grey ground there already does.
    possible = float(attack.mask(side).sum()) / 16 * (1 - 0.125)
    return judged(
        name, gained >= 0.8 * possible, f"{gained:.1f} of {possible:.1f} people; at least 80 %"
    )


PROBES: Sequence[Callable[[Work, Results], Gate]] = (
    whole_image,
    more_steps,
    more_restarts,
    per_image,
    finite_differences,
    planted,
)


def smallest(items: Sequence[Item]) -> Item:
    """The image of fewest pixels."""
    return min(items, key=lambda item: item.shape[0] * item.shape[1])


def _images(items: Sequence[Item]) -> str:
    return "1 image" if len(items) == 1 else f"{len(items)} images"


def quiet(_: int) -> None:
    """Nothing to tell."""


def attacked(
    work: Work, results: Results, attack: PatchAttack, items: Sequence[Item], *, room: bool = True
) -> list[tuple[Item, Record]]:
    """The images of ``items`` that a patch can do harm to, with the results of the first seed.

    On the first victim, of the first source. ``room`` False: all of which it can change a cell.
    """
    victim, seed = work.victims[0].label, work.seeds[0]
    found = {
        r["index"]: r
        for r in results.rows(attack, work.sources[0].label, room=room)
        if (r["victim"], r["seed"]) == (victim, seed)
    }
    return [(item, found[item.index]) for item in items if item.index in found]


def weakest(work: Work, results: Results, attack: PatchAttack) -> Item | None:
    """The image of fewest pixels where the patch has a gradient, or else can change a cell."""
    pairs = attacked(work, results, attack, work.items, room=False)
    moving = [item for item, record in pairs if record.get("zero", 1.0) < 1]
    items = moving or [item for item, _ in pairs]
    return smallest(items) if items else None


def harm_of(work: Work, attack: PatchAttack, item: Item, found: Found, problem: Any) -> float:
    """The harm of a patch that a probe has found, from its box alone."""
    victim = work.victims[0]
    clean, _ = work.clean(victim, item, work.samples)
    mask = attack.mask(problem.side).to(problem.like)
    with torch.no_grad():
        added = float(problem.added(found.patch.to(problem.like), mask)[0])
    return harm(attack.objective, attack.aim, count=clean + added, clean=clean, truth=item.heads)
