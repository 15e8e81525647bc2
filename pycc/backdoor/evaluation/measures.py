"""What a backdoor experiment measures: the format of its results, and what a set of them shows.

A result is the count of one image, clean or triggered, by one counter: the clean one or one with a
backdoor, as trained or after a defense. ``pycc.backdoor.evaluation.summary`` puts them side by
side; the measures themselves are those of ``pycc.metrics.rates``, which pictures and tables need
too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from pycc import metrics
from pycc.metrics.rates import Share, accuracy, bands, ratios, success
from pycc.runs import Record

Model = Literal["clean", "backdoored"]
Images = Literal["clean", "triggered"]
KEY = ("strategy", "model", "defense", "images", "index")
"""What identifies a result, for ``pycc.runs.Run``."""
CLEAN_MODEL: Final = "clean"
BACKDOORED: Final = "backdoored"
CLEAN: Final = "clean"
TRIGGERED: Final = "triggered"


def record(
    *,
    strategy: str | None,
    model: Model,
    defense: str | None,
    images: Images,
    index: int,
    name: str,
    truth: int | None = None,
    count: float | None = None,
    raises: bool | None = None,
    target: int | None = None,
    low: float | None = None,
    high: float | None = None,
    score: float | None = None,
    threshold: float | None = None,
) -> Record:
    """One result as it stands in ``results.jsonl``, checked.

    Args:
        strategy: the attack's, as in "add"; None for the clean model, which knows none: its results
            on triggered images then are the chance level of every strategy with that trigger.
        model: the counter before any defense.
        defense: what was done to it; None: nothing. A detector is a defense with scores.
        images: whether the trigger is in the image.
        index: of the image in the test set, from 0 on.
        name: the image's.
        truth: heads annotated in the image, whatever the attack makes of them.
        count: people predicted. Either this or ``score``.
        raises: whether the strategy raises counts; None without a strategy.
        target: heads after the strategy's change, for triggered images.
        low, high: a certified interval of the count, ``high`` None where it is unbounded.
        score: a detector's, higher on images it takes for triggered.
        threshold: with a score: the detector flags what scores above it. All results of one
            detector and strategy have the same.

    Raises:
        ValueError: none or both of count and score, a count without truth, a score without
            threshold, a strategy without ``raises``, a backdoored model without strategy or a clean
            one with it, a number that is not finite.

    >>> result = record(
    ...     strategy="add", model="backdoored", defense=None, images="triggered", index=0, name="a",
    ...     truth=10, count=31.5, raises=True, target=30,
    ... )  # fmt: skip
    >>> result["count"], result["target"]
    (31.5, 30)
    """
    if (count is None) == (score is None):
        raise ValueError(
            "record: expected a count or a score, got " + ("none", "both")[count is not None]
        )
    if model not in (CLEAN_MODEL, BACKDOORED):
        raise ValueError(f"record: model must be 'clean' or 'backdoored', got {model!r}")
    if images not in (CLEAN, TRIGGERED):
        raise ValueError(f"record: images must be 'clean' or 'triggered', got {images!r}")
    if (model == BACKDOORED) != (strategy is not None):
        raise ValueError(
            "record: a backdoored model must have a strategy, and it alone, got "
            f"{strategy!r} for {model}"
        )
    if (strategy is None) != (raises is None):
        raise ValueError(
            f"record: raises must be given with a strategy and only then, got {raises} "
            f"with {strategy!r}"
        )
    result: Record = {
        "strategy": strategy, "model": model, "defense": defense, "images": images,
        "index": index, "name": name, "raises": raises,
    }  # fmt: skip
    for label, value in (("count", count), ("score", score), ("low", low), ("high", high),
                         ("threshold", threshold)):  # fmt: skip
        if value is not None and not math.isfinite(value):
            raise ValueError(f"record: {label} must be finite, got {value}")
    if score is not None:
        if threshold is None:
            raise ValueError("record: a score must come with the threshold, got None")
        return {**result, "score": float(score), "threshold": float(threshold)}
    assert count is not None
    if truth is None:
        raise ValueError("record: a count must come with the truth, got None")
    result |= {"truth": int(truth), "target": target, "count": float(count)}
    return result if low is None else {**result, "low": float(low), "high": high}


@dataclass(frozen=True)
class Row:
    """What one counter does on one set of images."""

    images: int
    without_heads: int
    """Images whose truth is 0: part of the errors, of no share."""
    headless_count: float | None
    """Mean count of these, in people."""
    negative: int
    """Images with a count below 0: lowered to nobody, as shares take them."""
    mae: float
    rmse: float
    mean_ratio: float | None
    """Mean of r over images with heads; 1 for a perfect counter."""
    accuracy: Share
    success: Share | None
    """Attack success rate against the true count; None where no strategy gives a direction."""
    bands: tuple[Share, Share, Share, Share | None] | None
    target_success: Share | None
    """The share of images counted within a tenth of the altered target; None without targets."""


def row(
    counts: Sequence[float],
    truth: Sequence[int],
    *,
    raises: bool | None = None,
    target: Sequence[int] | None = None,
) -> Row:
    """The measures of [N] predicted counts against [N] true ones.

    ``raises`` is whether the attack raises counts, if there is one; ``target`` [N] are the counts
    that it aims at. ValueError without images, and as of ``ratios``.

    >>> measures = row([31.5, 10.5], [10, 10], raises=True, target=[30, 30])
    >>> measures.success.value, measures.target_success.value, measures.mae
    (0.5, 0.5, 11.0)
    """
    r = ratios(counts, truth)
    headless = r.headless
    return Row(
        images=len(counts),
        without_heads=len(headless),
        headless_count=float(headless.mean()) if len(headless) else None,
        negative=int((np.asarray(counts, np.float64) < 0).sum()),
        mae=metrics.mae(truth, counts),
        rmse=metrics.rmse(truth, counts),
        mean_ratio=float(r.values.mean()) if len(r.values) else None,
        accuracy=accuracy(r),
        success=None if raises is None else success(r, raises),
        bands=None if raises is None else bands(r, raises),
        target_success=None if target is None else accuracy(ratios(counts, target)),
    )
