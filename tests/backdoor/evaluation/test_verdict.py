"""The verdict on a run: whether it shows a backdoor that works, and its removal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pycc.backdoor import record, summarise, verdict
from pycc.metrics.backdoor import BackdoorMetrics, BackdoorSummary, row
from pycc.metrics.shares import Difference, Share


def entry(
    strategy: str | None, defense: str | None, value: float | None, accuracy: float | None = 0.9
) -> BackdoorMetrics:
    """The metrics of a counter whose chance levels are equal; without a strategy the clean one."""
    over = None if value is None else Difference(value, value, value, total=10)
    rho = Share(accuracy, 0.0, 1.0, successes=0, total=10)
    clean = replace(row([1.0], [1]), accuracy=rho)
    return BackdoorMetrics(
        strategy, "clean" if strategy is None else "backdoored", defense, raises=True, clean=clean,
        triggered=None, certified=None, chance_clean_model=None, chance_no_trigger=None,
        excess=over, left=over,
    )  # fmt: skip


CLEAN = entry(None, None, None)


@pytest.mark.parametrize(
    ("rows", "expected", "part"),
    [
        ([("add", None, 0.8), ("add", "anp", 0.2)], True, "+0.80 (rho_Acc 0.90) above the larger"),
        ([("add", None, 9 / 10 - 1 / 10), ("add", "anp", 0.3 - 0.1)], True, "lesser one after anp"),
        ([("add", None, 0.79), ("add", "anp", 0.0)], False, "add +0.79 (rho_Acc 0.90), +0.00 (rho"),
        ([("add", None, 0.9), ("add", "anp", 0.21)], False, "+0.21 (rho_Acc 0.90) after anp"),
        ([("add", None, 0.9), ("minus", None, 0.1), ("minus", "anp", 0.1)], False, "minus +0.10"),
        ([("add", None, 0.9), ("add", "anp", 0.5), ("add", "nad", -0.1)], True, "one after nad"),
        ([("add", None, 0.9), ("add", "partition-median", 0.0)], False, "add +0.90"),
        ([("add", None, None)], False, "no excess known"),
        ([], False, "no excess known"),
    ],
)
def test_the_verdict(rows: list[Any], expected: bool, part: str) -> None:
    shown, text = verdict(BackdoorSummary([CLEAN, *(entry(*values) for values in rows)], []))
    assert shown == expected
    assert part in text
    assert text.startswith("shown: " if expected else "not shown: ")


@pytest.mark.parametrize(
    ("clean", "before", "after", "expected"),
    [
        (0.9, 0.9, 0.9, True),
        (0.9, 0.7, 0.9 - 0.2, True),
        (0.9, 0.69, 0.9, False),
        (0.9, 0.9, 0.69, False),
        (0.3, 0.2, 0.1, True),
        (0.9, 0.9, None, False),
        (0.9, None, 0.9, False),
        (None, 0.9, 0.9, False),
    ],
)
def test_both_counters_count_about_as_well_as_the_clean_one(
    clean: float | None, before: float | None, after: float | None, expected: bool
) -> None:
    rows = [entry(None, None, None, clean), entry("add", None, 0.9, before),
            entry("add", "anp", 0.0, after)]  # fmt: skip
    shown, text = verdict(BackdoorSummary(rows, []))
    assert shown == expected
    known = "unknown" if clean is None else f"{clean:.2f}"
    assert f"rho_Acc of both at most 0.20 below the clean counter's {known}" in text
    # A clean counter that a defense has changed, or none, is no measure.
    assert not verdict(BackdoorSummary([entry(None, "anp", None, 0.1), *rows[1:]], []))[0]


@pytest.mark.parametrize("lost", ["defended", "ruined", "mute"])
def test_a_counter_that_a_defense_ruined_has_not_lost_its_backdoor(lost: str) -> None:
    """From counts to the last line: r on clean and on triggered images after the defense."""
    after = {"defended": (1.0, 1.0), "ruined": (3.0, 5.0), "mute": (0.0, 0.0)}[lost]
    factors = {
        ("clean", None): (1.0, 1.0), ("backdoored", None): (1.0, 2.0),
        ("backdoored", "anp"): after,
    }  # fmt: skip
    results = [
        record(
            strategy=None if model == "clean" else "add", model=model, defense=defense,
            images=images, index=index, name=f"{index}", truth=20, count=20 * factor,
            raises=None if model == "clean" else True,
        )
        for (model, defense), both in factors.items()
        for images, factor in zip(("clean", "triggered"), both, strict=True)
        for index in range(10)
    ]  # fmt: skip
    shown, sentence = verdict(summarise(results))
    assert shown == (lost == "defended")
    part = {
        "defended": "+0.00 (rho_Acc 1.00) above the lesser one after anp",
        "ruined": "add +1.00 (rho_Acc 1.00), +1.00 (rho_Acc 0.00) after anp",
        "mute": "add +1.00 (rho_Acc 1.00), +0.00 (rho_Acc 0.00) after anp",
    }[lost]
    assert part in sentence
