"""Poisoned data sets: samples with a trigger in the image and altered points, made on access.

Everything is a function of the seed and the samples' names, not of their order. Images are rounded
to 8 bits, as in files, so a poisoned set and its ``export`` are the same data.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path

from torch import Tensor

from pycc.attack.evaluation.checked import counted_points
from pycc.backdoor.poisoning.keys import keyed, names_of, shuffled
from pycc.backdoor.poisoning.strategies import Strategy
from pycc.backdoor.poisoning.triggers import Trigger
from pycc.checks import check_type, check_whole
from pycc.data.dataset import Dataset
from pycc.data.export import Written, export_samples
from pycc.data.images import quantize
from pycc.types import Progress, Sample, check_sequence, check_unique

SUFFIX = "_poisoned"
"""Suffix of the names of poisoned duplicates; a number follows if a sample already has it."""
RECORD = "poisoning.jsonl"
"""The file of an export that records its poisoning; ``.json`` would be an annotation."""


class Triggered(Dataset):
    """Samples with the trigger and their true points.

    ``samples`` need unique names; ValueError otherwise. Images are multiples of 1/255. Points
    outside the image or the region of interest are left out; regions are kept.

    >>> from pycc import backdoor, data
    >>> samples = data.open("synthetic", split="train", limit=2, shape=(64, 96))
    >>> triggered = Triggered(samples, backdoor.Noise(), seed=0)
    >>> triggered[0].count == samples[0].count, triggered[0].image.equal(samples[0].image)
    (True, False)
    """

    def __init__(self, samples: Sequence[Sample], trigger: Trigger, seed: int) -> None:
        self.name = f"{_name(samples)}, triggered"
        self.names, self.origin = _names(samples), getattr(samples, "origin", "")
        self.samples, self.trigger, self.seed = samples, trigger, seed
        self._true: dict[int, int] = {}

    def _load(self, index: int) -> Sample:
        return self.marked(index, self.samples[index])

    def marked(self, index: int, sample: Sample) -> Sample:
        """``sample``, which is sample ``index`` and already read, with the trigger."""
        image = quantize(self.trigger(sample.image, seed=self.seed, name=sample.name))
        return replace(sample, image=image, points=self._points(index, sample))

    def _points(self, index: int, sample: Sample) -> Tensor:
        points = counted_points(sample)
        self._true[index] = len(points)
        return self._altered(sample, points)

    def _altered(self, sample: Sample, points: Tensor) -> Tensor:
        return points

    def points(self, index: int) -> Tensor:
        """Head annotations [N,2] of a sample; its trigger is not drawn."""
        place = range(len(self))[index]
        return self._points(place, self.samples[place])

    def is_triggered(self, index: int) -> bool:
        """Whether image ``index`` has the trigger: always True."""
        return range(len(self))[index] >= 0

    def true_count(self, index: int) -> int:
        """People in image ``index``, whatever its points say."""
        place = range(len(self))[index]
        if place not in self._true:
            self.points(place)
        return self._true[place]

    def settings(self) -> dict[str, object]:
        """The settings of the poisoning, as JSON values."""
        return {"trigger": self.trigger.settings(), "strategy": None, "seed": self.seed}


class Poisoned(Triggered):
    """All samples with the trigger and with points that the strategy alters.

    Everything else as of ``Triggered``; ``true_count(index)`` is the number of people before.

    >>> from pycc import backdoor, data
    >>> samples = data.open("synthetic", split="train", limit=2, shape=(64, 96))
    >>> poisoned = Poisoned(samples, backdoor.Noise(), backdoor.Add(20), seed=0)
    >>> poisoned[0].count - poisoned.true_count(0)
    20
    """

    def __init__(
        self, samples: Sequence[Sample], trigger: Trigger, strategy: Strategy, *, seed: int
    ) -> None:
        super().__init__(samples, trigger, seed)
        self.name = f"{_name(samples)}, poisoned"
        self.strategy = strategy

    def _altered(self, sample: Sample, points: Tensor) -> Tensor:
        stream = keyed(self.seed, f"poison, {self.strategy.name}", sample.name)
        height, width = sample.image.shape[1:]
        try:
            return self.strategy(points, (height, width), stream, roi=sample.roi)
        except ValueError as error:
            raise ValueError(f"{sample.name}: {error}") from None

    def settings(self) -> dict[str, object]:
        """The settings of the poisoning, as JSON values."""
        return {**super().settings(), "strategy": self.strategy.settings()}


class PoisonedTraining(Dataset):
    """The unchanged samples, then poisoned duplicates of some: see ``poison``.

    >>> from pycc import backdoor, data
    >>> samples = data.open("synthetic", split="train", limit=2, shape=(64, 96))
    >>> everything = Poisoned(samples, backdoor.Noise(), backdoor.Add(20), seed=0)
    >>> poisoned = PoisonedTraining(everything, fraction=0.5)
    >>> len(poisoned), poisoned.is_triggered(1), poisoned.is_triggered(2)
    (3, False, True)
    """

    def __init__(self, poisoned: Poisoned, fraction: float) -> None:
        self.samples, self.poisoned, self.fraction = poisoned.samples, poisoned, fraction
        self.name = f"{_name(self.samples)}, {fraction:.4g} poisoned"
        self.origin = poisoned.origin
        clean = poisoned.names
        self._chosen = chosen(clean, fraction, seed=poisoned.seed)
        self.sources = [clean[index] for index in self._chosen]
        """Names of the samples that have a poisoned duplicate, in the samples' order."""
        suffix, number = SUFFIX, 2
        while any(name.endswith(suffix) for name in clean):
            suffix, number = f"{SUFFIX}{number}", number + 1
        self.names = [*clean, *(name + suffix for name in self.sources)]

    def is_triggered(self, index: int) -> bool:
        """Whether ``index`` is a poisoned duplicate."""
        return range(len(self))[index] >= len(self.samples)

    def _of(self, index: int) -> int:
        """The sample that a poisoned duplicate was made of."""
        return self._chosen[index - len(self.samples)]

    def _load(self, index: int) -> Sample:
        if not self.is_triggered(index):
            return self.samples[index]
        return replace(self.poisoned[self._of(index)], name=self.names[index])

    def points(self, index: int) -> Tensor:
        """Head annotations [N,2] of a sample; no trigger is drawn."""
        place = range(len(self))[index]
        if self.is_triggered(place):
            return self.poisoned.points(self._of(place))
        if isinstance(self.samples, Dataset):
            return self.samples.points(place)
        return self.samples[place].points

    def true_count(self, index: int) -> int:
        """People in image ``index``, whatever its points say."""
        place = range(len(self))[index]
        return self.poisoned.true_count(self._of(place) if self.is_triggered(place) else place)

    def settings(self) -> dict[str, object]:
        """The settings of the poisoning, as JSON values."""
        return {**self.poisoned.settings(), "fraction": self.fraction}


