"""Gates: facts that hold for a sound attack, whatever the counter; a run that breaks one says so.

Those of this file are functions of a run's results; ``pycc.attack.probes`` holds the ones that have
to try something. A gate passes, fails or does not apply, and always with its figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from pycc.attack.apam import look_at
from pycc.attack.base import PatchAttack
from pycc.attack.baseline import baselines
from pycc.attack.objective import harm
from pycc.run import Record

TOLERANCE = 0.02
"""Relative, by which a mean may fall short of one that it should reach."""
CONVERGED = 0.05
"""Most of the gain that may come from the last tenth of the steps, or from twice the steps."""
LEAST_SEEDS = 3


@dataclass(frozen=True)
class Gate:
    """The outcome of one gate."""

    name: str
    verdict: str
    """``pass``, ``fail`` or ``not applicable``."""
    figure: str
    """What was found, and what was asked for."""

    @property
    def failed(self) -> bool:
        """Whether it speaks against the run."""
        return self.verdict == "fail"

    def json(self) -> dict[str, str]:
        """For the run folder."""
        return asdict(self)


def judged(name: str, fine: bool, figure: str) -> Gate:
    """A gate that applies."""
    return Gate(name, "pass" if fine else "fail", figure)


def not_applicable(name: str, why: str) -> Gate:
    """A gate that does not."""
    return Gate(name, "not applicable", why)


class Results:
    """The results of a run by what they are of, as harm: people in the attacker's direction."""

    def __init__(self, records: Iterable[Record], attacks: Sequence[PatchAttack]) -> None:
        self.attacks = {(attack.name, attack.size): attack for attack in attacks}
        self.first = attacks[0] if attacks else None
        self.records = list(records)
        self.clean = {
            (r["victim"], r["index"]): r["count"] for r in self.records if r["condition"] == "none"
        }
        self.victims = list(dict.fromkeys(r["victim"] for r in self.records))
        names = [attack.name for attack in attacks]
        self.attacked = [r for r in self.records if r["condition"] in names]
        self.sources = list(dict.fromkeys(r["source"] for r in self.attacked))

    def harm(self, record: Record, count: float | None = None) -> float:
        """Of one result; with ``count`` of another count of the same image."""
        attack = self.first
        assert attack is not None
        return harm(
            attack.objective,
            attack.aim,
            count=record["count"] if count is None else count,
            clean=self.clean[record["victim"], record["index"]],
            truth=record["truth"],
        )

    def of(self, condition: str, size: Any, victim: Any, source: Any) -> float | None:
        """Mean harm of one row of the table; None where there is none."""
        wanted = condition, size, victim, source
        found = [
            self.harm(r)
            for r in self.records
            if (r["condition"], r["size"], r["victim"], r["source"]) == wanted
        ]
        return float(np.mean(found)) if found else None

    def white_box(self, victim: Any) -> Any:
        """The source that is the victim itself."""
        return None if None in self.sources else victim


def area(results: Results) -> Gate:
    """1: the harm does not fall with the patch's area."""
    name = "harm grows with area"
    means: list[tuple[str, float, float]] = []
    for victim in results.victims:
        found = []
        for attack in results.attacks.values():
            value = results.of(attack.name, attack.size, victim, results.white_box(victim))
            sides = [r["area"] for r in results.attacked if r["size"] == attack.size]
            if value is not None and sides:
                found.append((float(np.mean(sides)), value))
        found.sort()
        values = [0.0, *(value for _, value in found)]
        means += [(str(victim), before, after) for before, after in pairwise(values)]
    if len(means) < 2:
        return not_applicable(name, "one size")
    worst = min(after - before + TOLERANCE * abs(before) for _, before, after in means)
    line = ", ".join(f"{after:,.1f}" for _, _, after in means)
    return judged(name, worst >= 0, f"mean harm by size {line}; tolerance {TOLERANCE:.0%}")


