"""Whether an experiment shows what it is for: a backdoor that works, and its removal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pycc.backdoor.evaluation.measures import BACKDOORED, CLEAN_MODEL

MEDIAN = "partition-median"
"""The certified defense's name in results; it removes nothing."""
WORKS, REMOVED = 0.8, 0.2
"""Attack success above chance: at least, over the larger level, where a backdoor works; at most,
over the lesser one, where it is removed."""
MARGIN = 0.2
"""How far rho_Acc of the backdoored counter, and of the defended one, may lie below the clean
counter's: one that counts nobody has nothing left of an attack that raises counts."""
_CLOSE = 1e-9
"""Values are quotients of whole numbers, rounded."""


@dataclass(frozen=True)
class _Shown:
    """What one counter of a strategy shows."""

    value: float
    """Attack success above chance: the excess before a defense, what is left after it."""
    accuracy: float | None

    def __str__(self) -> str:
        return f"{self.value:+.2f} (rho_Acc {_text(self.accuracy)})"

    def counts(self, clean: float | None) -> bool:
        """Whether rho_Acc is near the clean counter's; not so where either is unknown."""
        if self.accuracy is None or clean is None:
            return False
        return self.accuracy >= clean - MARGIN - _CLOSE


def verdict(summary: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether a run shows a backdoor that works and its removal, and what says so.

    For one strategy attack success exceeds the larger chance level by at least ``WORKS`` before,
    and the lesser one by at most ``REMOVED`` after one defense, and rho_Acc of both counters is at
    most ``MARGIN`` below the clean counter's: one that a defense has taught to miscount everything,
    or to count nobody, has lost no backdoor. Without the clean counter's rho_Acc nothing is shown.

    >>> works, sentence = verdict({"rows": []})
    >>> works, sentence.split(":")[0], sentence.split(": ")[-1]
    (False, 'not shown', 'no excess known')
    """
    clean: float | None = None
    before: dict[str, _Shown] = {}
    after: dict[str, dict[str, _Shown]] = {}
    for row in summary["rows"]:
        accuracy = None if row["clean"] is None else row["clean"]["accuracy"]["value"]
        if row["model"] == CLEAN_MODEL and row["defense"] is None:
            clean = accuracy
        if row["model"] != BACKDOORED or row["excess"] is None:
            continue
        if row["defense"] is None:
            before[row["strategy"]] = _Shown(row["excess"]["value"], accuracy)
        elif row["defense"] != MEDIAN:
            shown = _Shown(row["left"]["value"], accuracy)
            after.setdefault(row["strategy"], {})[row["defense"]] = shown
    bound = f"rho_Acc of both at most {MARGIN:.2f} below the clean counter's {_text(clean)}"
    sentences = []
    for strategy, excess in before.items():
        defended = after.get(strategy, {})
        works = excess.value >= WORKS - _CLOSE and excess.counts(clean)
        for name, left in defended.items():
            if works and left.value <= REMOVED + _CLOSE and left.counts(clean):
                return True, (
                    f"shown: a backdoor that works (rho_Asr of {strategy} {excess} above the "
                    f"larger chance level, at least {WORKS:+.2f}) and its removal ({left} above "
                    f"the lesser one after {name}, at most {REMOVED:+.2f}), {bound}"
                )
        defended_text = "".join(f", {left} after {name}" for name, left in defended.items())
        sentences.append(f"{strategy} {excess}{defended_text}")
    return False, (
        f"not shown: a backdoor that works (rho_Asr at least {WORKS:+.2f} above the larger chance "
        f"level) and its removal (at most {REMOVED:+.2f} above the lesser one after a defense), "
        f"{bound}: {'; '.join(sentences) or 'no excess known'}"
    )


def _text(accuracy: float | None) -> str:
    return "unknown" if accuracy is None else f"{accuracy:.2f}"
