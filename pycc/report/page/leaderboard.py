"""Many cards as one page with sortable tables, one table per kind of run."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from pycc.report.page.blocks import Cell, Table, number
from pycc.report.page.card import CARD, Card, CertifiedErrors, Errors
from pycc.report.page.render import write_page
from pycc.report.page.words import number_of, size_text
from pycc.runs import MANIFEST

LEADERBOARD = "leaderboard.html"


def read_cards(path: str | os.PathLike[str]) -> list[Card]:
    """All cards below a folder, by their paths; those that cannot be read are warned of.

    Raises:
        ValueError: a folder that does not exist or has no card that can be read.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"--leaderboard {folder}: expected a folder of runs, got none")
    cards = []
    for file in sorted(folder.rglob(CARD)):
        try:
            cards.append(Card.read(file))
        except (ValueError, OSError) as error:
            warnings.warn(f"left out: {error}", stacklevel=2)
    without = [file.parent for file in sorted(folder.rglob(MANIFEST))
               if not (file.parent / CARD).exists() and _is_run(file.parent, folder)]  # fmt: skip
    if without:
        warnings.warn(
            f"without {CARD}, left out: {number_of(len(without), 'run')}, such as {without[0]}; "
            "pycc report RUN writes it",
            stacklevel=2,
        )
    if not cards:
        raise ValueError(
            f"--leaderboard {folder}: expected runs with {CARD}, got none; "
            "pycc report RUN writes it"
        )
    return cards


def _is_run(folder: Path, root: Path) -> bool:
    """Whether a run is one itself, not a part of a run above it (a backdoor run has such)."""
    above = [parent for parent in folder.parents if root in (parent, *parent.parents)]
    return not any((parent / MANIFEST).exists() for parent in above)


def write_leaderboard(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """Write the page of all cards below a folder; returns the file. Errors as ``read_cards``."""
    cards = read_cards(path)
    tables = [
        table(group)
        for kind, table in TABLES.items()
        if (group := [card for card in cards if card.kind == kind])
    ]
    file = Path(out)
    write_page(file, "leaderboard.html", tables=tables, cards=len(cards),
               unreliable=sum(card.unreliable for card in cards))  # fmt: skip
    return file


def _common(card: Card) -> tuple[Cell, ...]:
    return (
        Cell(card.run), Cell(card.model.title), Cell(card.model.weights),
        Cell(card.data.title), number(card.data.images, 0),
    )  # fmt: skip


_COMMON = ("run", "model", "weights", "data", "images")


_SIZES = "Patch sizes in per cent are of the image's width."


def _size(size: float) -> str:
    """The size of a patch as the head of a narrow column."""
    return size_text(size).removesuffix(" of the width")


def _reliability(card: Card) -> Cell:
    if not card.unreliable:
        return Cell("no check failed")
    failed = ", ".join(check.name for check in card.failed_checks)
    return Cell(f"unreliable: {failed}", tone="bad")


def _attacks(cards: Sequence[Card]) -> Table:
    noise = sorted({row.patch_size or 0.0 for card in cards for row in card.noise})
    attacked = sorted({row.patch_size or 0.0 for card in cards for row in card.attacked})
    head = (*_COMMON, "threat", "checks", "clean",
            *(f"noise, {_size(size)}" for size in noise),
            *(f"attacked, {_size(size)}" for size in attacked))  # fmt: skip
    rows = tuple(
        (*_common(card), Cell(_threat(card)), _reliability(card),
         number(card.clean.mae if card.clean else None),
         *(_worst(card.noise, size) for size in noise),
         *(_worst(card.attacked, size) for size in attacked))
        for card in cards
    )  # fmt: skip
    return Table("Patch attacks: mean absolute errors, people", head, rows,
                 ("Of several attacks of one size, the worst.", _SIZES), sortable=True)  # fmt: skip


def _worst(rows: Sequence[Errors], size: float) -> Cell:
    known = [row.mae for row in rows if row.patch_size == size and row.mae is not None]
    return number(max(known, default=None))


def _threat(card: Card) -> str:
    threat = card.threat
    parts = ["+".join(threat.methods), threat.objective, threat.location]
    parts += [None if threat.steps is None else f"{threat.steps} steps"]
    return ", ".join(part for part in parts if part)


def _certificates(cards: Sequence[Card]) -> Table:
    sizes = sorted({row.patch_size for card in cards for row in card.certified})
    head = (*_COMMON, "methods", "checks", "clean",
            *(f"certified, {_size(size)}" for size in sizes))  # fmt: skip
    rows = tuple(
        (*_common(card), Cell(", ".join(card.threat.methods)), _reliability(card),
         number(card.clean.mae if card.clean else None),
         *(_best(card.certified, size) for size in sizes))
        for card in cards
    )  # fmt: skip
    return Table("Certificates: certified mean absolute errors, people", head, rows,
                 ("Of several methods, the least.", _SIZES), sortable=True)  # fmt: skip


def _best(rows: Sequence[CertifiedErrors], size: float) -> Cell:
    own = [row for row in rows if row.patch_size == size]
    known = [row.mae for row in own if row.mae is not None]
    if own and not known and any(row.unbounded for row in own):
        return Cell("unbounded")
    return number(min(known, default=None))


def _backdoors(cards: Sequence[Card]) -> Table:
    rows = tuple(
        (*_common(card), Cell(row.strategy), Cell(row.defense or "none"), _reliability(card),
         number(row.accuracy, 3), number(row.success, 3), number(row.excess, 3, signed=True))
        for card in cards
        for row in card.backdoor
    )  # fmt: skip
    head = (*_COMMON, "strategy", "defense", "checks", "rho_Acc", "rho_Asr", "excess")
    return Table("Backdoors: shares of images", head, rows, sortable=True)


def _trainings(cards: Sequence[Card]) -> Table:
    rows = tuple((*_common(card), number(card.clean.mae if card.clean else None)) for card in cards)
    return Table("Trainings: mean absolute errors, people", (*_COMMON, "MAE"), rows, sortable=True)


def _photographs(cards: Sequence[Card]) -> Table:
    rows = tuple(
        (*_common(card), number(card.clean.mean_count if card.clean else None),
         *(number(errors.mean_count) for errors in card.attacked))
        for card in cards
    )  # fmt: skip
    head = (*_COMMON, "without patch", "with patch")
    return Table("Photographs of printed patches: mean counts, people", head, rows, sortable=True)


TABLES: dict[str, Callable[[Sequence[Card]], Table]] = {
    "attack": _attacks,
    "certify": _certificates,
    "backdoor": _backdoors,
    "photo": _photographs,
    "train": _trainings,
}
"""The table of each kind of run."""
