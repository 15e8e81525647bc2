"""Shares of images by the ratio of predicted to true count, and what a sample says of them.

The measures of "Vulnerability and Defense: Mitigating Backdoor Attacks in Deep Learning-Based
Crowd Counting Models" (Luo), eqs. 2 and 3, with intervals. An image belongs to a share by an exact
comparison of its count with its truth: r = 1.1 is a statement on rational numbers that a rounded
quotient cannot decide, and bands that meet at an edge must neither lose nor double an image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

LEVEL = 0.95
"""Of the two-sided intervals."""
BANDS = ("±0.1~", "±0.3~", "±0.5~", "±1~")
"""Names of the bands of a row, by the least distance of r from 1."""
BANDWIDTH = 0.5
"""Standard deviation, in r, of the paper's Gaussian kernel."""

_ACCURATE = (9, 11)
_RAISED: tuple[tuple[int, int | None], ...] = ((11, 13), (13, 15), (15, 20), (20, None))
_LOWERED: tuple[tuple[int | None, int], ...] = ((7, 9), (5, 7), (None, 5))
"""Edges in tenths of the truth."""


@dataclass(frozen=True)
class Share:
    """A share of images and what it says of the share in all images like these."""

    value: float | None
    """``successes / total``; None of no images."""
    low: float
    high: float
    """Wilson's interval; [0, 1] of no images."""
    successes: int
    total: int


