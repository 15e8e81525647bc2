"""The split into images for training and for validation, and errors on whole images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from pycc import metrics
from pycc.counters import count_of
from pycc.data import mean_colour
from pycc.random import Stream
from pycc.ranks import Ranks
from pycc.train.config import TrainConfig
from pycc.train.results import CountErrors
from pycc.train.step import NotFiniteError
from pycc.types import Counter, Sample


def split(
    samples: Sequence[Sample], share: float, seed: int, chosen: Sequence[int] | None = None
) -> tuple[list[int], list[int]]:
    """Indices of the images that are trained on and of those that only validate.

    ``share`` of all images validate, at least one if it is above 0, chosen by the seed; or the
    ``chosen`` ones. ValueError if these are not different images, if nothing is left to train on,
    and if no training image has a head.
    """
    number = len(samples)
    if number == 0:
        raise ValueError("train: samples must be at least one, got none")
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
    config: TrainConfig, samples: Sequence[Sample], training: Sequence[int]
) -> tuple[float, float, float]:
    """The colour of what ablation hides: the config's, or the mean of the training images."""
    if config.fill is not None:
        return config.fill, config.fill, config.fill
    return mean_colour(samples[index].image for index in training)


def measured(
    counter: Counter,
    samples: Sequence[Sample],
    indices: Sequence[int] | None = None,
    ranks: Ranks = Ranks(),
    *,
    count: Callable[[Counter, Sample, int], float] | None = None,
) -> CountErrors:
    """Errors of a counter on whole images, measured by all processes of a run together.

    ``count`` returns the number of people that the counter sees in the sample with an index (None:
    ``count_of``). If the data set has groups of samples (the scenes of WorldExpo'10), each has an
    MAE. NotFiniteError, with the images' names, for a count that is not finite.
    """
    chosen = list(range(len(samples)) if indices is None else indices)
    rows = []
    for index in ranks.share(chosen):
        sample = samples[index]
        people = count_of(counter, sample) if count is None else count(counter, sample, index)
        rows.append((sample.name, float(sample.count), people))
    names, truth, counts = zip(*ranks.gathered(rows), strict=True)
    broken = [name for name, value in zip(names, counts, strict=True) if not math.isfinite(value)]
    if broken:
        raise NotFiniteError(f"counts are not finite ({', '.join(broken)})")
    groups = getattr(samples, "groups", None)
    by_group = None
    if groups is not None:
        by_group = metrics.mae_by_group(truth, counts, [groups[index] for index in chosen])
    return CountErrors(
        mae=metrics.mae(truth, counts),
        rmse=metrics.rmse(truth, counts),
        bias=metrics.bias(truth, counts),
        images=len(truth),
        mae_by_group=by_group,
        mae_over_groups=None if by_group is None else sum(by_group.values()) / len(by_group),
    )
