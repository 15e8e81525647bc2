"""Checks on the arguments of certificates."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray


def counts_of(op: str, counts: ArrayLike, name: str = "counts") -> NDArray[np.float64]:
    """``counts`` as [n] float64; ValueError unless there are some, finite and not negative."""
    values = np.asarray(counts, np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"{op}: {name} must be [n] and not empty, got {list(values.shape)}")
    bad = values[~(np.isfinite(values) & (values >= 0))]
    if bad.size:
        raise ValueError(f"{op}: {name} must be finite and not negative, got {bad[0]}")
    return values


def whole(op: str, name: str, value: object, least: int, most: int | None = None) -> int:
    """``value`` as an int within [least, most]; ValueError or TypeError otherwise."""
    within = f"from {least} on" if most is None else f"within [{least}, {most}]"
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{op}: {name} must be a whole number {within}, got {value!r}")
    number = int(value)
    if number < least or (most is not None and number > most):
        raise ValueError(f"{op}: {name} must be a whole number {within}, got {number}")
    return number


def inside(op: str, name: str, value: float) -> float:
    """``value``; ValueError unless it lies inside (0, 1)."""
    if not 0.0 < value < 1.0:
        raise ValueError(f"{op}: {name} must be inside (0, 1), got {value}")
    return float(value)


def share(op: str, exposure: float) -> float:
    """``exposure``; ValueError unless it lies within [0, 1]."""
    if not 0.0 <= exposure <= 1.0:
        raise ValueError(f"{op}: exposure must be within [0, 1], got {exposure}")
    return float(exposure)


def shared_by(op: str, images: int) -> int:
    """``images``, among which an error probability is shared out."""
    return whole(op, "images", images, 1)


def confidence_left(op: str, alpha: float, beta: float) -> float:
    """1 - alpha - beta; ValueError where nothing is left."""
    if not inside(op, "alpha", alpha) + inside(op, "beta", beta) < 1.0:
        raise ValueError(f"{op}: alpha + beta must be below 1, got {alpha} + {beta}")
    return math.fsum((1.0, -alpha, -beta))
