"""Which images are trained on and which only validate, and what is measured on these."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pycc import metrics
from pycc.data import in_region
from pycc.random import Stream
from pycc.ranks import Ranks
from pycc.types import Counter, Sample


def split(samples: Sequence[Sample], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the images that are trained on and of those that only validate.

    Validation takes ``share`` of all, at least one if it is above 0, chosen by the seed. ValueError
    where nothing is left to train on, or no training image has a head.
    """
    number = len(samples)
    if number == 0:
        raise ValueError("train: no images")
    keys = Stream(seed, "train, split").words(number)
    order = sorted(range(number), key=lambda n: (int(keys[n]), n))
    held = max(1, round(share * number)) if share > 0 else 0
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


def mean_colour(samples: Sequence[Sample], indices: Sequence[int]) -> tuple[float, float, float]:
    """Mean of R, G, B in [0,1] over images, each with the same weight."""
    means = torch.stack([samples[i].image.double().mean((1, 2)) for i in indices]).mean(0)
    return float(means[0]), float(means[1]), float(means[2])


@torch.no_grad()
def count_of(counter: Counter, sample: Sample) -> float:
    """People that a counter in eval mode sees in the region of interest of a whole image."""
    state = counter.parameters() if isinstance(counter, torch.nn.Module) else iter(())
    like = next(state, sample.image)
    density = counter(sample.image[None].to(like.device))
    return float(in_region(density, sample.mask).double().sum())


def measured(
    counter: Counter,
    samples: Sequence[Sample],
    indices: Sequence[int] | None = None,
    ranks: Ranks = Ranks(),  # noqa: B008  (frozen)
) -> dict[str, float]:
    """MAE, RMSE and bias in people over whole images; shared by the processes of a run."""
    chosen = range(len(samples)) if indices is None else indices
    mine = []
    for index in ranks.share(chosen):
        sample = samples[index]
        mine.append((float(sample.count), count_of(counter, sample)))
    truth, counts = zip(*ranks.gathered(mine), strict=True)
    return {
        "mae": metrics.mae(truth, counts),
        "rmse": metrics.rmse(truth, counts),
        "bias": metrics.bias(truth, counts),
        "images": len(truth),
    }
