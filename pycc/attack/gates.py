"""Gates: facts that hold for a sound attack, whatever the counter; a run that breaks one says so.

Those of this file are functions of a run's results; ``pycc.attack.probes`` holds the ones that have
to try something. A gate passes, fails or does not apply, and always with its figure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np

from pycc.attack.apam import LOOKS, look_at
from pycc.attack.base import PatchAttack
from pycc.attack.baseline import baselines
from pycc.attack.objective import harm, room
from pycc.runs import Record

TOLERANCE = 0.02
"""Relative, by which a mean may fall short of one that it should reach."""
CONVERGED = 0.05
"""Most of the gain that may come from the last tenth of the steps."""
DOUBLED = 0.1
"""Most that twice the steps may add to the harm. Two runs from different first patches end in
different optima, which on a few images differ by several per cent: less would measure that."""
LEAST_SEEDS = 3
NOTHING = "; a white-box attack has gained nothing"
"""What a figure ends with where a comparison is one of nothing with nothing."""


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


def no_less(name: str, means: Sequence[tuple[float, float]], figure: str) -> Gate:
    """A gate on pairs of mean harm, each first of which must be above 0 and reach its second."""
    fine = all(own >= other - TOLERANCE * abs(other) for own, other in means)
    gains = all(own > 0 for own, _ in means)
    return judged(name, fine and gains, f"{figure}{'' if gains else NOTHING}")


class Results:
    """The results of a run by what they are of, as harm: people in the attacker's direction.

    Patches that reach no cell of the region of interest cannot do any, and neither can a patch
    where the clean count is what is wanted, such as 0 for the objective ``under``: both are left
    out.
    """

    def __init__(self, records: Iterable[Record], attacks: Sequence[PatchAttack]) -> None:
        self.attacks = tuple(attacks)
        self.records = list(records)
        self.clean = {
            (r["victim"], r["index"]): r["count"] for r in self.records if r["condition"] == "none"
        }
        self.victims = list(dict.fromkeys(r["victim"] for r in self.records))
        names = [attack.name for attack in attacks]
        self.reached = [
            r for r in self.records if r["condition"] in names and r.get("reach", 1.0) > 0
        ]
        self.attacked = [r for r in self.reached if self.room(r)]
        self.sources = list(dict.fromkeys(r["source"] for r in self.reached))

    def harm(self, record: Record, count: float | None = None) -> float:
        """Of one result; with ``count`` of another count of the same image."""
        attack = self.attacks[0]
        return harm(
            attack.objective,
            attack.aim,
            count=record["count"] if count is None else count,
            clean=self.clean[record["victim"], record["index"]],
            truth=math.nan if record["truth"] is None else record["truth"],
        )

    def room(self, record: Record) -> bool:
        """Whether there is any harm that could be done to the image of this result."""
        attack = self.attacks[0]
        return room(
            attack.objective,
            attack.aim,
            clean=self.clean[record["victim"], record["index"]],
            truth=math.nan if record["truth"] is None else record["truth"],
        )

    def rows(self, attack: PatchAttack, source: Any, *, room: bool = True) -> list[Record]:
        """Results of an attack's patches made on a source; ``room`` False: whatever the count."""
        wanted = attack.name, attack.size, source
        known = self.attacked if room else self.reached
        return [r for r in known if (r["condition"], r["size"], r["source"]) == wanted]

    def by_image(self, condition: str, size: Any, victim: Any, source: Any) -> dict[int, float]:
        """Harm of one row of the table on each of its images, the mean over seeds."""
        wanted = condition, size, victim, source
        found: dict[int, list[float]] = {}
        known = self.attacked if condition in {a.name for a in self.attacks} else self.records
        for r in known:
            if (r["condition"], r["size"], r["victim"], r["source"]) == wanted:
                found.setdefault(r["index"], []).append(self.harm(r))
        return {index: float(np.mean(values)) for index, values in found.items()}

    def of(self, attack: PatchAttack, victim: Any, source: Any) -> dict[int, float]:
        """Harm of an attack on each image."""
        return self.by_image(attack.name, attack.size, victim, source)

    def white_box(self, victim: Any) -> Any:
        """The source that is the victim itself."""
        return None if None in self.sources else victim


def _means(one: dict[int, float], other: dict[int, float]) -> tuple[float, float] | None:
    """The means over the images that both have; None where there are none."""
    both = sorted(one.keys() & other.keys())
    if not both:
        return None
    return float(np.mean([one[i] for i in both])), float(np.mean([other[i] for i in both]))


