"""The result of a training: one row per epoch, its validations, and a summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from pycc.models import CounterModel
from pycc.runs import Record


class Facts(Protocol):
    """The facts that a manifest states of a training besides its settings."""

    def json(self) -> Record:
        """JSON values by name."""
        ...


@dataclass(frozen=True)
class CountErrors:
    """Errors of counts over whole images, in people.

    >>> CountErrors(mae=2.5, rmse=3.0, bias=-0.5, images=10).json()
    {'mae': 2.5, 'rmse': 3.0, 'bias': -0.5, 'images': 10}
    """

    mae: float
    rmse: float
    bias: float
    """Mean of count - heads."""
    images: int
    mae_by_group: Mapping[str, float] | None = None
    """MAE of each group of images, if the data set has groups (the scenes of WorldExpo'10)."""
    mae_over_groups: float | None = None
    """Mean of these."""

    def json(self) -> Record:
        """Return it as a JSON object, without what is unknown."""
        return _known(asdict(self))


@dataclass(frozen=True)
class EpochRow:
    """One epoch of training.

    >>> row = EpochRow(
    ...     epoch=0, loss=0.5, lr=1e-4, gradient_norm=2.0, seconds=8.0, images_per_second=4.0
    ... )
    >>> row.json()["kind"], row.json()["images_per_second"]
    ('train', 4.0)
    """

    epoch: int
    """From 0 on."""
    loss: float
    """Mean over the batches."""
    lr: float
    gradient_norm: float
    """Mean over the batches, before clipping."""
    seconds: float
    images_per_second: float

    def json(self) -> Record:
        """Return it as a JSON object, a line of ``results.jsonl``."""
        return {"kind": "train", **asdict(self)}


@dataclass(frozen=True)
class ValidationRow:
    """Errors of the counter after an epoch, on images that are not trained on.

    >>> errors = CountErrors(mae=2.5, rmse=3.0, bias=-0.5, images=10)
    >>> row = ValidationRow(epoch=0, errors=errors, score=2.5)
    >>> row.json()["kind"], row.json()["mae"], "patched_mae" in row.json()
    ('validation', 2.5, False)
    """

    epoch: int
    """From 0 on."""
    errors: CountErrors
    """On the images unchanged."""
    score: float | None = None
    """The score by which the best weights are chosen, less is better; None in a warm-up."""
    ablated_mae: float | None = None
    """MAE on ablated images (recipe ``ablation``)."""
    patched_mae: float | None = None
    """MAE on images with a patch (recipe ``adversarial``)."""
    certified_mae: float | None = None
    """Mean of the largest errors that a patch can cause (recipe ``certified``)."""

    def json(self) -> Record:
        """Return it as a JSON object, a line of ``results.jsonl``."""
        row = asdict(self)
        del row["errors"]
        return {"kind": "validation", **_known(row), **self.errors.json()}


@dataclass(frozen=True)
class BestErrors:
    """Validation errors of the best weights; None if the recipe has no such error.

    >>> BestErrors(images=10, mae=2.5)
    BestErrors(images=10, mae=2.5, ablated_mae=None, patched_mae=None, certified_mae=None)
    """

    images: int
    """Images that validate."""
    mae: float | None = None
    ablated_mae: float | None = None
    patched_mae: float | None = None
    certified_mae: float | None = None


@dataclass(frozen=True)
class TrainSummary:
    """The outcome of a training.

    >>> best = BestErrors(images=10, mae=2.5)
    >>> TrainSummary(epochs=3, best_epoch=1, validation=best, stopped_early=True).json()
    {'epochs': 3, 'best_epoch': 1, 'validation': {'images': 10, 'mae': 2.5}, 'stopped_early': True}
    """

    epochs: int
    """Epochs done."""
    best_epoch: int
    """The epoch of the weights that are kept, from 0 on; the last one if nothing validates."""
    validation: BestErrors | None
    """None if nothing validates."""
    stopped_early: bool
    fill: tuple[float, float, float] | None = None
    """Colour of ablated pixels, RGB in [0,1] (recipe ``ablation``)."""
    test: Mapping[str, CountErrors] | None = None
    """Errors of the best weights on test images, by what was done to these."""

    def json(self) -> Record:
        """Return it as a JSON object, as ``summary.json`` holds it."""
        record: Record = {
            "epochs": self.epochs,
            "best_epoch": self.best_epoch,
            "validation": None if self.validation is None else _known(asdict(self.validation)),
            "stopped_early": self.stopped_early,
        }
        if self.fill is not None:
            record["fill"] = list(self.fill)
        if self.test is not None:
            record["test"] = {name: errors.json() for name, errors in self.test.items()}
        return record


@dataclass(frozen=True)
class TrainRun:
    """The result of ``train.fit``: the trained counter, its history and its metadata.

    >>> from pycc import data, models, train
    >>> samples = data.open("synthetic", split="train", limit=2, shape=(64, 96))
    >>> config = train.TrainConfig(epochs=1, crop="64x64", crops=1)
    >>> run = train.fit(models.load("mcnn-synthetic"), samples, config)
    >>> run.counter.training, [record["kind"] for record in run.records]
    (False, ['train', 'validation'])
    """

    counter: CounterModel
    """The counter that was trained, with its best weights, in eval mode."""
    epochs: Sequence[EpochRow]
    validations: Sequence[ValidationRow]
    summary: TrainSummary
    metadata: Mapping[str, object]
    """The weights metadata: recipe, data, errors; an argument of ``models.save``."""
    folder: Path | None
    """The run folder; None in memory."""

    @property
    def records(self) -> list[Record]:
        """The rows as ``results.jsonl`` holds them: each epoch, then its validation."""
        rows: list[EpochRow | ValidationRow] = [*self.epochs, *self.validations]
        return [row.json() for row in sorted(rows, key=lambda row: row.epoch)]


def epoch_rows(records: Sequence[Record]) -> list[EpochRow]:
    """The epochs among the records of a run."""
    return [
        EpochRow(**{name: value for name, value in record.items() if name != "kind"})
        for record in records
        if record["kind"] == "train"
    ]


def validation_rows(records: Sequence[Record]) -> list[ValidationRow]:
    """The validations among the records of a run."""
    scores = ("epoch", "score", "ablated_mae", "patched_mae", "certified_mae")
    rows = []
    for record in records:
        if record["kind"] == "validation":
            errors = {name: v for name, v in record.items() if name not in (*scores, "kind")}
            row = {name: v for name, v in record.items() if name in scores}
            rows.append(ValidationRow(errors=CountErrors(**errors), **row))
    return rows


def _known(record: Record) -> Record:
    return {name: value for name, value in record.items() if value is not None}
