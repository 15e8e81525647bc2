"""Fine-tuning on clean images, and the mixture of data sets that it was published with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pycc.backdoor.defenses.base import Retraining, defenses, twin
from pycc.backdoor.poisoning.keys import shuffled
from pycc.data.dataset import Dataset
from pycc.data.subset import Subset
from pycc.models import CounterModel
from pycc.ranks import Ranks
from pycc.train.items import Joined
from pycc.types import Progress, Sample


@defenses.register("fine-tuning")
@dataclass(frozen=True)
class FineTuning(Retraining):
    """The counter trained on, with its own settings, on clean images alone.

    Source: Luo, "Vulnerability and Defense: Mitigating Backdoor Attacks in Deep Learning-Based
    Crowd Counting Models", section 3.3: 100 epochs on the clean images of ShanghaiTech B and a
    tenth as many of A (``clean_mixture``), CLIP-EBC at a learning rate of 1e-4.

    >>> FineTuning(epochs=8, lr=1e-4).plan().epochs
    8
    """

    name = "fine-tuning"

    def __call__(
        self,
        model: CounterModel,
        samples: Sequence[Sample],
        *,
        seed: int = 0,
        out: str | os.PathLike[str],
        resume: bool = False,
        ranks: Ranks = Ranks(),
        progress: Progress | None = None,
    ) -> CounterModel:
        """The fine-tuned counter; ``out`` is the run of its training (``pycc.train.fit``)."""
        tuned = twin(model, self.name)
        self.trained(
            tuned, samples, seed=seed, out=Path(out), resume=resume, ranks=ranks,
            progress=progress,
        )  # fmt: skip
        return tuned


def clean_mixture(own: Dataset, other: Dataset, *, fraction: float = 0.1, seed: int = 0) -> Joined:
    """All images of a data set, and of another ``fraction`` times as many, chosen by the seed.

    The published mixture is that of ShanghaiTech B's 400 training images and 40 of A, each with the
    ground truth of its own data set. ValueError for a fraction outside (0,1], and for more images
    than the other data set has.

    >>> from pycc import data
    >>> own = data.open("synthetic", split="train", limit=4, shape=(64, 96))
    >>> other = data.open("synthetic", split="val", limit=4, shape=(64, 96))
    >>> len(clean_mixture(own, other, fraction=0.5))
    6
    """
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"clean_mixture: fraction must lie in (0,1], got {fraction}")
    number = max(1, round(fraction * len(own)))
    if number > len(other):
        raise ValueError(
            f"clean_mixture: {fraction:g} of {len(own)} images are {number}, but {other.name} has "
            f"{len(other)}"
        )
    chosen = shuffled(other.names, "backdoor, clean mixture", seed=seed)[:number]
    second = other.name if other.name != own.name else f"{other.name}, another"
    return Joined({own.name: own, second: Subset(other, sorted(chosen))})


def clean_images(
    own: Dataset, other: Dataset | None, *, fraction: float = 0.1, seed: int
) -> Sequence[Sample]:
    """The images that defenses learn from: all own ones and, of another data set, a fraction.

    ValueError as of ``clean_mixture``.

    >>> from pycc import data
    >>> own = data.open("synthetic", split="train", limit=4, shape=(64, 96))
    >>> clean_images(own, None, seed=0) is own
    True
    """
    return own if other is None else clean_mixture(own, other, fraction=fraction, seed=seed)
