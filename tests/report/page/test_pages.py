"""Trainings, several runs side by side, leaderboards, and folders that hold no finished run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.reports import replaced, write_attack, write_certify, write_run, write_training

from pycc.report import page
from pycc.report.page.blocks import Drawing, Table
from pycc.report.page.contents import Options

TABLES = Options(pictures=False)


def rows(table: object) -> list[list[str]]:
    assert isinstance(table, Table)
    return [[cell.text for cell in row] for row in table.rows]


def test_a_training(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run = page.StoredRun.read(write_training(tmp_path / "run"))
    made = page.contents["train"](run, Options())
    assert made.verdict.sentence == (
        "mcnn was trained for 3 epochs; its best weights, of epoch 3, have a mean absolute error "
        "of 18.0 people on 4 validation images; on 7 test images (plain) 21.0."
    )
    tests, epochs = made.main
    assert rows(tests) == [["plain", "21.0", "33.0", "+2.0", "7"]]
    assert rows(epochs)[-1] == ["3", "2.0000", "18.0", "30.0", "-1.0", "1.5", "kept"]
    assert [type(block) for block in made.curves] == [Drawing, Drawing]
    assert made.card.clean is not None
    assert made.card.clean.mae == 21.0


def test_runs_side_by_side(tmp_path: Path) -> None:
    one = write_attack(tmp_path / "a/run")
    two = write_attack(tmp_path / "b/run", gain=20.0)
    manifest = two / "manifest.json"
    settings = json.loads(manifest.read_text())["settings"]
    settings["flags"]["steps"] = 200
    settings["flags"]["of_the_second_alone"] = 7
    replaced(manifest, settings=settings)
    other = write_certify(tmp_path / "c/certified")
    html = page.write_report([one, two, other], tmp_path / "all.html", TABLES).read_text()
    assert html.count('class="run"') == 3 * html.count('class="runs"')
    assert html.index("people on 2 images; noise") < html.index("Main figures</h2>")
    assert "What differs between" in html
    assert "settings.steps was 3, is 200" in html
    assert "settings.of_the_second_alone was" not in html
    assert "Settings that only one of the two states, below: 1." in html
    assert f"<h2>{one}</h2>" in html, "folders of one name have different titles"
    assert "<h2>certified</h2>" in html
    assert "Nothing of this kind in this run." in html


def cards(root: Path) -> Path:
    for name, options in (("weak", {"gain": 1.0}), ("strong", {"gain": 9.0})):
        page.write_run(write_attack(root / name, **options), TABLES)  # type: ignore[arg-type]
    failed = [{"name": "plateau", "verdict": "fail", "figure": "12 %"}]
    page.write_run(write_attack(root / "deep/doubtful", checks=failed, sizes=(16,)), TABLES)
    page.write_run(write_certify(root / "certified"), TABLES)
    page.write_run(write_training(root / "trained"), TABLES)
    return root


def test_a_leaderboard_holds_every_card(tmp_path: Path) -> None:
    root = cards(tmp_path / "runs")
    html = page.write_leaderboard(root, tmp_path / "board.html").read_text()
    assert html.count('<table class="sortable"') == 3
    for name in ("weak", "strong", "doubtful", "certified", "trained"):
        assert f">{name}</td>" in html
    assert "unreliable: plateau" in html
    assert "5 runs; 1 with failed checks" in html
    doubtful = html[html.index(">doubtful<") :]
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", doubtful[: doubtful.index("</tr>")])
    assert cells[-2:] == ["-", "241.0"], "8 px was not attacked, 16 px was"
    assert cells[5] == "unreliable: plateau", "before the figures, where a wide table is not cut"


def test_cards_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    root = cards(tmp_path / "runs")
    (root / "weak/card.json").write_text("{")
    replaced(root / "strong/card.json", schema=2)
    replaced(root / "certified/card.json", model={"name": "net"})
    (root / "trained/card.json").unlink()
    with pytest.warns(UserWarning) as warned:  # noqa: PT030  (each is checked below)
        (left,) = page.read_cards(root)
    assert left.run == "doubtful"
    says = " | ".join(str(warning.message) for warning in warned)
    for part in (
        "weak/card.json: expected JSON", "strong/card.json: expected a card of schema 1, got "
        "schema 2", "certified/card.json, model: expected a field 'weights'",
        "without card.json, left out: 1 run, such as",
    ):  # fmt: skip
        assert part in says


def test_a_folder_without_cards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected runs with card.json, got none"):
        page.read_cards(tmp_path)
    with pytest.raises(ValueError, match="expected a folder of runs, got none"):
        page.read_cards(tmp_path / "nowhere")


def test_a_card_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = write_certify(tmp_path / "run", violations=1)
    made = page.contents["certify"](page.StoredRun.read(folder), TABLES)
    assert page.Card.read(made.card.write(folder)) == made.card


def test_folders_without_a_finished_run_are_refused(tmp_path: Path) -> None:
    folder = write_attack(tmp_path / "run")
    (folder / "summary.json").rename(tmp_path / "kept")
    unfinished = rf"^{folder}: expected a finished run, got one with 10 results and no summary"
    with pytest.raises(ValueError, match=unfinished) as error:
        page.write_run(folder)
    assert str(error.value).endswith(f"continue it with: pycc attack --resume {folder}")
    (folder / "summary.json").write_text("[1")
    with pytest.raises(ValueError, match=r"summary.json: expected JSON, got something else"):
        page.write_run(folder)
    (folder / "summary.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"summary.json: expected a JSON object, got list"):
        page.write_run(folder)
    (tmp_path / "kept").rename(folder / "summary.json")
    (folder / "results.jsonl").rename(tmp_path / "kept")
    with pytest.raises(ValueError, match=r"expected results.jsonl, got none"):
        page.write_run(folder)
    (folder / "results.jsonl").write_text("{}\nno\n")
    with pytest.raises(ValueError, match="expected a JSON object in line 2, got b'no'"):
        page.write_run(folder)
    replaced(folder / "manifest.json", schema=2)
    with pytest.raises(ValueError, match="expected a run of schema 1, got one of schema 2"):
        page.write_run(folder)
    with pytest.raises(ValueError, match="expected a run folder, got none"):
        page.write_run(tmp_path)
    assert not (folder / "report.html").exists()
    assert not (folder / "card.json").exists()


def test_a_foreign_kind_is_refused_and_can_be_added(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "survey", [], {"images": 0}, ("index",), {})
    with pytest.raises(ValueError, match=r"^unknown kind of run 'survey'; known: attack, train"):
        page.write_run(folder)
    made = page.contents["train"](page.StoredRun.read(write_training(tmp_path / "other")), TABLES)
    with page.contents.registered("survey", lambda run, options: made):
        assert page.write_run(folder).read_text().count(made.title) == 2
