"""Allowances, caps and networks from calibration images, with the data they come from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pycc.defense.capping import block_sums
from pycc.defense.completed import CompletionModel
from pycc.defense.completion_net import CompletionNetwork
from pycc.defense.min_max import WindowGrid

MARGIN, FALSE_ALARMS = "margin", "rate of false alarms"
"""Kinds of numbers that are not people."""


def with_unit(kind: str, value: str) -> str:
    """Return a value of a calibrated number as text, with its unit.

    >>> with_unit("allowance", "4.5"), with_unit("margin", "2.1")
    ('4.5 people', '2.1 scales of a window')
    """
    unit = {MARGIN: "scales of a window", FALSE_ALARMS: ""}.get(kind, "people")
    return f"{value} {unit}".rstrip()


@dataclass(frozen=True)
class CalibratedNumber:
    """A number that a certificate needs, fixed on images other than the certified ones.

    >>> from pycc.certify import CalibratedNumber
    >>> number = CalibratedNumber("allowance", 4.0, "street, train", images=40, patch_size=20)
    >>> number.value, number.json()["source"]
    (4.0, 'street, train')
    """

    kind: str
    """``allowance``, ``cap``, ``block cap``, ``margin`` or ``rate of false alarms``."""
    value: float
    """Number of people in a window, a cell or a block of cells; a margin is one of scales of a
    window (``pycc.defense.alarmed``)."""
    source: str
    """The data that it was computed from, or ``given``."""
    images: int
    """Number of images that it was computed from; 0 for a given number."""
    patch_size: int | None = None
    """Side of the patch in pixels if the number depends on it."""
    counter: int | None = None
    """Index of the counter in an ensemble if the number depends on it."""

    def json(self) -> dict[str, str | float | int | None]:
        """Return it as a JSON object, a part of ``calibration.json``."""
        return asdict(self)


@dataclass(frozen=True)
class CompletionFacts:
    """What a completion network was fitted for and on, with a hash of its weights."""

    patch_size: int
    """Side of the patch in pixels."""
    counter: int
    """Index of the counter in an ensemble."""
    identity: str
    """Of the counter (``pycc.counters.identity``), options and geometry included."""
    source: str
    """The data that it was fitted on."""
    images: int
    """Number of images that it was fitted on."""
    reach: int
    """Cells per axis that the patch reaches."""
    step: int
    """Cells between windows."""
    weights: str
    method: str = "completion"
    """The certificate method that it serves."""


@dataclass(frozen=True)
class CalibratedCompletion:
    """A completion network, fitted on images other than the certified ones.

    >>> from pycc import certify, data, models
    >>> scenes = data.open("synthetic", split="train", shape=(96, 128), limit=2)
    >>> counter = models.load("mcnn-synthetic")
    >>> (fitted,) = certify.calibrate(counter, scenes, patch_sizes=[40]).completions
    >>> fitted.patch_size, fitted.model.grid.reach
    (40, 28)
    """

    model: CompletionModel
    patch_size: int
    """Side of the patch in pixels."""
    counter: int
    """Index of the counter in an ensemble."""
    identity: str
    """Of the counter (``pycc.counters.identity``), options and geometry included."""
    source: str
    """The data that it was fitted on."""
    images: int
    """Number of images that it was fitted on."""
    method: str = "completion"
    """The certificate method that it serves."""

    @property
    def facts(self) -> CompletionFacts:
        """Everything but the weights."""
        return CompletionFacts(
            self.patch_size, self.counter, self.identity, self.source, self.images,
            self.model.grid.reach, self.model.grid.step, self.model.network.digest, self.method,
        )  # fmt: skip

    def json(self) -> dict[str, object]:
        """Return it as a JSON object, a part of ``calibration.json``."""
        return {**asdict(self.facts), "weights": self.model.network.json()}

    @classmethod
    def of_json(cls, stored: Mapping[str, Any]) -> CalibratedCompletion:
        """Return what ``json`` describes; KeyError, TypeError or ValueError for anything else."""
        grid = WindowGrid(int(stored["reach"]), int(stored["step"]))
        return cls(
            CompletionModel(grid, CompletionNetwork.of_json(stored["weights"])),
            int(stored["patch_size"]), int(stored["counter"]), str(stored["identity"]),
            str(stored["source"]), int(stored["images"]),
            str(stored.get("method", cls.method)),
        )  # fmt: skip


@dataclass(frozen=True)
class Calibration:
    """What the certificates of a run take from other images than the certified ones.

    Returned by ``certify.calibrate``; a run folder stores it as ``calibration.json``. ValueError
    for numbers that are negative or not finite.

    >>> Calibration((CalibratedNumber("cap", 0.5, "given", 0),)).value("cap")
    0.5
    """

    numbers: tuple[CalibratedNumber, ...] = ()
    fill: tuple[float, float, float] | None = None
    """The colour of hidden pixels, RGB in [0,1], if a method hides any."""
    data: Mapping[str, int | str] | None = None
    """Fingerprint of the images (``pycc.data.dataset.data_fingerprint``), if any were needed."""
    completions: tuple[CalibratedCompletion, ...] = ()

    def __post_init__(self) -> None:
        values = [*(number.value for number in self.numbers), *(self.fill or ())]
        if not all(math.isfinite(value) and value >= 0 for value in values):
            raise ValueError("calibration: numbers must be finite and at least 0")

    def value(self, kind: str, patch_size: int | None = None, counter: int | None = None) -> float:
        """Return the number of this kind, patch size and counter; ValueError if it is missing."""
        for number in self.numbers:
            if (number.kind, number.patch_size, number.counter) == (kind, patch_size, counter):
                return number.value
        size = "" if patch_size is None else f" for {patch_size} pixels"
        which = "" if counter is None else f" and counter {counter + 1}"
        raise ValueError(f"calibration: the {kind}{size}{which} is missing; calibrate again")

    def completed(
        self, patch_size: int, counter: int = 0, *, method: str = "completion"
    ) -> CalibratedCompletion:
        """Return the completion of a method, patch size and counter; ValueError if missing."""
        fitted = [entry for entry in self.completions if entry.method == method]
        for entry in fitted:
            if (entry.patch_size, entry.counter) == (patch_size, counter):
                return entry
        sizes = sorted({entry.patch_size for entry in fitted})
        others = f" (there are those for {', '.join(map(str, sizes))})" if sizes else ""
        raise ValueError(
            f"calibration: the {method} network for {patch_size} pixels and counter "
            f"{counter + 1} is missing{others}; calibrate again"
        )

    def completion(
        self, *, patch_size: int, counter: int = 0, method: str = "completion"
    ) -> CompletionModel:
        """Return the completion of ``pycc.defense.completed``; ValueError if it is missing.

        That of ``pycc.defense.alarmed`` belongs to the method ``alarm``.
        """
        return self.completed(patch_size, counter, method=method).model

    @property
    def colour(self) -> tuple[float, float, float]:
        """``fill``; ValueError if it is missing."""
        if self.fill is None:
            raise ValueError("calibration: the colour of hidden pixels is missing; calibrate again")
        return self.fill

    def json(self) -> dict[str, object]:
        """Return the content of ``calibration.json``."""
        return {
            "numbers": [number.json() for number in self.numbers],
            "fill": self.fill,
            "data": self.data,
            "completions": [entry.json() for entry in self.completions],
        }

    @classmethod
    def load(cls, file: Path) -> Calibration:
        """Read a ``calibration.json``; ValueError that names the file for any other content."""
        try:
            stored = json.loads(file.read_text())
            fill = stored["fill"]
            if fill is not None:
                red, green, blue = map(float, fill)
                fill = red, green, blue
            numbers = tuple(CalibratedNumber(**number) for number in stored["numbers"])
            completions = map(CalibratedCompletion.of_json, stored.get("completions", ()))
            return cls(numbers, fill, stored["data"], tuple(completions))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file}: expected the calibration of a run, got {error}") from None


def cap_of(maps: Sequence[Tensor], *, block: int = 1, share: float = 0.9999) -> float:
    """Choose a cap such that the sums of this ``share`` of the training blocks do not exceed it.

    Blocks have ``block`` x ``block`` cells of the maps [h,w]; those with a sum of 0 are ignored.
    ValueError if no block remains, or for a share outside (0, 1].

    >>> import torch
    >>> from pycc.certify import cap_of
    >>> cells = torch.arange(16.0).reshape(4, 4) / 16
    >>> cap_of([cells], share=1.0), cap_of([cells], block=2, share=1.0)
    (0.9375, 3.125)
    """
    if not 0 < share <= 1:
        raise ValueError(f"certify: share must lie in (0, 1], got {share}")
    sums = [block_sums(cells[None].clamp(min=0.0), block).flatten() for cells in maps]
    people = torch.cat(sums).cpu().numpy() if sums else np.zeros(0)
    people = people[people > 0]
    if not len(people):
        raise ValueError("certify: a cap needs training cells that are not empty, got none")
    return float(np.quantile(people, share))
