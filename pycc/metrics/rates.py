"""Shares of images by the ratio of predicted to true count, with confidence intervals.

These are the measures of "Vulnerability and Defense: Mitigating Backdoor Attacks in Deep
Learning-Based Crowd Counting Models" (Luo), eqs. 2 and 3. Count and truth are compared exactly:
r = 1.1 is a statement about rational numbers that a rounded quotient cannot decide, and two bands
that share an edge must neither lose an image nor count it twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pycc.metrics.shares import Share, share

__all__ = [
    "BANDS",
    "BANDWIDTH",
    "Ratios",
    "accuracy",
    "accurate",
    "bands",
    "kde",
    "ratios",
    "succeeded",
    "success",
]

BANDS = ("±0.1~", "±0.3~", "±0.5~", "±1~")
"""Names of the four bands, by the smallest distance of r from 1."""
BANDWIDTH = 0.5
"""Standard deviation, in units of r, of the paper's Gaussian kernel."""

_ACCURATE = (9, 11)
_RAISED: tuple[tuple[int, int | None], ...] = ((11, 13), (13, 15), (15, 20), (20, None))
_LOWERED: tuple[tuple[int | None, int], ...] = ((7, 9), (5, 7), (None, 5))
"""Edges of r, in tenths."""


@dataclass(frozen=True, eq=False)
class Ratios:
    """Predicted and true counts of images, separated into images with and without heads.

    Example:
        >>> from pycc.metrics import ratios
        >>> ratios([110.0, 45.0], [100, 50]).values.tolist()
        [1.1, 0.9]
    """

    counts: NDArray[np.float64]
    """[M] predicted counts of the images with heads, in people."""
    truth: NDArray[np.int64]
    """[M] their true counts, at least 1."""
    headless: NDArray[np.float64]
    """[N-M] predicted counts of the images without heads, for which r is undefined."""

    @property
    def values(self) -> NDArray[np.float64]:
        """The ratios r [M] = predicted / true count (eq. 2), rounded to float64; for plots."""
        return np.asarray(self.counts / self.truth, np.float64)


def _between(
    r: Ratios,
    low: int | None,
    high: int | None,
    *,
    closed_low: bool = True,
    closed_high: bool = True,
) -> NDArray[np.bool_]:
    """Test [M] whether low/10 <= r <= high/10, exactly; None is no limit.

    A negative count, which linear outputs allow, is below every lower limit.
    """
    inside = np.ones(len(r.counts), bool)
    for k, (count, truth) in enumerate(zip(r.counts.tolist(), r.truth.tolist(), strict=True)):
        # A float is a rational number, so that this is exact.
        tenths = 10 * Fraction(count) / truth
        if low is not None:
            inside[k] &= tenths >= low if closed_low else tenths > low
        if high is not None:
            inside[k] &= tenths <= high if closed_high else tenths < high
    return inside


def ratios(counts: ArrayLike, truth: ArrayLike) -> Ratios:
    """Collect the ratios of predicted to true counts; images without heads are kept apart.

    Args:
        counts: [N] predicted counts, in people, finite.
        truth: [N] true counts, whole numbers of at least 0.

    Raises:
        ValueError: arguments of different lengths, counts that are not finite, or true counts that
            are not whole numbers of at least 0.

    Source:
        Luo (see the module), eq. 2.

    Example:
        >>> from pycc.metrics import ratios
        >>> r = ratios([110.0, 45.0, 3.0], [100, 50, 0])
        >>> r.values.tolist(), r.headless.tolist()
        ([1.1, 0.9], [3.0])
    """
    predicted, true = np.asarray(counts, np.float64), np.asarray(truth, np.float64)
    if predicted.ndim != 1 or predicted.shape != true.shape:
        raise ValueError(
            "ratios: counts and truth must be of one length, "
            f"got {list(predicted.shape)} and {list(true.shape)}"
        )
    if not np.isfinite(predicted).all():
        raise ValueError(f"ratios: counts must be finite, got {predicted[~np.isfinite(predicted)]}")
    odd = ~np.isfinite(true) | (true < 0) | (true != np.round(true))
    if odd.any():
        raise ValueError(f"ratios: truth must be whole numbers from 0 on, got {true[odd]}")
    heads = true > 0
    return Ratios(predicted[heads], true[heads].astype(np.int64), predicted[~heads])