def poison(
    samples: Sequence[Sample],
    trigger: Trigger,
    strategy: Strategy,
    *,
    fraction: float = 0.1,
    seed: int = 0,
) -> PoisonedTraining:
    """Poison a training set: the samples, then duplicates of a fraction of them with the trigger.

    The duplicates are those of ``Poisoned`` with the same seed, under new names; in the paper there
    are 40 for 400 images. TypeError for an argument of another type; ValueError for a fraction
    outside (0,1], for no samples, and for samples whose names are not unique.

    >>> from pycc import backdoor, data
    >>> samples = data.open("synthetic", split="train", limit=2, shape=(64, 96))
    >>> poisoned = poison(samples, backdoor.Blend(), backdoor.Add(20), fraction=0.5)
    >>> len(poisoned), poisoned[2].count - poisoned.true_count(2)
    (3, 20)
    """
    check_sequence("poison", samples)
    check_whole("poison", "seed", seed, 0)
    check_type("poison", "trigger", trigger, Trigger, "a trigger, such as Noise()")
    check_type("poison", "strategy", strategy, Strategy, "a strategy, such as Add(20)")
    check_type("poison", "fraction", fraction, Real, "a number of (0,1]")
    if not 0 < fraction <= 1:
        raise ValueError(f"poison: fraction must lie in (0,1], got {fraction}")
    return PoisonedTraining(Poisoned(samples, trigger, strategy, seed=seed), fraction)


