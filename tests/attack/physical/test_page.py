"""The page of photographs, and their row in a leaderboard."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pycc import runs
from pycc.attack.physical import page as photo_page  # noqa: F401  (registers the page)
from pycc.attack.physical.photo import KEY, KIND, PhotoRow
from pycc.report import page
from pycc.report.page.blocks import Table


def write_photos(folder: Path) -> Path:
    """A finished run of three photos; the first counts nobody without the patch."""
    run = runs.open_or_resume(
        folder, kind=KIND, key=KEY, fingerprints={"weights": "cd" * 32},
        settings={"clean": "/taken/clean", "attacked": "/taken/attacked",
                  "flags": {"weights": "/nets/net.npz"}},
    )  # fmt: skip
    for row in (PhotoRow(1, "b<", 10.0, 15.0, 50.0), PhotoRow(0, "a", 0.0, 3.0, None)):
        run.append(row.json())
    run.finish({"images": 2, "mean_clean": 5.0, "mean_count": 9.0, "error_rate": 50.0,
                "error_rate_undefined": 1})  # fmt: skip
    run.close()
    return folder


def test_what_photographs_show(tmp_path: Path) -> None:
    run = page.StoredRun.read(write_photos(tmp_path / "run"))
    made = page.contents[KIND](run, page.Options(pictures=False))
    assert made.verdict.sentence == (
        "net counts 5.0 people on average of 2 photos without the printed patch and 9.0 with it, a "
        "mean error rate of 50.0 %."
    )
    (table,) = made.main
    assert isinstance(table, Table)
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["1", "a", "0.0", "3.0", "+3.0", "-"],
        ["2", "b<", "10.0", "15.0", "+5.0", "50.0 %"],
    ]
    assert "undefined on 1 photo" in table.notes[1]
    assert made.card.clean is not None
    assert (made.card.clean.mae, made.card.clean.mean_count) == (None, 5.0)
    assert [row.mean_count for row in made.card.attacked] == [9.0]


def test_an_unfinished_run_names_the_command_that_continues_it(tmp_path: Path) -> None:
    (write_photos(tmp_path / "run") / "summary.json").unlink()
    with pytest.raises(ValueError, match=r"continue it with: pycc attack --resume \S*run$"):
        page.write_run(tmp_path / "run")


def test_a_leaderboard_holds_photographs(tmp_path: Path) -> None:
    html = page.write_run(write_photos(tmp_path / "photographed")).read_text()
    assert "b&lt;" in html
    board = page.write_leaderboard(tmp_path, tmp_path / "board.html").read_text()
    assert "Photographs of printed patches" in board
    cells = re.findall(r"<t[dh][^>]*>\s*([^<]*?)\s*</t[dh]>", board)
    assert cells[-7:] == ["photographed", "net", "net.npz", "clean, attacked", "2", "5.0", "9.0"]
