"""Choices that a seed and names make, so that no order of a data set has a say in them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from pycc.data.dataset import Dataset
from pycc.random import Stream
from pycc.train.items import Joined
from pycc.types import Sample


def keyed(seed: int, purpose: str, name: str) -> Stream:
    """The random numbers of the image called ``name``, wherever in its data set it stands."""
    digest = hashlib.sha256(name.encode()).digest()
    image, step, draw = (int.from_bytes(digest[n : n + 4], "little") for n in (0, 4, 8))
    return Stream(seed, purpose, image=image, step=step, draw=draw)


def shuffled(names: Sequence[str], purpose: str, *, seed: int) -> list[int]:
    """Indices of the names in a random order, a function of the seed, the purpose and the names.

    A name's place among the others depends on itself and on them alone: what is left of a longer
    list is in the order that it has there. Equal names keep theirs.
    """
    keys = [tuple(keyed(seed, purpose, name).words(2).tolist()) for name in names]
    return sorted(range(len(names)), key=lambda index: (keys[index], names[index]))


def names_of(samples: Sequence[Sample]) -> list[str]:
    """Names of samples, in order; without their pixels where a data set knows them."""
    if isinstance(samples, Dataset):
        return list(samples.names)
    if isinstance(samples, Joined):
        return [f"{part}/{name}" for part, own in samples.parts.items() for name in names_of(own)]
    return [samples[index].name for index in range(len(samples))]
