"""Missed and false alarms."""

from __future__ import annotations

import math

import pytest

from pycc.report.page.alarms import Reading, Readings, alarm_blocks, usual_alarm
from pycc.report.page.blocks import Table, Text


def counts(*pairs: tuple[float, float]) -> tuple[Reading, ...]:
    return tuple(Reading(truth, count, count) for truth, count in pairs)


def test_alarms_are_those_of_the_truth() -> None:
    clean = Readings("clean", counts((600, 610), (500, 499), (400, 500), (100, 90)))
    # Ends that a patch could cause: the first may be missed, the third and fourth may be false.
    certified = Readings(
        "masked",
        (Reading(600, 499, 700), Reading(500, 500, 900), Reading(400, 0, math.inf),
         Reading(100, 90, 500)),
        possible=True,
    )  # fmt: skip
    text, table = alarm_blocks([clean, certified], 500, annotated=True)
    assert isinstance(text, Text)
    assert "2 of 4 images" in text.paragraphs[0]
    assert "--alarm N" not in text.paragraphs[0]
    assert isinstance(table, Table)
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["clean", "counted", "1 of 2", "1 of 2"],
        ["masked", "possible", "1 of 2", "2 of 2"],
    ]


def test_without_a_level_a_quarter_of_the_images_sets_it_off() -> None:
    (text, table) = alarm_blocks(
        [Readings("clean", counts((10, 9), (20, 22)))], None, annotated=False
    )
    assert isinstance(text, Text)
    assert isinstance(table, Table)
    assert "not annotated" in text.paragraphs[0]
    assert "--alarm N shows another" in text.paragraphs[0]
    assert table.caption == "Alarm from 18 people on"
    assert [cell.text for cell in table.rows[0]][1:] == ["0 of 1", "0 of 1"]
    assert alarm_blocks([Readings("clean", ())], 5, annotated=True) == ()


@pytest.mark.parametrize(
    ("truths", "level"), [([0, 0], 1), ([3], 3), ([1234], 1200), ([99.6], 100), ([0.2], 1)]
)
def test_the_level_has_two_digits(truths: list[float], level: float) -> None:
    assert usual_alarm(truths) == level


def test_where_no_image_is_crowded_none_can_be_missed() -> None:
    (_, table) = alarm_blocks([Readings("clean", counts((10, 9)))], 500, annotated=True)
    assert isinstance(table, Table)
    assert [cell.text for cell in table.rows[0]][1:] == ["no such image", "0 of 1"]
