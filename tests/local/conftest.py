"""Counters with a bounded receptive field, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.threads import one_thread as one_thread
from torch import Tensor, nn

from pycc import models
from pycc.types import Counter


def enliven(module: nn.Module) -> None:
    """Random weights that let the image through."""
    generator = torch.Generator().manual_seed(2)
    for parameter in module.parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 10_000
        draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data.copy_(draw * (2 / fan) ** 0.5)


class TinyCounter(nn.Module):
    """Three convolutions and two poolings: stride 4, positive maps."""

    stride = 4
    receptive_field = 20
    """5 pixels, pooled 6, + 2·2 = 10, pooled 12, + 2·4 = 20."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 4, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Dropout(0.5),
            nn.Conv2d(4, 1, 3, padding=1),
            nn.Softplus(),
        )

    def forward(self, images: Tensor) -> Tensor:
        density: Tensor = 0.05 * self.net(images)
        return density


def tiny() -> Counter:
    counter = TinyCounter()
    enliven(counter)
    return counter.double().eval()


def mcnn(variant: str) -> Counter:
    counter = models.create("mcnn", variant=variant)
    enliven(counter)
    first = counter.net.fuse[0]
    getattr(first, "conv", first).weight.data.abs_()
    return counter.double().eval()


COUNTERS: dict[str, Callable[[], Counter]] = {
    "tiny": tiny,
    "mcnn": lambda: mcnn("gray"),
    "mcnn c3": lambda: mcnn("c3"),
    "mcnn rgb": lambda: mcnn("rgb"),
}


@pytest.fixture
def counters() -> dict[str, Callable[[], Counter]]:
    return COUNTERS


@pytest.fixture
def counter() -> Counter:
    return tiny()
