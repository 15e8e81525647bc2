"""The parts of mask-aware networks and the ways to combine them.

Jiang, Lu, Lei and Liu, "Mask-aware networks for crowd counting", IEEE Transactions on Circuits and
Systems for Video Technology, 2019. A backbone ``b``, a head ``g`` that predicts the mask of where
people are, and a density regressor ``r`` that receives the mask: r(g(b(I)), b(I)).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pycc.models import vgg

Variant = Literal[
    "solution1",
    "solution2",
    "solution3",
    "solution4",
    "solution5",
    "baseline1",
    "baseline2",
    "baseline3",
]
Backbone = Literal["own", "csr"]

FEATURES = 256
"""Channels of a backbone's output, and of the hidden layers of mask and density."""
PATH = 64
"""Channels of each of the four paths of a multi-scale unit."""
STEM = (64, 128)
"""Channels of the paper's backbone before and after its first pooling."""
STRIDES: dict[Backbone, int] = {"own": 4, "csr": vgg.STRIDE}
# Own: 3, 5; pooling 6, +4·2 = 14; pooling 16, +2·4 = 24; two units whose longest path has two
# convolutions of 7 each way: +2·(2·6·4) = 120 pixels. csr: the adapter's 2·8.
FIELDS: dict[Backbone, int] = {"own": 120, "csr": vgg.FIELD + 2 * vgg.STRIDE}
"""Receptive fields, in pixels, of the backbones' features."""


@dataclass(frozen=True)
class Design:
    """The use that one of the paper's networks makes of its first head."""

    head: Literal["mask", "density"] | None
    """The target of the first head; None if there is no such head."""
    fusion: Literal["product", "convolutions"] | None = None
    """How the regressor uses the mask: its output is multiplied by it, or receives
    features of it."""
    mask: Literal["binary", "posterior", "straight_through", "raw"] | None = None
    """``binary``: the true mask in training, the thresholded one otherwise, without gradient;
    ``posterior``: the probability; ``straight_through``: the thresholded one, with the
    probability's gradient; ``raw``: the first head's output, unchanged."""
    hidden: int = 1
    """Number of 3x3 convolutions of the density regressor."""


DESIGNS: dict[Variant, Design] = {
    "solution1": Design("mask", "product", "binary"),
    "solution2": Design("mask", "product", "posterior"),
    "solution3": Design("mask", "product", "straight_through"),
    "solution4": Design("mask", "convolutions", "binary", hidden=2),
    "solution5": Design("mask", "convolutions", "posterior", hidden=2),
    "baseline1": Design(None),
    "baseline2": Design(None, hidden=3),
    "baseline3": Design("density", "convolutions", "raw", hidden=2),
}


def receptive_field(backbone: Backbone, design: Design, mask_features: Sequence[int]) -> int:
    """Return the side in pixels of the square that a cell depends on.

    Every 3x3 convolution adds two cells.
    """
    field, stride = FIELDS[backbone], STRIDES[backbone]
    regressor = design.hidden
    if design.fusion == "convolutions":
        regressor += 1 + len(mask_features)  # through the first head's 3x3 convolution
    return field + 2 * stride * regressor


