"""Sanity checks that optimise further patches, on a few images beside the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
import torch
from torch import Tensor

from pycc.attack.base import PatchAttack
from pycc.attack.evaluation.baselines import baselines
from pycc.attack.evaluation.builder import ProblemBuilder
from pycc.attack.evaluation.checked import CheckedImage
from pycc.attack.evaluation.checks import (
    TOLERANCE,
    Results,
    decided,
    no_less,
    not_applicable,
)
from pycc.attack.evaluation.jobs import EvaluationJobs
from pycc.attack.methods.pgd import PGD
from pycc.attack.methods.query import Query
from pycc.attack.patch import Place
from pycc.attack.problem import NoGradientError
from pycc.data import quantize
from pycc.report import Check
from pycc.runs import Record

IMAGES = 2
"""The number of images that a check tries."""
DOUBLED = 0.1
"""Most that twice the steps may add to the attack gain. Two runs from different first patches end
in different optima, which on a few images differ by several per cent: less would measure that."""
QUERIES = 3
"""Of random search for each step of the attack: as many forward passes as a step costs."""
MOST_QUERIES = 1000


def more_steps(jobs: EvaluationJobs, results: Results) -> Check:
    """1 and 7: twice the steps gain no less, and hardly more."""
    name = "twice the steps bring little"
    seed, items = jobs.seeds[0], jobs.items[:IMAGES]
    least, most, figures = np.inf, -np.inf, []
    for number, attack in enumerate(jobs.attacks):
        if attack.steps == 0 or attack.is_universal:
            continue
        longer = replace(attack, steps=2 * attack.steps)
        gains = [
            (
                results.attack_gain(record),
                trial_gain(jobs, longer, item, jobs.place(item, number, seed)),
            )
            for item, record in attacked(jobs, results, attack, items)
        ]
        if not gains:
            continue
        usual, twice = _means(gains)
        if usual <= 0:
            return decided(
                name, False, f"size {attack.patch_size}: no attack gain with the usual steps"
            )
        ratio = twice / usual
        least, most = min(least, ratio), max(most, ratio)
        figures.append(f"{ratio - 1:+.1%}")
    if not figures:
        return not_applicable(name, "no steps per image, or nothing to gain")
    fine = least >= 1 - TOLERANCE and most <= 1 + DOUBLED
    text = f"attack gain on {_images(items)} {', '.join(figures)} by size; "
    text += f"within -{TOLERANCE:.0%} and +{DOUBLED:.0%}"
    return decided(name, fine, text if fine or least < 1 - TOLERANCE else f"not converged: {text}")


def more_restarts(jobs: EvaluationJobs, results: Results) -> Check:
    """1: all restarts gain no less than the first alone."""
    name = "restarts bring no loss"
    seed, items = jobs.seeds[0], jobs.items[:IMAGES]
    pairs = [
        (
            results.attack_gain(record),
            trial_gain(jobs, attack.single_start, item, jobs.place(item, number, seed)),
        )
        for number, attack in enumerate(jobs.attacks)
        if attack.restarts > 1 and not attack.is_universal
        for item, record in attacked(jobs, results, attack, items)
    ]
    if not pairs:
        return not_applicable(name, "one start, or nothing to gain")
    every, first = _means(pairs)
    text = f"{every:,.1f} against {first:,.1f} people of the first, on {_images(items)}"
    return no_less(name, [(every, first)], text)


def whole_image(jobs: EvaluationJobs, results: Results) -> Check:
    """2: a patch as large as the image reaches the target, and gains something."""
    name = "an image-sized patch reaches the target"
    victim = jobs.victims[0]
    if not jobs.surrogates[0].is_white_box(victim) or not jobs.attacks:
        return not_applicable(name, "no white-box attack")
    attack, steps = jobs.attacks[0], min(30, max(20, jobs.attacks[0].steps))
    known = {
        r["index"]
        for r in results.records
        if (r["condition"], r["victim"]) == ("clean", victim.label) and results.can_gain(r)
    }
    possible = [item for item in jobs.items if item.index in known]
    if not possible:
        return not_applicable(name, "every clean count is already what is wanted")
    item = smallest(possible)
    builder = ProblemBuilder([victim], jobs.samples, jobs.clean)
    weight = builder.full_image(attack, item).regions[0].weight[0].double()
    clean, _ = jobs.clean(victim, item, jobs.samples)

    def count(image: Tensor) -> float:
        return float((victim.map(image, item.name)[0].double() * weight).sum())

    def gain(people: float) -> float:
        return attack.goal.attack_gain(attack.aim, count=people, clean=clean, truth=item.heads)

    try:
        attacked_count = count(PGD(epsilon=1.0, steps=steps).attack(builder, item, attack))
    except NoGradientError:
        return not_applicable(name, "a counter without gradient")
    gained = gain(attacked_count)
    figure = f"{item.name}: {clean:,.1f} becomes {attacked_count:,.1f}, attack gain {gained:,.1f}"
    figure += "" if gained > 0 else ", which must be above 0"
    if attack.goal.wants_count:
        wanted = float(attack.aim.wanted(torch.tensor(item.heads)))
        # A mean of squares over cells is not a count: it only has to come near the target.
        share = 0.25 if attack.goal.is_mean else 0.05
        fine = abs(attacked_count - wanted) <= share * abs(clean - wanted) + 0.5
        figure = f"{figure}; {wanted:,.1f} within {share:.0%} of the way"
        return decided(name, fine and gained > 0, figure)
    rivals = {label: gain(count(image)) for label, image in _flat_images(jobs, item).items()}
    rivals["a patch"] = max(
        (
            results.attack_gain(r)
            for r in results.attacked
            if (r["index"], r["victim"]) == (item.index, victim.label)
        ),
        default=0.0,
    )
    best = max(rivals, key=lambda label: rivals[label])
    fine = gained >= rivals[best] - TOLERANCE * abs(rivals[best])
    figure = f"{figure}; at least the {rivals[best]:,.1f} of {best}"
    return decided(name, fine and gained > 0, figure)


def _flat_images(jobs: EvaluationJobs, item: CheckedImage) -> dict[str, Tensor]:
    """Images [3,H,W] of the shape of ``item`` that are nothing but a baseline."""
    height, width = item.shape
    images: dict[str, Tensor] = {}
    for label in ("grey", "black", "noise"):
        patch = baselines[label](
            max(item.shape), seed=jobs.seeds[0], item=item, items=jobs.items, samples=jobs.samples
        )
        if patch is not None:
            images[label] = quantize(patch[:, :height, :width])
    return images


def per_image(jobs: EvaluationJobs, results: Results) -> Check:
    """5: a patch made for one image gains at least as much as one made for all."""
    name = "per-image beats universal"
    chosen = [
        (number, attack, attack.per_image)
        for number, attack in enumerate(jobs.attacks)
        if attack.is_universal
    ]
    if not chosen:
        return not_applicable(name, "no universal patch")
    means, items, seed = [], jobs.items[:IMAGES], jobs.seeds[0]
    for number, attack, single in chosen:
        if single is None:
            return not_applicable(name, f"{attack.name} has no variant for one image")
        pairs = [
            (
                trial_gain(jobs, single, item, jobs.place(item, number, seed)),
                results.attack_gain(record),
            )
            for item, record in attacked(jobs, results, attack, items)
        ]
        if pairs:
            means.append(_means(pairs))
    if not means:
        return not_applicable(name, "nothing to gain")
    figure = ", ".join(f"{single:,.1f} against {shared:,.1f}" for single, shared in means)
    return no_less(name, means, f"people by size, {_images(items)}: {figure}")


def random_search(jobs: EvaluationJobs, results: Results) -> Check:
    """12: random search on the count gains no more than the gradient, at the same cost.

    On the smallest image, at the same place and for the same objective. A gradient that is worth
    less than random queries is masked (Athalye et al., arXiv 1802.00420). Random search heeds
    neither transform nor penalty: a patch of the run that it beats gets a second chance without
    them.
    """
    name = "white-box beats random search"
    if not jobs.surrogates[0].is_white_box(jobs.victims[0]):
        return not_applicable(name, "no white-box attack")
    seed, means, gains, names, queries = jobs.seeds[0], [], [], [], []
    for number, attack in enumerate(jobs.attacks):
        chosen = attack.uses_gradient and not attack.is_universal and attack.steps > 0
        pairs = attacked(jobs, results, attack, jobs.items)
        # A patch for all places is not made for the one where it is measured.
        if not chosen or attack.location == "moving" or not pairs:
            continue
        item = smallest([item for item, _ in pairs])
        place, search = jobs.place(item, number, seed), _search(attack)
        aimed = results.attack_gain(dict(pairs)[item])
        queried = trial_gain(jobs, search, item, place)
        figure = f"{aimed:,.1f} against {queried:,.1f}"
        if aimed < queried and attack.plain != attack:
            plain = trial_gain(jobs, attack.plain, item, place)
            figure += f" ({plain:,.1f} without transform and penalty)"
            aimed = max(aimed, plain)
        means.append((aimed, queried))
        gains.append(figure)
        queries.append(search.steps)
        names.append(item.name)
    if not means:
        return not_applicable(name, "no patch that a gradient made for one place of an image")
    numbers = " and ".join(f"{count:,}" for count in dict.fromkeys(queries))
    where = ", ".join(dict.fromkeys(names))
    figure = f"{', '.join(gains)} people of {numbers} queries, on {where}"
    return no_less(name, means, figure)


def _search(attack: PatchAttack) -> Query:
    """Random search for what an attack wants, at about the cost of its steps."""
    shared = {entry.name: getattr(attack, entry.name) for entry in fields(PatchAttack)}
    steps = min(MOST_QUERIES, QUERIES * attack.steps)
    return Query(**{**shared, "steps": steps, "location": "centre", "top_left": None})


def smallest(items: Sequence[CheckedImage]) -> CheckedImage:
    """The image of fewest pixels."""
    return min(items, key=lambda item: item.shape[0] * item.shape[1])


def _images(items: Sequence[CheckedImage]) -> str:
    return "1 image" if len(items) == 1 else f"{len(items)} images"


def quiet(_: int) -> None:
    """Report no progress."""


def attacked(
    jobs: EvaluationJobs,
    results: Results,
    attack: PatchAttack,
    items: Sequence[CheckedImage],
    *,
    can_gain: bool = True,
) -> list[tuple[CheckedImage, Record]]:
    """The images of ``items`` that a patch can gain on, with the results of the first seed.

    On the first victim, by patches made on the first surrogates. ``can_gain`` False: all images
    of which a patch can change a cell.
    """
    victim, seed = jobs.victims[0].label, jobs.seeds[0]
    records = {
        r["index"]: r
        for r in results.rows(attack, jobs.surrogates[0].label, can_gain=can_gain)
        if (r["victim"], r["seed"]) == (victim, seed)
    }
    return [(item, records[item.index]) for item in items if item.index in records]


def trial_gain(
    jobs: EvaluationJobs, attack: PatchAttack, item: CheckedImage, place: Place
) -> float:
    """The attack gain of a patch that is optimised anew for one image, from its box alone."""
    victim = jobs.victims[0]
    problem = jobs.builders[0].problem(attack, [item], [place])
    optimised = attack.optimise(problem, seed=jobs.seeds[0], step_done=quiet)
    clean, _ = jobs.clean(victim, item, jobs.samples)
    patch_mask = attack.patch_mask(problem.side).to(problem.like)
    with torch.no_grad():
        added = float(problem.added(optimised.patches.to(problem.like), patch_mask)[0])
    return attack.goal.attack_gain(attack.aim, count=clean + added, clean=clean, truth=item.heads)


def _means(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    first, second = (float(np.mean(values)) for values in zip(*pairs, strict=True))
    return first, second
