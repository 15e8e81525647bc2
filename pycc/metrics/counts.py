"""Measures of counting error over a set of images: pure functions of counts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "DensityLevel",
    "ErrorRate",
    "bias",
    "bootstrap",
    "density_levels",
    "error_rate",
    "mae",
    "mae_by_group",
    "mean_count",
    "rmse",
]


def _pair(
    name: str, first: tuple[str, ArrayLike], second: tuple[str, ArrayLike]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both arguments as float64 vectors; they must be finite, non-empty, of one length."""
    a, b = (np.asarray(values, np.float64) for _, values in (first, second))
    if a.ndim != 1 or a.shape != b.shape or a.size == 0:
        raise ValueError(
            f"{name}: {first[0]} and {second[0]} must be non-empty and of one length, "
            f"got {list(a.shape)} and {list(b.shape)}"
        )
    return _finite(name, first[0], a), _finite(name, second[0], b)


def _vector(name: str, label: str, values: ArrayLike) -> NDArray[np.float64]:
    """Return the argument as a float64 vector; it must be finite and non-empty."""
    vector = np.asarray(values, np.float64)
    if vector.ndim != 1 or vector.size == 0:
        raise ValueError(f"{name}: {label} must be [N] and non-empty, got {list(vector.shape)}")
    return _finite(name, label, vector)


