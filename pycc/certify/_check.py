"""Checks on the arguments of certificates."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray


def counts_of(op: str, counts: ArrayLike, name: str = "counts") -> NDArray[np.float64]:
    """Return ``counts`` as [n] float64; ValueError if empty, negative or not finite."""
    values = np.asarray(counts, np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"{op}: {name} must be [n] and not empty, got {list(values.shape)}")
    bad = values[~(np.isfinite(values) & (values >= 0))]
    if bad.size:
        raise ValueError(f"{op}: {name} must be finite and not negative, got {bad[0]}")
    return values


def inside(op: str, name: str, value: float) -> float:
    """Return ``value`` if it lies inside (0, 1); else raise ValueError."""
    if not 0.0 < value < 1.0:
        raise ValueError(f"{op}: {name} must be inside (0, 1), got {value}")
    return float(value)


def share(op: str, exposure: float) -> float:
    """Return ``exposure`` if it lies within [0, 1]; else raise ValueError."""
    if not 0.0 <= exposure <= 1.0:
        raise ValueError(f"{op}: exposure must be within [0, 1], got {exposure}")
    return float(exposure)


def confidence_left(op: str, alpha: float, beta: float) -> float:
    """Return 1 - alpha - beta; ValueError unless it is above 0."""
    if not inside(op, "alpha", alpha) + inside(op, "beta", beta) < 1.0:
        raise ValueError(f"{op}: alpha + beta must be below 1, got {alpha} + {beta}")
    return math.fsum((1.0, -alpha, -beta))
