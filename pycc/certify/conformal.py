"""From an interval on a prediction to one on the number of people, by split conformal prediction.

A certificate bounds what the defended counter says, not how many people there are. Its error on
scenes that were not attacked is measured on calibration images, and carries over to scenes that
are exchangeable with them, attacked or not: see :func:`conformal`.

Source: Vovk, Gammerman and Shafer, "Algorithmic learning in a random world" (2005); Papadopoulos et
al., "Inductive confidence machines for regression" (2002).
"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike

from pycc.certify._check import counts_of, inside
from pycc.types import Interval

RECEIVED = ("additive", "fixed-ablations", "quantile-estimate", "mean-estimate")
"""Methods whose interval, from the image that was received, holds what the counter says clean."""


def conformal_margin(residuals: ArrayLike, epsilon: float) -> float:
    """The ceil((n + 1)(1 - epsilon))-th smallest of n residuals: the conformal quantile, in people.

    ``residuals`` [n] are |true count - what the defended counter says| on calibration images that
    were not attacked, that neither trained the counter nor tuned the defense, and in which the
    counter draws as it will later. The residual of a further, exchangeable scene is at most the
    result with probability 1 - epsilon or more: its rank among the n + 1 is uniform, or lower where
    residuals are equal.

    ``epsilon`` is taken as the decimal number that it prints as: of 9 residuals 0.1 means the 9th,
    of 99 the 90th. Infinite where the rank is n + 1: fewer than 1 / epsilon - 1 residuals show
    nothing. ValueError for residuals that are negative, not finite or missing, and for ``epsilon``
    outside (0, 1).

    >>> from pycc.certify import conformal_margin
    >>> conformal_margin([1.0, 4.0, 2.0, 3.0], epsilon=0.2)
    4.0
    """
    found = np.sort(counts_of("conformal_margin", residuals, "residuals"))
    inside("conformal_margin", "epsilon", epsilon)
    # In floating point (n + 1)(1 - epsilon) may end just above the whole number that is meant.
    rank = math.ceil((len(found) + 1) * (1 - Fraction(repr(float(epsilon)))))
    return float(found[rank - 1]) if rank <= len(found) else math.inf


def conformal(
    interval: Interval, quantile: float, epsilon: float, *, received: bool = False
) -> Interval:
    """Interval on the number of people in a scene whose image may carry a patch (C5).

    [max(0, L - r), U + r], where [L, U] comes from the image x' that was received and r from
    :func:`conformal_margin`. Proof: let c be what the defended counter would say of the scene's
    clean image x, and y the number of people. |y - c| <= r with probability 1 - epsilon, and
    L <= c <= U with the interval's own confidence, whence y lies inside but for the sum of both
    errors.

    L <= c <= U is what has to be shown: certificates say of a clean image where the counts of
    attacked ones lie, and here the attacked one is given. Where the statement holds for *every* x
    and every x' that differs from it in one patch, both may be exchanged, as x differs from x' in
    one patch too. Two things can stand in the way, for which some methods are refused:

    * ``masked`` and ``two-mask`` are stated at the clean image. ``received=True`` is the caller's
      word that the interval was computed from the received image and the statement is of that kind.
    * ``quantile`` and ``mean`` bound a property of the law of the draws, which nobody knows
      exactly, while residuals are those of an estimate. ``estimate_interval`` (or ``mean_bounds``
      with ``draws``) bounds the estimate, from as many draws as at calibration; ``received=True``
      says that the residuals are those of the exact quantity.

    Args:
        interval: of one of the methods of ``RECEIVED``, or with ``received``; computed from the
            received image.
        quantile: r, people; infinite where calibration shows nothing.
        epsilon: the one of the calibration.
        received: see above.

    Returns:
        Method ``conformal-`` and the interval's, not deterministic, of confidence
        ``interval.confidence - epsilon``: over the scenes, the calibration images and the draws
        together, not for each scene. ``count`` and a reason to abstain are the interval's.

    Raises:
        ValueError: a method that is refused; a negative quantile; no confidence that is left.

    Example:
        >>> from pycc.certify import Interval, conformal
        >>> interval = Interval(10.0, 20.0, "additive", deterministic=True)
        >>> people = conformal(interval, quantile=4.0, epsilon=0.2)
        >>> people.low, people.high, people.confidence
        (6.0, 24.0, 0.8)
    """
    op = "conformal"
    inside(op, "epsilon", epsilon)
    if not quantile >= 0:
        raise ValueError(f"{op}: quantile must not be negative, got {quantile}")
    if not received and interval.method not in RECEIVED:
        raise ValueError(f"{op}: {_refusal(interval.method)}")
    confidence = interval.confidence - epsilon
    if confidence <= 0:
        raise ValueError(
            f"{op}: epsilon must be below the interval's confidence {interval.confidence:g}, "
            f"got {epsilon}"
        )
    low, high = max(0.0, interval.low - quantile), interval.high + quantile
    vacuous = low <= 0.0 and high == math.inf
    reason = interval.reason
    if quantile == math.inf:
        reason = f"too few calibration images for epsilon = {epsilon:g}"
    return replace(
        interval,
        low=low,
        high=high,
        method=f"conformal-{interval.method}",
        deterministic=False,
        confidence=confidence,
        vacuous=vacuous,
        reason=reason,
    )


def _refusal(method: str) -> str:
    if method in ("quantile", "mean"):
        return (
            f"a {method} interval bounds what no draws tell exactly, so that residuals are those "
            "of another predictor; take estimate_interval, or mean_bounds with draws"
        )
    return (
        f"a {method} interval is stated at the clean image; say received=True where it was "
        "computed from the received one and holds for every pair of images"
    )
