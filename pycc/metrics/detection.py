"""How well a score tells triggered images from clean ones: its ROC curve."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Roc", "roc"]


@dataclass(frozen=True, eq=False)
class Roc:
    """The receiver operating characteristic of a score that detects triggered images.

    Example:
        >>> from pycc.metrics import roc
        >>> false, true = roc([0.0, 1.0], [2.0, 3.0]).rates()
        >>> false.tolist(), true.tolist()
        ([0.0, 0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0, 1.0])
    """

    thresholds: NDArray[np.float64]
    """[K] decreasing: scores >= the threshold are flagged; the first, infinity, flags nothing."""
    false_positives: NDArray[np.int64]
    """[K] numbers of flagged clean images."""
    true_positives: NDArray[np.int64]
    """[K] numbers of flagged triggered images."""
    auc: float
    """Area under the curve: the probability that a triggered image has a higher score than a clean
    one, where ties count half (the Mann-Whitney statistic)."""

    def rates(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the false and true positive rates, [K] each, from (0, 0) to (1, 1)."""
        false, true = self.false_positives, self.true_positives
        return false / false[-1], true / true[-1]


def roc(scores_clean: ArrayLike, scores_triggered: ArrayLike) -> Roc:
    """Compute the receiver operating characteristic of a score that is higher on triggered images.

    Equal scores are always on the same side of a threshold.

    Args:
        scores_clean: [N] scores of clean images; infinity is allowed.
        scores_triggered: [M] scores of triggered images; infinity is allowed.

    Raises:
        ValueError: scores that are empty, not one-dimensional, or NaN.

    Example:
        >>> from pycc.metrics import roc
        >>> roc([0.0, 1.0], [1.0, 3.0]).auc
        0.875
    """
    from scipy.stats import rankdata  # takes a second to import

    clean, triggered = (np.asarray(s, np.float64) for s in (scores_clean, scores_triggered))
    for name, scores in (("scores_clean", clean), ("scores_triggered", triggered)):
        if scores.ndim != 1 or scores.size == 0 or np.isnan(scores).any():
            raise ValueError(
                f"roc: {name} must be non-empty, [N] and without NaN, got {list(scores.shape)}"
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
