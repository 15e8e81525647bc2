"""A data set at another resolution."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pycc import data
from pycc.data.dataset import Dataset, data_fingerprint
from pycc.data.scaled import Scaled
from pycc.types import Sample


class Few(Dataset):
    """Samples in memory."""

    def __init__(self, samples: list[Sample]) -> None:
        self.name, self.samples = "few", samples
        self.names = [sample.name for sample in samples]

    def _load(self, index: int) -> Sample:
        return self.samples[index]


def sample(shape: tuple[int, int], points: Tensor, roi: Tensor | None = None) -> Sample:
    image = torch.rand(3, *shape, generator=torch.Generator().manual_seed(1))
    return Sample("one", image, points.double(), roi)


@pytest.mark.parametrize("factor", [0.1, 1 / 3, 0.5, 0.77, 2.0])
@pytest.mark.parametrize("shape", [(96, 128), (97, 131)])
def test_heads_stay_in_their_images(factor: float, shape: tuple[int, int]) -> None:
    last = torch.tensor([shape[1], shape[0]], dtype=torch.float64)
    points = torch.stack([torch.zeros(2).double(), torch.nextafter(last, 0 * last), last / 2])
    (scaled,) = Scaled(Few([sample(shape, points)]), factor)
    height, width = scaled.image.shape[1:]
    assert (height, width) == tuple(round(factor * side) for side in shape)
    assert scaled.count == 3
    assert bool(((scaled.points >= 0) & (scaled.points < torch.tensor([width, height]))).all())
    torch.testing.assert_close(scaled.points[2], torch.tensor([width, height]).double() / 2)


def test_images_are_averaged_and_of_eight_bits() -> None:
    chequers = (torch.arange(64)[:, None] + torch.arange(64)).fmod(2).float().expand(3, 64, 64)
    few = Few([Sample("one", chequers.clone(), torch.zeros(0, 2).double())])
    (scaled,) = Scaled(few, 0.25)
    assert bool(((scaled.image - 0.5).abs() < 0.05).all())
    assert torch.equal(data.quantize(scaled.image), scaled.image)


def test_a_head_stays_in_its_region() -> None:
    roi = torch.zeros(64, 64, dtype=torch.bool)
    roi[:32] = True
    roi[50, 50] = True  # too little to make a pixel of its own
    points = torch.tensor([[5.0, 31.0], [50.5, 50.5], [40.0, 40.0]])
    (scaled,) = Scaled(Few([sample((64, 64), points, roi)]), 0.25)
    assert scaled.roi is not None
    column, row = scaled.points.long().unbind(1)
    assert scaled.roi[row, column].tolist() == [True, True, False]
    assert int(scaled.roi.sum()) == 8 * 16 + 1


def test_names_and_fingerprint() -> None:
    scenes = data.open("synthetic", split="train", limit=3, shape=(64, 96))
    half, third = Scaled(scenes, 0.5), Scaled(scenes, 1 / 3)
    assert half.names == scenes.names
    assert half.name == "synthetic/train, scaled by 0.5"
    assert half[2].name == scenes.names[2]
    assert half.points(1).tolist() == half[1].points.tolist()
    assert len({str(data_fingerprint(samples)) for samples in (half, third, scenes)}) == 3
    assert data_fingerprint(half) == data_fingerprint(Scaled(scenes, 0.5))
    again = Scaled(Few([replace(scenes[0])]), 0.5)
    assert torch.equal(again[0].image, half[0].image)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_a_factor_out_of_range(factor: float) -> None:
    with pytest.raises(ValueError, match="scaled: factor must be above 0 and finite, got"):
        Scaled(Few([]), factor)
