"""Some samples of a data set, in the given order."""

from __future__ import annotations

import pytest
import torch

from pycc import data
from pycc.data.dataset import data_fingerprint
from pycc.data.subset import Subset
from pycc.types import Sample


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
    assert data_fingerprint(part) != data_fingerprint(Subset(samples, [0, 2, 3]))
    with pytest.raises(IndexError):
        Subset(samples, [4])


def test_samples_that_are_tested_are_left_out_by_their_pixels() -> None:
    samples = data.open("synthetic", split="train", limit=3, shape=(64, 64))
    others = data.open("synthetic", split="test", limit=2, shape=(64, 64))
    assert data.apart(samples, others, ("training", "test")) is samples
    same = Sample("IMG_98", samples[1].image.clone(), samples[0].points)
    with pytest.warns(UserWarning, match="calibration image train-0-1 is certified image IMG_98"):
        kept = data.apart(samples, [*others, same], ("calibration", "certified"))
    assert kept.names == [samples.names[0], samples.names[2]]
