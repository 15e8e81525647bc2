"""Measures of counting error: pure functions of counts, computed in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


def _pair(
    name: str, first: tuple[str, ArrayLike], second: tuple[str, ArrayLike]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both arguments as finite, non-empty float64 vectors of one length."""
    a, b = (np.asarray(values, np.float64) for _, values in (first, second))
    if a.ndim != 1 or a.shape != b.shape or a.size == 0:
        raise ValueError(
            f"{name}: {first[0]} and {second[0]} must be non-empty and of one length, "
            f"got {list(a.shape)} and {list(b.shape)}"
        )
    for label, values in ((first[0], a), (second[0], b)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name}: {label} must be finite, got {values[~np.isfinite(values)]}")
    return a, b


def mae(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Mean absolute error, in people: mean |predicted − truth| over [N] images."""
    a, b = _pair("mae", ("truth", truth), ("predicted", predicted))
    return float(np.abs(b - a).mean())


def rmse(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Root of the mean squared error, in people, over [N] images.

    Much of the field's literature prints this number under the name MSE.
    """
    a, b = _pair("rmse", ("truth", truth), ("predicted", predicted))
    return float(np.sqrt(np.square(b - a).mean()))


def bias(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Mean signed error, in people: positive where a counter counts too many."""
    a, b = _pair("bias", ("truth", truth), ("predicted", predicted))
    return float((b - a).mean())


@dataclass(frozen=True)
class ErrorRate:
    """The error rate π over a set of images."""

    percent: float | None
    """Mean over the images where it is defined; None where it is defined on none."""
    undefined: int
    """Number of images whose clean prediction is 0: π has no value there."""


def error_rate(clean: ArrayLike, attacked: ArrayLike) -> ErrorRate:
    """Error rate π = |y − ŷ| / |y| · 100 % of APAM (arXiv 2104.10868, physical attack).

    ``clean`` [N] holds the predictions y on the clean images (not the annotated counts),
    ``attacked`` [N] the predictions ŷ on the same images under attack. Images with y = 0 are
    excluded from the mean and counted.
    """
    y, attacked_y = _pair("error_rate", ("clean", clean), ("attacked", attacked))
    defined = y != 0
    undefined = int(np.count_nonzero(~defined))
    if undefined == y.size:
        return ErrorRate(None, undefined)
    share = np.abs(y[defined] - attacked_y[defined]) / np.abs(y[defined])
    return ErrorRate(float(100 * share.mean()), undefined)


def mean_count(predicted: ArrayLike) -> float:
    """Mean count, in people, over [N] images."""
    values, _ = _pair("mean_count", ("predicted", predicted), ("predicted", predicted))
    return float(values.mean())


def bootstrap(
    values: ArrayLike, *, level: float = 0.95, samples: int = 2000
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of [N] values (Efron, 1979).

    The resampling is fixed, so that the same values give the same interval. One value gives itself
    twice. Says how far the mean depends on which images were at hand, nothing else.
    """
    found, _ = _pair("bootstrap", ("values", values), ("values", values))
    generator = np.random.Generator(np.random.PCG64(0))
    chosen = generator.integers(0, len(found), (samples, len(found)))
    low, high = np.quantile(found[chosen].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
