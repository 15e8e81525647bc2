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
    Check,
    Results,
    decided,
    no_less,
    not_applicable,
)
from pycc.attack.evaluation.jobs import EvaluationJobs
from pycc.attack.methods.pgd import PGD
from pycc.attack.methods.query import Query
from pycc.attack.objective import attack_gain
from pycc.attack.patch import Place
from pycc.attack.problem import NoGradientError, Problem
from pycc.attack.tracker import OptimisedPatches
from pycc.data import quantize
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
        gains = []
        for item, record in attacked(jobs, results, attack, items):
            problem = jobs.builders[0].problem(longer, [item], [jobs.place(item, number, seed)])
            optimised = longer.optimise(problem, seed=seed, step_done=quiet)
            gains.append(
                (results.attack_gain(record), gain_of(jobs, attack, item, optimised, problem))
            )
        if not gains:
            continue
        usual, twice = (float(np.mean(values)) for values in zip(*gains, strict=True))
        if usual <= 0:
            return decided(
                name, False, f"size {attack.patch_size}: no attack gain with the usual steps"
            )
        ratio = twice / usual
        least, most = min(least, ratio), max(most, ratio)
        figures.append(f"{ratio - 1:+.1%}")
    if not figures:
        return not_applicable(name, "no steps an image, or nothing to gain")
    fine = least >= 1 - TOLERANCE and most <= 1 + DOUBLED
    text = f"attack gain on {_images(items)} {', '.join(figures)} by size; "
    text += f"within -{TOLERANCE:.0%} and +{DOUBLED:.0%}"
    return decided(name, fine, text if fine or least < 1 - TOLERANCE else f"not converged: {text}")


def more_restarts(jobs: EvaluationJobs, results: Results) -> Check:
    """1: all restarts gain no less than the first alone."""
    name = "restarts bring no loss"
    seed, items = jobs.seeds[0], jobs.items[:IMAGES]
    pairs = []
    for number, attack in enumerate(jobs.attacks):
        if attack.restarts > 1 and not attack.is_universal:
            single = attack.single_start
            for item, record in attacked(jobs, results, attack, items):
                problem = jobs.builders[0].problem(single, [item], [jobs.place(item, number, seed)])
                optimised = single.optimise(problem, seed=seed, step_done=quiet)
                pairs.append(
                    (results.attack_gain(record), gain_of(jobs, attack, item, optimised, problem))
                )
    if not pairs:
        return not_applicable(name, "one start, or nothing to gain")
    every, first = (float(np.mean(values)) for values in zip(*pairs, strict=True))
    text = f"{every:,.1f} against {first:,.1f} people of the first, on {_images(items)}"
    return no_less(name, [(every, first)], text)


def whole_image(jobs: EvaluationJobs, results: Results) -> Check:
    """2: a patch as large as the image reaches the target, and gains something."""
    name = "an image-sized patch reaches the target"
    victim = jobs.victims[0]
    if not jobs.surrogates[0].is_white_box(victim) or not jobs.attacks:
        return not_applicable(name, "no white-box attack")
    attack, steps = jobs.attacks[0], min(30, max(20, jobs.attacks[0].steps))
    clean_results = [r for r in results.records if r["condition"] == "clean"]
    known = {
        r["index"] for r in clean_results if r["victim"] == victim.label and results.can_gain(r)
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

    def reached(people: float) -> float:
        return attack_gain(
            attack.objective, attack.aim, count=people, clean=clean, truth=item.heads
        )

    try:
        attacked_count = count(PGD(epsilon=1.0, steps=steps).attack(builder, item, attack))
    except NoGradientError:
        return not_applicable(name, "a counter without gradient")
    gained = reached(attacked_count)
    figure = f"{item.name}: {clean:,.1f} becomes {attacked_count:,.1f}, attack gain {gained:,.1f}"
    gains = gained > 0
    figure += "" if gains else ", which must be above 0"
    if attack.objective in ("target", "density"):
        wanted = float(attack.aim.wanted(torch.tensor(item.heads)))
        # A mean of squares over cells is not a count: it only has to come near the target.
        share = 0.05 if attack.objective == "target" else 0.25
        fine = abs(attacked_count - wanted) <= share * abs(clean - wanted) + 0.5
        figure = f"{figure}; {wanted:,.1f} within {share:.0%} of the way"
        return decided(name, fine and gains, figure)
    side = max(item.shape)
    rivals = {
        label: reached(count(quantize(patch[:, : item.shape[0], : item.shape[1]])))
        for label in ("grey", "black", "noise")
        if (patch := baselines[label](side, seed=jobs.seeds[0], item=item)) is not None
    }
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
    return decided(name, fine and gains, figure)


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
        pairs = []
        for item, record in attacked(jobs, results, attack, items):
            place = jobs.place(item, number, seed)
            problem = jobs.builders[0].problem(attack, [item], [place])
            optimised = single.optimise(problem, seed=seed, step_done=quiet)
            pairs.append(
                (gain_of(jobs, attack, item, optimised, problem), results.attack_gain(record))
            )
        if pairs:
            own, shared = (float(np.mean(values)) for values in zip(*pairs, strict=True))
            means.append((own, shared))
    if not means:
        return not_applicable(name, "nothing to gain")
    figure = ", ".join(f"{own:,.1f} against {shared:,.1f}" for own, shared in means)
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
        place = jobs.place(item, number, seed)

        def gain(rival: PatchAttack, item: CheckedImage = item, place: Place = place) -> float:
            problem = jobs.builders[0].problem(rival, [item], [place])
            optimised = rival.optimise(problem, seed=seed, step_done=quiet)
            return gain_of(jobs, rival, item, optimised, problem)

        search = _search(attack)
        own, other = results.attack_gain(dict(pairs)[item]), gain(search)
        figure = f"{own:,.1f} against {other:,.1f}"
        if own < other and attack.plain != attack:
            plain = gain(attack.plain)
            figure += f" ({plain:,.1f} without transform and penalty)"
            own = max(own, plain)
        means.append((own, other))
        gains.append(figure)
        queries.append(search.steps)
        names.append(item.name)
    if not means:
        return not_applicable(name, "no patch that a gradient made for one place of an image")
    asked = " and ".join(f"{count:,}" for count in dict.fromkeys(queries))
    where = ", ".join(dict.fromkeys(names))
    figure = f"{', '.join(gains)} people of {asked} queries, on {where}"
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
    found = {
        r["index"]: r
        for r in results.rows(attack, jobs.surrogates[0].label, can_gain=can_gain)
        if (r["victim"], r["seed"]) == (victim, seed)
    }
    return [(item, found[item.index]) for item in items if item.index in found]


def gain_of(
    jobs: EvaluationJobs,
    attack: PatchAttack,
    item: CheckedImage,
    optimised: OptimisedPatches,
    problem: Problem,
) -> float:
    """The attack gain of a patch that a trial has made, from its box alone."""
    victim = jobs.victims[0]
    clean, _ = jobs.clean(victim, item, jobs.samples)
    mask = attack.mask(problem.side).to(problem.like)
    with torch.no_grad():
        added = float(problem.added(optimised.patches.to(problem.like), mask)[0])
    return attack_gain(
        attack.objective, attack.aim, count=clean + added, clean=clean, truth=item.heads
    )
