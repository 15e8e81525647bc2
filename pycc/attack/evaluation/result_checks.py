"""Sanity checks that are functions of a run's results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise, product

import numpy as np

from pycc.attack.evaluation.baselines import baselines
from pycc.attack.evaluation.checks import (
    NOTHING,
    TOLERANCE,
    Results,
    decided,
    no_less,
    not_applicable,
)
from pycc.attack.tracker import LOOKS, look_at
from pycc.report import Check

CONVERGED = 0.05
"""Most of the gain that may come from the last tenth of the steps."""
LEAST_SEEDS = 3


def _means(first: dict[int, float], other: dict[int, float]) -> tuple[float, float] | None:
    """The means over the images that both have; None where there are none."""
    both = sorted(first.keys() & other.keys())
    if not both:
        return None
    return float(np.mean([first[i] for i in both])), float(np.mean([other[i] for i in both]))


def area(results: Results) -> Check:
    """1: the attack gain does not fall with the patch's area."""
    name = "attack gain grows with area"
    worst, least, line = np.inf, np.inf, []
    for victim in results.victims:
        for kind in dict.fromkeys(attack.name for attack in results.attacks):
            rows = []
            for attack in (a for a in results.attacks if a.name == kind):
                gains = results.of(attack, victim, results.white_box(victim))
                areas = [
                    r["area"]
                    for r in results.attacked
                    if (r["condition"], r["patch_size"]) == (kind, attack.patch_size)
                ]
                if gains:
                    rows.append((float(np.mean(areas)), float(np.mean(list(gains.values())))))
            if len(rows) < 2:
                continue
            means = [value for _, value in sorted(rows)]
            for before, after in pairwise([0.0, *means]):
                worst = min(worst, after - before + TOLERANCE * abs(before))
            least = min(least, means[-1])
            line += [f"{value:,.1f}" for value in means]
    if not line:
        return not_applicable(name, "one size")
    figure = f"mean attack gain by size {', '.join(line)}; tolerance {TOLERANCE:.0%}"
    return decided(name, worst >= 0 and least > 0, figure)


def beats_baselines(results: Results) -> Check:
    """3: the optimised patch gains more than each baseline, size by size."""
    name = "beats baseline patches"
    lead, where, tried = np.inf, "", set()
    for attack in results.attacks:
        for victim in results.victims:
            gains = results.of(attack, victim, results.white_box(victim))
            for other in baselines.names():
                both = _means(gains, results.by_image(other, attack.patch_size, victim, None))
                if both is not None:
                    tried.add(other)
                    if both[0] - both[1] < lead:
                        lead, where = both[0] - both[1], f"{other}, size {attack.patch_size}"
    if not where:
        return not_applicable(name, "nothing to compare with")
    missing = [other for other in baselines.names() if other not in tried]
    note = f"; not tried: {', '.join(missing)}" if missing else ""
    return decided(name, lead > 0, f"least lead {lead:,.1f} people, over {where}{note}")


def beats_transfer(results: Results) -> Check:
    """4: a patch made on the victim gains at least as much as one made on surrogates."""
    name = "white-box beats transfer"
    lead, figure, means = np.inf, "", []
    for attack in results.attacks:
        for victim in results.victims:
            white = results.white_box(victim)
            gains = results.of(attack, victim, white)
            for made_on in (label for label in results.surrogates if label != white):
                both = _means(gains, results.of(attack, victim, made_on))
                if both is None:
                    continue
                means.append(both)
                margin = both[0] - both[1] + TOLERANCE * abs(both[0])
                if margin < lead:
                    lead = margin
                    figure = f"{both[0]:,.1f} against {both[1]:,.1f} people from {made_on}"
                    figure += f", size {attack.patch_size}"
    if not figure:
        return not_applicable(name, "nothing transferred")
    return no_less(name, means, f"closest: {figure}")


