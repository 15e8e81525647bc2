"""Allowances and caps from training data, with where they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pycc.defense.capping import block_sums
from pycc.defense.masking import masked_bounds
from pycc.defense.windows import window_sums

_STEPS = 60
"""Allowances that are tried."""
_FLAT = 1.002
"""How far from the least error an allowance may be."""


@dataclass(frozen=True)
class Calibration:
    """A number that a certificate needs, fixed on images that are not the certified ones."""

    kind: str
    """``allowance``, ``cap`` or ``block cap``."""
    value: float
    """People: in a window, a cell or a block of cells."""
    source: str
    """The data it was fixed on."""
    images: int
    """How many."""

    def json(self) -> Mapping[str, object]:
        """As a run's folder keeps it."""
        return {
            "kind": self.kind, "value": self.value, "source": self.source, "images": self.images
        }  # fmt: skip


def allowance_of(
    maps: Sequence[Tensor], truths: Sequence[float], windows: Sequence[tuple[int, int]]
) -> float:
    """The allowance with the least mean certified error over training images.

    ``maps`` [h,w] of people per cell, ``truths`` the annotated counts, ``windows`` what a patch can
    touch in each. Tried are 0 and values from 1 person to the fullest window's on a geometric
    scale. The error is flat around its least; of the allowances within 0.2 % of it the
    largest is taken, which masks least of a clean count. ValueError for no images or lists of
    different lengths.
    """
    if not maps or not len(maps) == len(truths) == len(windows):
        raise ValueError(
            f"certify: an allowance needs as many maps as counts and windows, got {len(maps)}, "
            f"{len(truths)} and {len(windows)}"
        )
    fullest = [float(window_sums(m[None], w).max()) for m, w in zip(maps, windows, strict=True)]
    tried = np.unique([0.0, *np.geomspace(1.0, max(2.0, *fullest), _STEPS - 1)])
    errors = np.zeros((len(maps), len(tried)))
    for row, (one, truth, window) in enumerate(zip(maps, truths, windows, strict=True)):
        for column, value in enumerate(tried):
            bounds = masked_bounds(one[None], window, float(value))
            low, high = max(0.0, float(bounds.low[0])), float(bounds.high[0])
            errors[row, column] = max(abs(high - truth), abs(low - truth))
    mean = errors.mean(0)
    return float(tried[mean <= _FLAT * mean.min()].max())


def cap_of(maps: Sequence[Tensor], *, block: int = 1, share: float = 0.9999) -> float:
    """A cap on ``block`` x ``block`` cells: this ``share`` of all training blocks lie below it.

    Of the maps [h,w] the blocks with anyone in them are looked at, cells for ``block`` 1.
    ValueError for none of them, or a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"certify: share must lie in (0, 1], got {share}")
    sums = [block_sums(one[None].clamp(min=0.0), block).flatten() for one in maps]
    held = torch.cat(sums).cpu().numpy() if sums else np.zeros(0)
    held = held[held > 0]
    if not len(held):
        raise ValueError("certify: a cap needs training cells with somebody in them, got none")
    return float(np.quantile(held, share))
