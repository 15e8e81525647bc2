"""Bounds on quantiles of the counts of ablated draws.

A draw T keeps a random part x_T of an image x, and the counter f counts x_T. The counts of x thus
have a distribution function F, that of f(x_T). With x' = x outside a patch and the same T for both,
f(x_T) and f(x'_T) differ only if T keeps a pixel of the patch. If this has probability Delta
(:func:`pycc.certify.exposure`), then

    |F'(t) - F(t)| <= Delta for every t, whatever the patch shows and wherever it lies.    (1)

This holds for any function f of x_T. The caller must ensure three conditions, each of which is
necessary: the draws follow the distribution that Delta refers to and that the defended counter
uses; they are fresh, so that nothing (k, q, the place of bands) was chosen by means of them; and
``images`` is the number of intervals that must hold simultaneously.

After Levine and Feizi, "Robustness certificates for sparse adversarial attacks by randomized
ablation" (AAAI 2020) and "(De)Randomized smoothing" (NeurIPS 2020), carried over from votes to
counts with the percentile smoothing of Chiang et al., "Detection as regression" (NeurIPS 2020).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pycc.certify._check import confidence_left, counts_of, inside, share
from pycc.certify.laws import sampling_error
from pycc.checks import check_whole
from pycc.types import Interval

_MARGIN = 1.0 - 1e-9
"""Factor on the allowed binomial tail, so that its rounding cannot matter."""


def quantile_bounds(
    counts: ArrayLike, exposure: float, *, q: float = 0.5, alpha: float = 0.001, images: int = 1
) -> Interval:
    """Bound the q-quantile of the ablated counts of every attacked image (C1).

    With h_p the p-quantile of the clean image's distribution F and h'_q the q-quantile of the
    attacked image's distribution F',

        h_(q - Delta) <= h'_q <= h_(q + Delta),

    and the interval contains both ends with probability 1 - alpha over the draws. Proof: by (1) of
    the module, F(t) >= q + Delta implies F'(t) >= q, and F'(t) >= q implies F(t) >= q - Delta. Of n
    sorted draws Z, at most Binomial(n, p) lie below h_p, so that Z_(u) < h_p has probability at
    most P(Binomial(n, p) >= u); at least Binomial(n, p) do not exceed h_p, so that Z_(l) > h_p has
    probability at most P(Binomial(n, p) <= l - 1). u is the least and l the largest index for which
    this probability is at most alpha / 2. The same holds for the upper quantile inf{t: F(t) > p},
    hence for every value between the two if F is flat, such as the mean of two middle counts.

    Args:
        counts: [n] people, not negative: the counts of independent draws of one image, in any
            order.
        exposure: Delta, 0 to 1, not rounded down: see :func:`pycc.certify.exposure`.
        q: the quantile that the defended counter predicts, within (0, 1).
        alpha: probability of an error, within (0, 1).
        images: number of intervals that must hold simultaneously; each has error alpha / images.

    Returns:
        An interval of method ``quantile``, not deterministic, of confidence 1 - alpha (for all
        ``images`` together). ``count`` is the q-quantile of the draws, an estimate; the interval
        does not cover estimates from other draws (:func:`estimate_interval` does). A side abstains
        (low = 0, high = infinity, with a ``reason``) if q - Delta <= 0 or q + Delta >= 1, or if no
        order statistic qualifies; the interval is vacuous if both sides abstain.

    Raises:
        ValueError: a bad argument.

    Example:
        >>> from pycc.certify import quantile_bounds
        >>> interval = quantile_bounds(range(1000), exposure=0.1)
        >>> interval.low, interval.count, interval.high, interval.confidence
        (348.0, 499.0, 651.0, 0.999)
    """
    op = "quantile_bounds"
    drawn = counts_of(op, counts)
    inside(op, "q", q)
    level = inside(op, "alpha", alpha) / check_whole(op, "images", images, 1)
    moved = share(op, exposure)
    return _between(drawn, q, moved, level, "quantile", 1.0 - alpha)


def estimate_interval(
    counts: ArrayLike,
    exposure: float,
    *,
    draws: int,
    q: float = 0.5,
    alpha: float = 0.001,
    beta: float = 0.001,
    images: int = 1,
) -> Interval:
    """Bound the q-quantile of ``draws`` fresh draws of an attacked image.

    A defended counter does not know h'_q; it predicts the q-quantile of m draws. With F'_m their
    empirical distribution function, |F'_m - F'| <= eta = sqrt(ln(2 / beta) / 2m) everywhere with
    probability 1 - beta (Dvoretzky, Kiefer and Wolfowitz, with Massart's constant). With (1),
    |F'_m - F| <= Delta + eta, and the proof of :func:`quantile_bounds` holds with Delta + eta in
    place of Delta. The draws of the prediction must be independent of the patch: if the attacker
    knows their seed, (1) does not hold, and :func:`pycc.certify.fixed_ablations_bounds` applies.

    ``draws`` is m, at least 1. The other arguments, the result and its abstentions are those of
    :func:`quantile_bounds`, with method ``quantile-estimate`` and confidence 1 - alpha - beta. The
    prediction may be any value between the lower and the upper empirical quantile.

    >>> from pycc.certify import estimate_interval
    >>> interval = estimate_interval(range(1000), exposure=0.1, draws=1000)
    >>> interval.low, interval.count, interval.high, interval.confidence
    (289.0, 499.0, 710.0, 0.998)
    """
    op = "estimate_interval"
    drawn = counts_of(op, counts)
    inside(op, "q", q)
    shared = check_whole(op, "images", images, 1)
    level = inside(op, "alpha", alpha) / shared
    confidence = confidence_left(op, alpha, beta)
    moved = share(op, exposure) + sampling_error(draws, beta / shared)
    return _between(drawn, q, moved, level, "quantile-estimate", confidence)


def _between(
    drawn: NDArray[np.float64], q: float, moved: float, level: float, method: str, confidence: float
) -> Interval:
    """Bound the quantiles at q -+ ``moved`` by order statistics, with error ``level``."""
    ordered, n = np.sort(drawn), len(drawn)
    count = float(ordered[max(1, math.ceil(q * n - 1e-9)) - 1])
    below, above = math.nextafter(q - moved, -math.inf), math.nextafter(q + moved, math.inf)
    first, last = _ranks(n, below, above, level / 2.0)
    low = 0.0 if first is None else float(ordered[first - 1])
    high = math.inf if last is None else float(ordered[last - 1])
    reasons = [
        _abstention(side, far, q, moved, n, level)
        for side, far, rank in (("below", q, first), ("above", 1.0 - q, last))
        if rank is None
    ]
    vacuous = low <= 0.0 and high == math.inf
    reason = "; ".join(reasons) or None
    return Interval(low, high, method, False, confidence, count, vacuous, reason)


def _abstention(side: str, far: float, q: float, moved: float, n: int, level: float) -> str:
    if moved >= far:
        return f"unbounded {side}: a patch may move {moved:.3g} of the draws, {far:.3g} exist"
    return (
        f"unbounded {side}: {n} draws are too few for q = {q:g}, {moved:.3g} moved and "
        f"alpha = {level:.3g}"
    )


@lru_cache(maxsize=256)
def _ranks(n: int, below: float, above: float, tail: float) -> tuple[int | None, int | None]:
    """Return the ranks (l, u), counted from 1, of both order statistics; None if none qualifies."""
    from scipy.stats import binom  # takes a second to import

    lower = upper = None
    if 0.0 < below < 1.0:
        fits = np.flatnonzero(binom.cdf(np.arange(n), n, below) <= tail * _MARGIN)
        lower = int(fits[-1]) + 1 if len(fits) else None
    if 0.0 < above < 1.0:
        fits = np.flatnonzero(binom.sf(np.arange(n), n, above) <= tail * _MARGIN)
        upper = int(fits[0]) + 1 if len(fits) else None
    return lower, upper