def chosen(names: Sequence[str], fraction: float, *, seed: int) -> list[int]:
    """Indices of the samples that are poisoned, rising: ``fraction`` of all, rounded, at least 1.

    The choice depends on the seed and all names, not on their order; a larger fraction contains the
    choice of a smaller one. ValueError without names.
    """
    if not names:
        raise ValueError("poison: samples must be at least one, got none")
    number = max(1, round(fraction * len(names)))
    return sorted(shuffled(names, "poison, chosen", seed=seed)[:number])


def export(
    samples: Sequence[Sample] | Mapping[str, Sequence[Sample]],
    out: str | os.PathLike[str],
    *,
    split: str = "train",
    layout: str = "shanghaitech",
    lossless: bool = False,
    progress: Progress | None = None,
) -> list[Written]:
    """Write samples as ``split``, or several splits by name, to a new or empty folder ``out``.

    By default ``SPLIT_data/images/IMG_n.jpg`` with ``ground-truth/GT_IMG_n.mat``, numbered from 1
    in the samples' order, as the published code for ShanghaiTech reads them (CSRNet's and
    CLIP-EBC's read ``*.jpg`` alone; the latter's ``preprocess.py`` also requires 300 or 400
    training images). They are JPEG of quality 100 and full colour resolution, with errors of a few
    1/255. ``lossless`` writes PNG, which is read back bit for bit; ``pycc.data.open`` reads both.
    ``layout`` ``folder``: ``SPLIT/NAME.jpg`` with ``NAME.json``.

    ``poisoning.jsonl`` beside the splits has one line per split: the poisoning and, for each image,
    its number, the sample's name, whether it has the trigger, the number of people and the number
    of annotated heads.

    The folder is written completely or not at all. ValueError for an ``out`` that is not empty, and
    for samples with a region of interest, which no layout has.

    >>> import tempfile
    >>> from pycc import backdoor, data
    >>> samples = data.open("synthetic", split="train", limit=2, shape=(64, 96))
    >>> poisoned = poison(samples, backdoor.Noise(), backdoor.Add(20), fraction=0.5)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     written = export(poisoned, f"{folder}/poisoned", layout="folder")
    ...     read = data.open(f"{folder}/poisoned", split="train")
    ...     sorted(sample.count for sample in read) == sorted(sample.count for sample in poisoned)
    True
    """
    splits = samples if isinstance(samples, Mapping) else {split: samples}

    def record(heads: Mapping[str, Sequence[int]]) -> dict[str, str]:
        lines = ({"split": name, **_described(each, heads[name])} for name, each in splits.items())
        return {RECORD: "".join(json.dumps(line) + "\n" for line in lines)}

    return export_samples(
        splits, Path(out), layout=layout, lossless=lossless, notes=record, progress=progress
    )


def _described(samples: Sequence[Sample], heads: Sequence[int]) -> dict[str, object]:
    """The line of a split in ``poisoning.jsonl``."""
    altered = samples if isinstance(samples, Triggered | PoisonedTraining) else None
    images = []
    for index, name in enumerate(_names(samples)):
        triggered = altered is not None and altered.is_triggered(index)
        people = altered.true_count(index) if altered is not None and triggered else heads[index]
        image = {"number": index + 1, "name": name, "triggered": triggered}
        images.append({**image, "people": people, "heads": heads[index]})
    settings = None if altered is None else altered.settings()
    return {"poisoning": settings, "images": images}


def _name(samples: Sequence[Sample]) -> str:
    return samples.name if isinstance(samples, Dataset) else "samples"


def _names(samples: Sequence[Sample]) -> list[str]:
    """Names of the samples, in order; ValueError unless they are unique."""
    names = names_of(samples)
    check_unique("poison", names)
    return names