def _convolutions(channels: Sequence[int], sides: Sequence[int | tuple[int, int]]) -> nn.Sequential:
    """Make convolutions that keep the size, each with its ReLU."""
    layers: list[nn.Module] = []
    for inputs, outputs, side in zip(channels[:-1], channels[1:], sides, strict=True):
        height, width = (side, side) if isinstance(side, int) else side
        padding = (height // 2, width // 2)
        layers.append(nn.Conv2d(inputs, outputs, (height, width), padding=padding))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def _head(inputs: int, hidden: int) -> nn.Sequential:
    """Make ``hidden`` 3x3 convolutions to 256 channels with ReLU, and a linear 1x1 to one."""
    layers = _convolutions([inputs] + [FEATURES] * hidden, [3] * hidden)
    layers.append(nn.Conv2d(FEATURES, 1, 1))
    return layers


class MultiScaleUnit(nn.Module):
    """Four parallel paths of 64 channels, concatenated: x [N,inputs,h,w] -> [N,256,h,w].

    1x1; 1x1, 1x7, 7x1; 1x1, 7x1, 1x7, 7x1, 1x7; 3x3 maximum, 1x1. ``width`` channels inside.
    The paper shows the unit in a figure only (2b); this is the layout of Inception-v3's.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        wide, high = (1, 7), (7, 1)
        self.point = _convolutions([inputs, PATH], [1])
        self.short = _convolutions([inputs, width, width, PATH], [1, wide, high])
        self.long = _convolutions([inputs] + [width] * 4 + [PATH], [1, high, wide, high, wide])
        self.pool = nn.MaxPool2d(3, stride=1, padding=1)
        self.pooled = _convolutions([inputs, PATH], [1])

    def forward(self, x: Tensor) -> Tensor:
        """Compute features [N,256,h,w] of x [N,inputs,h,w]."""
        paths = [self.point(x), self.short(x), self.long(x), self.pooled(self.pool(x))]
        return torch.cat(paths, 1)


class OwnBackbone(nn.Module):
    """The paper's backbone: x [N,1,H,W] -> [N,256,H//4,W//4]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        first, second = STEM
        self.stem = nn.Sequential(
            *_convolutions([1, first, first], [3, 3]),
            nn.MaxPool2d(2),
            *_convolutions([first, second, second], [3, 3]),
            nn.MaxPool2d(2),
            *_convolutions([second, second], [3]),
        )
        self.unit1 = MultiScaleUnit(second, width)
        self.unit2 = MultiScaleUnit(4 * PATH, width)

    def forward(self, x: Tensor) -> Tensor:
        """Compute features [N,256,h,w] of x [N,1,H,W]."""
        features: Tensor = self.unit2(self.unit1(self.stem(x)))
        return features


class VGGBackbone(nn.Module):
    """VGG-16's first ten convolutions and an adapter: x [N,3,H,W] -> [N,256,H//8,W//8]."""

    def __init__(self) -> None:
        super().__init__()
        self.vgg = vgg.frontend()
        self.adapter = _convolutions([vgg.channels(self.vgg), FEATURES], [3])

    def forward(self, x: Tensor) -> Tensor:
        """Compute features [N,256,h,w] of x [N,3,H,W]."""
        features: Tensor = self.adapter(self.vgg(x))
        return features


class MaskAwareNet(nn.Module):
    """A backbone, the first head ``mask`` and the density regressor, combined as in a design.

    x [N,1 or 3,H,W] -> [N,1,h,w]; the last layer is linear. ``mask`` is the head that the paper's
    solutions train on the mask (baseline 3 on density). ``mask_features`` are the convolutions on
    its single channel if the design has any.
    """

    def __init__(
        self, backbone: nn.Module, design: Design, *, mask_features: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.design = design
        self.mask = None if design.head is None else _head(FEATURES, 1)
        self.probability = nn.Sigmoid()
        self.mask_features = None
        channels = FEATURES
        if design.fusion == "convolutions":
            self.mask_features = _convolutions([1, *mask_features], [3] * len(mask_features))
            channels += mask_features[-1]
        self.density = _head(channels, design.hidden)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the density map [N,1,h,w] of x; ``mask`` as for ``heads``."""
        return self.heads(self.backbone(x), mask)[0]

    def heads(self, features: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Compute density [N,1,h,w] and the first head's output (before any sigmoid) from features.

        ``mask`` [N,1,h,w] of 0 and 1, the true one, is used by solutions 1 and 4 in training;
        without it they threshold their own. The others ignore it.
        """
        if self.mask is None:
            return self.density(features), None
        first = self.mask(features)
        received = self._received(first, mask)
        if self.mask_features is None:
            return received * self.density(features), first
        return self.density(torch.cat([features, self.mask_features(received)], 1)), first

    def _received(self, first: Tensor, mask: Tensor | None) -> Tensor:
        """Return the mask that the regressor receives, [N,1,h,w]."""
        if self.design.mask == "raw":
            return first
        if self.design.mask == "binary" and mask is not None:
            return mask
        probability: Tensor = self.probability(first)
        if self.design.mask == "posterior":
            return probability
        binary = (probability > 0.5).to(probability.dtype)
        if self.design.mask == "binary":
            return binary
        # The bracket is exactly 0 and has the gradient 1 of equation (4).
        return binary + (probability - probability.detach())


def mask_loss(
    logits: Tensor, mask: Tensor, *, gamma: float, region: Tensor | None = None
) -> Tensor:
    """Compute the mean focal loss of logits [N,1,h,w] for a mask of 0 and 1.

    Source: Lin et al. 2017, eq. 4.

    (1 − p_t)^gamma · (−log p_t), where p_t is the probability of the right class; without class
    weights. ``gamma`` 0 is binary cross-entropy. Each cell counts by its share of ``region``
    [N,1,h,w] (None: all do).
    """
    entropy = functional.binary_cross_entropy_with_logits(logits, mask, reduction="none")
    if region is not None:
        entropy = entropy * region
    if gamma == 0:
        return entropy.mean()
    # 1 − p_t is the probability of the wrong class. Through its logarithm, the gradient stays
    # finite for gamma < 1 even if the probability rounds to 0.
    wrong = functional.logsigmoid(torch.where(mask > 0.5, -logits, logits))
    return (torch.exp(gamma * wrong) * entropy).mean()
