"""P2PNet's network: four proposals of a head for every cell of 8x8 pixels.

Song et al., "Rethinking Counting and Localization in Crowds: A Purely Point-Based Framework", ICCV
2021.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

Backbone = Literal["vgg16_bn", "vgg16"]

BODIES: tuple[tuple[int | None, ...], ...] = (
    (64, 64, None, 128, 128),
    (None, 256, 256, 256),
    (None, 512, 512, 512),
    (None, 512, 512, 512),
)
"""Channels of VGG-16's thirteen convolutions, in the four parts that the keys name; None is a 2x2
max pooling."""
FEATURES = 256
"""Channels of the neck and of both heads."""
STRIDE = 8
PERIOD = 16
"""Pixels per place of the coarser of the two maps of features: sides must be multiples of it."""
PROPOSALS = 4
"""Proposals per cell."""
_ANCHORS = ((2.0, 2.0), (6.0, 2.0), (2.0, 6.0), (6.0, 6.0))
"""(x, y) of a cell's proposals before the regression, in pixels from the cell's corner."""
_OFFSET = 100.0
"""Pixels for a regression of 1."""


class Maps(NamedTuple):
    """The output of the two heads, on the grid of cells."""

    logits: Tensor
    """[N,8,h,w]: of each of the four proposals, the logits of "nobody" and "a person"."""
    offsets: Tensor
    """[N,8,h,w]: of each of the four proposals, x and y in pixels from its place in the cell."""

    def cut(self, rows: int, columns: int) -> Maps:
        """Return the maps of the first rows and columns of cells."""
        return Maps(*(values[..., :rows, :columns] for values in self))


class Proposals(NamedTuple):
    """All proposals of a head, cell by cell in rows; the four of a cell follow each other."""

    logits: Tensor
    """[N,4hw,2]: "nobody" and "a person"."""
    points: Tensor
    """[N,4hw,2]: (x, y) in pixels of the network's input; they may lie outside it."""

    @classmethod
    def of(cls, maps: Maps) -> Proposals:
        """List the proposals of maps."""
        rows, columns = maps.logits.shape[2:]
        like = maps.offsets
        y, x = (STRIDE * torch.arange(number).to(like) for number in (rows, columns))
        corners = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)  # [h,w,2]
        anchors = corners[:, :, None] + like.new_tensor(_ANCHORS)
        logits, offsets = (
            values.permute(0, 2, 3, 1).reshape(len(values), -1, 2) for values in maps
        )
        return cls(logits, anchors.view(1, -1, 2) + offsets)


class P2PNetNet(nn.Module):
    """The published network: x [N,3,H,W] -> proposals, [N,4hw,2] each, for h = H/8 and w = W/8.

    Sides are multiples of 16. Seven layers of the published file have no influence
    (``conv3`` and ``conv4`` of both heads, ``P3_1``, ``P3_2`` and ``P5_2`` of the neck): they are
    kept, so that files are read and written whole, and not computed.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = _Trunk(norm=backbone == "vgg16_bn")
        self.regression = _Head(FEATURES)
        self.classification = _Head(FEATURES)
        early, fine, coarse = (_last(body) for body in BODIES[1:])
        self.fpn = _Neck(early, fine, coarse, FEATURES)

    def maps(self, x: Tensor) -> Maps:
        """Compute the maps of both heads; ValueError for a side that is no multiple of 16."""
        if x.shape[2] % PERIOD or x.shape[3] % PERIOD:
            raise ValueError(
                f"p2pnet: sides of the network's input must be multiples of {PERIOD} pixels, got "
                f"{x.shape[2]}x{x.shape[3]}"
            )
        features = self.fpn(*self.backbone(x))
        return Maps(self.classification(features), _OFFSET * self.regression(features))

    def forward(self, x: Tensor) -> Proposals:
        """Compute the proposals of x [N,3,H,W], RGB standardised as for ImageNet."""
        return Proposals.of(self.maps(x))


def _last(body: tuple[int | None, ...]) -> int:
    channels = body[-1]
    assert channels is not None
    return channels


class _Trunk(nn.Module):
    """VGG-16 without its last pooling; x [N,3,H,W] -> features at stride 8 and at stride 16."""

    def __init__(self, *, norm: bool) -> None:
        super().__init__()
        channels = 3
        for number, body in enumerate(BODIES, start=1):
            layers: list[nn.Module] = []
            for outputs in body:
                if outputs is None:
                    layers.append(nn.MaxPool2d(2))
                    continue
                layers.append(nn.Conv2d(channels, outputs, 3, padding=1))
                if norm:
                    layers.append(nn.BatchNorm2d(outputs))
                layers.append(nn.ReLU(inplace=True))
                channels = outputs
            self.add_module(f"body{number}", nn.Sequential(*layers))

    def layers(self) -> nn.Sequential:
        """Return all layers in one row, as torchvision numbers them; the same objects."""
        return nn.Sequential(*(layer for body in self.children() for layer in body.children()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        *bodies, last = self.children()
        for body in bodies:
            x = body(x)
        return x, last(x)


class _Neck(nn.Module):
    """Features of stride 16 enlarged twice and added to those of stride 8; no activation."""

    def __init__(self, early: int, fine: int, coarse: int, features: int) -> None:
        super().__init__()
        self.P5_1 = nn.Conv2d(coarse, features, 1)
        self.P5_2 = nn.Conv2d(features, features, 3, padding=1)
        self.P4_1 = nn.Conv2d(fine, features, 1)
        self.P4_2 = nn.Conv2d(features, features, 3, padding=1)
        self.P3_1 = nn.Conv2d(early, features, 1)
        self.P3_2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        enlarged = functional.interpolate(self.P5_1(coarse), scale_factor=2.0, mode="nearest")
        joined: Tensor = self.P4_2(enlarged + self.P4_1(fine))
        return joined


class _Head(nn.Module):
    """Two numbers for each of a cell's four proposals: [N,C,h,w] -> [N,8,h,w]."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)
        self.conv3 = nn.Conv2d(features, features, 3, padding=1)
        self.conv4 = nn.Conv2d(features, features, 3, padding=1)
        self.output = nn.Conv2d(features, 2 * PROPOSALS, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        hidden = functional.relu(self.conv2(functional.relu(self.conv1(features))))
        values: Tensor = self.output(hidden)
        return values
