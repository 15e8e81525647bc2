"""Small images with heads, and a small counter, for training in seconds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pycc import models
from pycc.models import CounterModel
from pycc.train import TrainConfig
from pycc.types import Sample

QUICK = TrainConfig(
    epochs=3, batch=3, lr=1e-2, crop="32x32", crops=2, validation_share=0.25, density="dots",
    down_sampling="sum",
)  # fmt: skip


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def changed(plan: TrainConfig, **fields: object) -> TrainConfig:
    return TrainConfig(**{**plan.__dict__, **fields})


def scenes(number: int = 8, shape: tuple[int, int] = (48, 64), *, heads: int = 6) -> list[Sample]:
    """Bright dots on noise, one for each head; a function of its arguments."""
    found = []
    for n in range(number):
        generator = torch.Generator().manual_seed(n)
        image = torch.rand(3, *shape, generator=generator) * 0.2
        size = torch.tensor([shape[1], shape[0]], dtype=torch.float64)
        points = torch.rand(heads + n % 3, 2, generator=generator, dtype=torch.float64) * (size - 1)
        for x, y in points.round().long().tolist():
            image[:, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = 1.0
        found.append(Sample(f"scene-{n}", (image * 255).round() / 255, points))
    return found


def counter(*, dropout: float = 0.0) -> CounterModel:
    """A network of 300 parameters at stride 4, the same each time."""
    torch.manual_seed(7)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(4), nn.Dropout(dropout),
        nn.Conv2d(6, 1, 1), nn.Softplus(),
    )  # fmt: skip
    nn.init.constant_(net[4].bias, -3.0)
    return models.wrap(net, stride=4, receptive_field=8)


def state(model: CounterModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}
