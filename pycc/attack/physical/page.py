"""The page of photographs without and with a printed patch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pycc.attack.physical.photo import KIND, PhotoRow, PhotoSummary
from pycc.report.page.blocks import Cell, Content, Table, Verdict, number
from pycc.report.page.card import Card, DataFacts, Errors, Threat, model_facts, version_of
from pycc.report.page.contents import Options, contents
from pycc.report.page.provenance import provenance
from pycc.report.page.stored import StoredRun
from pycc.report.page.words import number_of, people


@contents.register(KIND)
def photo_content(run: StoredRun, options: Options) -> Content:
    """The content of the page of a run of photographs."""
    summary = run.summarised(PhotoSummary)
    rows = sorted(map(PhotoRow.of, run.records), key=lambda row: row.index)
    model, folders = model_facts(run), _folders(run)
    card = Card(
        kind=KIND, run=run.name, pycc=version_of(run), model=model,
        data=DataFacts(folders[0], folders[1], summary.images, None),
        threat=Threat("patch", methods=("printed patch",)),
        clean=Errors(None, mean_count=summary.mean_clean),
        attacked=(Errors(None, mean_count=summary.mean_count),),
    )  # fmt: skip
    return Content(
        title=f"Photographs of a printed patch, counted by {model.name}",
        verdict=_verdict(model.name, summary),
        card=card,
        main=(_table(rows, summary),),
        settings=provenance(run),
    )


def _folders(run: StoredRun) -> tuple[str, str]:
    """The names of the folders without and with the patch."""
    clean, attacked = (Path(str(run.manifest.settings[name])) for name in ("clean", "attacked"))
    return clean.name, attacked.name


def _verdict(name: str, summary: PhotoSummary) -> Verdict:
    sentence = (
        f"{name} counts {people(summary.mean_clean)} people on average of "
        f"{number_of(summary.images, 'photo')} without the printed patch and "
        f"{people(summary.mean_count)} with it"
    )
    if summary.error_rate is not None:
        sentence += f", a mean error rate of {summary.error_rate:,.1f} %"
    return Verdict(
        f"{sentence}.",
        checks="The difference contains whatever else changed between two photographs.",
    )


def _table(rows: Sequence[PhotoRow], summary: PhotoSummary) -> Table:
    lines = tuple(
        (number(row.index + 1, 0), Cell(row.image), number(row.clean), number(row.count),
         number(row.count - row.clean, signed=True), number(row.error_rate, unit=" %"))
        for row in rows
    )  # fmt: skip
    notes = ["The error rate is the change of the count, in per cent of the count without patch."]
    if summary.error_rate_undefined:
        photos = number_of(summary.error_rate_undefined, "photo")
        notes.append(f"It is undefined on {photos}, whose count without patch is 0.")
    head = ("number", "photo", "without patch", "with patch", "change", "error rate")
    return Table("Counts of photographs, people", head, lines, tuple(notes), sortable=True)
