"""Training: one trainer for every counter, and the recipes that make counters robust."""

from pycc.train.config import TrainConfig, origin_of, resolved
from pycc.train.loop import fit
from pycc.train.results import (
    BestErrors,
    CountErrors,
    EpochRow,
    TrainRun,
    TrainSummary,
    ValidationRow,
)
from pycc.train.step import NotFiniteError

__all__ = [
    "BestErrors",
    "CountErrors",
    "EpochRow",
    "NotFiniteError",
    "TrainConfig",
    "TrainRun",
    "TrainSummary",
    "ValidationRow",
    "fit",
    "origin_of",
    "resolved",
]
