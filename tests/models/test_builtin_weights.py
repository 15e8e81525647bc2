"""The weights that are shipped."""

from __future__ import annotations

import numpy as np
import pytest

from pycc import models
from pycc.counters import count_of
from pycc.data.synthetic import scene


@pytest.mark.long
def test_builtin_weights_count_unseen_scenes() -> None:
    """Mean relative error below 15 % on a dozen scenes of a seed that no training saw."""
    counter = models.load("mcnn-synthetic").eval()
    samples = [scene(20_011, index, shape=(480, 640), split="test") for index in range(12)]
    errors = [abs(count_of(counter, sample) - sample.count) / sample.count for sample in samples]
    assert np.mean(errors) < 0.15
