"""Intervals on the number of people from intervals on a prediction: split conformal prediction.

A certificate bounds the prediction of the defended counter, not the number of people. The error of
the prediction is measured on clean calibration images; the measured error also holds for scenes
that are exchangeable with them, attacked or not: see :func:`conformal`.

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
"""Methods whose interval, computed from the received image, contains the clean prediction."""


def conformal_margin(residuals: ArrayLike, epsilon: float) -> float:
    """Compute the conformal quantile: the ceil((n + 1)(1 - epsilon))-th smallest of n residuals.

    ``residuals`` [n], in people, are |true count - prediction of the defended counter| on clean
    calibration images that were used neither to train the counter nor to tune the defense, with the
    same number of draws as later. The residual of another exchangeable scene is at most the result
    with probability at least 1 - epsilon, because its rank among the n + 1 residuals is uniform (or
    lower, if residuals are equal).

    ``epsilon`` is interpreted as the decimal number that it prints as: 0.1 selects the 9th of 9
    residuals and the 90th of 99. The result is infinite if the rank is n + 1, that is with fewer
    than 1 / epsilon - 1 residuals. ValueError for residuals that are negative, not finite or
    missing, and for ``epsilon`` outside (0, 1).

    >>> from pycc.certify import conformal_margin
    >>> conformal_margin([1.0, 4.0, 2.0, 3.0], epsilon=0.2)
    4.0
    """
    ordered = np.sort(counts_of("conformal_margin", residuals, "residuals"))
    inside("conformal_margin", "epsilon", epsilon)
    # In floating point, (n + 1)(1 - epsilon) may be just above a whole number.
    rank = math.ceil((len(ordered) + 1) * (1 - Fraction(repr(float(epsilon)))))
    return float(ordered[rank - 1]) if rank <= len(ordered) else math.inf


def conformal(
    interval: Interval, quantile: float, epsilon: float, *, received: bool = False
) -> Interval:
    """Bound the number of people in a scene whose image may contain a patch (C5).

    The interval is [max(0, L - r), U + r], where [L, U] is computed from the received image x' and
    r is the result of :func:`conformal_margin`. Proof: let c be the prediction of the defended
    counter for the clean image x of the scene, and y the number of people. |y - c| <= r with
    probability 1 - epsilon, and L <= c <= U with the confidence of the interval, so that y lies
    inside unless one of both errors occurs.

    L <= c <= U needs an argument, because certificates bound attacked counts given the clean image,
    and here the attacked image is given. If the statement of a certificate holds for *every* x and
    every x' that differs from it in one patch, x and x' may be exchanged, since x also differs from
    x' in one patch. Some methods are therefore refused by default:

    * ``masked`` and ``two-mask`` are stated for the clean image. With ``received=True`` the caller
      confirms that the interval was computed from the received image and that the statement is
      symmetric.
    * ``quantile`` and ``mean`` bound a property of the distribution of the draws, which is not
      known exactly, while residuals are those of an estimate. Use ``estimate_interval`` (or
      ``mean_bounds`` with ``draws``), which bounds the estimate from as many draws as in the
      calibration; or confirm with ``received=True`` that the residuals are those of the exact
      quantity.

    Args:
        interval: computed from the received image, of one of the methods in ``RECEIVED``, or of
            another one with ``received``.
        quantile: r, in people; infinite if there are too few calibration images.
        epsilon: the probability of an error of the calibration.
        received: see above.

    Returns:
        An interval of method ``conformal-METHOD``, not deterministic, of confidence
        ``interval.confidence - epsilon``. This probability is over the scenes, the calibration
        images and the draws together, not for each scene. ``count`` and the reason to abstain are
        those of ``interval``.

    Raises:
        ValueError: a method that is refused, a negative quantile, or an epsilon that is not below
            the interval's confidence.

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
            f"a {method} interval bounds a quantity that draws only estimate, so that residuals "
            "are those of another predictor; take estimate_interval, or mean_bounds with draws"
        )
    return (
        f"a {method} interval is stated for the clean image; pass received=True if it was computed "
        "from the received image and holds for every pair of images"
    )
