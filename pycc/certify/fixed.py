"""Deterministic bounds on the median count over a fixed family of masks."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from pycc.certify._check import counts_of
from pycc.checks import check_whole
from pycc.types import Interval


def fixed_ablations_bounds(
    counts: ArrayLike,
    hits: int,
    *,
    patches: int = 1,
    median: Literal["mean", "lower", "upper"] = "mean",
) -> Interval:
    """Bound the median count over M masks that were fixed in advance, for every patch (C1').

    The bound is deterministic: the attacker may know the masks. A patch touches at most ``hits`` of
    them, and J patches touch at most a = J * hits; the other counts do not change. The j-th
    smallest count Z'_(j) after the attack satisfies

        Z_(j - a) <= Z'_(j) <= Z_(j + a),

    because of the j + a counts up to Z_(j + a) at most a changed, so that at least j of the new
    counts do not exceed it, and likewise from below. For odd M the median is j = (M + 1) / 2. For
    even M it lies between j = M / 2 (``lower``, as in ``torch.median``) and j = M / 2 + 1
    (``upper``); the ``mean`` of both (as in ``numpy.median``) lies between the means of their
    bounds. Every bound is attained by a patch that moves the a extreme counts.

    Args:
        counts: [M] people, not negative: the counts of one image under each mask.
        hits: the first number of ``pycc.ops.mask_hits`` for all of these masks and the patch.
        patches: J, the number of patches.
        median: the median that the defended counter predicts if M is even.

    Returns:
        A deterministic interval of method ``fixed-ablations``; ``count`` is the median of
        ``counts``. It is vacuous, with a reason, if a >= M / 2, because the attacker then controls
        half of the counts.

    Raises:
        ValueError: a bad argument, such as more hits than masks.
        TypeError: hits or patches that are not whole numbers.

    Example:
        >>> from pycc.certify import fixed_ablations_bounds
        >>> interval = fixed_ablations_bounds([1, 2, 3, 4, 5, 6, 7], hits=2)
        >>> interval.low, interval.count, interval.high
        (2.0, 4.0, 6.0)
    """
    op = "fixed_ablations_bounds"
    ordered = np.sort(counts_of(op, counts))
    masks = len(ordered)
    moved = check_whole(op, "hits", hits, 0, masks) * check_whole(op, "patches", patches, 1)
    if median not in ("mean", "lower", "upper"):
        raise ValueError(f"{op}: median must be 'mean', 'lower' or 'upper', got {median!r}")
    middle = {(masks - 1) // 2, masks // 2}  # counted from 0; equal for odd M
    if median != "mean":
        middle = {min(middle) if median == "lower" else max(middle)}
    places = np.array(sorted(middle))
    count = float(ordered[places].mean())
    if 2 * moved >= masks:
        reason = f"one attack can touch {min(moved, masks)} of {masks} masks, half or more"
        return Interval(0.0, math.inf, "fixed-ablations", True, 1.0, count, True, reason)
    low, high = ordered[places - moved].mean(), ordered[places + moved].mean()
    return Interval(float(low), float(high), "fixed-ablations", True, 1.0, count)
