"""A small counter with a bounded receptive field, and small scenes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.crowds import make_sample
from support.threads import one_thread as one_thread
from torch import Tensor, nn

from pycc.attack import PatchAttack, Problem
from pycc.attack.evaluation.builder import CleanCounts, Member, ProblemBuilder
from pycc.attack.evaluation.checked import SampleCache, check_samples
from pycc.types import Sample

FIELD = 20
"""5 pixels, pooled 6, + 2·2 = 10, pooled 12, + 2·4 = 20."""


class TinyCounter(nn.Module):
    """Three convolutions and two poolings: stride 4, a field of 20 pixels, positive maps."""

    stride = 4

    def __init__(self, receptive_field: int | None = FIELD) -> None:
        super().__init__()
        self.receptive_field = receptive_field
        self.net = nn.Sequential(
            nn.Conv2d(3, 4, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Dropout(0.5),
            nn.Conv2d(4, 1, 3, padding=1),
            nn.Softplus(),
        )
        generator = torch.Generator().manual_seed(5)
        for parameter in self.parameters():
            fan = max(1, parameter[0].numel())
            draw = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(draw * (2 / fan) ** 0.5 if parameter.ndim > 1 else 0.01 * draw)

    def forward(self, images: Tensor) -> Tensor:
        density: Tensor = 0.05 * self.net(images)
        return density


def make_problem(
    attack: PatchAttack, counter: Any, samples: list[Sample], seed: int = 0
) -> Problem:
    """What a run would hand to ``attack`` as one batch."""
    checked = check_samples(samples, [attack], counter.stride, seed=seed)
    if isinstance(counter, nn.Module):
        counter.eval().requires_grad_(False)
    builder = ProblemBuilder([Member(counter)], SampleCache(samples), CleanCounts())
    places = [attack.place(item.shape, seed=seed, image=item.index) for item in checked.items]
    return builder.problem(attack, checked.items, places)


@pytest.fixture
def tiny() -> Callable[..., TinyCounter]:
    return TinyCounter


@pytest.fixture
def sample() -> Callable[..., Sample]:
    return make_sample


@pytest.fixture
def problem() -> Callable[..., Problem]:
    return make_problem