def wilson(successes: int, total: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval (1927) of a probability of which ``successes`` of ``total`` came.

    ValueError unless 0 <= successes <= total and 0 < level < 1.
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
    # At the ends the interval touches 0 or 1, which rounding would miss.
    low = 0.0 if successes == 0 else centre - half
    return low, 1.0 if successes == total else centre + half


def share(hits: ArrayLike) -> Share:
    """The share of True among [N] answers."""
    found = np.asarray(hits, bool)
    if found.ndim != 1:
        raise ValueError(f"share: hits must be [N], got {list(found.shape)}")
    successes, total = int(found.sum()), int(found.size)
    low, high = wilson(successes, total)
    return Share(successes / total if total else None, low, high, successes, total)


@dataclass(frozen=True)
class Difference:
    """How much larger one share is than another over the same images."""

    value: float
    low: float
    high: float
    total: int
    """Images."""


def difference(first: ArrayLike, second: ArrayLike) -> Difference:
    """The share of ``first`` less that of ``second``, [N] answers each on the same images.

    The interval is Newcombe's for paired shares ("Improved confidence intervals for the difference
    between binomial proportions based on paired data", 1998, method 10): the distances of Wilson's
    ends, corrected by the answers' correlation. ValueError without images.
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
    if excess > 0:  # the continuity correction, which never changes the sign
        excess = max(excess - total / 2, 0.0)
    correlation = 0.0 if margins == 0 else excess / math.sqrt(margins)
    one, two = share(a), share(b)
    assert one.value is not None
    assert two.value is not None
    below, above = one.value - one.low, one.high - one.value
    other_below, other_above = two.value - two.low, two.high - two.value

    def together(x: float, y: float) -> float:
        return math.sqrt(max(x * x - 2 * correlation * x * y + y * y, 0.0))

    value = one.value - two.value
    low = max(value - together(below, other_above), -1.0)
    return Difference(value, low, min(value + together(above, other_below), 1.0), total)


@dataclass(frozen=True, eq=False)
class Ratios:
    """Predicted and true counts of images with heads; those without stand apart."""

    counts: NDArray[np.float64]
    """[M] predicted counts of the images with heads, in people."""
    truth: NDArray[np.int64]
    """[M] their true counts, at least 1."""
    headless: NDArray[np.float64]
    """[N-M] predicted counts of the images without heads, for which r has no value."""

    @property
    def values(self) -> NDArray[np.float64]:
        """[M] the ratios r = predicted / true count (eq. 2), rounded: for means and pictures."""
        return np.asarray(self.counts / self.truth, np.float64)


def _between(
    r: Ratios,
    low: int | None,
    high: int | None,
    *,
    closed_low: bool = True,
    closed_high: bool = True,
) -> NDArray[np.bool_]:
    """[M] whether low/10 <= r <= high/10, exactly; None is no end.

    A negative count, which linear outputs allow, is below every low end.
    """
    found = np.ones(len(r.counts), bool)
    for k, (count, truth) in enumerate(zip(r.counts.tolist(), r.truth.tolist(), strict=True)):
        # A float is a rational number: nothing is rounded here.
        tenths = 10 * Fraction(count) / truth
        if low is not None:
            found[k] &= tenths >= low if closed_low else tenths > low
        if high is not None:
            found[k] &= tenths <= high if closed_high else tenths < high
    return found


def ratios(counts: ArrayLike, truth: ArrayLike) -> Ratios:
    """Ratios of [N] predicted counts to [N] true ones, images without heads apart.

    ValueError for counts that are not finite, and true counts that are no whole numbers from 0 on.
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
    """[M] whether 0.9 <= r <= 1.1, ends included."""
    return _between(r, *_ACCURATE)


def succeeded(r: Ratios, raises: bool) -> NDArray[np.bool_]:
    """[M] whether r >= 1.1 where the attack raises counts, r <= 0.9 where it lowers them.

    A negative count is nobody, so it is lowered.
    """
    return _between(r, _RAISED[0][0], None) if raises else _between(r, None, _LOWERED[0][1])


def accuracy(r: Ratios) -> Share:
    """ρ_Acc: the share of images with 0.9 <= r <= 1.1 (eq. 3), over those with heads."""
    return share(accurate(r))


def success(r: Ratios, raises: bool) -> Share:
    """ρ_Asr: the share of images with r >= 1.1 (``raises``), or with r <= 0.9 (eq. 3).

    An image at exactly 1.1 or 0.9 is accurate and a success, as the paper's closed intervals say.
    """
    return share(succeeded(r, raises))


def bands(r: Ratios, raises: bool) -> tuple[Share, Share, Share, Share | None]:
    """ρ_Asr by how far r lies from 1: from 0.1, 0.3, 0.5 and 1 on, each up to the next.

    Raised: [1.1, 1.3), [1.3, 1.5), [1.5, 2), [2, ∞). Lowered: (0.7, 0.9], (0.5, 0.7], and all up to
    0.5; a count cannot fall by more than all, so that the fourth is None and a prediction of nobody
    belongs to the third. The successes add up to those of :func:`success`, by construction: each
    edge belongs to one band.
    """
    if raises:
        first, second, third, fourth = (
            share(_between(r, low, high, closed_high=False)) for low, high in _RAISED
        )
        return first, second, third, fourth
    near, middle, far = (share(_between(r, low, high, closed_low=False)) for low, high in _LOWERED)
    return near, middle, far, None


def kde(r: ArrayLike, grid: ArrayLike, bandwidth: float = BANDWIDTH) -> NDArray[np.float64]:
    """Kernel density estimate [G] of the values r [N] at the points ``grid`` [G].

    A Gaussian kernel whose standard deviation is ``bandwidth``, in units of r (not a factor on the
    sample's own spread): integrates to 1 over the line, some of it below 0 where ratios are small.
    ValueError without values, and for a bandwidth that is not above 0.
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


@dataclass(frozen=True, eq=False)
class Roc:
    """How well a score tells triggered images from clean ones, at every threshold."""

    thresholds: NDArray[np.float64]
    """[K] falling: flagged are the scores not below; the first, infinite, flags nothing."""
    false_positives: NDArray[np.int64]
    """[K] clean images flagged."""
    true_positives: NDArray[np.int64]
    """[K] triggered images flagged."""
    auc: float
    """Area under the curve: the probability that a triggered image scores above a clean one, ties
    counted half (the Mann-Whitney statistic)."""

    def rates(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """False and true positive rates, [K] each, from (0, 0) to (1, 1)."""
        false, true = self.false_positives, self.true_positives
        return false / false[-1], true / true[-1]


def roc(scores_clean: ArrayLike, scores_triggered: ArrayLike) -> Roc:
    """Receiver operating characteristic of a score [N], [M] that is higher on triggered images.

    Equal scores fall on one side of every threshold together. ValueError without scores of either
    kind, and for NaN; infinite scores are allowed.
    """
    clean, triggered = (np.asarray(s, np.float64) for s in (scores_clean, scores_triggered))
    for name, scores in (("scores_clean", clean), ("scores_triggered", triggered)):
        if scores.ndim != 1 or scores.size == 0 or np.isnan(scores).any():
            raise ValueError(
                f"roc: {name} must be non-empty, [N] and no NaN, got {list(scores.shape)}"
            )
    every = np.unique(np.concatenate([clean, triggered]))[::-1]
    false, true = (
        np.concatenate([[0], len(s) - np.searchsorted(np.sort(s), every, side="left")])
        for s in (clean, triggered)
    )
    ranks = rankdata(np.concatenate([clean, triggered]))[len(clean) :]
    above = float(ranks.sum()) - len(triggered) * (len(triggered) + 1) / 2
    return Roc(
        np.concatenate([[np.inf], every]),
        false.astype(np.int64),
        true.astype(np.int64),
        above / (len(clean) * len(triggered)),
    )