def area(results: Results) -> Gate:
    """1: the harm does not fall with the patch's area."""
    name = "harm grows with area"
    worst, least, line = np.inf, np.inf, []
    for victim in results.victims:
        for kind in dict.fromkeys(attack.name for attack in results.attacks):
            rows = []
            for attack in (a for a in results.attacks if a.name == kind):
                found = results.of(attack, victim, results.white_box(victim))
                areas = [
                    r["area"]
                    for r in results.attacked
                    if (r["condition"], r["size"]) == (kind, attack.size)
                ]
                if found:
                    rows.append((float(np.mean(areas)), float(np.mean(list(found.values())))))
            if len(rows) < 2:
                continue
            means = [value for _, value in sorted(rows)]
            for before, after in pairwise([0.0, *means]):
                worst = min(worst, after - before + TOLERANCE * abs(before))
            least = min(least, means[-1])
            line += [f"{value:,.1f}" for value in means]
    if not line:
        return not_applicable(name, "one size")
    figure = f"mean harm by size {', '.join(line)}; tolerance {TOLERANCE:.0%}"
    return judged(name, worst >= 0 and least > 0, figure)


def beats_baselines(results: Results) -> Gate:
    """3: the optimised patch does more harm than those that nobody optimised, size by size."""
    name = "beats patches that nobody optimised"
    lead, where, tried = np.inf, "", set()
    for attack in results.attacks:
        for victim in results.victims:
            own = results.of(attack, victim, results.white_box(victim))
            for other in baselines.names():
                both = _means(own, results.by_image(other, attack.size, victim, None))
                if both is not None:
                    tried.add(other)
                    if both[0] - both[1] < lead:
                        lead, where = both[0] - both[1], f"{other}, size {attack.size}"
    if not where:
        return not_applicable(name, "nothing to compare with")
    missing = [other for other in baselines.names() if other not in tried]
    note = f"; not tried: {', '.join(missing)}" if missing else ""
    return judged(name, lead > 0, f"least lead {lead:,.1f} people, over {where}{note}")


def beats_transfer(results: Results) -> Gate:
    """4: a patch made on the victim does at least the harm of one made on others."""
    name = "white-box beats transfer"
    lead, figure, means = np.inf, "", []
    for attack in results.attacks:
        for victim in results.victims:
            white = results.white_box(victim)
            own = results.of(attack, victim, white)
            for source in (source for source in results.sources if source != white):
                both = _means(own, results.of(attack, victim, source))
                if both is None:
                    continue
                means.append(both)
                margin = both[0] - both[1] + TOLERANCE * abs(both[0])
                if margin < lead:
                    lead = margin
                    figure = f"{both[0]:,.1f} against {both[1]:,.1f} people from {source}"
                    figure += f", size {attack.size}"
    if not figure:
        return not_applicable(name, "nothing transferred")
    return no_less(name, means, f"closest: {figure}")


def gradient_everywhere(results: Results) -> Gate:
    """6, second half: few pixels of the patch have a gradient of exactly zero.

    The gradient of the objective alone: the loss's penalty has one on any counter.
    """
    name = "gradient reaches the patch"
    shares = {
        f"{attack.name}, size {attack.size}{_of(source)}": float(np.mean(zero))
        for attack in results.attacks
        for source in results.sources
        if (zero := [r["zero"] for r in results.rows(attack, source, room=False) if "zero" in r])
    }
    if not shares:
        return not_applicable(name, "an attack without gradient, or no cell that it can change")
    where = max(shares, key=lambda row: shares[row])
    worst = shares[where]
    note = f" ({where})" if worst else ""
    return judged(name, worst <= 0.5, f"{worst:.1%} of the pixels have none{note}; at most 50 %")


def _of(source: Any) -> str:
    return "" if source is None else f" on {source}"


def plateau(results: Results) -> Gate:
    """7: the objective's loss has fallen, and stopped falling; else the run has not converged."""
    name = "loss on a plateau"
    worst, where = -np.inf, ""
    for attack, source in product(results.attacks, results.sources):
        rows = results.rows(attack, source)
        if not rows or attack.steps == 0:
            continue
        row = f"{attack.name}, size {attack.size}{_of(source)}"
        # What falls where the gradient is 0 everywhere falls by chance: no step was aimed.
        aimed = [_winner(r["path"]) for r in rows if r.get("zero", 0.0) < 1.0]
        paths = [path for path in aimed if path[0] > path[-1]]
        if not paths:
            why = f"no loss has fallen in {attack.steps} steps"
            if not aimed:
                why = "no patch has a gradient to follow"
            return judged(name, False, f"{why} ({row})")
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
    return judged(name, worst <= CONVERGED, f"{figure}; at most {CONVERGED:.0%}")


def _winner(path: Sequence[float]) -> Sequence[float]:
    """The path of the restart that came furthest."""
    looks = LOOKS + 1
    restarts = [path[start : start + looks] for start in range(0, len(path), looks)]
    return min(restarts, key=lambda own: own[-1])


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
    clean = float(np.mean(list(results.clean.values())))
    # A thousandth of the count: where next to nothing was gained, rounding decides nothing.
    fine = kept >= before - 0.05 * abs(before) - 1e-3 * abs(clean)
    figure = f"{kept:,.1f} of {before:,.1f} people kept"
    return judged(name, fine and before > 0, f"{figure}{'' if before > 0 else NOTHING}")


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
