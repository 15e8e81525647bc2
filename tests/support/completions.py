"""Completion networks with random weights: proofs hold for every one."""

from __future__ import annotations

import torch

from pycc.defense.completed import CompletionModel
from pycc.defense.completion_net import CompletionNetwork
from pycc.defense.min_max import WindowGrid
from pycc.defense.surroundings import FEATURES, SPANS


def network_of(seed: int, *, people: float = 1.0) -> CompletionNetwork:
    """A small network that depends on all it sees and predicts about ``people``."""
    generator = torch.Generator().manual_seed(seed)
    a, b = 8, 6

    def draw(*shape: int, spread: float) -> torch.Tensor:
        return spread * torch.randn(*shape, generator=generator)

    return CompletionNetwork(
        draw(SPANS * SPANS, FEATURES, a, spread=0.3), draw(a, spread=0.1),
        draw(b, a, spread=0.5), draw(b, spread=0.1),
        people * torch.rand(b, generator=generator), torch.tensor([people]),
    )  # fmt: skip


def model_of(seed: int, reach: int, *, step: int = 1, people: float = 1.0) -> CompletionModel:
    return CompletionModel(WindowGrid(reach, step), network_of(seed, people=people))
