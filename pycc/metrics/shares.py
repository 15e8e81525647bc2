"""Shares of images, and differences of shares, with confidence intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["LEVEL", "Difference", "Share", "difference", "share", "wilson"]

LEVEL = 0.95
"""Confidence level of the two-sided intervals."""


@dataclass(frozen=True)
class Share:
    """A share of images, with a confidence interval of the underlying probability.

    Example:
        >>> from pycc.metrics import share
        >>> half = share([True, False])
        >>> half.value, half.total, round(half.low, 3), round(half.high, 3)
        (0.5, 2, 0.095, 0.905)
    """

    value: float | None
    """``successes / total``; None without images."""
    low: float
    high: float
    """Ends of Wilson's interval of level ``LEVEL``; 0 and 1 without images."""
    successes: int
    total: int
    """Numbers of images."""


def wilson(successes: int, total: int, level: float = LEVEL) -> tuple[float, float]:
    """Compute Wilson's score interval of a probability after ``successes`` in ``total`` trials.

    Args:
        successes: number of successes, 0 to ``total``.
        total: number of trials.
        level: confidence level of the two-sided interval, within (0, 1).

    Returns:
        The ends (low, high), within [0, 1]; (0, 1) if ``total`` is 0.

    Raises:
        ValueError: unless 0 <= successes <= total and 0 < level < 1.

    Source:
        Wilson, "Probable inference, the law of succession, and statistical inference", 1927.

    Example:
        >>> from pycc.metrics import wilson
        >>> [round(end, 3) for end in wilson(9, 10)]
        [0.596, 0.982]
    """
    if not 0 <= successes <= total:
        raise ValueError(f"wilson: successes must be within 0…{total}, got {successes}")
    if not 0 < level < 1:
        raise ValueError(f"wilson: level must be within (0, 1), got {level}")
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    value, weight = successes / total, z * z / total
    centre = (value + weight / 2) / (1 + weight)
    half = math.sqrt(value * (1 - value) * weight + weight * weight / 4) / (1 + weight)
    # The ends 0 and 1 are exact here; rounding would miss them.
    low = 0.0 if successes == 0 else centre - half
    return low, 1.0 if successes == total else centre + half


def share(hits: ArrayLike) -> Share:
    """Compute the share of True among [N] booleans.

    Raises:
        ValueError: hits that are not [N].

    Example:
        >>> from pycc.metrics import share
        >>> share([True, True, False, True]).value
        0.75
    """
    answers = np.asarray(hits, bool)
    if answers.ndim != 1:
        raise ValueError(f"share: hits must be [N], got {list(answers.shape)}")
    successes, total = int(answers.sum()), int(answers.size)
    low, high = wilson(successes, total)
    return Share(successes / total if total else None, low, high, successes, total)


@dataclass(frozen=True)
class Difference:
    """The difference of two shares of the same images, as :func:`difference` returns it.

    Example:
        >>> from pycc.metrics import Difference
        >>> Difference(value=0.5, low=-0.1, high=0.8, total=4).total
        4
    """

    value: float
    """The first share minus the second, within [-1, 1]."""
    low: float
    high: float
    """Ends of Newcombe's interval of level ``LEVEL``."""
    total: int
    """Number of images."""


def difference(first: ArrayLike, second: ArrayLike) -> Difference:
    """Compute the share of True in ``first`` minus that in ``second``, over the same images.

    The interval combines the distances of the ends of Wilson's intervals, corrected by the
    correlation of the answers.

    Args:
        first: [N] booleans, one per image.
        second: [N] booleans for the same images.

    Raises:
        ValueError: arguments that are empty or of different lengths.

    Source:
        Newcombe, "Improved confidence intervals for the difference between binomial proportions
        based on paired data", 1998, method 10.

    Example:
        >>> from pycc.metrics import difference
        >>> result = difference([True, True, True, False], [True, False, False, False])
        >>> result.value, result.low < 0.5 < result.high
        (0.5, True)
    """
    a, b = np.asarray(first, bool), np.asarray(second, bool)
    if a.ndim != 1 or a.shape != b.shape or a.size == 0:
        raise ValueError(
            "difference: first and second must be non-empty and of one length, "
            f"got {list(a.shape)} and {list(b.shape)}"
        )
    total = int(a.size)
    both, only_a, only_b = int((a & b).sum()), int((a & ~b).sum()), int((b & ~a).sum())
    neither = total - both - only_a - only_b
    margins = (both + only_a) * (both + only_b) * (only_b + neither) * (only_a + neither)
    excess = float(both * neither - only_a * only_b)
    if excess > 0:  # the continuity correction must not change the sign
        excess = max(excess - total / 2, 0.0)
    correlation = 0.0 if margins == 0 else excess / math.sqrt(margins)
    share_a, share_b = share(a), share(b)
    assert share_a.value is not None
    assert share_b.value is not None
    below, above = share_a.value - share_a.low, share_a.high - share_a.value
    other_below, other_above = share_b.value - share_b.low, share_b.high - share_b.value

    def together(x: float, y: float) -> float:
        return math.sqrt(max(x * x - 2 * correlation * x * y + y * y, 0.0))

    value = share_a.value - share_b.value
    low = max(value - together(below, other_above), -1.0)
    return Difference(value, low, min(value + together(above, other_below), 1.0), total)
