"""The mean of ablated counts that are clipped, bounded by moving mass from one end to the other."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pycc.certify._check import confidence_left, counts_of, inside, share, shared_by
from pycc.certify.laws import sampling_error
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
    """Interval on the mean of the ablated counts, clipped to [0, cap], of every attacked image.

    The mean is the integral of 1 - F' over [0, cap]. With F_n the empirical law of the n draws,
    |F_n - F| <= epsilon = sqrt(ln(2 / alpha) / 2n) everywhere with probability 1 - alpha
    (Dvoretzky-Kiefer-Wolfowitz-Massart), so that by (1) |F' - F_n| <= m = Delta + epsilon, and

        integral of 1 - min(1, F_n + m)  <=  mean  <=  integral of 1 - max(0, F_n - m).

    The left side is the draws' mean with their largest mass m moved to 0, the right one with their
    least mass m moved to cap. Moving a mass m changes a mean by m * cap at most: the interval lies
    inside the ``simple`` one, the draws' mean -+ cap * m (Hoeffding's inequality asks for the same
    epsilon).

    Args:
        counts: [n] people within [0, cap]; of independent draws of one image.
        exposure: Delta, 0 to 1, not rounded down.
        cap: what the counter's outputs are clipped to, people; fixed before the draws.
        alpha: as for :func:`quantile_bounds`, like ``images``.
        draws: where given, the interval is on the mean of so many fresh draws of the attacked
            image, whose empirical law is within sqrt(ln(2 / beta) / 2 draws) of F': that much is
            added to m, and ``beta`` taken from the confidence.
        simple: the wider interval instead.

    Returns:
        Method ``mean``, or ``mean-estimate`` with ``draws``; within [0, cap]; ``count`` is the
        draws' mean. Vacuous where it is all of [0, cap].

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
    shared = shared_by(op, images)
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
    slack = cap * n * 2.0**-51  # more than sums of n rounded terms are off
    low, high = max(0.0, low - slack), min(float(cap), high + slack)
    vacuous = low <= 0.0 and high >= cap
    reason = f"a mass of {mass:.3g} moved says no more than [0, cap]" if vacuous else None
    method = "mean" if draws is None else "mean-estimate"
    return Interval(low, high, method, False, confidence, mean, vacuous, reason)


def _weighted(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    return math.fsum((values * weights).tolist())