def beats_baselines(results: Results) -> Gate:
    """3: the optimised patch does more harm than those that nobody optimised, size by size."""
    name = "beats grey, black, noise and a crowd"
    lead, where = np.inf, ""
    for attack in results.attacks.values():
        for victim in results.victims:
            own = results.of(attack.name, attack.size, victim, results.white_box(victim))
            if own is None:
                continue
            for other in baselines.names():
                theirs = results.of(other, attack.size, victim, None)
                if theirs is not None and own - theirs < lead:
                    lead, where = own - theirs, f"{other}, size {attack.size}"
    if not where:
        return not_applicable(name, "nothing to compare with")
    return judged(name, lead > 0, f"least lead {lead:,.1f} people, over {where}")


def beats_transfer(results: Results) -> Gate:
    """4: a patch made on the victim does at least the harm of one made on others."""
    name = "white-box beats transfer"
    lead, where = np.inf, ""
    for attack in results.attacks.values():
        for victim in results.victims:
            white = results.white_box(victim)
            own = results.of(attack.name, attack.size, victim, white)
            for source in results.sources:
                theirs = results.of(attack.name, attack.size, victim, source)
                if source == white or own is None or theirs is None:
                    continue
                margin = own - theirs + TOLERANCE * abs(own)
                if margin < lead:
                    lead, where = margin, f"{source}, size {attack.size}"
                    figure = f"{own:,.1f} against {theirs:,.1f} people from {where}"
    if not where:
        return not_applicable(name, "nothing transferred")
    return judged(name, lead >= 0, f"closest: {figure}")


def gradient_everywhere(results: Results) -> Gate:
    """6, second half: few pixels of the patch have a gradient of exactly zero."""
    name = "gradient reaches the patch"
    shares = [r["zero"] for r in results.attacked if "zero" in r]
    if not shares:
        return not_applicable(name, "an attack without gradient")
    share = float(np.mean(shares))
    return judged(name, share <= 0.5, f"{share:.1%} of the pixels have none; at most 50 %")


def plateau(results: Results) -> Gate:
    """7: the loss has stopped falling; else the run has not converged."""
    name = "loss on a plateau"
    worst, where = 0.0, ""
    for attack in results.attacks.values():
        paths = [
            np.array(r["path"])
            for r in results.attacked
            if r["size"] == attack.size and "path" in r
        ]
        paths = [p for p in paths if p[0] - p[-1] > 0]
        if not paths or attack.steps == 0:
            continue
        tail = sum(step > 0.9 * attack.steps for step in look_at(attack.steps))
        late = [p[-1 - tail] - p[-1] for p in paths]
        share = float(np.sum(late) / np.sum([p[0] - p[-1] for p in paths]))
        if share >= worst:
            worst, where = share, f"size {attack.size}"
    if not where:
        return not_applicable(name, "no loss has fallen")
    figure = f"last tenth of the steps brings {worst:.1%} of the gain ({where})"
    if worst > CONVERGED:
        figure = f"not converged: {figure}"
    return judged(name, worst <= CONVERGED, f"{figure}; at most {CONVERGED:.0%}")


def rounding(results: Results) -> Gate:
    """10: what counts is the image in 8 bits, and little is lost by it."""
    name = "survives 8-bit PNG"
    pairs = [
        (results.harm(r), results.harm(r, results.clean[r["victim"], r["index"]] + r["unrounded"]))
        for r in results.attacked
        if "unrounded" in r
    ]
    if not pairs:
        return not_applicable(name, "nothing was known before rounding")
    kept, before = (float(np.mean(values)) for values in zip(*pairs, strict=True))
    fine = kept >= 0.95 * before - 0.5
    return judged(name, fine, f"{kept:,.1f} of {before:,.1f} people kept")


def seeds(results: Results) -> Gate:
    """11: a mean that is quoted is one over three seeds or more."""
    name = "three seeds or more"
    number = len({r["seed"] for r in results.attacked})
    if number < 2:
        return not_applicable(name, "one seed; intervals are over images")
    return judged(name, number >= LEAST_SEEDS, f"{number} seeds")


FROM_RESULTS: Sequence[Callable[[Results], Gate]] = (
    area,
    beats_baselines,
    beats_transfer,
    gradient_everywhere,
    plateau,
    rounding,
    seeds,
)
