"""Helpers of certificates from many counts of one image: kinds of ablation, checks, rounding."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pycc.certify.maps import rounding_room
from pycc.defense.ablated_maps import Bands, Blocks, Kind, Pixels
from pycc.types import Interval


def kind_of(k: int | None, band: int | None, block: int | None) -> Kind:
    """Return the part that a draw keeps; ValueError unless exactly one of the three is given."""
    kinds: list[Kind] = []
    kinds += [Pixels(k)] if k is not None else []
    kinds += [Bands(band)] if band is not None else []
    kinds += [Blocks(block)] if block is not None else []
    if len(kinds) != 1:
        raise ValueError("certify: expected one of k, band and block")
    return kinds[0]


def nonnegative(counts: Tensor) -> NDArray[np.float64]:
    """Return counts as float64; ValueError if one is negative."""
    least = float(counts.min())
    if least < 0:
        raise ValueError(
            f"certify: counts must not be negative, got {least:.3g}; count with "
            "pycc.defense.clipped(counter)"
        )
    values: NDArray[np.float64] = counts.double().cpu().numpy()
    return values


def widened(interval: Interval) -> Interval:
    """Widen an interval by the rounding errors of counts in batches of other shapes."""
    low, high = interval.low, interval.high
    above = rounding_room(high) if math.isfinite(high) else 0.0
    return replace(interval, low=max(0.0, low - rounding_room(low)), high=high + above)
