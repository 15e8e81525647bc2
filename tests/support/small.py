"""A counter of three layers, for commands that train: a run of the experiment in seconds.

As a program it is ``pycc ARGV`` that knows this counter: for processes of torchrun.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from pycc import commands
from pycc.models.base import MODELS, CounterModel
from pycc.models.recipe import Crop, Optimiser, Recipe

NAME = "small"


class Small(CounterModel):
    """Two convolutions and a pooling at stride 4; its last layer counts hardly anybody at first."""

    name = NAME
    minimum_side = 8

    def __init__(self) -> None:
        net = nn.Sequential(
            nn.Conv2d(3, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(4), nn.Conv2d(6, 1, 1),
            nn.Softplus(),
        )  # fmt: skip
        nn.init.constant_(net[3].bias, -3.0)
        super().__init__(net, stride=4, receptive_field=8)

    @classmethod
    def recognise(cls, state: Mapping[str, Tensor]) -> dict[str, object] | None:
        """No options, for weights of these layers."""
        return {} if state.keys() == {"0.weight", "0.bias", "3.weight", "3.bias"} else None

    def recipe(self) -> Recipe:
        """Adam on whole images, one by one."""
        return Recipe(
            source="tests", optimisers=(Optimiser("adam", 1e-3),), epochs=1, batch=1,
            density={"": "dots"}, down_sampling="sum", crop=Crop("whole", number=1),
        )  # fmt: skip


def registered() -> AbstractContextManager[None]:
    """``--model small`` within a ``with`` block; other tests list the counters of the package."""
    return MODELS.registered(NAME, Small)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with registered():
        raise SystemExit(commands.main(argv=sys.argv[1:]))
