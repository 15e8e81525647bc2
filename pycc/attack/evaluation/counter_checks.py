"""Sanity checks of the counters and their gradients."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from pycc import ops
from pycc.attack.base import PatchAttack
from pycc.attack.evaluation.baselines import baselines
from pycc.attack.evaluation.builder import CleanCounts, Member, ProblemBuilder, cells_of
from pycc.attack.evaluation.cells import cell_density
from pycc.attack.evaluation.checked import CheckedImage, SampleCache
from pycc.attack.evaluation.checks import Results, decided, not_applicable
from pycc.attack.evaluation.jobs import EvaluationJobs
from pycc.attack.evaluation.recorder import with_patch
from pycc.attack.evaluation.trial_checks import attacked, quiet, smallest
from pycc.attack.patch import Place
from pycc.attack.problem import AttackedRegion, Problem
from pycc.counters import identity
from pycc.data import quantize
from pycc.grid import cell_weight
from pycc.local import Box, aligned
from pycc.models import CounterModel
from pycc.report import Check
from pycc.runs import fingerprint
from pycc.types import Sample


def finite_differences(jobs: EvaluationJobs, results: Results) -> Check:
    """6: the local gradient agrees with differences of the full image's loss, in float64.

    Of the objective alone, as the loss's penalty has a gradient on any counter. A gradient of
    exactly 0 agrees with nothing, and neither does one where the differences are.
    """
    name = "gradient agrees with finite differences"
    counter = jobs.surrogates[0].members[0].counter
    chosen = [(n, a) for n, a in enumerate(jobs.attacks) if a.uses_gradient]
    if not chosen:
        return not_applicable(name, "an attack without gradient")
    if not isinstance(counter, nn.Module):
        return not_applicable(name, "a counter that cannot be had in float64")
    if not chosen[0][1].goal.exact_gradient:
        objective = chosen[0][1].objective
        return not_applicable(
            name, f"objective {objective} holds its weights fixed in the gradient"
        )
    places = [
        (attack.unpenalised.differentiable, item, jobs.place(item, number, jobs.seeds[0]))
        for number, attack in chosen
        if (item := weakest(jobs, results, attack)) is not None
    ]
    if not places:
        return not_applicable(name, "no cell that a patch can change")
    double = copy.deepcopy(counter).double().eval().requires_grad_(False)
    for part in double.modules():
        if isinstance(part, CounterModel):
            part.smooth()  # whole numbers have no differences to compare with
    try:
        slopes = _slopes(jobs, Member(double), places)
    except RuntimeError as error:  # types that do not meet: a float32 kept somewhere inside
        reason = " ".join(str(error).split())[:80]
        return not_applicable(name, f"a counter that cannot be had in float64: {reason}")
    for local, full in slopes:
        if local == 0 or full == 0:
            silent = "the gradient is" if local == 0 else "differences are"
            return decided(name, False, f"{silent} exactly 0; slopes {local:.1e} and {full:.1e}")
    worst = max(abs(local - full) / max(abs(local), abs(full)) for local, full in slopes)
    return decided(name, worst <= 1e-3, f"off by {worst:.1e} at most; bound 1e-3")


_NUDGE = 1e-7
"""Of a finite difference: far above float64's rounding, and rarely across a kink."""


def _slopes(
    jobs: EvaluationJobs, exact: Member, places: Sequence[tuple[PatchAttack, CheckedImage, Place]]
) -> list[tuple[float, float]]:
    """The objective's slopes along one direction: by the gradient, and by differences."""
    seed, slopes = jobs.seeds[0], []
    fulls: dict[int, _Full] = {}
    with ops.reference():
        builder = ProblemBuilder([exact], jobs.samples, CleanCounts())
        for attack, item, place in places:
            if item.index not in fulls:
                fulls[item.index] = _Full(exact, jobs.samples[item.index], item)
            full = fulls[item.index]
            problem = builder.problem(attack, [item], [place])
            patch = attack.start([item.index], place.side, seed).to(problem.like)
            gradient = attack.gradient(problem, patch, seed)
            random = np.random.default_rng(0).uniform(-1, 1, tuple(patch.shape))
            direction = torch.where(
                gradient == 0, torch.from_numpy(random).to(gradient).sign(), gradient.sign()
            )
            with torch.no_grad():
                ends = [
                    attack.loss(full.problem(attack, place), patch + way * _NUDGE * direction, seed)
                    for way in (1, -1)
                ]
            slope = float(ends[0] - ends[1]) / (2 * _NUDGE)
            slopes.append((float((gradient * direction).sum()), slope))
    return slopes


