"""Small counters, images and a scene."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pycc.types import Sample

FIELD = 8
"""3 pixels, pooled 4, + 2 * 2."""


class Tiny(nn.Module):
    """Two convolutions and a pooling: stride 2, a field of 8 pixels, positive maps, no kinks."""

    stride = 2

    def __init__(self, receptive_field: int | None = FIELD) -> None:
        super().__init__()
        self.receptive_field = receptive_field
        self.net = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.Softplus(),
            nn.AvgPool2d(2),
            nn.Conv2d(4, 1, 3, padding=1),
        )
        generator = torch.Generator().manual_seed(5)
        for parameter in self.parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            fan = parameter[0].numel() if parameter.ndim > 1 else 1e4
            parameter.data.copy_(draw * (9 / fan) ** 0.5)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return 0.1 * functional.softplus(self.net(images))


class Signed(Tiny):
    """With cells of both signs."""

    def forward(self, images: Tensor) -> Tensor:
        density: Tensor = self.net(images)
        return density


class Whole(Tiny):
    """Every cell depends on every pixel."""

    def __init__(self) -> None:
        super().__init__(None)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * images.mean((1, 2, 3), keepdim=True)


class Coarse(Tiny):
    """Cells of 2 pixels from a grid of 4, enlarged as VGG-19's: no window counts as its part."""

    period = 4

    def __init__(self) -> None:
        super().__init__(16)
        self.net[2] = nn.Sequential(
            nn.AvgPool2d(4), nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=True)
        )
        self.eval()


class Plain:
    """A counter that is no module, with a bounded field."""

    stride, receptive_field = 2, FIELD

    def __init__(self) -> None:
        self.net = Tiny()

    def __call__(self, images: Tensor) -> Tensor:
        density: Tensor = self.net(images)
        return density


def pictures(
    shape: tuple[int, int] = (20, 24),
    number: int = 1,
    dtype: torch.dtype = torch.float32,
    seed: int = 3,
) -> Tensor:
    """[number,3,H,W], uniform in [0,1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(number, 3, *shape, generator=generator, dtype=torch.float64).to(dtype)


def scene(shape: tuple[int, int] = (32, 40)) -> Sample:
    """A random picture in 8 bits with three heads."""
    image = (pictures(shape)[0] * 255).round() / 255
    points = torch.tensor([[5.0, 6.0], [20.0, 11.0], [33.0, 27.0]], dtype=torch.float64)
    return Sample("scene", image, points)