def _finite(name: str, label: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: {label} must be finite, got {values[~np.isfinite(values)]}")
    return values


def mae(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Compute the mean absolute error, in people: mean |predicted − truth| over [N] images.

    Args:
        truth: [N] annotated counts.
        predicted: [N] predicted counts.

    Raises:
        ValueError: arguments that are empty, of different lengths, or not finite.

    Example:
        >>> from pycc import metrics
        >>> metrics.mae([100, 50], [110, 48])
        6.0
    """
    a, b = _pair("mae", ("truth", truth), ("predicted", predicted))
    return float(np.abs(b - a).mean())


def rmse(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Compute the root of the mean squared error, in people, over [N] images.

    Most papers on crowd counting call this number MSE. Arguments and errors are those of
    :func:`mae`.

    Example:
        >>> from pycc import metrics
        >>> metrics.rmse([100, 50], [107, 51])
        5.0
    """
    a, b = _pair("rmse", ("truth", truth), ("predicted", predicted))
    return float(np.sqrt(np.square(b - a).mean()))


def bias(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Compute the mean signed error, in people: mean (predicted − truth) over [N] images.

    It is positive if a counter overcounts on average. Arguments and errors are those of
    :func:`mae`.

    Example:
        >>> from pycc import metrics
        >>> metrics.bias([100, 50], [110, 48])
        4.0
    """
    a, b = _pair("bias", ("truth", truth), ("predicted", predicted))
    return float((b - a).mean())


@dataclass(frozen=True)
class ErrorRate:
    """The mean error rate π of a set of images, as :func:`error_rate` returns it.

    Example:
        >>> from pycc import metrics
        >>> metrics.ErrorRate(percent=12.5, undefined=0).percent
        12.5
    """

    percent: float | None
    """Mean in percent over the images for which π is defined; None if there are none."""
    undefined: int
    """Number of images whose clean prediction is 0, for which π is undefined."""


def error_rate(clean: ArrayLike, attacked: ArrayLike) -> ErrorRate:
    """Compute the mean error rate π = |y − ŷ| / |y| · 100 % of [N] images.

    Images with y = 0 are excluded from the mean and counted.

    Args:
        clean: [N] predictions y for the clean images (not the annotated counts), in people.
        attacked: [N] predictions ŷ for the same images under attack, in people.

    Raises:
        ValueError: arguments that are empty, of different lengths, or not finite.

    Source:
        Wu et al. (APAM, arXiv 2104.10868), the measure of the physical attack.

    Example:
        >>> from pycc import metrics
        >>> metrics.error_rate([100.0, 50.0, 0.0], [150.0, 45.0, 3.0])
        ErrorRate(percent=30.0, undefined=1)
    """
    y, attacked_y = _pair("error_rate", ("clean", clean), ("attacked", attacked))
    defined = y != 0
    undefined = int(np.count_nonzero(~defined))
    if undefined == y.size:
        return ErrorRate(None, undefined)
    share = np.abs(y[defined] - attacked_y[defined]) / np.abs(y[defined])
    return ErrorRate(float(100 * share.mean()), undefined)


def mean_count(predicted: ArrayLike) -> float:
    """Compute the mean of [N] counts, in people.

    Raises:
        ValueError: counts that are empty, not [N], or not finite.

    Example:
        >>> from pycc import metrics
        >>> metrics.mean_count([100, 50])
        75.0
    """
    return float(_vector("mean_count", "predicted", predicted).mean())


def bootstrap(
    values: ArrayLike, *, level: float = 0.95, samples: int = 2000
) -> tuple[float, float]:
    """Compute the percentile bootstrap interval of the mean of [N] values.

    The random resampling is fixed, so that equal values give equal intervals. The interval
    describes how much the mean depends on the choice of images, and nothing else.

    Args:
        values: [N] finite values.
        level: nominal probability of the two-sided interval, within (0, 1).
        samples: number of resamples.

    Returns:
        The ends (low, high), in the unit of the values; equal if N is 1.

    Raises:
        ValueError: values that are empty, not [N], or not finite.

    Source:
        Efron, "Bootstrap methods: another look at the jackknife", 1979.

    Example:
        >>> from pycc import metrics
        >>> metrics.bootstrap([7.0]), metrics.bootstrap([7.0, 7.0, 7.0])
        ((7.0, 7.0), (7.0, 7.0))
        >>> low, high = metrics.bootstrap([1.0, 2.0, 3.0, 4.0])
        >>> 1.0 <= low < 2.5 < high <= 4.0
        True
    """
    finite = _vector("bootstrap", "values", values)
    generator = np.random.Generator(np.random.PCG64(0))
    chosen = generator.integers(0, len(finite), (samples, len(finite)))
    low, high = np.quantile(finite[chosen].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mae_by_group(truth: ArrayLike, predicted: ArrayLike, groups: Sequence[str]) -> dict[str, float]:
    """Compute the mean absolute error, in people, of each group of images.

    For WorldExpo'10, papers report the mean of the errors of its scenes, whatever the scenes'
    numbers of images.

    Args:
        truth: [N] annotated counts.
        predicted: [N] predicted counts.
        groups: the name of the group of each of the [N] images.

    Returns:
        The error by name, in the order in which the groups first appear.

    Raises:
        ValueError: as :func:`mae`, and for a number of groups other than N.

    Example:
        >>> from pycc import metrics
        >>> metrics.mae_by_group([10, 20, 30], [11, 18, 30], ["east", "west", "west"])
        {'east': 1.0, 'west': 1.0}
    """
    a, b = _pair("mae_by_group", ("truth", truth), ("predicted", predicted))
    if len(groups) != len(a):
        raise ValueError(
            f"mae_by_group: groups must be one per image, got {len(groups)} of {len(a)}"
        )
    errors: dict[str, list[float]] = {}
    for name, error in zip(groups, np.abs(b - a), strict=True):
        errors.setdefault(name, []).append(error)
    return {name: float(np.mean(group)) for name, group in errors.items()}


@dataclass(frozen=True)
class DensityLevel:
    """The counting error of the images of one level of density, from :func:`density_levels`.

    Example:
        >>> from pycc import metrics
        >>> metrics.DensityLevel(low=0.0, high=300.0, images=2, mae=6.0).images
        2
    """

    low: float
    high: float
    """Bounds of the true count, in people: low < count <= high; the first level contains low."""
    images: int
    """Number of images of the level."""
    mae: float | None
    """Mean absolute error, in people; None if the level has no image."""


def density_levels(
    truth: ArrayLike,
    predicted: ArrayLike,
    levels: int | Sequence[float],
    *,
    equal: Literal["images", "width"] = "images",
) -> list[DensityLevel]:
    """Compute the mean absolute error of images grouped by their true count.

    Args:
        truth: [N] annotated counts.
        predicted: [N] predicted counts.
        levels: the bounds of the levels, in people, or a number of levels. The bounds
            ``(0, 300, 700, math.inf)`` give the low, middle and high crowds of mask-aware networks
            (Jiang et al. 2019, Figure 6; 1-300, 301-700, more).
        equal: what the levels have in common if ``levels`` is a number. ``"images"``: their number
            of images (up to one), as in Zhang et al. 2016 (MCNN); ``low`` and ``high`` are then the
            smallest and largest count of a level, both included, and images of equal counts may
            fall into different levels. ``"width"``: their width, between the smallest and the
            largest count.

    Returns:
        The levels, from the lowest counts to the highest.

    Raises:
        ValueError: as :func:`mae`; for bounds that do not increase or do not contain all true
            counts, and for more levels than images.

    Example:
        >>> import math
        >>> from pycc import metrics
        >>> levels = metrics.density_levels([10, 500, 600], [12, 500, 610], (0, 300, math.inf))
        >>> [(level.images, level.mae) for level in levels]
        [(1, 2.0), (2, 5.0)]
    """
    a, b = _pair("density_levels", ("truth", truth), ("predicted", predicted))
    errors = np.abs(b - a)
    if equal not in ("images", "width"):
        raise ValueError(f"density_levels: equal must be 'images' or 'width', got {equal!r}")
    if isinstance(levels, int):
        if isinstance(levels, bool) or not 1 <= levels <= a.size:
            raise ValueError(
                f"density_levels: levels must be 1…{a.size} for {a.size} images, got {levels}"
            )
        if equal == "images":
            groups = np.array_split(np.argsort(a, kind="stable"), levels)
            return [_level(a[group].min(), a[group].max(), errors[group]) for group in groups]
        bounds = np.linspace(a.min(), a.max(), levels + 1)
    else:
        bounds = np.asarray(levels, np.float64)
    if bounds.ndim != 1 or bounds.size < 2 or not (bounds[1:] > bounds[:-1]).all():
        raise ValueError(
            f"density_levels: bounds must be two or more, increasing, got {bounds.tolist()}"
        )
    if not (bounds[0] <= a.min() and a.max() <= bounds[-1]):
        raise ValueError(
            f"density_levels: bounds must contain all true counts ({a.min():g}…{a.max():g}), "
            f"got {bounds[0]:g}…{bounds[-1]:g}"
        )
    level = np.maximum(np.searchsorted(bounds, a, side="left") - 1, 0)
    between = enumerate(itertools.pairwise(bounds.tolist()))
    return [_level(low, high, errors[level == k]) for k, (low, high) in between]


def _level(low: float, high: float, errors: NDArray[np.float64]) -> DensityLevel:
    mean = float(errors.mean()) if errors.size else None
    return DensityLevel(float(low), float(high), int(errors.size), mean)