def accurate(r: Ratios) -> NDArray[np.bool_]:
    """Test [M] whether 0.9 <= r <= 1.1 for each image with heads, exactly.

    Example:
        >>> from pycc.metrics import accurate, ratios
        >>> accurate(ratios([110.0, 111.0], [100, 100])).tolist()
        [True, False]
    """
    return _between(r, *_ACCURATE)


def succeeded(r: Ratios, raises: bool) -> NDArray[np.bool_]:
    """Test [M] whether the attack succeeded on each image with heads, exactly.

    It succeeded if r >= 1.1 for an attack that raises counts (``raises``), or r <= 0.9 for one that
    lowers them. A negative count is treated as a lowered one.

    Example:
        >>> from pycc.metrics import ratios, succeeded
        >>> succeeded(ratios([110.0, 90.0], [100, 100]), raises=True).tolist()
        [True, False]
    """
    return _between(r, _RAISED[0][0], None) if raises else _between(r, None, _LOWERED[0][1])


def accuracy(r: Ratios) -> Share:
    """Compute ρ_Acc, the share of images with 0.9 <= r <= 1.1 among the images with heads.

    Source:
        Luo (see the module), eq. 3.

    Example:
        >>> from pycc.metrics import accuracy, ratios
        >>> accuracy(ratios([110.0, 111.0], [100, 100])).value
        0.5
    """
    return share(accurate(r))


def success(r: Ratios, raises: bool) -> Share:
    """Compute ρ_Asr, the share of images with r >= 1.1 (``raises``) or with r <= 0.9 (else).

    An image at exactly 1.1 or 0.9 is both accurate and a success, since the paper's intervals are
    closed. The share is over the images with heads.

    Source:
        Luo (see the module), eq. 3.

    Example:
        >>> from pycc.metrics import ratios, success
        >>> success(ratios([110.0, 90.0, 250.0], [100, 100, 100]), raises=False).successes
        1
    """
    return share(succeeded(r, raises))


def bands(r: Ratios, raises: bool) -> tuple[Share, Share, Share, Share | None]:
    """Compute ρ_Asr in bands of the distance of r from 1: from 0.1, 0.3, 0.5 and 1 on.

    Raised: [1.1, 1.3), [1.3, 1.5), [1.5, 2), [2, ∞). Lowered: (0.7, 0.9], (0.5, 0.7], (-∞, 0.5] and
    None, since a count cannot be lowered by more than itself: a prediction of 0 belongs to the
    third band. Each edge belongs to one band, so that the successes of the bands add up to those of
    :func:`success`. The names of the bands are ``BANDS``.

    Example:
        >>> from pycc.metrics import bands, ratios
        >>> shares = bands(ratios([110.0, 130.0, 250.0], [100, 100, 100]), raises=True)
        >>> [share.successes for share in shares]
        [1, 1, 0, 1]
    """
    if raises:
        first, second, third, fourth = (
            share(_between(r, low, high, closed_high=False)) for low, high in _RAISED
        )
        return first, second, third, fourth
    near, middle, far = (share(_between(r, low, high, closed_low=False)) for low, high in _LOWERED)
    return near, middle, far, None


def kde(r: ArrayLike, grid: ArrayLike, bandwidth: float = BANDWIDTH) -> NDArray[np.float64]:
    """Estimate the density of ratios with a Gaussian kernel.

    The density integrates to 1 over the real line; for small ratios a part of it lies below 0.

    Args:
        r: [N] finite ratios.
        grid: [G] points at which the density is evaluated.
        bandwidth: standard deviation of the kernel in units of r, above 0 (not a factor on the
            standard deviation of the sample).

    Returns:
        [G] float64, per unit of r.

    Raises:
        ValueError: ratios that are empty, not [N] or not finite; a grid that is not [G]; a
            bandwidth that is not above 0 and finite.

    Example:
        >>> from pycc.metrics import kde
        >>> kde([1.0], [0.0, 1.0]).round(3).tolist()
        [0.108, 0.798]
    """
    values, points = np.asarray(r, np.float64), np.asarray(grid, np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"kde: r must be non-empty, [N] and finite, got {list(values.shape)}")
    if points.ndim != 1:
        raise ValueError(f"kde: grid must be [G], got {list(points.shape)}")
    if not 0 < bandwidth < math.inf:
        raise ValueError(f"kde: bandwidth must be above 0 and finite, got {bandwidth}")
    steps = (points[:, None] - values[None, :]) / bandwidth
    norm = bandwidth * math.sqrt(2 * math.pi)
    return np.asarray(np.exp(-0.5 * np.square(steps)).mean(1) / norm, np.float64)
