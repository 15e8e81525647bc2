"""The page of a training: loss and validation by epoch, errors on test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pycc.report.page.blocks import Block, Cell, Content, Table, Text, Verdict, number
from pycc.report.page.card import Card, Errors, Threat, data_facts, model_facts, version_of
from pycc.report.page.charts import Line, line_chart
from pycc.report.page.contents import Options, contents
from pycc.report.page.provenance import provenance
from pycc.report.page.stored import StoredRun
from pycc.report.page.words import number_of, people

_LOG = 30.0
"""Largest over least loss from which on its axis is logarithmic."""


@dataclass(frozen=True)
class TrainRecord:
    """One line of a training's ``results.jsonl``: an epoch, or its validation."""

    kind: str
    epoch: int
    loss: float | None = None
    lr: float | None = None
    seconds: float | None = None
    mae: float | None = None
    rmse: float | None = None
    bias: float | None = None


@dataclass(frozen=True)
class BestErrors:
    """Validation errors of the weights that were kept."""

    images: int
    mae: float | None = None
    ablated_mae: float | None = None
    patched_mae: float | None = None
    certified_mae: float | None = None


@dataclass(frozen=True)
class TestErrors:
    """Errors on test images."""

    mae: float
    rmse: float
    bias: float
    images: int


@dataclass(frozen=True)
class TrainSummary:
    """The ``summary.json`` of a training."""

    epochs: int
    best_epoch: int
    validation: BestErrors | None
    stopped_early: bool = False
    test: Mapping[str, TestErrors] | None = None


@contents.register("train")
def train_content(run: StoredRun, options: Options) -> Content:
    """Build the page of a training."""
    summary, rows = run.summarised(TrainSummary), run.rows(TrainRecord)
    model = model_facts(run)
    prints = run.manifest.fingerprints.get("data")
    images = prints.get("images") if isinstance(prints, Mapping) else None
    data = data_facts(run, images if isinstance(images, int) else 0)
    tested = (summary.test or {}).get("plain")
    errors = tested or summary.validation
    card = Card(
        kind="train", run=run.name, pycc=version_of(run), model=model, data=data,
        threat=Threat("none"), clean=None if errors is None else Errors(errors.mae),
    )  # fmt: skip
    return Content(
        title=f"Training of {model.title} on {data.title}",
        verdict=_verdict(model.name, summary),
        card=card,
        main=_tables(summary, rows),
        curves=_curves(rows, options),
        settings=provenance(run),
    )


def _verdict(name: str, summary: TrainSummary) -> Verdict:
    epochs = number_of(summary.epochs, "epoch")
    sentence = f"{name} was trained for {epochs}"
    if summary.stopped_early:
        sentence += " and stopped early, since validation did not improve"
    best = summary.validation
    if best is not None and best.mae is not None:
        sentence += (
            f"; its best weights, of epoch {summary.best_epoch + 1}, have a mean absolute error of "
            f"{people(best.mae)} people on {number_of(best.images, 'validation image')}"
        )
    for label, errors in (summary.test or {}).items():
        sentence += f"; on {number_of(errors.images, 'test image')} ({label}) {people(errors.mae)}"
    checks = "" if summary.test else "No test images were measured; pycc train --test-split does."
    return Verdict(f"{sentence}.", checks=checks)


def _tables(summary: TrainSummary, rows: Sequence[TrainRecord]) -> tuple[Block, ...]:
    tables = []
    if summary.test:
        lines = tuple(
            (Cell(label), number(errors.mae), number(errors.rmse), number(errors.bias, signed=True),
             number(errors.images, 0))
            for label, errors in summary.test.items()
        )  # fmt: skip
        tables.append(Table("Errors on test images, people",
                            ("images", "MAE", "RMSE", "bias", "number"), lines))  # fmt: skip
    held = {row.epoch: row for row in rows if row.kind == "validation"}
    epochs: tuple[tuple[Cell, ...], ...] = tuple(
        (number(row.epoch + 1, 0), number(row.loss, 4),
         *(number(getattr(held.get(row.epoch), name, None)) for name in ("mae", "rmse")),
         number(getattr(held.get(row.epoch), "bias", None), signed=True), number(row.seconds),
         Cell("kept" if row.epoch == summary.best_epoch else ""))
        for row in rows
        if row.kind == "train"
    )  # fmt: skip
    head = ("epoch", "loss", "validation MAE", "RMSE", "bias", "seconds", "weights")
    tables.append(Table("Epochs", head, epochs, ("Errors in people.",), sortable=True))
    return tuple(tables)


def _curves(rows: Sequence[TrainRecord], options: Options) -> tuple[Block, ...]:
    if options.without_curves is not None:
        return (Text((options.without_curves,)),)
    charts: list[Block] = []
    loss = [(row.epoch + 1, row.loss) for row in rows if row.loss is not None]
    if loss:
        x, y = zip(*loss, strict=True)
        log = min(y) > 0 and max(y) / min(y) > _LOG
        charts.append(line_chart(
            [Line("loss", x, y, points=len(x) < 20)], x_label="epoch", y_label="loss", log=log,
            label=f"Loss by epoch, from {y[0]:.4g} to {y[-1]:.4g}.",
            caption="Loss by epoch" + (" (logarithmic scale)." if log else "."),
        ))  # fmt: skip
    lines = []
    for name, label in (("mae", "MAE"), ("rmse", "RMSE")):
        known = [(row.epoch + 1, value) for row in rows
                 if (value := getattr(row, name)) is not None]  # fmt: skip
        if known:
            x, y = zip(*known, strict=True)
            lines.append(Line(label, x, y, points=len(x) < 20))
    if lines:
        charts.append(line_chart(
            lines, x_label="epoch", y_label="validation error, people",
            label=f"Validation MAE by epoch, from {lines[0].y[0]:,.1f} to {lines[0].y[-1]:,.1f}.",
            caption="Errors on the validation images by epoch.",
        ))  # fmt: skip
    return tuple(charts)
