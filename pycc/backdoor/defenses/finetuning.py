"""Fine-tuning on clean images, and the mixture of data sets that it was published with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pycc.backdoor.defenses.base import DefenseJob, Retraining, defenses
from pycc.backdoor.poisoning.keys import shuffled
from pycc.data.dataset import Dataset
from pycc.data.subset import Subset
from pycc.models import CounterModel
from pycc.train.items import Joined
from pycc.types import Sample


@defenses.register("fine-tuning")
@dataclass(frozen=True)
class FineTuning(Retraining):
    """Train the counter further, with its own settings, on clean images alone.

    Source: Luo, "Vulnerability and Defense: Mitigating Backdoor Attacks in Deep Learning-Based
    Crowd Counting Models", section 3.3: 100 epochs on the clean images of ShanghaiTech B and a
    tenth as many of A (``clean_mixture``), CLIP-EBC at a learning rate of 1e-4.

    >>> FineTuning(epochs=8, lr=1e-4).plan().epochs
    8
    """

    name = "fine-tuning"

    def apply(self, counter: CounterModel, job: DefenseJob) -> None:
        """Fine-tune the counter; ``out`` is the run of the training (``pycc.train.fit``)."""
        self.retrain(counter, job, job.out)


def clean_mixture(
    images: Dataset, other: Dataset, *, fraction: float = 0.1, seed: int = 0
) -> Joined:
    """Join all images of a data set with ``fraction`` times as many of another, by the seed.

    The published mixture consists of the 400 training images of ShanghaiTech B and 40 of A, each
    with the ground truth of its own data set. ValueError for a fraction outside (0,1], and if the
    other data set has too few images.

    >>> from pycc import data
    >>> images = data.open("synthetic", split="train", limit=4, shape=(64, 96))
    >>> other = data.open("synthetic", split="val", limit=4, shape=(64, 96))
    >>> len(clean_mixture(images, other, fraction=0.5))
    6
    """
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"clean_mixture: fraction must lie in (0,1], got {fraction}")
    number = max(1, round(fraction * len(images)))
    if number > len(other):
        raise ValueError(
            f"clean_mixture: {fraction:g} of {len(images)} images are {number}, but {other.name} "
            f"has {len(other)}"
        )
    chosen = shuffled(other.names, "backdoor, clean mixture", seed=seed)[:number]
    second = other.name if other.name != images.name else f"{other.name}, another"
    return Joined({images.name: images, second: Subset(other, sorted(chosen))})


def clean_images(
    images: Dataset, other: Dataset | None, *, fraction: float = 0.1, seed: int
) -> Sequence[Sample]:
    """Collect the images that defenses learn from: all ``images``, and a fraction of another set.

    ValueError as of ``clean_mixture``.

    >>> from pycc import data
    >>> images = data.open("synthetic", split="train", limit=4, shape=(64, 96))
    >>> clean_images(images, None, seed=0) is images
    True
    """
    return images if other is None else clean_mixture(images, other, fraction=fraction, seed=seed)
