"""The table of a certified data set, and the intervals that are drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pycc.certify import AttackedRow, CalibratedNumber, Calibration, CertifySummary, slack_map
from pycc.certify.methods.additive import additive_of
from pycc.certify.report import certificates_table, draw_curve, widest
from pycc.certify.results import mean_seconds, summarise
from pycc.defense.capping import Caps


def record(image: str, method: str, patch_size: int | None, **values: object) -> dict:
    return {
        "image": image, "method": method, "patch_size": patch_size, "truth": 10.0, "seconds": 0.5,
        **values,
    }  # fmt: skip


def interval(
    image: str, low: float, high: float | None, count: float, *, vacuous: bool = False,
    reason: str | None = None,
):  # fmt: skip
    return record(
        image, "masked", 20, low=low, high=high, count=count, vacuous=vacuous, reason=reason
    )


RECORDS = [
    record("a", "clean", None, count=12.0),
    interval("a", 8.0, 15.0, 11.0),
    record("b", "clean", None, count=10.0),
    interval("b", 1.0, 12.0, 9.0),
]


def test_errors_are_of_the_farther_end() -> None:
    summary = summarise(RECORDS)
    assert summary.images == 2
    assert summary.undefended_mae == 1.0
    (row,) = summary.rows
    assert row.clean_mae == 1.0  # |11 - 10| and |9 - 10|
    assert row.certified_mae == 7.0  # 15 - 10 and 10 - 1
    assert row.width == 9.0
    assert row.vacuous == 0.0
    assert mean_seconds(RECORDS) == {("masked", 20): 0.5}


def test_one_unbounded_interval_leaves_no_certified_error() -> None:
    records = [*RECORDS, interval("c", 0.0, None, 9.0, vacuous=True)]
    (row,) = summarise(records).rows
    assert row.certified_mae is None
    assert row.unbounded == 1
    assert row.vacuous == pytest.approx(1 / 3)
    assert row.width == 9.0  # of the bounded intervals


def test_the_table_lists_why_intervals_are_unbounded() -> None:
    why = ["wide", "few draws", "few draws", "a", "b", "c"]
    broken = [
        interval(str(n), 0.0, None, 9.0, vacuous=True, reason=reason)
        for n, reason in enumerate(why)
    ]
    summary = summarise([*RECORDS, *broken])
    (row,) = summary.rows
    assert row.reasons == {"few draws": 2, "wide": 1, "a": 1, "b": 1, "c": 1}
    lines = certificates_table(summary, mean_seconds([*RECORDS, *broken])).splitlines()
    start = lines.index("masked, 20 pixels, 2 of 8 images: few draws")
    assert lines[start + 1] == "masked, 20 pixels, 1 of 8 images: wide"
    assert lines[start + 3] == "masked, 20 pixels: 2 more reasons in results.jsonl"


def test_the_table_lists_calibrated_numbers_and_violations() -> None:
    numbers = (
        CalibratedNumber("allowance", 3.25, "x, train", 7, 20),
        CalibratedNumber("allowance", 2.0, "given", 0, 20, 1),
    )
    attacked = AttackedRow("masked", 20, attacked_mae=4.5, violations=3, images=2)
    summary = summarise(RECORDS, Calibration(numbers), [attacked])
    text = certificates_table(summary, mean_seconds(RECORDS))
    row = next(line for line in text.splitlines() if line.startswith("20"))
    assert row.split() == ["20", "masked", "1.0", "7.0", "4.5", "9.0", "0", "%", "0.50"]
    assert "allowance for 20 pixels: 3.25 people, 7 images of x, train" in text
    assert "allowance for 20 pixels, counter 2: 2 people, given" in text
    assert "VIOLATED: masked, 20 pixels: 3 attacked counts outside their intervals" in text


def test_the_widest_come_first_and_the_unbounded_not_at_all() -> None:
    records = [*RECORDS, interval("c", 0.0, None, 9.0), interval("d", 5.0, 9.0, 7.0)]
    assert [r["image"] for r in widest(records, 2)] == ["b", "a"]


def test_slack_is_the_fullest_window_around_each_cell() -> None:
    cells = torch.zeros(1, 5, 6)
    cells[0, 1, 1], cells[0, 4, 5] = 3.0, 1.0
    slack = slack_map(cells, (2, 2))
    assert slack.shape == (5, 6)
    assert slack[0, 0] == 3.0
    assert slack[2, 2] == 3.0
    assert slack[3, 3] == 0.0
    assert slack[4, 5] == 1.0


def test_slack_of_capped_cells_is_what_a_window_gains_or_loses() -> None:
    """Emptier windows have more to gain, up to the cap; the whole interval is in the largest."""
    cells = torch.zeros(1, 5, 6)
    cells[0, :, 3:] = 2.0
    slack = slack_map(cells, (2, 2), Caps(2.5))
    assert float(slack[0, 0]) == 10.0, "four empty cells"
    assert float(slack[4, 5]) == 8.0, "four full ones lose more than they gain"
    interval = additive_of(cells, (2, 2), Caps(2.5))
    gained = interval.high - interval.count  # with what an interval adds for rounding
    assert float(slack.max()) < gained < float(slack.max()) + 0.02


def test_the_curve_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw_curve(summarise(RECORDS), tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 5_000


def test_errors_are_unknown_without_annotation(tmp_path: Path) -> None:
    def unannotated(records: list[dict], *attacks: AttackedRow) -> CertifySummary:
        return summarise([{**r, "truth": None} for r in records], attacks=attacks)

    summary = unannotated(RECORDS, AttackedRow("masked", 20, None, violations=1, images=2))
    (row,) = summary.rows
    assert summary.undefended_mae is row.clean_mae is row.certified_mae is None
    assert (row.width, row.vacuous, row.unbounded) == (9.0, 0.0, 0)
    lines = certificates_table(summary, mean_seconds(RECORDS)).splitlines()
    assert lines[2].split() == ["clean", "-"]
    assert lines[3].split() == ["20", "masked", "-", "-", "-", "9.0", "0", "%", "0.50"]
    assert "images without annotation: errors against their heads are unknown" in lines
    assert "VIOLATED: masked, 20 pixels: 1 attacked counts outside their intervals" in lines
    records = [*RECORDS, interval("c", 0.0, None, 9.0, vacuous=True)]
    text = certificates_table(unannotated(records), mean_seconds(records))
    assert "unbounded on 1" in text
    pytest.importorskip("matplotlib")
    draw_curve(summary, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 5_000
