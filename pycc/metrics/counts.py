"""Measures of counting error: pure functions of counts, maps and heads, computed in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

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


def mae_by_group(truth: ArrayLike, predicted: ArrayLike, groups: Sequence[str]) -> dict[str, float]:
    """Mean absolute error, in people, of each group of images, by name, as they first come.

    ``groups`` names that of each of the [N] images. What is published of WorldExpo'10 is the mean
    of its scenes' errors, whatever their numbers of images.
    """
    a, b = _pair("mae_by_group", ("truth", truth), ("predicted", predicted))
    if len(groups) != len(a):
        raise ValueError(
            f"mae_by_group: groups must be one an image, got {len(groups)} of {len(a)}"
        )
    errors: dict[str, list[float]] = {}
    for name, error in zip(groups, np.abs(b - a), strict=True):
        errors.setdefault(name, []).append(error)
    return {name: float(np.mean(found)) for name, found in errors.items()}


@dataclass(frozen=True)
class DensityLevel:
    """The counting error over the images of one level of density."""

    low: float
    high: float
    """True counts of the level: low < count <= high (low itself belongs to the first level)."""
    images: int
    mae: float | None
    """Mean absolute error, in people; None where the level has no image."""


def density_levels(
    truth: ArrayLike,
    predicted: ArrayLike,
    levels: int | Sequence[float],
    *,
    equal: Literal["images", "width"] = "images",
) -> list[DensityLevel]:
    """Mean absolute error by how crowded images are, over [N] true and predicted counts.

    ``levels`` are the bounds, in people: ``(0, 300, 700, math.inf)`` gives the low, middle and
    high crowds of mask-aware networks (Jiang et al. 2019, Figure 6; 1-300, 301-700, more). An
    integer asks for so many levels made from the true counts: with equal numbers of ``"images"``
    (up to one), as Zhang et al. 2016 (MCNN) group theirs, where ``low`` and ``high`` are the
    smallest and largest count of a level, both in it, and equal counts may be parted; or of equal
    ``"width"`` between the smallest and the largest count. ValueError for bounds that do not
    rise or do not hold all true counts, and for more levels than images.
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
            f"density_levels: bounds must be two or more, rising, got {bounds.tolist()}"
        )
    if not (bounds[0] <= a.min() and a.max() <= bounds[-1]):
        raise ValueError(
            f"density_levels: bounds must hold all true counts ({a.min():g}…{a.max():g}), "
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
    """Grid average mean error GAME(L) of one image, in people; over images take the mean.

    Guerrero-Gómez-Olmedo et al., "Extremely Overlapping Vehicle Counting", 2015: the image is cut
    into 2^L x 2^L equal regions, and the absolute errors of the regions' counts are summed.
    GAME(0) is the absolute error of the count; GAME(L) never falls with L.

    ``points`` [M,2] are the heads (x, y) in pixels of the image of ``shape`` (H, W); they are
    counted, no true map is made or resized. A head on a border belongs to the region right of (or
    below) it, one outside the image to the region nearest. ``predicted`` [h,w] is a density map
    in people per cell: each cell is spread evenly over its pixels, so that a border through it
    divides it in proportion. Cells have ``stride`` pixels a side (a last one the image ends in may
    have fewer); None: the map spans the image.
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
    # Clipped as a float: the integer would overflow far outside.
    region = np.clip(np.floor(heads * sides / (width, height)), 0, sides - 1).astype(np.int64)
    truth = np.bincount(region[:, 1] * sides + region[:, 0], minlength=sides * sides)
    return float(np.abs(counted.ravel() - truth).sum())


def _shares(size: int, cells: int, regions: int, stride: int | None) -> NDArray[np.float64]:
    """Share [regions,cells] of each cell that lies in each of the equal regions of a side."""
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
    """Both maps [h,w] as shares of the data range."""
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
    """Peak signal-to-noise ratio of a density map [h,w], in dB: 10 log10(L² / mean squared error).

    The data range L is by default the true map's maximum (densities start at 0). Infinite for
    equal maps. Papers on counting (CSRNet, Li et al. 2018) compare maps enlarged to the image and
    divided by their own maxima: do so first, and give ``data_range=1``, for numbers like theirs.
    ValueError for a true map without people, unless the data range is given.
    """
    a, b = _maps("psnr", truth, predicted, data_range)
    error = float(np.square(b - a).mean())
    return math.inf if error == 0 else -10 * math.log10(error)


def ssim(truth: ArrayLike, predicted: ArrayLike, *, data_range: float | None = None) -> float:
    """Structural similarity of a density map [h,w]: at most 1, which equal maps have.

    Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004,
    eq. 13: means, variances and covariance in a Gaussian window of 11x11 cells with σ = 1.5,
    K1 = 0.01, K2 = 0.03; the mean over all windows inside the map. The data range is that of
    ``psnr``, and what is said there of the literature's numbers holds here. ValueError also for a
    map of fewer than 11 cells a side.
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
    """Gaussian means [h-10,w-10] over the windows inside a map [h,w]."""
    for axis in (0, 1):
        windows = np.lib.stride_tricks.sliding_window_view(values, _WINDOW.size, axis=axis)
        values = np.asarray(windows @ _WINDOW, np.float64)
    return values
