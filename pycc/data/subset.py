"""Some samples of a data set."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import Tensor

from pycc.data.dataset import Dataset
from pycc.runs import fingerprint
from pycc.types import Sample


class Subset(Dataset):
    """The samples of a data set at ``indices``, in that order, each loaded when it is asked for.

    It keeps the data set's name, and its origin, which chooses the ground truth. IndexError for
    another index.
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
        """Head annotations [N,2] of a sample, as its data set has them."""
        return self.samples.points(self.indices[range(len(self))[index]])


def apart(samples: Dataset, tested: Sequence[Sample], roles: tuple[str, str]) -> Dataset:
    """The samples whose pixels are those of no tested one; a warning names each left out.

    ``roles`` says in it what a sample and what a tested one is. All of both are read.
    """
    known = {_pixels(tested[n]): tested[n].name for n in range(len(tested))}
    kept = []
    for index in range(len(samples)):
        sample = samples[index]
        same = known.get(_pixels(sample))
        if same is None:
            kept.append(index)
        else:
            warnings.warn(
                f"{roles[0]} image {sample.name} is {roles[1]} image {same}: left out", stacklevel=2
            )
    return samples if len(kept) == len(samples) else Subset(samples, kept)


def _pixels(sample: Sample) -> str:
    return fingerprint([("image", sample.image)])
