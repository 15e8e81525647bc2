"""Backbones of torchvision's and timm's shapes as counters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pycc import models


def _stem(channels: int = 6) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, channels, 3, padding=1),
    )  # fmt: skip


class Torchvision(nn.Module):
    """Like its VGG, MobileNet and EfficientNet."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.classifier = _stem(), nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class Timm(nn.Module):
    """Like its classifiers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = _stem()

    def forward_features(self, x: Tensor) -> Tensor:
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).mean((2, 3))


class Pyramid(nn.Module):
    """Like timm's features_only=True."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = _stem(), nn.Conv2d(6, 8, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        first = self.first(x)
        return [first, self.second(first)]


class Resnet(nn.Module):
    """Like torchvision's: no part is the features alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _stem()
        self.layer1 = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU())
        self.fc = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer1(self.conv1(x)).mean((2, 3)))


class Swin(Timm):
    """Like timm's: channels last."""

    def forward_features(self, x: Tensor) -> Tensor:
        return self.body(x).permute(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("backbone", "options"), [(Resnet, {"layer": "layer1"}), (Swin, {"channels_last": True})]
)
def test_named_layers_and_channels_last(
    backbone: type[nn.Module], options: dict[str, object]
) -> None:
    counter = models.lightweight(backbone(), **options)
    images = torch.rand(2, 3, 32, 48)
    assert counter(images).shape == (2, 1, 8, 12)
    assert torch.equal(counter.eval()(images), counter(images))


@pytest.mark.parametrize(
    ("backbone", "level", "stride"),
    [(Torchvision, -1, 4), (Timm, -1, 4), (Pyramid, -1, 8), (Pyramid, 0, 4), (_stem, -1, 4)],
)
def test_stride_and_channels_are_found(backbone: type[nn.Module], level: int, stride: int) -> None:
    counter = models.lightweight(backbone(), level=level)
    assert counter.stride == stride
    assert counter(torch.rand(2, 3, 64, 96)).shape == (2, 1, 64 // stride, 96 // stride)
    assert counter.training
    for parameter in counter.parameters():
        nn.init.uniform_(parameter, 0.0, 0.2)
    images = torch.rand(1, 3, 32, 32, requires_grad=True)
    counter(images).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_it_learns() -> None:
    torch.manual_seed(0)
    counter = models.lightweight(_stem())
    images = torch.rand(4, 3, 32, 32)
    target = nn.functional.avg_pool2d(images.mean(1, keepdim=True), 4)
    optimiser = torch.optim.Adam(counter.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = counter.loss(images, target)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_the_declared_field_is_measured() -> None:
    # 3; pooling 5; +2·4 = 13; the head's 3x3: +2·4 = 21 pixels, uneven about a cell of 4.
    counter = models.lightweight(_stem())
    field = models.measure_receptive_field(counter)
    assert field is not None
    assert field.side == 21


@pytest.mark.parametrize(
    ("backbone", "options", "message"),
    [
        (nn.Flatten(), {}, r"features \[N,C,h,w\], got \[1, 196608\]"),
        (nn.Conv2d(3, 4, 3), {}, "must be one whole number, got features of 254x254"),
        (nn.AdaptiveAvgPool2d((4, 8)), {}, "must be one whole number, got features of 4x8"),
        (Pyramid(), {"level": 2}, "has no level 2"),
        (_stem(), {"input": "gray255"}, "3 input channels"),
        (_stem(), {"hidden": 0}, "hidden must be an integer of at least 1, got 0"),
        (Resnet(), {}, r"got \[1, 10\]; name a layer that does"),
        (Resnet(), {"layer": "layer9"}, "has no layer 'layer9'"),
    ],
)
def test_what_is_no_backbone(backbone: nn.Module, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.lightweight(backbone, **options)
    with pytest.raises(TypeError, match=r"must be an nn\.Module"):
        models.lightweight("resnet50")
