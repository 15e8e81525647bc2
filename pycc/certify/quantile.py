"""Certificates from the counts of ablated draws: quantiles, means, and medians of fixed masks.

A draw T keeps a random part of an image x and the counter f sees that part x_T alone, so that a
count of x is a law F, that of f(x_T). With x' = x outside a patch and the same T for both, f(x_T)
and f(x'_T) differ only where T keeps a pixel of the patch. Hence, with Delta the probability of
that (:func:`exposure`),

    |F'(t) - F(t)| <= Delta for every t, whatever the patch holds and wherever it lies.    (1)

This is all that is used of f, which may be any function of what it sees. Three conditions are the
caller's, and each of them alone makes the intervals wrong where it is broken: the draws follow the
very law that Delta speaks of and that the counter predicts with; they are fresh, so nothing (k, q,
the place of bands) was chosen by looking at them; and where several intervals are to hold at once,
``images`` says how many.

After Levine and Feizi, "Robustness certificates for sparse adversarial attacks by randomized
ablation" (AAAI 2020) and "(De)Randomized smoothing" (NeurIPS 2020), carried from votes to counts
with the percentile smoothing of Chiang et al., "Detection as regression" (NeurIPS 2020).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom

from pycc.certify._check import confidence_left, counts_of, inside, share, shared_by
from pycc.certify.fixed import fixed_ablations_bounds
from pycc.certify.laws import exposure, sampling_error
from pycc.certify.mean import mean_bounds
from pycc.types import Interval

__all__ = [
    "estimate_interval",
    "exposure",
    "fixed_ablations_bounds",
    "mean_bounds",
    "quantile_bounds",
    "sampling_error",
]

_MARGIN = 1.0 - 1e-9
"""A binomial tail counts as small enough only where its own rounding could not change that."""


def quantile_bounds(
    counts: ArrayLike, exposure: float, *, q: float = 0.5, alpha: float = 0.001, images: int = 1
) -> Interval:
    """Interval on the q-quantile of the ablated counts of every image that a patch makes (C1).

    With h_p the p-quantile of the clean image's law F and h'_q that of the attacked image's,

        h_(q - Delta) <= h'_q <= h_(q + Delta),

    and the interval holds both ends with probability 1 - alpha over the draws. Proof: by (1) of the
    module F(t) >= q + Delta gives F'(t) >= q, and F'(t) >= q gives F(t) >= q - Delta. Of n sorted
    draws Z, those below h_p are at most Binomial(n, p) many, so that Z_(u) < h_p has a probability
    of at most P(Binomial(n, p) >= u); those up to h_p are at least Binomial(n, p) many, so that
    Z_(l) > h_p has at most P(Binomial(n, p) <= l - 1). u is the least and l the largest index
    whose probability is at most alpha / 2. The same holds of the upper quantile inf{t: F(t) > p},
    hence of every value between the two where F is flat, such as a mean of two middle ones.

    Args:
        counts: [n] people, not negative: of independent draws of one image, in any order.
        exposure: Delta, 0 to 1, not rounded down: see :func:`exposure`.
        q: which quantile the defended counter predicts, inside (0, 1).
        alpha: the probability with which the interval may be wrong, inside (0, 1).
        images: how many intervals are to hold all at once; each then gets alpha / images.

    Returns:
        Method ``quantile``, not deterministic, of confidence 1 - alpha (that of all ``images``
        together). ``count`` is the draws' own q-quantile: an estimate, of which the interval says
        nothing when others estimate it (:func:`estimate_interval` does). A side abstains (low = 0,
        high = infinity, ``reason`` says why) where q - Delta <= 0 or q + Delta >= 1, or where no
        order statistic qualifies; vacuous where both say nothing.

    Raises:
        ValueError: a bad argument.

    Example:
        >>> from pycc.certify import quantile_bounds
        >>> interval = quantile_bounds(range(1000), exposure=0.1)
        >>> interval.low, interval.count, interval.high, interval.confidence
        (348.0, 499.0, 651.0, 0.999)
    """
    drawn = counts_of("quantile_bounds", counts)
    inside("quantile_bounds", "q", q)
    level = inside("quantile_bounds", "alpha", alpha) / shared_by("quantile_bounds", images)
    moved = share("quantile_bounds", exposure)
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
    """Interval on the q-quantile of ``draws`` fresh draws of an attacked image.

    A defended counter does not know h'_q: it draws m times and takes the q-quantile of these. With
    F'_m their empirical law, |F'_m - F'| <= eta = sqrt(ln(2 / beta) / 2m) everywhere with
    probability 1 - beta (Dvoretzky, Kiefer and Wolfowitz, with Massart's constant). By (1) then
    |F'_m - F| <= Delta + eta, and the proof of :func:`quantile_bounds` goes through with that in
    place of Delta. The prediction's draws must be independent of the patch: an attacker who knows
    their seed leaves (1) behind, and :func:`fixed_ablations_bounds` is the certificate for that.

    ``draws`` is m, from 1 on; the other arguments, the result and its abstentions are those of
    :func:`quantile_bounds`, with method ``quantile-estimate`` and confidence 1 - alpha - beta.
    The prediction may be any value between the lower and upper empirical quantile.

    >>> from pycc.certify import estimate_interval
    >>> interval = estimate_interval(range(1000), exposure=0.1, draws=1000)
    >>> interval.low, interval.count, interval.high, interval.confidence
    (289.0, 499.0, 710.0, 0.998)
    """
    op = "estimate_interval"
    drawn = counts_of(op, counts)
    inside(op, "q", q)
    shared = shared_by(op, images)
    level = inside(op, "alpha", alpha) / shared
    confidence = confidence_left(op, alpha, beta)
    moved = share(op, exposure) + sampling_error(draws, beta / shared)
    return _between(drawn, q, moved, level, "quantile-estimate", confidence)


def _between(
    drawn: NDArray[np.float64], q: float, moved: float, level: float, method: str, confidence: float
) -> Interval:
    """The order statistics that bound the quantiles ``moved`` away from q, but for ``level``."""
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
        return f"unbounded {side}: a patch may move {moved:.3g} of the draws, {far:.3g} are there"
    return (
        f"unbounded {side}: {n} draws are too few for q = {q:g}, {moved:.3g} moved and "
        f"alpha = {level:.3g}"
    )


@lru_cache(maxsize=256)
def _ranks(n: int, below: float, above: float, tail: float) -> tuple[int | None, int | None]:
    """Ranks (l, u), from 1 on, of the lower and upper order statistic; None where none will do."""
    lower = upper = None
    if 0.0 < below < 1.0:
        fits = np.flatnonzero(binom.cdf(np.arange(n), n, below) <= tail * _MARGIN)
        lower = int(fits[-1]) + 1 if len(fits) else None
    if 0.0 < above < 1.0:
        fits = np.flatnonzero(binom.sf(np.arange(n), n, above) <= tail * _MARGIN)
        upper = int(fits[0]) + 1 if len(fits) else None
    return lower, upper
