"""Some samples of a data set, in the order asked for."""

from __future__ import annotations

import pytest
import torch

from pycc import data
from pycc.data.subset import Subset


def test_it_has_the_samples_of_its_indices() -> None:
    samples = data.open("synthetic", split="test", limit=4, shape=(64, 64))
    part = Subset(samples, [3, 0, 2])
    assert part.name == samples.name
    assert part.names == [samples.names[k] for k in (3, 0, 2)]
    assert len(part) == 3
    assert [sample.name for sample in part] == part.names
    assert [sample.name for sample in part[1:]] == part.names[1:]
    assert torch.equal(part[0].image, samples[3].image)
    assert torch.equal(part.points(-1), samples[2].points)
    assert part.fingerprint() != Subset(samples, [0, 2, 3]).fingerprint()
    with pytest.raises(IndexError):
        Subset(samples, [4])
