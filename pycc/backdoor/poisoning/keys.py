"""Choices that depend on a seed and on names, not on the order of a data set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from pycc.data.dataset import Dataset
from pycc.random import Stream
from pycc.train.items import Joined
from pycc.types import Sample, each


def keyed(seed: int, purpose: str, name: str) -> Stream:
    """The random numbers of the image called ``name``, at any place of its data set."""
    digest = hashlib.sha256(name.encode()).digest()
    image, step, draw = (int.from_bytes(digest[n : n + 4], "little") for n in (0, 4, 8))
    return Stream(seed, purpose, image=image, step=step, draw=draw)


def shuffled(names: Sequence[str], purpose: str, *, seed: int) -> list[int]:
    """Indices of the names in a random order, a function of the seed, the purpose and the names.

    The relative order of two names depends on these two alone: the rest of a shortened list keeps
    its order. Equal names keep theirs.
    """
    keys = [tuple(keyed(seed, purpose, name).words(2).tolist()) for name in names]
    return sorted(range(len(names)), key=lambda index: (keys[index], names[index]))


def drawn_indices(samples: Sequence[Sample], number: int | None, seed: int) -> list[int]:
    """Indices, rising, of ``number`` of the samples, drawn by seed and names; None draws all."""
    if number is None or number >= len(samples):
        return list(range(len(samples)))
    return sorted(shuffled(names_of(samples), "backdoor, measured on", seed=seed)[:number])


def names_of(samples: Sequence[Sample]) -> list[str]:
    """Names of samples, in order; no image is read if the data set knows them."""
    if isinstance(samples, Dataset):
        return list(samples.names)
    if isinstance(samples, Joined):
        return [
            f"{part}/{name}" for part, inner in samples.parts.items() for name in names_of(inner)
        ]
    return [sample.name for sample in each(samples)]
