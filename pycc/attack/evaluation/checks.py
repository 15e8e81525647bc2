"""Sanity checks of an attack run: their verdicts, and the results that they look at.

A check is a fact that holds for a sound attack, whatever the counter. ``result_checks`` are
functions of a run's results; ``trial_checks`` and ``counter_checks`` try something on
a few images. A check passes, fails or does not apply, and always states its figure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from pycc.attack.base import PatchAttack
from pycc.report import Check
from pycc.runs import Record

TOLERANCE = 0.02
"""Relative, by which a mean may fall short of one that it should reach."""
NOTHING = "; a white-box attack has gained nothing"
"""The end of a figure whose comparison has nothing to compare."""


def decided(name: str, passed: bool, figure: str) -> Check:
    """A check that applies."""
    return Check(name, "pass" if passed else "fail", figure)


def not_applicable(name: str, why: str) -> Check:
    """A check that does not."""
    return Check(name, "not applicable", why)


def no_less(name: str, means: Sequence[tuple[float, float]], figure: str) -> Check:
    """A check on pairs of mean attack gains: each first is above 0 and reaches its second."""
    fine = all(first >= second - TOLERANCE * abs(second) for first, second in means)
    gains = all(first > 0 for first, _ in means)
    return decided(name, fine and gains, f"{figure}{'' if gains else NOTHING}")


class Results:
    """The results of a run by what they measure, as attack gain: people moved towards the goal.

    Patches that reach no cell of the region of interest cannot gain, and neither can a patch on an
    image whose clean count is the wanted one, such as 0 for the objective ``under``: both are left
    out.
    """

    def __init__(self, records: Iterable[Record], attacks: Sequence[PatchAttack]) -> None:
        self.attacks = tuple(attacks)
        self.records = list(records)
        self.clean = {
            (r["victim"], r["index"]): r["count"] for r in self.records if r["condition"] == "clean"
        }
        self.victims: list[str | None] = list(dict.fromkeys(r["victim"] for r in self.records))
        names = [attack.name for attack in attacks]
        self.reached = [
            r for r in self.records if r["condition"] in names and r.get("reach", 1.0) > 0
        ]
        self.attacked = [r for r in self.reached if self.can_gain(r)]
        self.surrogates: list[str | None] = list(
            dict.fromkeys(r["surrogates"] for r in self.reached)
        )

    def attack_gain(self, record: Record, count: float | None = None) -> float:
        """Compute the attack gain of one result, or of another ``count`` of the same image."""
        attack = self.attacks[0]
        return attack.goal.attack_gain(
            attack.aim,
            count=record["count"] if count is None else count,
            clean=self.clean[record["victim"], record["index"]],
            truth=math.nan if record["truth"] is None else record["truth"],
        )

    def can_gain(self, record: Record) -> bool:
        """Whether a patch could gain on the image of this result."""
        attack = self.attacks[0]
        return attack.goal.can_gain(
            attack.aim,
            clean=self.clean[record["victim"], record["index"]],
            truth=math.nan if record["truth"] is None else record["truth"],
        )

    def rows(
        self, attack: PatchAttack, surrogates: str | None, *, can_gain: bool = True
    ) -> list[Record]:
        """Results of an attack's patches from these surrogates; ``can_gain`` False: all of them."""
        wanted = attack.name, attack.patch_size, surrogates
        known = self.attacked if can_gain else self.reached
        return [r for r in known if (r["condition"], r["patch_size"], r["surrogates"]) == wanted]

    def by_image(
        self,
        condition: str,
        patch_size: int | float | None,
        victim: str | None,
        surrogates: str | None,
    ) -> dict[int, float]:
        """Attack gain of one row of the table on each of its images, the mean over seeds."""
        wanted = condition, patch_size, victim, surrogates
        gains: dict[int, list[float]] = {}
        known = self.attacked if condition in {a.name for a in self.attacks} else self.records
        for r in known:
            if (r["condition"], r["patch_size"], r["victim"], r["surrogates"]) == wanted:
                gains.setdefault(r["index"], []).append(self.attack_gain(r))
        return {index: float(np.mean(values)) for index, values in gains.items()}

    def of(
        self, attack: PatchAttack, victim: str | None, surrogates: str | None
    ) -> dict[int, float]:
        """Attack gain of an attack on each image."""
        return self.by_image(attack.name, attack.patch_size, victim, surrogates)

    def white_box(self, victim: str | None) -> str | None:
        """The label of the victim itself among the surrogates."""
        return None if None in self.surrogates else victim
