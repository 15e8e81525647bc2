"""Bounds on the mean of clipped ablated counts, by moving mass from one end to the other."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pycc.certify._check import confidence_left, counts_of, inside, share
from pycc.certify.laws import sampling_error
from pycc.checks import check_whole
from pycc.types import Interval


def mean_bounds(
    counts: ArrayLike,
    exposure: float,
    *,
    cap: float,
    alpha: float = 0.001,
    images: int = 1,
    draws: int | None = None,
    beta: float = 0.001,
    simple: bool = False,
) -> Interval:
    """Bound the mean of the ablated counts, clipped to [0, cap], of every attacked image.

    The mean is the integral of 1 - F' over [0, cap], where F' is the distribution function of the
    attacked image's counts. With F_n the empirical distribution function of the n draws,
    |F_n - F| <= epsilon = sqrt(ln(2 / alpha) / 2n) everywhere with probability 1 - alpha
    (Dvoretzky-Kiefer-Wolfowitz-Massart). By (1) of ``pycc.certify.quantile``, |F' - F_n| <= m =
    Delta + epsilon, hence

        integral of 1 - min(1, F_n + m)  <=  mean  <=  integral of 1 - max(0, F_n - m).

    The left side is the mean of the draws with their largest mass m moved to 0, the right side with
    their smallest mass m moved to cap. Moving a mass m changes a mean by at most m * cap, so the
    interval lies inside the ``simple`` interval, the mean of the draws -+ cap * m (Hoeffding's
    inequality has the same epsilon).

    Args:
        counts: [n] people within [0, cap], of independent draws of one image.
        exposure: Delta, 0 to 1, not rounded down.
        cap: upper limit of the counts, in people; fixed before the draws.
        alpha: probability of an error, within (0, 1); see :func:`quantile_bounds`.
        images: number of intervals that must hold simultaneously; each has error alpha / images.
        draws: if given, the interval bounds the mean of this number of fresh draws of the attacked
            image. Their empirical distribution function is within sqrt(ln(2 / beta) / 2 draws) of
            F', which is added to m; ``beta`` is subtracted from the confidence.
        beta: probability of an error of the fresh draws; used only with ``draws``.
        simple: whether to return the simple, wider interval.

    Returns:
        An interval within [0, cap] of method ``mean``, or ``mean-estimate`` with ``draws``.
        ``count`` is the mean of the draws. It is vacuous if it equals [0, cap].

    Raises:
        ValueError: a bad argument; a count above ``cap``.

    Example:
        >>> from pycc.certify import mean_bounds
        >>> interval = mean_bounds([5.0] * 1000, exposure=0.1, cap=10.0)
        >>> round(interval.low, 3), interval.count, round(interval.high, 3)
        (4.192, 5.0, 5.808)
    """
    op = "mean_bounds"
    drawn = np.sort(counts_of(op, counts))
    if not 0 < cap < math.inf:
        raise ValueError(f"{op}: cap must be finite and above 0, got {cap}")
    if drawn[-1] > cap:
        raise ValueError(f"{op}: counts must be clipped to cap = {cap:g}, got {drawn[-1]:g}")
    shared = check_whole(op, "images", images, 1)
    level = inside(op, "alpha", alpha) / shared
    moved = share(op, exposure) + sampling_error(len(drawn), level)
    confidence = 1.0 - alpha
    if draws is not None:
        confidence = confidence_left(op, alpha, beta)
        moved += sampling_error(draws, beta / shared)
    mass, n, mean = min(moved, 1.0), len(drawn), float(drawn.mean())
    low, high = mean - cap * mass, mean + cap * mass
    if not simple:
        places = np.arange(n + 1) / n
        low = _weighted(drawn, np.clip(1.0 - mass - places[:-1], 0.0, 1.0 / n))
        high = _weighted(drawn, np.clip(places[1:] - mass, 0.0, 1.0 / n)) + mass * cap
    slack = cap * n * 2.0**-51  # exceeds the rounding error of a sum of n terms
    low, high = max(0.0, low - slack), min(float(cap), high + slack)
    vacuous = low <= 0.0 and high >= cap
    reason = f"a patch may move a mass of {mass:.3g}, which allows [0, cap]" if vacuous else None
    method = "mean" if draws is None else "mean-estimate"
    return Interval(low, high, method, False, confidence, mean, vacuous, reason)


def _weighted(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    return math.fsum((values * weights).tolist())
