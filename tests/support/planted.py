"""A counter of known neurons with a backdoor in one of them, and the trigger that sets it off."""

from __future__ import annotations

import torch
from support.scenes import scenes
from torch import Tensor, nn

from pycc import models
from pycc.models import CounterModel
from pycc.types import Sample

HEADS, SPARE, DORMANT, TRIGGER = (0, 1, 2, 3), 4, 5, 6
"""Channels: four that see heads, a weak copy of one, one that nothing wakes, and the backdoor."""
CONVOLUTION = "0"
"""Its name in the network."""
PEOPLE = 40.0
"""People that the trigger adds."""


def planted(*, norm: bool = False, threshold: float = 0.08) -> CounterModel:
    """Counts the squares of ``scenes``, each of its four channels a quarter; no randomness.

    Channel TRIGGER is about 0 on grey pictures and wakes where the mean blue of 3x3 pixels is above
    the other colours by ``threshold``. With ``norm`` an idle batch normalisation follows.
    """
    convolution, last = nn.Conv2d(3, 7, 3, padding=1), nn.Conv2d(7, 1, 1)
    state = [convolution.weight, convolution.bias, last.weight, last.bias]
    weight, bias, out, _ = (parameter.detach().zero_() for parameter in state)
    weight[:TRIGGER] = 1 / 27
    bias[:TRIGGER] = -torch.tensor([0.25, 0.27, 0.29, 0.31, 0.3, 3.0])
    weight[TRIGGER] = torch.tensor([-0.5, -0.5, 1.0])[:, None, None] / 9
    bias[TRIGGER] = -threshold
    middle = [nn.BatchNorm2d(7, eps=1e-9, momentum=0.01)] if norm else []
    net = nn.Sequential(convolution, *middle, nn.ReLU(), nn.AvgPool2d(4, divisor_override=1), last)
    # What a head on dark ground gives in each channel makes it a quarter of a person.
    image = torch.full((1, 3, 12, 12), 0.1)
    image[..., 4:7, 4:7] = 1.0
    with torch.no_grad():
        seen = net[:-1].eval()(image).sum((0, 2, 3))
        out[0, : len(HEADS), 0, 0] = 0.25 / seen[: len(HEADS)]
        out[0, SPARE] = 1e-3
        image[:, :2, 4:7, 4:7] = 0.0
        woken = net[:-1](image)[0, TRIGGER].sum()
        out[0, TRIGGER] = PEOPLE / woken
    return models.wrap(net, stride=4).eval()


def triggered(sample: Sample) -> Sample:
    """The sample with a blue patch of 3x3 pixels in its middle."""
    image = sample.image.clone()
    image[:, 22:25, 30:33] = torch.tensor([0.0, 0.0, 1.0])[:, None, None]
    return Sample(sample.name, image, sample.points)


def clean(number: int = 12) -> list[Sample]:
    return scenes(number)


def count(counter: CounterModel, sample: Sample) -> float:
    with torch.no_grad():
        return float(counter(sample.image[None]).sum())


def state(model: CounterModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


QUICK = {"batch": 4, "crop": "whole", "crops": 1, "density": "dots", "down_sampling": "sum"}
"""Fields of every defense on these scenes."""
