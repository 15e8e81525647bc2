"""``report.html`` and ``card.json``: what runs show, for people and for programs.

A page is one file without network or external script. ``contents`` maps each kind of run to the
function that makes its content; blocks of content have one template each.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pycc import runs
from pycc.report.page import attack, train  # noqa: F401  (registered on import)
from pycc.report.page.blocks import Cell, Content, Table, number
from pycc.report.page.card import CARD, Card
from pycc.report.page.contents import Options, contents
from pycc.report.page.leaderboard import LEADERBOARD, read_cards, write_leaderboard
from pycc.report.page.render import sections_of, write_page
from pycc.report.page.stored import StoredRun

__all__ = [
    "CARD",
    "LEADERBOARD",
    "REPORT",
    "Card",
    "Content",
    "Options",
    "StoredRun",
    "contents",
    "read_cards",
    "write_leaderboard",
    "write_report",
    "write_run",
]

REPORT = "report.html"
"""The page of a run, in its folder."""
_DIFFERENCES = 40
"""Rows of the table of differences, at most."""


def write_run(path: str | os.PathLike[str], options: Options = Options()) -> Path:  # noqa: B008
    """Write ``report.html`` and ``card.json`` into a run folder; returns the page.

    Raises:
        ValueError: a folder without a finished run of this version, or with a damaged one.
        OSError: the folder cannot be written.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     run = runs.open_or_resume(
    ...         folder, kind="train", settings={"seed": 0}, fingerprints={}, key=("kind", "epoch")
    ...     )
    ...     run.finish({"epochs": 3, "best_epoch": 2, "validation": {"images": 8, "mae": 12.5}})
    ...     run.close()
    ...     page = write_run(folder, Options(pictures=False)).read_text()
    ...     "12.5 people on 8 validation images" in page, Card.read(f"{folder}/card.json").kind
    (True, 'train')
    """
    run = StoredRun.read(path)
    content = contents[run.kind](run, options)
    content.card.write(run.folder)
    file = run.folder / REPORT
    _write(file, [run], [content])
    return file


def write_report(
    paths: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    options: Options = Options(),  # noqa: B008
) -> Path:
    """Write the page of one run or of several side by side to ``out``; returns the file.

    Raises:
        ValueError: as ``write_run``; nothing is written then.
        OSError: the page cannot be written.
    """
    stored = [StoredRun.read(path) for path in paths]
    made = [contents[run.kind](run, options) for run in stored]
    _write(Path(out), stored, made)
    return Path(out)


def _write(file: Path, stored: Sequence[StoredRun], made: Sequence[Content]) -> None:
    several = len(stored) > 1
    write_page(
        file,
        "report.html",
        title=made[0].title if not several else f"{len(stored)} runs side by side",
        names=_names(stored),
        contents=made,
        sections=sections_of(made),
        compared=_compared(stored, made) if several else (),
    )


def _names(stored: Sequence[StoredRun]) -> list[str]:
    """The names of the folders, with the path where two have one name."""
    names = [run.name for run in stored]
    return [run.name if names.count(run.name) == 1 else str(run.folder) for run in stored]


def _compared(stored: Sequence[StoredRun], made: Sequence[Content]) -> tuple[Table, ...]:
    """The main figures of several runs, and what differs between them and the first."""
    names = _names(stored)
    rows = []
    for name, content in zip(names, made, strict=True):
        card = content.card
        attacked = [row.mae for row in card.attacked if row.mae is not None]
        certified = [row.mae for row in card.certified if row.mae is not None]
        noise = [row.mae for row in card.noise if row.mae is not None]
        rows.append((
            Cell(name), Cell(card.kind), Cell(card.model.title),
            Cell(card.data.title), number(card.data.images, 0),
            number(card.clean.mae if card.clean else None), number(max(noise, default=None)),
            number(max(attacked, default=None)), number(max(certified, default=None)),
            Cell("unreliable", tone="bad") if card.unreliable else Cell("no check failed"),
        ))  # fmt: skip
    head = ("run", "kind", "model", "data", "images", "clean MAE", "noise", "attacked", "certified",
            "checks")  # fmt: skip
    tables = [Table("Runs", head, tuple(rows),
                    ("MAE in people, the worst of all patch sizes.",))]  # fmt: skip
    for name, run in zip(names[1:], stored[1:], strict=True):
        found, alone = _differences(stored[0], run)
        if found and run.kind == stored[0].kind:
            notes: tuple[str, ...] = ()
            if len(found) > _DIFFERENCES:
                notes = (f"{len(found) - _DIFFERENCES} more in the settings below.",)
            if alone:
                notes += (f"Settings that only one of the two states, below: {alone}.",)
            tables.append(Table(
                f"What differs between {names[0]} and {name}", ("difference",),
                tuple((Cell(text),) for text in found[:_DIFFERENCES]), notes,
            ))  # fmt: skip
    return tuple(tables)


def _differences(one: StoredRun, other: StoredRun) -> tuple[list[str], int]:
    """What differs, of the settings that both state; the number of those that one states alone."""
    settings = [run.flags or run.manifest.settings for run in (one, other)]
    shared = settings[0].keys() & settings[1].keys()
    before, now = (
        {"settings": {name: values[name] for name in shared},
         "fingerprints": run.manifest.fingerprints}
        for run, values in zip((one, other), settings, strict=True)
    )  # fmt: skip
    alone = len(settings[0].keys() ^ settings[1].keys())
    return runs.differences(before, now), alone
