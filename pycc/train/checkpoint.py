"""Checkpoints: a training that is killed anywhere continues from one with the same bits."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from torch import Tensor

from pycc.checks import lacks_memory
from pycc.runs import Record, check_same, write_atomic

NAME = "checkpoint.pt"


@dataclass
class TrainState:
    """The progress of a training; with the weights all that a checkpoint needs."""

    epoch: int = 0
    batch: int = 0
    """Batches of this epoch that are done."""
    loss: float = 0.0
    """Sum of this epoch's losses so far."""
    norm: float = 0.0
    """Sum of the norms of its gradients."""
    seconds: float = 0.0
    """Spent on this training so far, by all processes that continued it."""
    began: float = 0.0
    """Those at this epoch's first batch."""
    best: float = math.inf
    """Least score of a validation under the recipe."""
    best_epoch: int = -1
    """The epoch of that validation; the last epoch if nothing validates."""
    errors: dict[str, float] = field(default_factory=dict)
    """Errors of that validation, by the names of ``results.BestErrors``."""
    stale: int = 0
    """Validations since then."""
    allowance: float | None = None
    """That of the masked count whose certified error is the loss (recipe ``certified``)."""


@dataclass(frozen=True)
class Checkpoint:
    """The state that a training needs to continue."""

    made_with: Record
    """The settings and fingerprints of the training, as its manifest has them."""
    state: TrainState
    model: Mapping[str, Tensor]
    optimiser: Record
    number: int
    """The optimiser's number in the recipe."""
    average: Mapping[str, Tensor] | None
    """The running mean of the weights."""
    best: Mapping[str, Tensor]
    """The best weights of the network so far."""

    def content(self) -> Record:
        """Return the object that ``save`` writes."""
        return {**vars(self), "state": vars(self.state)}

    @classmethod
    def of(cls, content: Record) -> Checkpoint:
        """Read the result of ``load``; KeyError or TypeError if it is of something else."""
        values = {entry.name: content[entry.name] for entry in fields(cls)}
        return cls(**{**values, "state": TrainState(**content["state"])})


def save(folder: Path, content: Mapping[str, object]) -> None:
    """Write a checkpoint as a whole: the one before stays until the new one is complete.

    OSError if it cannot be written, such as on a full disk.
    """
    write(folder / NAME, content)


def write(file: Path, content: Mapping[str, object]) -> None:
    """Write what ``torch.load`` reads back, as a whole; OSError as of ``save``."""
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    write_atomic(file, buffer.getvalue())


def load(folder: Path, made_with: Record) -> Record | None:
    """The content of the folder's checkpoint, on the CPU; None if it has none yet.

    Its entry ``made_with`` must be as given: the settings and fingerprints of the training.
    ValueError for a file that is damaged, belongs to another training, or has other settings (the
    message names them).
    """
    file = folder / NAME
    if not file.exists():
        return None
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    # On a damaged file torch, zipfile and the unpickler fail with any type.
    except Exception as error:
        if lacks_memory(error):
            raise
        raise ValueError(f"{file}: cannot be read as a checkpoint") from None
    if not isinstance(content, dict) or not isinstance(content.get("made_with"), dict):
        raise ValueError(f"{file}: not a checkpoint of this trainer")
    check_same(file, content["made_with"], made_with)
    return content
