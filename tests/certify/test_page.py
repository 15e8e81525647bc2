"""The page of a certificate run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.reports import save, write_certify

from pycc.report import page
from pycc.report.page.blocks import Bars, Drawing, Picture, Table, Text
from pycc.report.page.contents import Options


def content(folder: Path, **options: object) -> page.Content:
    run = page.StoredRun.read(folder)
    return page.contents["certify"](run, Options(**options))  # type: ignore[arg-type]


def rows(table: object) -> list[list[str]]:
    assert isinstance(table, Table)
    return [[cell.text for cell in row] for row in table.rows]


def test_what_is_certified(tmp_path: Path) -> None:
    made = content(write_certify(tmp_path / "run"), pictures=False, alarm=15)
    assert made.verdict.sentence == (
        "No patch of 16 x 16 pixels, of any content at any place, moves a count of net defended "
        "by masked out of its interval: 25.0 people wide on average of 2 images. The mean "
        "absolute error is 1.0 people without a patch and at most 15.0 with one."
    )
    assert made.verdict.tone == "good"
    assert "--attack" in made.verdict.checks
    table, calibration = made.main
    assert rows(table)[0] == ["8 px", "masked", "1.0", "15.0", "25.0", "0 %"]
    assert "does not say that the count is right" in table.notes[1]  # type: ignore[union-attr]
    assert rows(calibration) == [["allowance", "8 px", "2.500 people", "crowd, train", "4"]]
    # Counts 11 and 21 without a patch, ends 5 and 30.
    assert rows(made.shift[0])[0] == ["8 px", "masked", "-11.0", "-68.8 %", "+14.0", "+87.5 %"]
    assert rows(made.alarm[1]) == [
        ["clean", "counted", "0 of 1", "0 of 1"],
        ["masked, 8 px", "possible", "1 of 1", "1 of 1"],
        ["masked, 16 px", "possible", "1 of 1", "1 of 1"],
    ]
    card = made.card
    assert [(row.patch_size, row.mae, row.width) for row in card.certified] == [
        (8.0, 15.0, 25.0), (16.0, 15.0, 25.0),
    ]  # fmt: skip


def test_intervals_are_bars_against_the_truth(tmp_path: Path) -> None:
    made = content(write_certify(tmp_path / "run", high=40.0), pictures=False)
    first, second = (block for block in made.curves if isinstance(block, Bars))
    assert (first.caption, first.opened, second.opened) == (
        "Intervals of masked, 16 px",
        True,
        False,
    )
    top = 1.02 * 40
    for bar, truth in zip(first.bars, (10, 20), strict=True):
        assert (bar.truth.text, bar.interval) == (str(truth), "5 … 40")
        assert (bar.left, bar.width) == pytest.approx((100 * 5 / top, 100 * 35 / top))
        assert (bar.truth_at, bar.count_at) == pytest.approx((100 * truth / top,
                                                              100 * (truth + 1) / top))  # fmt: skip
        assert (bar.unbounded, bar.tone) == (False, "plain")
    assert first.notes == ()


def test_truths_outside_and_open_ends(tmp_path: Path) -> None:
    narrow = content(write_certify(tmp_path / "narrow", high=12.0), pictures=False)
    bars = next(block for block in narrow.curves if isinstance(block, Bars))
    assert [bar.tone for bar in bars.bars] == ["plain", "bad"]
    assert "On 1 image the truth lies outside" in bars.notes[0]
    made = content(write_certify(tmp_path / "open", high=None), pictures=False, alarm=15)
    bars = next(block for block in made.curves if isinstance(block, Bars))
    assert [(bar.unbounded, bar.interval) for bar in bars.bars] == [(True, "5 … no upper end")] * 2
    assert all(bar.left + bar.width == pytest.approx(100) for bar in bars.bars)
    assert made.verdict.tone == "bad"
    assert made.verdict.sentence.startswith("No upper bound is known")
    assert rows(made.main[0])[0][3] == "unbounded on 2"
    assert rows(made.alarm[1])[1][3] == "1 of 1", "without an end every alarm may be false"


def test_a_broken_certificate_is_said_first(tmp_path: Path) -> None:
    broken = content(write_certify(tmp_path / "broken", violations=2), pictures=False)
    assert broken.verdict.sentence.startswith("An attacked count left its certified interval")
    assert broken.verdict.tone == "bad"
    assert broken.card.unreliable
    (check,) = broken.card.failed_checks
    assert (check.name, check.figure) == (
        "attacked counts stay in their intervals: masked, 8 px", "2 outside",
    )  # fmt: skip
    held = content(write_certify(tmp_path / "held", violations=0), pictures=False)
    assert not held.card.unreliable
    assert "moved no count" in held.verdict.checks
    assert rows(held.main[0])[0][3] == "4.0", "attacked MAE"


def test_curves_and_the_runs_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = write_certify(tmp_path / "run")
    (text,) = content(folder).places
    assert isinstance(text, Text)
    assert "pip install 'pycc[plot]'" in text.paragraphs[0]
    save(folder / "pictures/0001-masked-16.png", np.zeros((40, 100, 3), np.uint8))
    (folder / "pictures/0000-masked-16.png").write_bytes(b"no picture")
    made = content(folder)
    assert [type(block) for block in made.curves[:2]] == [Drawing, Drawing]
    _, lost, picture = made.places
    assert isinstance(lost, Text)
    assert "0000-masked-16.png in the run folder is no picture" in lost.paragraphs[0]
    assert isinstance(picture, Picture)
    assert (picture.width, picture.height, picture.caption) == (100, 40, "photo 1 (masked-16)")


def test_thousands_of_intervals_stay_within_bounds(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("pycc.certify.page.MOST_BARS", 1)
    made = content(write_certify(tmp_path / "run"), pictures=False)
    bars = next(block for block in made.curves if isinstance(block, Bars))
    assert len(bars.bars) == 1
    assert bars.notes[0] == "The 1 widest of 2 intervals."