class _Full:
    """A full image as an attacked region from which nothing is cut, without local evaluation."""

    follows_layers = False

    def __init__(self, member: Member, sample: Sample, item: CheckedImage) -> None:
        self._counter = member.counter
        pixels = quantize(sample.image).to(member.like)[None]
        with torch.no_grad():
            self.clean = member.counter(pixels)
        shape, stride = (self.clean.shape[-2], self.clean.shape[-1]), member.counter.stride
        weight = cell_weight(sample.roi, shape, stride).to(pixels)
        density = torch.zeros(shape)  # without annotation no objective needs it
        if sample.annotated:
            density = cell_density(sample, shape, stride)
        count = (self.clean * weight).sum()[None]
        self._index = item.index
        self._region = AttackedRegion(
            local=self,
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

    def problem(self, attack: PatchAttack, place: Place) -> Problem:
        """Build the problem with the patch at this place."""
        shape = (self._region.pixels.shape[2], self._region.pixels.shape[3])
        box = aligned(attack.extent(place), shape, self._counter.stride)
        cells = Box(0, 0, self.clean.shape[2], self.clean.shape[3])
        own = cells_of(box, self._counter.stride, cells)
        region = replace(self._region, top_left=torch.tensor([place.top_left]), own=own)
        return Problem([region], (self._index,), place.side)


def weakest(jobs: EvaluationJobs, results: Results, attack: PatchAttack) -> CheckedImage | None:
    """The image of fewest pixels where the patch has a gradient, or else can change a cell."""
    pairs = attacked(jobs, results, attack, jobs.items, can_gain=False)
    moving = [item for item, record in pairs if record.get("zero_gradient", 1.0) < 1]
    items = moving or [item for item, _ in pairs]
    return smallest(items) if items else None


class Planted(nn.Module):
    """A counter with a planted weakness: it adds people where the image turns red.

    It counts ``floor`` people in each cell of 4x4 pixels, and ``people`` more in a cell that is
    pure red (for the objective ``under``: fewer).
    """

    stride, receptive_field = 4, 4
    people, floor = 1.0, 2.0

    def __init__(self, sign: float = 1.0) -> None:
        super().__init__()
        self.sign = sign

    def forward(self, images: Tensor) -> Tensor:
        """Compute the density [N,1,h,w], raised or lowered where the image is red."""
        red, green, blue = images.unbind(1)
        seen = nn.functional.avg_pool2d((red * (1 - green) * (1 - blue))[:, None], 4)
        return self.floor + self.sign * self.people * seen


def planted(jobs: EvaluationJobs, results: Results) -> Check:
    """8: the attack with its steps and optimiser finds a weakness that is known to be there."""
    name = "finds a planted weakness"
    if not jobs.attacks or jobs.attacks[0].steps == 0:
        return not_applicable(name, "no steps")
    side, attack = 16, jobs.attacks[0].per_image
    if attack is None:
        return not_applicable(name, "an attack that has no variant for one image")
    attack = replace(attack, patch_size=side, location="centre", top_left=None, init="noise")
    if attack.goal.wants_count or attack.goal.needs_density:
        attack = replace(attack, objective="over", target_count=None)
    sample = Sample(
        "planted", torch.full((3, 64, 64), 0.5), torch.full((1, 2), 32.0, dtype=torch.float64)
    )
    member = Member(Planted(float(attack.goal.sign)))
    builder, item = (
        ProblemBuilder([member], SampleCache([sample]), CleanCounts()),
        CheckedImage(0, "planted", (64, 64), 1),
    )
    problem = builder.problem(attack, [item], [attack.place((64, 64), seed=0, image=0)])
    optimised = attack.optimise(problem, seed=jobs.seeds[0], step_done=quiet)
    added = optimised.unrounded
    if added is None:
        added = problem.added(optimised.patches, attack.patch_mask(side))
    gained = float(attack.goal.sign * added[0])
    # Of what a red patch would add, less what the grey ground there already does.
    possible = float(attack.patch_mask(side).sum()) / 16 * (1 - 0.125)
    return decided(
        name, gained >= 0.8 * possible, f"{gained:.1f} of {possible:.1f} people; at least 80 %"
    )


def same_count(jobs: EvaluationJobs, results: Results) -> Check:
    """13: a counter has one count for an image, to the bit, and no memory of what it counted.

    The smallest image and the same with noise in place of the patch, counted in turn, twice.
    """
    name = "the same image has the same count"
    item, seed = smallest(jobs.items), jobs.seeds[0]
    place = jobs.place(item, 0, seed)
    clean = quantize(jobs.samples[item.index].image)
    noise = baselines["noise"](
        place.side, seed=seed, item=item, items=jobs.items, samples=jobs.samples
    )
    assert noise is not None
    patched = with_patch(clean, noise, place.top_left, jobs.attacks[0].patch_mask(place.side))
    pairs = []
    changed = False
    for member in jobs.members:
        state = _state(member)
        first, second = ([_count(member, x, item.name) for x in (clean, patched)] for _ in range(2))
        pairs += list(zip(first, second, strict=True))
        changed = changed or _state(member) != state
    before, after = max(pairs, key=lambda pair: abs(pair[0] - pair[1]))
    off = f"{abs(before - after):.1e} off; must be 0"
    figure = f"{item.name}: {before:,.1f} people, then {after:,.1f}, "
    figure += "the same bits" if before == after else off
    figure += "; counting changes what the counter holds" if changed else ""
    return decided(name, before == after and not changed, figure)


def _count(member: Member, image: Tensor, name: str) -> float:
    return float(member.map(image, name).double().sum())


def _state(member: Member) -> str:
    """A fingerprint of what a counter that is a module holds."""
    module = member.counter
    return fingerprint(module.state_dict().items()) if isinstance(module, nn.Module) else ""


def unchanged(jobs: EvaluationJobs, weights: Mapping[Member, str]) -> Check:
    """9: the counters are in eval mode and have the weights (``identity``) that they had before."""
    name = "the counter stays as it was"
    modules = [(m.counter, weights[m]) for m in jobs.members if isinstance(m.counter, nn.Module)]
    if not modules:
        return not_applicable(name, "counters that are no modules")
    same = all(identity(counter) == before for counter, before in modules)
    still = not any(part.training for counter, _ in modules for part in counter.modules())
    figure = f"weights {'unchanged' if same else 'changed'}, {'eval' if still else 'train'} mode"
    return decided(name, same and still, figure)
