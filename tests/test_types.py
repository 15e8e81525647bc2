"""Samples with and without annotation."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from pycc.types import Sample

IMAGE = torch.zeros(3, 4, 6)
POINTS = torch.tensor([[1.0, 2.0], [3.0, 0.5]], dtype=torch.float64)


def test_an_annotated_sample() -> None:
    sample = Sample("street", IMAGE, POINTS)
    assert sample.annotated
    assert sample.points is POINTS
    assert sample.count == 2
    assert sample.roi is None
    assert replace(sample, name="square").points is POINTS
    assert repr(sample) == "Sample('street', image [3, 4, 6], 2 heads)"
    nobody = Sample("empty", IMAGE, torch.zeros(0, 2))
    assert nobody.annotated
    assert nobody.count == 0
    with pytest.raises(FrozenInstanceError):
        sample.points = POINTS  # type: ignore[misc]
    with pytest.raises(TypeError, match="points"):
        Sample("forgotten", IMAGE)  # points are never left out by accident


@pytest.mark.parametrize("copied", [copy.copy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_sample_without_annotation_names_itself(copied) -> None:
    sample = copied(Sample("street", IMAGE, None))
    assert not sample.annotated
    assert repr(sample) == "Sample('street', image [3, 4, 6], not annotated)"
    for ask in (lambda: sample.points, lambda: sample.count):
        with pytest.raises(ValueError, match="street: not annotated, so its heads are unknown"):
            ask()
