"""User networks as counters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pycc import models
from pycc.grid import window_field
from pycc.types import Counter


class Pooled(nn.Module):
    """Blocks of 8 x 8 pixels, averaged; the sum over channels is the output."""

    def __init__(self, output: str = "map") -> None:
        super().__init__()
        self.output = output
        self.weight = nn.Parameter(torch.ones(1, 3, 8, 8) / 64)

    def forward(self, x: Tensor) -> object:
        density = nn.functional.conv2d(x, self.weight, stride=8)
        if self.output == "squeezed":
            return density[:, 0]
        if self.output == "tuple":
            return density, density
        if self.output == "two channels":
            return torch.cat([density, density], 1)
        return density


def test_scale_and_preprocess() -> None:
    counter = models.wrap(Pooled(), preprocess=lambda x: 255 * x, scale=0.01, stride=8)
    assert isinstance(counter, Counter)
    images = torch.full((2, 3, 16, 24), 0.5)
    torch.testing.assert_close(counter(images), torch.full((2, 1, 2, 3), 3 * 0.5 * 255 * 0.01))
    assert (counter.stride, counter.receptive_field) == (8, None)


def test_a_map_without_channel_gets_one() -> None:
    images = torch.rand(2, 3, 16, 24)
    squeezed = models.wrap(Pooled("squeezed"), stride=8)(images)
    assert torch.equal(squeezed, models.wrap(Pooled(), stride=8)(images))


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("tuple", "wrap: the network must return one tensor, got tuple"),
        ("two channels", r"must return \[N,1,h,w\] or \[N,h,w\], got \[1, 2, 2, 3\]"),
    ],
)
def test_other_outputs_are_refused(output: str, message: str) -> None:
    counter = models.wrap(Pooled(output), stride=8)
    with pytest.raises(ValueError, match=message):
        counter(torch.rand(1, 3, 16, 24))


def test_a_wrong_stride_is_noticed() -> None:
    counter = models.wrap(Pooled(), stride=4)
    with pytest.raises(ValueError, match=r"4x6 cells of stride 4, got 2x3"):
        counter(torch.rand(1, 3, 16, 24))


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match=r"must be an nn\.Module, got function"):
        models.wrap(lambda x: x, stride=1)
    with pytest.raises(TypeError, match="preprocess must be callable"):
        models.wrap(Pooled(), preprocess=255.0, stride=8)
    with pytest.raises(ValueError, match="stride must be an integer of at least 1, got 0"):
        models.wrap(Pooled(), stride=0)
    with pytest.raises(
        ValueError, match="receptive_field must be an integer of at least 1 or None"
    ):
        models.wrap(Pooled(), stride=8, receptive_field=0)
    for period in (12, 0, 16.0):
        with pytest.raises(ValueError, match="period must be a multiple of the stride, 8, or None"):
            models.wrap(Pooled(), stride=8, period=period)


def test_a_period_larger_than_the_stride() -> None:
    """A network on a grid of 16 pixels that is enlarged twice: its windows are not counted."""
    net = nn.Sequential(nn.Conv2d(3, 1, 16, stride=16), nn.Upsample(scale_factor=2.0)).eval()
    coarse = models.wrap(net, stride=8, receptive_field=32, period=16)
    assert (coarse.period, window_field(coarse)) == (16, None)
    assert window_field(models.wrap(net, stride=8, receptive_field=32)) == 32
    images = torch.rand(1, 3, 40, 32)
    density = coarse(images)
    assert density.shape == (1, 1, 5, 4)
    assert torch.equal(density[..., :4, :], net(images))
    assert not density[..., 4:, :].any()  # the row that the network omits


@pytest.mark.parametrize(
    "scale", [0, -1.0, 1.1e6, float("nan"), float("inf"), "1", None, [1.0], True, 10**400]
)
def test_a_scale_is_a_positive_number(scale: object) -> None:
    with pytest.raises(ValueError, match="wrap: scale must be a number above 0 and at most 1e"):
        models.wrap(Pooled(), stride=8, scale=scale)
    assert models.wrap(Pooled(), stride=8, scale=1_000_000).scale == 1e6


def test_mode_and_parameters_are_the_modules() -> None:
    module = Pooled().eval()
    counter = models.wrap(module, stride=8)
    assert not counter.training
    assert list(counter.parameters()) == list(module.parameters())
    counter.train()
    assert module.training


def test_gradients_reach_the_image_through_preprocess() -> None:
    counter = models.wrap(Pooled(), preprocess=lambda x: (x - 0.5) / 0.25, stride=8)
    images = torch.rand(1, 3, 16, 16, requires_grad=True)
    counter(images).sum().backward()
    torch.testing.assert_close(images.grad, torch.full_like(images, 4 / 64))
