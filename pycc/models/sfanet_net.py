"""The networks of SFANet and M-SFANet: a VGG trunk and decoders that end at half resolution.

Zhu et al., "Dual Path Multi-Scale Fusion Networks with Attention for Crowd Counting", 2019
(SFANet); Thanasutives et al., "Encoder-Decoder Based Convolutional Neural Networks with
Multi-Scale-Aware Modules for Crowd Counting", ICPR 2020 (M-SFANet). All of them read x [N,3,H,W]
whose sides are multiples of 16, or one more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pycc.models.backbone import take
from pycc.models.can import Context

WIDTHS = (64, 128, 256, 512, 512)
"""Channels of the trunk's five blocks of convolutions."""
DECODER = (256, 128, 64, 32)
"""Channels of a decoder at strides 8, 4 and 2, and of its last convolution."""
POOLED = 256
"""Channels of the pyramid's branches and of its output."""
REGRESSION = (256, 128)
"""Channels of the two convolutions beside the pyramid, in the network for UCF-QNRF."""
PERIOD = 16
"""Pixels after which the trunk's grid of poolings repeats."""
_VGG16, _VGG19 = (2, 2, 3, 3, 3), (2, 2, 4, 4, 4)
_DILATIONS, _QNRF_DILATIONS = (1, 6, 12, 18), (1, 12, 24, 36)


def doubled(x: Tensor, factor: int = 2) -> Tensor:
    """Enlarge [N,C,h,w] bilinearly with aligned corners, as all of these networks do."""
    return functional.interpolate(
        x, scale_factor=float(factor), mode="bilinear", align_corners=True
    )


