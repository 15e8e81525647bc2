"""Measures of counting error: pure functions of counts, density maps and head annotations."""

from __future__ import annotations

import itertools
import math
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
    "game",
    "mae",
    "mae_by_group",
    "mean_count",
    "psnr",
    "rmse",
    "ssim",
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
    for label, values in ((first[0], a), (second[0], b)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name}: {label} must be finite, got {values[~np.isfinite(values)]}")
    return a, b


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
    values, _ = _pair("mean_count", ("predicted", predicted), ("predicted", predicted))
    return float(values.mean())


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
    finite, _ = _pair("bootstrap", ("values", values), ("values", values))
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


def game(
    points: ArrayLike,
    predicted: ArrayLike,
    shape: tuple[int, int],
    *,
    level: int,
    stride: int | None = None,
) -> float:
    """Compute the grid average mean error GAME(L) of one image, in people.

    The image is cut into 2^L x 2^L equal regions, and the absolute errors of the regions' counts
    are summed. GAME(0) is the absolute error of the count; GAME(L) does not decrease in L. The GAME
    of a data set is the mean over its images. Annotated heads are counted directly; no true density
    map is made or resized.

    Args:
        points: [M,2] heads (x, y), in pixels. A head on a border belongs to the region right of
            (or below) it, a head outside the image to the nearest region.
        predicted: [h,w] density map in people per cell. Each cell is spread evenly over its pixels,
            so that a border divides it in proportion.
        shape: (H, W) of the image, in pixels.
        level: L, 0 to 10.
        stride: side of a cell in pixels (the last cell of a row or column may be cut off by the
            image); None if the map spans the image.

    Raises:
        ValueError: an argument of another shape, values that are not finite, a level out of range,
            or a map that does not fit to shape and stride.

    Source:
        Guerrero-Gómez-Olmedo et al., "Extremely Overlapping Vehicle Counting", 2015.

    Example:
        >>> import numpy as np
        >>> from pycc import metrics
        >>> density = np.array([[0.0, 1.0], [0.0, 0.0]])
        >>> [metrics.game([[1.0, 1.0]], density, (8, 8), level=level) for level in (0, 1)]
        [0.0, 2.0]
    """
    height, width = shape
    heads, density = np.asarray(points, np.float64), np.asarray(predicted, np.float64)
    if heads.size == 0:
        heads = heads.reshape(0, 2)
    if heads.ndim != 2 or heads.shape[1] != 2:
        raise ValueError(f"game: points must be [M,2] (x, y), got {list(heads.shape)}")
    if not np.isfinite(heads).all():
        raise ValueError("game: points must be finite, got NaN or infinity")
    _check_map("game", "predicted", density)
    if min(height, width) < 1:
        raise ValueError(f"game: shape must be positive, got {height} x {width}")
    if not isinstance(level, int) or isinstance(level, bool) or not 0 <= level <= 10:
        raise ValueError(f"game: level must be an integer in 0…10, got {level!r}")
    sides = 2**level
    rows = _shares(height, density.shape[0], sides, stride)
    columns = _shares(width, density.shape[1], sides, stride)
    counted = rows @ density @ columns.T
    # Clipped before the cast: the integer of a head far outside would overflow.
    region = np.clip(np.floor(heads * sides / (width, height)), 0, sides - 1).astype(np.int64)
    truth = np.bincount(region[:, 1] * sides + region[:, 0], minlength=sides * sides)
    return float(np.abs(counted.ravel() - truth).sum())


def _shares(size: int, cells: int, regions: int, stride: int | None) -> NDArray[np.float64]:
    """Return the share [regions,cells] of each cell that lies in each region along one axis."""
    if stride is None:
        ends = np.arange(cells + 1) * (size / cells)
    elif stride < 1 or not size // stride <= cells <= -(-size // stride):
        raise ValueError(
            f"game: stride {stride} does not make {cells} cells of {size} pixels; "
            "predicted must be the map of an image of that shape"
        )
    else:
        ends = np.minimum(np.arange(cells + 1) * float(stride), size)
    borders = np.arange(regions + 1) * (size / regions)
    starts = np.maximum(borders[:-1, None], ends[None, :-1])
    stops = np.minimum(borders[1:, None], ends[None, 1:])
    return np.asarray(np.maximum(stops - starts, 0.0) / np.diff(ends), np.float64)


