"""The median over a fixed family of masks, bounded without any probability."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from pycc.certify._check import counts_of, whole
from pycc.types import Interval


def fixed_ablations_bounds(
    counts: ArrayLike,
    hits: int,
    *,
    patches: int = 1,
    median: Literal["mean", "lower", "upper"] = "mean",
) -> Interval:
    """Interval on the median count over M masks fixed in advance, for every patch (C1').

    No probability: the attacker may know the masks. A patch touches at most ``hits`` of them, and
    J patches a = J * hits; the other counts stay. Then the j-th smallest count Z'_(j) satisfies

        Z_(j - a) <= Z'_(j) <= Z_(j + a):

    of the j + a counts up to Z_(j + a) at most a have moved, so that j of the new ones do not
    exceed it; likewise from below. For odd M the median is j = (M + 1) / 2. For even M it lies
    between j = M / 2 (``lower``, as ``torch.median`` takes) and j = M / 2 + 1 (``upper``); the
    ``mean`` of both (as ``numpy.median`` takes) lies between the means of their bounds. Every bound
    is reached, by a patch that moves the a extreme counts.

    Args:
        counts: [M] people, not negative: of the image at hand under each mask.
        hits: the first number of ``pycc.ops.mask_hits`` for these masks and the patch: of no part
            of the masks, and not one less.
        patches: J.
        median: which one the defended counter predicts where M is even.

    Returns:
        Method ``fixed-ablations``, deterministic; ``count`` is the median of ``counts``. Vacuous,
        with a reason, where a >= M / 2: half of the counts are then the attacker's.

    Raises:
        ValueError: a bad argument, such as more hits than masks.
        TypeError: hits or patches that are no whole number.

    Example:
        >>> from pycc.certify import fixed_ablations_bounds
        >>> interval = fixed_ablations_bounds([1, 2, 3, 4, 5, 6, 7], hits=2)
        >>> interval.low, interval.count, interval.high
        (2.0, 4.0, 6.0)
    """
    op = "fixed_ablations_bounds"
    ordered = np.sort(counts_of(op, counts))
    masks = len(ordered)
    moved = whole(op, "hits", hits, 0, masks) * whole(op, "patches", patches, 1)
    if median not in ("mean", "lower", "upper"):
        raise ValueError(f"{op}: median must be 'mean', 'lower' or 'upper', got {median!r}")
    middle = {(masks - 1) // 2, masks // 2}  # from 0 on: one of odd M, two of even M
    if median != "mean":
        middle = {min(middle) if median == "lower" else max(middle)}
    places = np.array(sorted(middle))
    count = float(ordered[places].mean())
    if 2 * moved >= masks:
        reason = f"one attack can touch {min(moved, masks)} of {masks} masks, half or more"
        return Interval(0.0, math.inf, "fixed-ablations", True, 1.0, count, True, reason)
    low, high = ordered[places - moved].mean(), ordered[places + moved].mean()
    return Interval(float(low), float(high), "fixed-ablations", True, 1.0, count)