class _Layer(nn.Module):
    """A convolution that keeps the size, under the key ``conv``, with its norm and ReLU."""

    def __init__(self, inputs: int, outputs: int, side: int, *, norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, side, padding=side // 2)
        if norm:
            self.bn = nn.BatchNorm2d(outputs)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return functional.relu(self.bn(x) if self.norm else x)


class Trunk(nn.Module):
    """VGG's convolutions in five blocks: x [N,3,H,W] -> features at strides 2, 4, 8 and 16."""

    def __init__(self, layers: Sequence[int], *, norm: bool) -> None:
        super().__init__()
        self.layers, self.norm = tuple(layers), norm
        channels = 3
        for (block, index), width in zip(self.places(), self._widths(), strict=True):
            self.add_module(f"conv{block}_{index}", _Layer(channels, width, 3, norm=norm))
            channels = width

    def places(self) -> list[tuple[int, int]]:
        """Block and place in the block of every convolution, counted from 1."""
        return [(b, n) for b, number in enumerate(self.layers, 1) for n in range(1, number + 1)]

    def _widths(self) -> list[int]:
        return [WIDTHS[block - 1] for block, _ in self.places()]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute the last features before each pooling but the first, and the last of all."""
        features = [x]
        for block, index in self.places():
            if index == 1:
                x = functional.max_pool2d(x, 2) if block > 1 else x
                features.append(x)
            features[-1] = x = self.get_submodule(f"conv{block}_{index}")(x)
        return features[2:]


class _Decoder(nn.Module):
    """Seven convolutions from stride 8 to features [N,32,h,w] at stride 2."""

    def __init__(self, eighth: int, fourth: int, *, norm: bool) -> None:
        super().__init__()
        wide, middle, narrow, last = DECODER
        rows = (
            (eighth, wide, 1), (wide, wide, 3),
            (wide + fourth, middle, 1), (middle, middle, 3),
            (middle + WIDTHS[1], narrow, 1), (narrow, narrow, 3), (narrow, last, 3),
        )  # fmt: skip
        for index, (inputs, outputs, side) in enumerate(rows, 1):
            self.add_module(f"conv{index}", _Layer(inputs, outputs, side, norm=norm))

    def forward(self, eighth: Tensor, fourth: Sequence[Tensor], half: Tensor) -> Tensor:
        """Decode what lies at stride 8, what joins it at stride 4, and what joins at stride 2."""
        x = self._apply_layers(eighth, (1, 2))
        x = self._apply_layers(torch.cat([doubled(x), *fourth], 1), (3, 4))
        return self._apply_layers(torch.cat([doubled(x), half], 1), (5, 6, 7))

    def _apply_layers(self, x: Tensor, indices: Sequence[int]) -> Tensor:
        for index in indices:
            x = self.get_submodule(f"conv{index}")(x)
        return x


class _Output(nn.Module):
    """A 1x1 convolution to one channel; its norm, if it has one, is used for attention only."""

    def __init__(self, *, norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(DECODER[-1], 1, 1)
        if norm:
            self.bn = nn.BatchNorm2d(1)


class AttentionNet(nn.Module, ABC):
    """The common part of SFANet and M-SFANet: two decoders, the attention and the density."""

    def __init__(self, eighth: int, fourth: int) -> None:
        super().__init__()
        self.vgg = Trunk(_VGG16, norm=True)
        self._add_paths()
        self.amp = _Decoder(eighth, fourth, norm=True)
        self.dmp = _Decoder(eighth, fourth, norm=True)
        self.conv_att = _Output(norm=True)
        self.conv_out = _Output(norm=True)  # the published keys hold a norm that is never used
        # A module, so that the measurement of receptive fields can replace it.
        self.sigmoid = nn.Sigmoid()

    def _add_paths(self) -> None:
        """Add what a subclass has between trunk and decoders, in the published order of keys."""

    @abstractmethod
    def _joined(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Compute both decoders' input at stride 8, and what joins them at stride 4."""

    def logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the density map and the attention before its sigmoid, [N,1,H//2,W//2] each."""
        features = self.vgg(x)
        eighth, fourth = self._joined(features)
        scores = self.conv_att.bn(self.conv_att.conv(self.amp(eighth, fourth, features[0])))
        density = self.dmp(eighth, fourth, features[0])
        # The attention weighs the features, not the map: where it is 0, the last bias remains.
        return self.conv_out.conv(self.sigmoid(scores) * density), scores

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the density map (values may be negative) and the attention in [0,1]."""
        density, scores = self.logits(x)
        return density, self.sigmoid(scores)


class SFANetNet(AttentionNet):
    """SFANet: x -> (density, attention), [N,1,H//2,W//2] each; 17,002,054 parameters."""

    def __init__(self) -> None:
        super().__init__(WIDTHS[4] + WIDTHS[3], WIDTHS[2])

    def _joined(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        _, fourth, eighth, sixteenth = features
        return torch.cat([doubled(sixteenth), eighth], 1), [fourth]


class _Branch(nn.Module):
    """A branch of the pyramid: a dilated convolution under its published keys, norm, ReLU."""

    def __init__(self, dilation: int, *, norm: bool) -> None:
        super().__init__()
        side, padding = (3, dilation) if dilation > 1 else (1, 0)
        self.atrous_conv = nn.Conv2d(
            WIDTHS[4], POOLED, side, padding=padding, dilation=dilation, bias=False
        )
        self.bn = nn.BatchNorm2d(POOLED) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.atrous_conv(x)))


class Pyramid(nn.Module):
    """Atrous spatial pyramid pooling: x [N,512,h,w] -> [N,256,h,w]; one branch is its mean."""

    def __init__(self, dilations: Sequence[int], *, norm: bool) -> None:
        super().__init__()
        for index, dilation in enumerate(dilations, 1):
            self.add_module(f"aspp{index}", _Branch(dilation, norm=norm))
        self.dilations = tuple(dilations)
        self.global_avg_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(WIDTHS[4], POOLED, 1, bias=False),
            nn.BatchNorm2d(POOLED) if norm else nn.Identity(),
            nn.ReLU(),
        )
        self.conv1 = nn.Conv2d((len(dilations) + 1) * POOLED, POOLED, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(POOLED) if norm else nn.Identity()
        self.dropout = nn.Dropout(0.5) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Compute the joined branches; not negative."""
        branches = [self.get_submodule(f"aspp{n}")(x) for n in range(1, len(self.dilations) + 1)]
        mean = self.global_avg_pool(x).expand(-1, -1, *x.shape[2:])
        pooled: Tensor = self.dropout(
            functional.relu(self.bn1(self.conv1(torch.cat([*branches, mean], 1))))
        )
        return pooled


class _Scales(nn.Module):
    """The multi-scale modules of M-SFANet, under the published spelling of their keys."""

    def __init__(self, dilations: Sequence[int], *, norm: bool) -> None:
        super().__init__()
        self.assp = Pyramid(dilations, norm=norm)
        self.can = Context(WIDTHS[3])


class _QNRFScales(_Scales):
    """Those for UCF-QNRF: other dilations, no norms, and two convolutions beside the pyramid."""

    def __init__(self) -> None:
        super().__init__(_QNRF_DILATIONS, norm=False)
        wide, last = REGRESSION
        self.reg_layer = nn.Sequential(
            nn.Conv2d(WIDTHS[4], wide, 3, padding=1), nn.ReLU(),
            nn.Conv2d(wide, last, 3, padding=1), nn.ReLU(),
        )  # fmt: skip


class MSFANetNet(AttentionNet):
    """M-SFANet for ShanghaiTech: x -> (density, attention); 22,904,390 parameters."""

    def __init__(self) -> None:
        super().__init__(POOLED + WIDTHS[3], WIDTHS[2] + POOLED)

    def _add_paths(self) -> None:
        self.spm = _Scales(_DILATIONS, norm=True)

    def _joined(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        _, fourth, eighth, sixteenth = features
        pooled = self.spm.assp(sixteenth)
        context = self.spm.can(eighth)
        return torch.cat([doubled(pooled), context], 1), [fourth, doubled(pooled, 4)]


class MSFANetQNRFNet(nn.Module):
    """M-SFANet* for UCF-QNRF, another network: x -> density [N,1,H//2,W//2], not negative.

    VGG-19 without norm, one decoder, no attention; 28,618,113 parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        self.vgg = Trunk(_VGG19, norm=False)
        self.spm = _QNRFScales()
        joined = POOLED + REGRESSION[-1]
        self.dmp = _Decoder(joined + WIDTHS[3], WIDTHS[2] + joined, norm=False)
        self.conv_out = _Output(norm=False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the map of x [N,3,H,W]."""
        half, fourth, eighth, sixteenth = self.vgg(x)
        pooled = self.spm.assp(sixteenth)
        both = torch.cat([doubled(pooled), self.spm.reg_layer(doubled(sixteenth))], 1)
        first = torch.cat([both, self.spm.can(eighth)], 1)
        features = self.dmp(first, [fourth, doubled(both)], half)
        density: Tensor = self.conv_out.conv(features)
        return density.abs()


def adopt_trunk(trunk: Trunk, state: Mapping[str, Tensor]) -> str | None:
    """Copy the convolutions of torchvision's VGG into a trunk, with their norms if both have them.

    ``state`` holds ``features.N.weight`` and so on (with or without the classifier). Returns a
    description of what was copied, or None if there are no such keys. ValueError if a tensor is
    missing, has another shape or holds integers, and for norms that the trunk does not have.
    """
    if not any(key.startswith("features.") for key in state):
        return None
    number = len(trunk.places())
    vgg = f"VGG-{number + 3}"
    normalised = any(key.endswith(".running_mean") for key in state)
    if normalised and not trunk.norm:
        raise ValueError(f"{vgg.lower()}: the trunk has no batch normalisation, the weights have")
    keys = {
        name: f"features.{index}{name.removeprefix(own)}"
        for own, index in _torchvision(trunk, normalised=normalised).items()
        for name in trunk.state_dict()
        if name.startswith(own)
    }
    read = take(vgg.lower(), trunk, state, keys, trunk=f"the trunk is that of {vgg}")
    norms = ", and their batch norms" if normalised else ""
    return f"the {number} convolutions of {vgg}{norms} ({read} of its tensors read)"


def _torchvision(trunk: Trunk, *, normalised: bool) -> dict[str, int]:
    """Map the trunk's modules to their numbers under torchvision's ``features``."""
    numbers, index = {}, 0
    for block, place in trunk.places():
        if place == 1 and block > 1:
            index += 1  # a pooling
        numbers[f"conv{block}_{place}.conv"] = index
        if normalised:
            numbers[f"conv{block}_{place}.bn"] = index + 1
        index += 3 if normalised else 2  # with its ReLU
    return numbers