def _check_map(name: str, label: str, values: NDArray[np.float64]) -> None:
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"{name}: {label} must be a map [h,w], got {list(values.shape)}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: {label} must be finite, got NaN or infinity")


def _maps(
    name: str, truth: ArrayLike, predicted: ArrayLike, data_range: float | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both maps [h,w] divided by the data range."""
    a, b = np.asarray(truth, np.float64), np.asarray(predicted, np.float64)
    for label, values in (("truth", a), ("predicted", b)):
        _check_map(name, label, values)
    if a.shape != b.shape:
        raise ValueError(
            f"{name}: truth and predicted must be of one shape, got {list(a.shape)} "
            f"and {list(b.shape)}"
        )
    span = float(a.max()) if data_range is None else float(data_range)
    if not 0 < span < math.inf:
        what = "data_range" if data_range is not None else "truth's maximum, its data range,"
        raise ValueError(f"{name}: {what} must be positive and finite, got {span:g}")
    return a / span, b / span


def psnr(truth: ArrayLike, predicted: ArrayLike, *, data_range: float | None = None) -> float:
    """Compute the peak signal-to-noise ratio of a density map: 10 log10(L² / mean squared error).

    Papers on counting (CSRNet, Li et al. 2018) compare maps that are enlarged to the image and
    divided by their own maxima. To compare with their numbers, do this first and pass
    ``data_range=1``.

    Args:
        truth: [h,w] true density map.
        predicted: [h,w] predicted density map, in the same unit.
        data_range: L, above 0; by default the maximum of ``truth`` (densities start at 0).

    Returns:
        The ratio in dB; infinite for equal maps.

    Raises:
        ValueError: maps of different shapes, empty or not finite; a true map without people if no
            data range is given.

    Example:
        >>> import numpy as np
        >>> from pycc import metrics
        >>> round(metrics.psnr(np.eye(4), 0.9 * np.eye(4)), 2)
        26.02
    """
    a, b = _maps("psnr", truth, predicted, data_range)
    error = float(np.square(b - a).mean())
    return math.inf if error == 0 else -10 * math.log10(error)


def ssim(truth: ArrayLike, predicted: ArrayLike, *, data_range: float | None = None) -> float:
    """Compute the structural similarity of a density map.

    It uses means, variances and the covariance in a Gaussian window of 11x11 cells with σ = 1.5,
    K1 = 0.01, K2 = 0.03, and returns the mean over all windows inside the map. Arguments, and the
    way to reproduce published numbers, are those of :func:`psnr`.

    Returns:
        The similarity, at most 1; 1 for equal maps.

    Raises:
        ValueError: as :func:`psnr`, and for maps with a side of fewer than 11 cells.

    Source:
        Wang et al., "Image quality assessment: from error visibility to structural similarity",
        2004, eq. 13.

    Example:
        >>> import numpy as np
        >>> from pycc import metrics
        >>> metrics.ssim(np.eye(12), np.eye(12))
        1.0
    """
    x, y = _maps("ssim", truth, predicted, data_range)
    if min(x.shape) < _WINDOW.size:
        raise ValueError(f"ssim: maps must be at least 11x11, got {x.shape[0]}x{x.shape[1]}")
    mean_x, mean_y = _smoothed(x), _smoothed(y)
    variances = _smoothed(x * x) - mean_x * mean_x + (_smoothed(y * y) - mean_y * mean_y)
    covariance = _smoothed(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    return float((luminance * ((2 * covariance + c2) / (variances + c2))).mean())


_WINDOW: NDArray[np.float64] = np.exp(-np.square(np.arange(-5.0, 6.0)) / (2 * 1.5**2))
_WINDOW /= _WINDOW.sum()


def _smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the Gaussian means [h-10,w-10] over the windows inside a map [h,w]."""
    for axis in (0, 1):
        windows = np.lib.stride_tricks.sliding_window_view(values, _WINDOW.size, axis=axis)
        values = np.asarray(windows @ _WINDOW, np.float64)
    return values
