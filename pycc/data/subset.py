"""Parts of a data set."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import Tensor

from pycc.data.dataset import Dataset
from pycc.runs import fingerprint
from pycc.types import Sample, each


class Subset(Dataset):
    """The samples of a data set at ``indices``, in that order, each loaded when it is accessed.

    It keeps the data set's name and its origin, which decides the ground truth. IndexError for an
    index out of range.
    """

    def __init__(self, samples: Dataset, indices: Sequence[int]) -> None:
        self.samples, self.indices = samples, list(indices)
        self.name, self.origin = samples.name, samples.origin
        self.names = [samples.names[index] for index in self.indices]
        if samples.groups is not None:
            self.groups = [samples.groups[index] for index in self.indices]

    def _load(self, index: int) -> Sample:
        return self.samples[self.indices[index]]

    def points(self, index: int) -> Tensor:
        """Return the head annotations [N,2] of a sample, as the data set has them."""
        return self.samples.points(self.indices[range(len(self))[index]])


def apart(samples: Dataset, tested: Sequence[Sample], roles: tuple[str, str]) -> Dataset:
    """Return the samples that share no image with the tested ones; warn of each one left out.

    Two images are the same if their pixels are equal. ``roles`` names both kinds of samples in the
    warnings. All samples of both are read.

    >>> from pycc import data
    >>> train = data.open("synthetic", split="train", shape=(96, 128), heads=5, limit=2)
    >>> test = data.open("synthetic", split="test", shape=(96, 128), heads=5, limit=1)
    >>> apart(train, test, ("training", "test")).names
    ['train-0-0', 'train-0-1']
    """
    names = {_pixels(sample): sample.name for sample in each(tested)}
    kept = []
    for index, sample in enumerate(each(samples)):
        same = names.get(_pixels(sample))
        if same is None:
            kept.append(index)
        else:
            warnings.warn(
                f"{roles[0]} image {sample.name} is {roles[1]} image {same}: left out", stacklevel=2
            )
    return samples if len(kept) == len(samples) else Subset(samples, kept)


def _pixels(sample: Sample) -> str:
    return fingerprint([("image", sample.image)])
