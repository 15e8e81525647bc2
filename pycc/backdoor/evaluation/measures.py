"""The format of the results of a backdoor experiment.

A result is the count of one image, clean or triggered, by one counter: the clean one or one with a
backdoor, as trained or after a defense. ``pycc.backdoor.evaluation.summary`` computes the measures.
"""

from __future__ import annotations

import math

from pycc.metrics.backdoor import BACKDOORED, CLEAN, CLEAN_MODEL, TRIGGERED, Images, Model
from pycc.runs import Record

KEY = ("strategy", "model", "defense", "images", "index")
"""The fields that identify a result, for ``pycc.runs.Run``."""


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
    """Check one result and return it as a line of ``results.jsonl``.

    Args:
        strategy: the attack's, such as "add"; None for the clean model, whose results on triggered
            images are the chance level of every strategy with that trigger.
        model: the counter before any defense.
        defense: the defense that was applied to it, if any. A detector is a defense with scores.
        images: ``clean`` or ``triggered``: whether the trigger is in the image.
        index: the image's index in the test set, from 0 on.
        name: the image's name.
        truth: heads annotated in the image, before the strategy changes them.
        count: people predicted. Either this or ``score``.
        raises: whether the strategy raises counts; None without a strategy.
        target: heads after the strategy's change, for triggered images.
        low, high: a certified interval of the count; ``high`` is None if it is unbounded.
        score: of a detector, higher for images that it considers triggered.
        threshold: the detector flags images with a score above it. All results of one
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
