"""Small random counters, and images with patches of all kinds, for certificates to withstand."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn

from pycc import models


def counter_of(seed: int, *, side: int = 3, stride: int = 2) -> models.CounterModel:
    """A random small counter of positive cells: a convolution, a ReLU, a pooling, another."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 4, side, padding=side // 2), nn.ReLU(), nn.MaxPool2d(stride),
        nn.Conv2d(4, 1, 3, padding=1), nn.ReLU(),
    )  # fmt: skip
    for convolution in (net[0], net[3]):  # alive, whatever the seed
        nn.init.uniform_(convolution.bias, 0.0, 0.1)
    with torch.no_grad():
        net[3].weight[:, :2].abs_()
    # side, pooling, one more cell to each side: the field is centred on its cell.
    field = side + (stride - 1) + 2 * stride
    return models.wrap(net, stride=stride, receptive_field=field + (field - stride) % 2).eval()


def patched(image: Tensor, patch: int, number: int, patches: int, draw: random.Random) -> Tensor:
    """``number`` images, each with ``patches`` patches, also in corners and of one colour."""
    height, width = image.shape[1:]
    images = image.expand(number, *image.shape).clone()
    generator = torch.Generator().manual_seed(draw.getrandbits(32))
    for one in images:
        for _ in range(patches):
            y = draw.choice([0, height - patch, draw.randint(0, height - patch)])
            x = draw.choice([0, width - patch, draw.randint(0, width - patch)])
            content = torch.rand(3, patch, patch, generator=generator)
            kind = draw.randint(0, 3)
            if kind == 1:
                content = content.round()
            if kind == 2:
                content = content[:, :1, :1].round().expand(3, patch, patch)
            one[:, y : y + patch, x : x + patch] = 0.0 if kind == 3 else content
    return images
