"""Measures of density maps: GAME against head annotations, PSNR and SSIM against a map."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pycc.grid import check_cells

__all__ = ["game", "psnr", "ssim"]


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
    if stride is not None:
        check_cells("game", density.shape, shape, stride)
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
    """Compute the structural similarity of two density maps.

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
