"""Whether an experiment shows a backdoor that works, and its removal."""

from __future__ import annotations

from dataclasses import dataclass

from pycc.metrics.backdoor import BACKDOORED, CLEAN_MODEL, BackdoorSummary

MEDIAN = "partition-median"
"""Name of the certified defense in results; it does not remove a backdoor."""
WORKS, REMOVED = 0.8, 0.2
"""Attack success above chance: a backdoor works if it is at least ``WORKS`` above the larger level,
and is removed if it is at most ``REMOVED`` above the smaller one."""
MARGIN = 0.2
"""How far rho_Acc of the backdoored and of the defended counter may lie below that of the clean
one: a counter that always counts 0 resists every attack that raises counts."""
_CLOSE = 1e-9
"""Tolerance for rounded quotients of whole numbers."""


@dataclass(frozen=True)
class _Outcome:
    """The attack success and accuracy of one counter of a strategy."""

    value: float
    """Attack success above chance: the excess before a defense, what is left after it."""
    accuracy: float | None

    def __str__(self) -> str:
        return f"{self.value:+.2f} (rho_Acc {_text(self.accuracy)})"

    def counts_well(self, clean: float | None) -> bool:
        """Whether rho_Acc is near that of the clean counter; False if either is unknown."""
        if self.accuracy is None or clean is None:
            return False
        return self.accuracy >= clean - MARGIN - _CLOSE


def verdict(summary: BackdoorSummary) -> tuple[bool, str]:
    """Decide whether a run shows a backdoor that works and its removal.

    Returns the decision and a sentence with the numbers of ``summary``.

    Both are shown if, for one strategy, attack success exceeds the larger chance level by at least
    ``WORKS`` before a defense, and the smaller one by at most ``REMOVED`` after it, and rho_Acc of
    both counters is at most ``MARGIN`` below that of the clean counter: a defense that makes a
    counter miscount every image, or count nobody, has not removed a backdoor. Nothing is shown if
    rho_Acc of the clean counter is unknown.

    >>> works, sentence = verdict(BackdoorSummary([], []))
    >>> works, sentence.split(":")[0], sentence.split(": ")[-1]
    (False, 'not shown', 'no excess known')
    """
    clean: float | None = None
    before: dict[str, _Outcome] = {}
    after: dict[str, dict[str, _Outcome]] = {}
    for row in summary.rows:
        accuracy = None if row.clean is None else row.clean.accuracy.value
        if row.model == CLEAN_MODEL and row.defense is None:
            clean = accuracy
        if row.model != BACKDOORED or row.strategy is None:
            continue
        if row.excess is None or row.left is None:
            continue
        if row.defense is None:
            before[row.strategy] = _Outcome(row.excess.value, accuracy)
        elif row.defense != MEDIAN:
            outcome = _Outcome(row.left.value, accuracy)
            after.setdefault(row.strategy, {})[row.defense] = outcome
    bound = f"rho_Acc of both at most {MARGIN:.2f} below the clean counter's {_text(clean)}"
    sentences = []
    for strategy, excess in before.items():
        defended = after.get(strategy, {})
        works = excess.value >= WORKS - _CLOSE and excess.counts_well(clean)
        for name, left in defended.items():
            if works and left.value <= REMOVED + _CLOSE and left.counts_well(clean):
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
