"""The effect of wrong counts on an alarm for over-crowding: missed and false alarms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pycc.report.page.blocks import Block, Cell, Table, Text
from pycc.report.page.words import number_of


@dataclass(frozen=True)
class Reading:
    """The count of one image, or the ends that it is certified to lie between."""

    truth: float
    """People in the image; without annotation, those counted in the clean image."""
    low: float
    high: float
    """Infinite where a certificate has no upper end."""

    def missed(self, alarm: float) -> bool:
        """Whether there are too many people and the count may not say so."""
        return self.truth >= alarm > self.low

    def false(self, alarm: float) -> bool:
        """Whether there are not too many people and the count may say so."""
        return self.truth < alarm <= self.high


@dataclass(frozen=True)
class Readings:
    """Counts under one condition, such as the clean images."""

    label: str
    readings: tuple[Reading, ...]
    possible: bool = False
    """Whether alarms are those that some patch could cause, rather than those that were counted."""


def usual_alarm(truths: Sequence[float]) -> float:
    """An alarm that a quarter of the images sets off, of two digits; at least 1 person.

    >>> usual_alarm([10, 20, 30, 438])
    130.0
    """
    quartile = max(1.0, float(np.quantile(truths, 0.75)))
    step = 10.0 ** (math.floor(math.log10(quartile)) - 1)
    return max(1.0, round(quartile / step) * step)


def alarm_blocks(
    conditions: Sequence[Readings], alarm: float | None, *, annotated: bool
) -> tuple[Block, ...]:
    """The table of missed and false alarms, one row per condition.

    ``alarm`` is the number of people from which on an image sets it off; None: ``usual_alarm``.
    """
    conditions = [condition for condition in conditions if condition.readings]
    if not conditions:
        return ()
    truths = [reading.truth for reading in conditions[0].readings]
    level = usual_alarm(truths) if alarm is None else alarm
    several = any(condition.possible for condition in conditions)
    rows = []
    for condition in conditions:
        crowded = sum(reading.truth >= level for reading in condition.readings)
        missed = sum(reading.missed(level) for reading in condition.readings)
        false = sum(reading.false(level) for reading in condition.readings)
        kind = "possible" if condition.possible else "counted"
        calm = len(condition.readings) - crowded
        kinds = (Cell(kind),) if several else ()
        rows.append((Cell(condition.label), *kinds, _of(missed, crowded), _of(false, calm)))
    table = Table(
        f"Alarm from {level:,.0f} people on",
        ("counts", *(("alarms",) if several else ()), "missed alarms", "false alarms"),
        tuple(rows),
    )
    source = "annotated" if annotated else "counted in the clean image: images are not annotated"
    crowded = sum(truth >= level for truth in truths)
    about = (
        f"An image sets off the alarm if at least {level:,.0f} people are in it ({source}): "
        f"{crowded:,} of {number_of(len(truths), 'image')}. A missed alarm is a count below that "
        "of such an image, a false alarm one that reaches it of another image."
        + (" Possible: some patch could cause it." if any(c.possible for c in conditions) else "")
    )
    if alarm is None:
        about += " This level is an example; pycc report --alarm N shows another."
    return (Text((about,)), table)


def _of(hits: int, total: int) -> Cell:
    if total == 0:
        return Cell("no such image")
    return Cell(f"{hits:,} of {total:,}", hits / total, "bad" if hits else "plain")
