"""STEERER's network: HRNet-W48, and one counting head for features of four resolutions.

Han et al., "STEERER: Resolving Scale Variations for Counting and Localization via Selective
Inheritance Learning", ICCV 2023. From coarse to fine, each resolution inherits features of the
coarser one, weighed by a mask.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from pycc.models import hrnet

HEAD: tuple[int, ...] = (64, 32, 16)
"""Channels between the layers of the counting head."""
PERIOD = 32
"""Sides of the network's input are multiples of this."""


class SteererNet(nn.Module):
    """The published network: x [N,3,H,W] -> four maps, [N,1,H/s,W/s] for s = 1, 2, 4, 8.

    H and W are multiples of 32. A map's sum is the number of people times a factor of the training;
    the first one is the prediction, the others are for the loss. 64,336,948 parameters: those of
    the published state dict that act on the output.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone = hrnet.HRNet(fuse_last=False)
        self.multi_counters = _Head(2 * hrnet.WIDTHS[0])
        self.upsample_module = _Fusion(hrnet.WIDTHS)

    def finest(self, x: Tensor) -> Tensor:
        """Compute the map [N,1,H,W] of x, RGB standardised as for ImageNet."""
        prediction: Tensor = self.multi_counters(self._features(x)[-1])
        return prediction

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps of x, finest first.

        As in the published training, only the finest one trains the head: the others pass through
        a copy of it whose weights are fixed.
        """
        *coarser, finest = self._features(x)
        copies = {key: tensor.detach().clone() for key, tensor in self._head_state().items()}
        maps = [functional_call(self.multi_counters, copies, (features,)) for features in coarser]
        return (self.multi_counters(finest), *reversed(maps))

    def _head_state(self) -> dict[str, Tensor]:
        head = self.multi_counters
        return {**dict(head.named_parameters()), **dict(head.named_buffers())}

    def _features(self, x: Tensor) -> list[Tensor]:
        """Compute the head's inputs, coarsest first."""
        if x.shape[2] % PERIOD or x.shape[3] % PERIOD:
            raise ValueError(
                f"steerer: sides of the network's input must be multiples of {PERIOD}, "
                f"got {x.shape[2]}x{x.shape[3]}"
            )
        features: list[Tensor] = self.upsample_module(self.backbone.features(x)[::-1])
        return features


class _Head(nn.Module):
    """The counting head: features [N,C,h,w] -> map [N,1,4h,4w], at least 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        first, second, third = HEAD
        self.decoder = nn.Sequential(
            _doubling(),
            *_layer(channels, first, 3),
            *_layer(first, second, 3),
            _doubling(),
            *_layer(second, third, 3),
            nn.Conv2d(third, 1, 1, bias=False),
            nn.ReLU(inplace=True),
        )

    def forward(self, features: Tensor) -> Tensor:
        prediction: Tensor = self.decoder(features)
        return prediction


class _Fusion(nn.Module):
    """Features of the trunk, coarsest first -> inputs of the head, coarsest first."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        finest, *others = widths
        *between, coarsest = others
        self.multi_outputs = nn.ModuleList(
            [
                _Coarsest(coarsest, 2 * finest),
                *(_Between(width, finest) for width in reversed(between)),
                _Finest(finest),
            ]
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        inputs: list[Tensor] = []
        state: Tensor | None = None
        for stage, own in zip(self.multi_outputs, features, strict=True):
            counted, state = stage(own, state)
            inputs.append(counted)
        return inputs


class _Coarsest(nn.Module):
    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.channels_down = nn.Sequential(*_layer(width, channels, 1))

    def forward(self, own: Tensor, _: None) -> tuple[Tensor, Tensor]:
        state = self.channels_down(own)
        return state, state


class _Between(nn.Module):
    """A resolution that hands on what it inherits: a mask divides it into small and big heads."""

    def __init__(self, width: int, half: int) -> None:
        super().__init__()
        self.channels_down = nn.Sequential(*_layer(width, half, 1))
        self.modulation_layer_small = _modulation(half)
        self.modulation_layer_big = _modulation(half)
        self.soft_mask = _Mask(2 * half)

    def forward(self, own: Tensor, coarser: Tensor) -> tuple[Tensor, Tensor]:
        own = self.channels_down(own)
        shares = _enlarged(self.soft_mask(coarser))
        inherited = _enlarged(coarser)
        small = self.modulation_layer_small(inherited) * shares[:, :1]
        big = self.modulation_layer_big(inherited) * shares[:, 1:]
        return torch.cat([own, big], 1), torch.cat([own, small + big], 1)


class _Finest(nn.Module):
    """The finest resolution, which inherits without a mask and hands nothing on."""

    def __init__(self, half: int) -> None:
        super().__init__()
        self.modulation_layer_big = _modulation(half)

    def forward(self, own: Tensor, coarser: Tensor) -> tuple[Tensor, None]:
        return torch.cat([own, self.modulation_layer_big(_enlarged(coarser))], 1), None


class _Mask(nn.Module):
    """Shares of two kinds of heads: [N,C,h,w] -> [N,2,h,w], which add up to 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cls = nn.ModuleList(
            [
                *(nn.Sequential(*_layer(channels, channels, 3)) for _ in range(2)),
                nn.Sequential(nn.Conv2d(channels, 2, 1), nn.Softmax(1)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        for part in self.cls:
            x = part(x)
        return x


def _layer(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def _modulation(half: int) -> nn.Sequential:
    return nn.Sequential(*_layer(2 * half, half, 3), *_layer(half, half, 3))


def _doubling() -> nn.Module:
    return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)


def _enlarged(x: Tensor) -> Tensor:
    """Double the height and width of x by nearest neighbour."""
    return functional.interpolate(x, scale_factor=2, mode="nearest")
