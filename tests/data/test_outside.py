"""Outside a region of interest images show what is requested; all else stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pycc import data
from pycc.data.dataset import Dataset, data_fingerprint
from pycc.data.outside import Outside
from pycc.types import Sample


class One(Dataset):
    """A sample with a region, or without one; and one that nobody annotated."""

    def __init__(self, roi: torch.Tensor | None, points: torch.Tensor | None) -> None:
        self.name, self.names, self.origin, self.groups = "one", ["a"], "worldexpo10", ["S1"]
        image = torch.randint(0, 256, (3, 60, 80), generator=torch.Generator().manual_seed(3)) / 255
        self.sample = Sample("a", image, points, roi)

    def _load(self, index: int) -> Sample:
        return self.sample


@pytest.fixture
def roi() -> torch.Tensor:
    roi = torch.zeros(60, 80, dtype=torch.bool)
    roi[10:50, 20:70] = True
    return roi


def test_nothing_or_little_is_left_outside(roi: torch.Tensor) -> None:
    points = torch.tensor([[30.0, 20.0]], dtype=torch.float64)
    samples = One(roi, points)
    image = samples[0].image
    for show in ("black", "blur"):
        shown = Outside(samples, show)
        sample = shown[0]
        assert torch.equal(sample.image[:, roi], image[:, roi])
        assert torch.equal(data.quantize(sample.image), sample.image)
        assert torch.equal(sample.points, points)
        assert sample.roi is roi
        assert (shown.origin, shown.groups, shown.names) == (
            samples.origin,
            samples.groups,
            samples.names,
        )
        assert torch.equal(shown.points(0), points)
        outside = sample.image[:, ~roi]
        if show == "black":
            assert (outside == 0).all()
        else:  # noise becomes its mean, and steps from pixel to pixel at most those of 8 bits
            assert outside.std() < 0.1 * image.std()
            assert outside.mean() == pytest.approx(float(image.mean()), abs=0.02)
    prints = {
        str(data_fingerprint(Outside(samples, show))["pixels"])
        for show in ("keep", "black", "blur")
    }
    assert len(prints) == 3


def test_what_has_no_region_or_is_kept_is_the_same_sample(roi: torch.Tensor) -> None:
    without, part = One(None, torch.zeros(0, 2)), One(roi, torch.zeros(0, 2))
    assert Outside(without, "black")[0] is without.sample
    assert Outside(part, "keep")[0] is part.sample


def test_images_that_nobody_annotated_stay_so(roi: torch.Tensor) -> None:
    sample = Outside(One(roi, None), "black")[0]
    assert not sample.annotated
    assert (sample.image[:, ~roi] == 0).all()


def test_open_takes_it_for_any_data_set(tmp_path: Path) -> None:
    data.save_image(tmp_path / "a.png", torch.rand(3, 40, 40))
    (tmp_path / "a.json").write_text(json.dumps([[3, 4]]))
    assert isinstance(data.open(tmp_path, outside="blur"), Outside)
    assert not isinstance(data.open(tmp_path), Outside)
    with pytest.raises(ValueError, match="outside: must be one of keep, black, blur, got 'red'"):
        data.open("synthetic", outside="red")