def gradient_everywhere(results: Results) -> Check:
    """6, second half: few pixels of the patch have a gradient of exactly zero.

    The gradient of the objective alone: the loss's penalty has one on any counter.
    """
    name = "gradient reaches the patch"
    shares = {
        f"{attack.name}, size {attack.patch_size}{_of(made_on)}": float(np.mean(zero))
        for attack in results.attacks
        for made_on in results.surrogates
        if (
            zero := [
                r["zero_gradient"]
                for r in results.rows(attack, made_on, can_gain=False)
                if "zero_gradient" in r
            ]
        )
    }
    if not shares:
        return not_applicable(name, "an attack without gradient, or no cell that it can change")
    where = max(shares, key=lambda row: shares[row])
    worst = shares[where]
    note = f" ({where})" if worst else ""
    return decided(name, worst <= 0.5, f"{worst:.1%} of the pixels have none{note}; at most 50 %")


def _of(made_on: str | None) -> str:
    return "" if made_on is None else f" on {made_on}"


def plateau(results: Results) -> Check:
    """7: the objective's loss has fallen, and stopped falling; else the run has not converged."""
    name = "loss on a plateau"
    worst, where = -np.inf, ""
    for attack, made_on in product(results.attacks, results.surrogates):
        rows = results.rows(attack, made_on)
        if not rows or attack.steps == 0:
            continue
        row = f"{attack.name}, size {attack.patch_size}{_of(made_on)}"
        # What falls where the gradient is 0 everywhere falls by chance: no step was aimed.
        aimed = [_winner(r["loss_history"]) for r in rows if r.get("zero_gradient", 0.0) < 1.0]
        paths = [path for path in aimed if path[0] > path[-1]]
        if not paths:
            why = f"no loss has fallen in {attack.steps} steps"
            if not aimed:
                why = "no patch has a gradient to follow"
            return decided(name, False, f"{why} ({row})")
        tail = sum(step > 0.9 * attack.steps for step in look_at(attack.steps))
        late = sum(path[-1 - tail] - path[-1] for path in paths)
        share = late / sum(path[0] - path[-1] for path in paths)
        if share > worst:
            worst, where = share, row
    if not where:
        return not_applicable(name, "no steps, or nothing to gain")
    figure = f"last tenth of the steps brings {worst:.1%} of the gain ({where})"
    if worst > CONVERGED:
        figure = f"not converged: {figure}"
    return decided(name, worst <= CONVERGED, f"{figure}; at most {CONVERGED:.0%}")


def _winner(history: Sequence[float]) -> Sequence[float]:
    """The history of the restart with the least loss."""
    looks = LOOKS + 1
    restarts = [history[start : start + looks] for start in range(0, len(history), looks)]
    return min(restarts, key=lambda losses: losses[-1])


def rounding(results: Results) -> Check:
    """10: what counts is the image in 8 bits, and little is lost by it."""
    name = "survives 8-bit PNG"
    pairs = [
        (
            results.attack_gain(r),
            results.attack_gain(r, results.clean[r["victim"], r["index"]] + r["unrounded"]),
        )
        for r in results.attacked
        if "unrounded" in r
    ]
    if not pairs:
        return not_applicable(name, "nothing was known before rounding")
    kept, before = (float(np.mean(values)) for values in zip(*pairs, strict=True))
    clean = float(np.mean(list(results.clean.values())))
    # A thousandth of the count: where next to nothing was gained, rounding decides nothing.
    fine = kept >= before - 0.05 * abs(before) - 1e-3 * abs(clean)
    figure = f"{kept:,.1f} of {before:,.1f} people kept"
    return decided(name, fine and before > 0, f"{figure}{'' if before > 0 else NOTHING}")


def seeds(results: Results) -> Check:
    """11: a mean that is quoted is one over three seeds or more."""
    name = "three seeds or more"
    number = len({r["seed"] for r in results.attacked})
    if number < 2:
        return not_applicable(name, "one seed; intervals are over images")
    return decided(name, number >= LEAST_SEEDS, f"{number} seeds")


RESULT_CHECKS: Sequence[Callable[[Results], Check]] = (
    area,
    beats_baselines,
    beats_transfer,
    gradient_everywhere,
    plateau,
    rounding,
    seeds,
)
