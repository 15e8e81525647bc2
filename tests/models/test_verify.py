"""The measurement of receptive fields, on networks whose field is known by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pycc import models
from pycc.models import ReceptiveField, measure_receptive_field


def field(module: nn.Module, stride: int, **options: int) -> ReceptiveField | None:
    return measure_receptive_field(models.wrap(module, stride=stride), **options)


class Everywhere(nn.Module):
    """A convolution times the mean over the whole image."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        density: Tensor = self.convolution(x)
        return density + density.mean((2, 3), keepdim=True)


def test_one_convolution() -> None:
    assert field(nn.Conv2d(3, 1, 5, padding=2), 1) == ReceptiveField(2, 2, 5)


def test_uneven_windows() -> None:
    """Padding on one side only, and columns wider than rows: the larger axis counts."""
    module = nn.Sequential(nn.ZeroPad2d((3, 0, 1, 0)), nn.Conv2d(3, 1, (2, 4)))
    assert field(module, 1) == ReceptiveField(3, 0, 4)


def test_strided_dilated_and_pooled() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 1, 3, padding=2, dilation=2),
    )
    # 3, pooling 4, two taps of distance 2·2 on each side: 4 + 8.
    assert field(module, 2) == ReceptiveField(5, 5, 12)


def test_dead_weights_do_not_hide_the_wiring() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 2, 7, padding=3), nn.ReLU(), nn.Conv2d(2, 1, 3, padding=1), nn.ReLU()
    )
    for parameter in module.parameters():
        nn.init.constant_(parameter, -1.0)
    assert field(module, 1) == ReceptiveField(4, 4, 9)
    assert all((parameter == -1.0).all() for parameter in module.parameters())


def test_pixels_between_the_windows() -> None:
    assert field(nn.Conv2d(3, 1, 1, stride=4), 4) == ReceptiveField(0, 0, 4)


def test_unbounded_is_none() -> None:
    assert field(Everywhere(), 1) is None


def test_a_picture_that_is_too_small_is_none() -> None:
    module = nn.Conv2d(3, 1, 31, padding=15)
    assert field(module, 1, probe_side=24) is None
    assert field(module, 1, probe_side=48) == ReceptiveField(15, 15, 31)


def test_deep_stacks_keep_the_outermost_path_visible() -> None:
    layers: list[nn.Module] = []
    for index in range(16):
        layers += [nn.Conv2d(3 if index == 0 else 4, 4, 3, padding=1), nn.ReLU()]
    assert field(nn.Sequential(*layers, nn.Conv2d(4, 1, 1)), 1) == ReceptiveField(16, 16, 33)


def test_the_counter_is_left_as_it_was() -> None:
    counter = models.create("mcnn")
    before = {key: value.clone() for key, value in counter.state_dict().items()}
    measure_receptive_field(counter, probe_side=96)
    assert counter.training
    for key, value in counter.state_dict().items():
        assert torch.equal(value, before[key])


class Gated(nn.Module):
    """Two convolutions times gates that see further."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.near, self.far = nn.Conv2d(3, 2, 3, padding=1), nn.Conv2d(3, 2, 7, padding=3)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        gated: Tensor = self.near(x) * self.gate(self.far(255.0 * x))
        return gated.sum(1, keepdim=True)


@pytest.mark.parametrize("gate", [nn.Sigmoid(), nn.Softmax(1)])
def test_a_gate_does_not_hide_what_it_sees(gate: nn.Module) -> None:
    """Saturated, or of two shares that are equal."""
    assert field(Gated(gate), 1) == ReceptiveField(3, 3, 7)
