"""The page of a backdoor run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.reports import BACKDOOR_KEY, save, write_run

from pycc.backdoor.evaluation import page as backdoor_page
from pycc.backdoor.evaluation.measures import record
from pycc.backdoor.evaluation.summary import summarise
from pycc.report import page
from pycc.report.page.blocks import Drawing, Picture, Preformatted, Table, Text
from pycc.report.page.contents import Options
from pycc.runs import Record

pytestmark = pytest.mark.command

TRUTHS = (10, 20, 30, 40, 50, 60, 70, 80, 90, 100)


def counts(strategy: str | None, defense: str | None, images: str, factor: float) -> list[Record]:
    """Counts of ten images by one counter: the truth times ``factor``."""
    return [
        record(
            strategy=strategy, model="clean" if strategy is None else "backdoored",
            defense=defense, images=images, index=index, name=f"image <{index}>",  # type: ignore[arg-type]
            truth=truth, count=factor * truth, raises=None if strategy is None else True,
        )
        for index, truth in enumerate(TRUTHS)
    ]  # fmt: skip


def write(folder: Path, *, clean: float = 1.05) -> Path:
    """A backdoor that triples counts, and a defense that removes it.

    ``clean`` is the factor by which the clean counter counts triggered images.
    """
    records = [
        *counts(None, None, "clean", 1.0), *counts(None, None, "triggered", clean),
        *counts("add", None, "clean", 1.0), *counts("add", None, "triggered", 3.0),
        *counts("add", "fine-tuning", "clean", 0.95),
        *counts("add", "fine-tuning", "triggered", 1.0),
    ]  # fmt: skip
    for images, score in (("clean", 0.1), ("triggered", 0.9)):
        records += [
            record(strategy="add", model="backdoored", defense="detector", raises=True,
                   images=images, index=index, name=f"{index}", score=score + index, threshold=5.0)  # type: ignore[arg-type]
            for index in range(3)
        ]  # fmt: skip
    flags = {"command": "backdoor run", "data": "crowd", "test_split": "test", "model": "mcnn"}
    summary = {**summarise(records).json(), "model": "mcnn"}
    settings = {"flags": flags, "model": "mcnn"}
    return write_run(folder, "backdoor", records, summary, BACKDOOR_KEY, settings)


def content(folder: Path, **options: object) -> page.Content:
    made = page.contents["backdoor"]
    assert made is backdoor_page.backdoor_content
    return made(page.StoredRun.read(folder), Options(**options))  # type: ignore[arg-type]


def rows(table: object) -> list[list[str]]:
    assert isinstance(table, Table)
    return [[cell.text for cell in row] for row in table.rows]


def test_what_a_backdoor_does(tmp_path: Path) -> None:
    made = content(write(tmp_path / "run"), pictures=False, alarm=95)
    assert made.title == "Backdoor run of mcnn: add"
    assert made.verdict.sentence == (
        "With the trigger in the image, the counter poisoned by the strategy add is off by a "
        "tenth or more, as the attacker wants, on 100 % of 10 images; chance alone gives 0 %; "
        "after fine-tuning it is 0 %, where 100 % of the clean images are counted right."
    )
    assert made.verdict.tone == "good"
    assert made.verdict.checks.startswith("Shown: a backdoor that works, and its removal")
    counters, says, detectors, paper = made.main
    assert isinstance(says, Text)
    assert says.paragraphs[0].startswith("Shown: a backdoor that works")
    (add,) = (row for row in rows(counters) if row[0] == "add")
    assert [cell.split()[0] for cell in add[1:]] == [
        "1.000", "1.000", "0.000", "0.000", "+1.000", "+1.000", "0.0", "0.0",
    ]  # fmt: skip
    assert rows(detectors)[0][:3] == ["add", "detector", "0.667"]
    assert isinstance(paper, Preformatted)
    assert "Table 3: before and after fine-tuning" in paper.text
    assert rows(made.shift[0]) == [
        ["clean model", "+2.8", "+5.0 %", "+5.0", "+0.5", "10"],
        ["add", "+110.0", "+200.0 %", "+200.0", "+20.0", "10"],
        ["add, fine-tuning", "+2.8", "+5.3 %", "+5.0", "+0.5", "10"],
    ]
    alarms = {row[0]: row[1:] for row in rows(made.alarm[1])}
    assert alarms["clean model, clean images"] == ["0 of 1", "0 of 9"]
    assert alarms["add, triggered images"] == ["0 of 1", "6 of 9"]
    rates = {row.defense: (row.accuracy, row.success, row.excess) for row in made.card.backdoor}
    assert rates[None] == (1.0, 1.0, 1.0)
    assert rates["fine-tuning"][:2] == (1.0, 0.0)


def test_a_counter_that_any_trigger_upsets_has_no_backdoor(tmp_path: Path) -> None:
    made = content(write(tmp_path / "run", clean=3.0), pictures=False)
    assert made.verdict.sentence.startswith(
        "No backdoor shows beyond chance: with the trigger in the image, the counter poisoned by "
        "the strategy add is off by a tenth or more, as the attacker wants, on 100 % of 10 images; "
        "chance alone gives 100 %"
    )
    assert made.verdict.tone == "plain"
    assert made.verdict.checks.startswith("Not shown: a backdoor that works")


def test_the_papers_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = write(tmp_path / "run")
    (none,) = content(folder, pictures=True).gallery
    assert isinstance(none, Text)
    assert "pycc backdoor report" in none.paragraphs[0]
    for name in ("maps-add.png", "gradcam-add.png"):
        save(folder / "pictures" / name, np.zeros((30, 60, 3), np.uint8))
    made = content(folder)
    assert [type(block) for block in made.gallery] == [Picture, Picture]
    drawings = [block for block in made.curves if isinstance(block, Drawing)]
    assert [drawing.caption for drawing in drawings[:-1]] == [
        "backdoored, clean images", "fine-tuning, clean images",
        "backdoored, triggered images", "fine-tuning, triggered images",
    ]  # fmt: skip
    assert "add: mean ratio 3.00" in drawings[2].label
    assert "detector, add: AUC 0.67" in drawings[-1].svg


def test_a_defense_alone_has_no_figures(tmp_path: Path) -> None:
    flags = {"command": "backdoor defend fine-tuning", "data": "crowd", "weights": "a/net.npz"}
    folder = write_run(tmp_path / "run", "backdoor", [], {"defense": "fine-tuning"}, BACKDOOR_KEY,
                       {"flags": flags, "model": "mcnn"})  # fmt: skip
    made = content(folder)
    assert "was defended by fine-tuning" in made.verdict.sentence
    assert (made.main, made.curves, made.gallery, made.shift, made.alarm) == ((),) * 5
    assert page.write_run(folder).exists()
