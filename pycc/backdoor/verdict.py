"""Whether an experiment shows what it is for: a backdoor that works, and its removal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pycc.backdoor.measures import BACKDOORED

MEDIAN = "partition-median"
"""The certified defense's name in results; it removes nothing."""
WORKS, REMOVED = 0.8, 0.2
"""Attack success above chance: at least, over the larger level, where a backdoor works; at most,
over the lesser one, where it is removed."""
_CLOSE = 1e-9
"""Values are quotients of whole numbers, rounded."""


@dataclass(frozen=True)
class _Said:
    """What one counter of a strategy shows."""

    value: float
    """Attack success above chance: the excess before a defense, what is left after it."""
    accuracy: float | None

    def __str__(self) -> str:
        known = "unknown" if self.accuracy is None else f"{self.accuracy:.2f}"
        return f"{self.value:+.2f} (rho_Acc {known})"


def verdict(summary: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether a run shows a backdoor that works and its removal, and what says so.

    For one strategy attack success exceeds the larger chance level by at least ``WORKS`` before,
    and the lesser one by at most ``REMOVED`` after one defense: a counter that a defense has taught
    to miscount everything has lost no backdoor. What is said tells rho_Acc with each, since a
    counter that counts nobody anywhere has none either.
    """
    before: dict[str, _Said] = {}
    after: dict[str, dict[str, _Said]] = {}
    for row in summary["rows"]:
        if row["model"] != BACKDOORED or row["excess"] is None:
            continue
        clean = row["clean"]
        accuracy = None if clean is None else clean["accuracy"]["value"]
        if row["defense"] is None:
            before[row["strategy"]] = _Said(row["excess"]["value"], accuracy)
        elif row["defense"] != MEDIAN:
            found = _Said(row["left"]["value"], accuracy)
            after.setdefault(row["strategy"], {})[row["defense"]] = found
    said = []
    for strategy, excess in before.items():
        defended = after.get(strategy, {})
        for name, left in defended.items():
            if excess.value >= WORKS - _CLOSE and left.value <= REMOVED + _CLOSE:
                return True, (
                    f"shown: a backdoor that works (rho_Asr of {strategy} {excess} above the "
                    f"larger chance level, at least {WORKS:+.2f}) and its removal ({left} above "
                    f"the lesser one after {name}, at most {REMOVED:+.2f})"
                )
        told = "".join(f", {left} after {name}" for name, left in defended.items())
        said.append(f"{strategy} {excess}{told}")
    return False, (
        f"not shown: a backdoor that works (rho_Asr at least {WORKS:+.2f} above the larger chance "
        f"level) and its removal (at most {REMOVED:+.2f} above the lesser one after a defense): "
        f"{'; '.join(said) or 'no excess known'}"
    )
