"""Which images are trained on and which only validate, and what is measured on these."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from pycc import metrics
from pycc.counters import count_of
from pycc.data import mean_colour
from pycc.random import Stream
from pycc.ranks import Ranks
from pycc.train.plan import Plan
from pycc.train.step import NotFiniteError
from pycc.types import Counter, Sample


def split(
    samples: Sequence[Sample], share: float, seed: int, chosen: Sequence[int] | None = None
) -> tuple[list[int], list[int]]:
    """Indices of the images that are trained on and of those that only validate.

    Validation takes ``share`` of all, at least one if it is above 0, chosen by the seed; or the
    ``chosen`` ones. ValueError for choices that are no different images, where nothing is left to
    train on, and where no training image has a head.
    """
    number = len(samples)
    if number == 0:
        raise ValueError("train: no images")
    keys = Stream(seed, "train, split").words(number)
    order = sorted(range(number), key=lambda n: (int(keys[n]), n))
    held = max(1, round(share * number)) if share > 0 else 0
    if chosen is not None:
        if len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(number)):
            raise ValueError(
                f"train: held must be different indices of {number} images, got {list(chosen)}"
            )
        order, held = sorted(order, key=lambda n: n not in chosen), len(chosen)
    if held >= number:
        raise ValueError(
            f"train: {number} images are too few to hold {held} back for validation; give more, or "
            "--validation-share 0"
        )
    training = sorted(order[held:])
    heads = getattr(samples, "points", None)
    if not any(len(heads(i)) if heads is not None else samples[i].count for i in training):
        raise ValueError("train: all images are without heads; there is nothing to learn")
    return training, sorted(order[:held])


def fill_of(
    plan: Plan, samples: Sequence[Sample], training: Sequence[int]
) -> tuple[float, float, float]:
    """The colour of what ablation hides: the plan's, or the mean of the training images."""
    if plan.fill is not None:
        return plan.fill, plan.fill, plan.fill
    return mean_colour(samples[index].image for index in training)


def measured(
    counter: Counter,
    samples: Sequence[Sample],
    indices: Sequence[int] | None = None,
    ranks: Ranks = Ranks(),
    *,
    count: Callable[[Counter, Sample, int], float] | None = None,
) -> dict[str, Any]:
    """MAE, RMSE and bias in people over whole images; shared by the processes of a run.

    ``count`` says how many people the counter sees in the sample of an index (None: what
    ``count_of`` says). Where the data set names groups of its samples (the scenes of
    WorldExpo'10), ``mae_by_group`` holds the MAE of each and ``mae_over_groups`` their mean.
    NotFiniteError, with the images' names, for a count that is no number.
    """
    chosen = list(range(len(samples)) if indices is None else indices)
    mine = []
    for index in ranks.share(chosen):
        sample = samples[index]
        people = count_of(counter, sample) if count is None else count(counter, sample, index)
        mine.append((sample.name, float(sample.count), people))
    names, truth, counts = zip(*ranks.gathered(mine), strict=True)
    broken = [name for name, found in zip(names, counts, strict=True) if not math.isfinite(found)]
    if broken:
        raise NotFiniteError(f"counts are not finite ({', '.join(broken)})")
    found: dict[str, Any] = {
        "mae": metrics.mae(truth, counts),
        "rmse": metrics.rmse(truth, counts),
        "bias": metrics.bias(truth, counts),
        "images": len(truth),
    }
    groups = getattr(samples, "groups", None)
    if groups is not None:
        by_group = metrics.mae_by_group(truth, counts, [groups[index] for index in chosen])
        found["mae_by_group"] = by_group
        found["mae_over_groups"] = sum(by_group.values()) / len(by_group)
    return found
