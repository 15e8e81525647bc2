"""The encoder of MobileNetV4 in three sizes, with the keys of its published weights.

Qin et al., "MobileNetV4: Universal Models for the Mobile Ecosystem", ECCV 2024; keys are those of
the library timm (``mobilenetv4_conv_small_050``, ``mobilenetv4_conv_small``,
``mobilenetv4_conv_medium``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Size = Literal["p", "n", "t"]
STEM = 32
"""Channels of the first convolution."""


@dataclass(frozen=True)
class Block:
    """One row of the published tables.

    * ``"conv"``: a convolution of kernel ``first``.
    * ``"edge"``: a 3x3 convolution to ``hidden`` channels and a 1x1 convolution.
    * ``"uib"`` (universal inverted bottleneck): depthwise of kernel ``first``, 1x1 to ``hidden``
      channels, depthwise of kernel ``middle``, 1x1; kernel 0: no such layer.
    """

    kind: Literal["conv", "edge", "uib"]
    channels: int
    hidden: int = 0
    first: int = 0
    middle: int = 0
    stride: int = 1


def _uib(first: int, middle: int, hidden: int, channels: int, stride: int = 1) -> Block:
    return Block("uib", channels, hidden, first, middle, stride)


def _conv(kernel: int, channels: int, stride: int = 1) -> Block:
    return Block("conv", channels, first=kernel, stride=stride)


Plan = tuple[tuple[Block, ...], ...]
_SMALL: Plan = (
    (_conv(3, 32, 2), _conv(1, 32)),
    (_conv(3, 96, 2), _conv(1, 64)),
    (_uib(5, 5, 192, 96, 2), *[_uib(0, 3, 192, 96)] * 4, _uib(3, 0, 384, 96)),
    (
        _uib(3, 3, 576, 128, 2),
        _uib(5, 5, 512, 128),
        _uib(0, 5, 512, 128),
        _uib(0, 5, 384, 128),
        *[_uib(0, 3, 512, 128)] * 2,
    ),
    (_conv(1, 960),),
)
_MEDIUM: Plan = (
    (Block("edge", 48, 128, stride=2),),
    (_uib(3, 5, 192, 80, 2), _uib(3, 3, 160, 80)),
    (
        _uib(3, 5, 480, 160, 2),
        *[_uib(3, 3, 640, 160)] * 2,
        _uib(3, 5, 640, 160),
        _uib(3, 3, 640, 160),
        _uib(3, 0, 640, 160),
        _uib(0, 0, 320, 160),
        _uib(3, 0, 640, 160),
    ),
    (
        _uib(5, 5, 960, 256, 2),
        _uib(5, 5, 1024, 256),
        *[_uib(3, 5, 1024, 256)] * 2,
        _uib(0, 0, 1024, 256),
        _uib(3, 0, 1024, 256),
        _uib(3, 5, 512, 256),
        _uib(5, 5, 1024, 256),
        *[_uib(0, 0, 1024, 256)] * 2,
        _uib(5, 0, 512, 256),
    ),
    (_conv(1, 960),),
)
PLANS: dict[Size, Plan] = {
    "p": tuple(
        tuple(replace(b, channels=b.channels // 2, hidden=b.hidden // 2) for b in stage)
        for stage in _SMALL
    ),
    "n": _SMALL,
    "t": _MEDIUM,
}
"""The blocks of each stage; "p" has half of the channels of "n"."""


class MobileNetV4(nn.Module):
    """The encoder: x [N,3,H,W] -> [N,``channels``,⌈H/32⌉,⌈W/32⌉], each halving rounded up."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.conv_stem = nn.Conv2d(3, STEM, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.channels = STEM
        """Number of output channels."""
        self.blocks = nn.Sequential(*(self._stage(stage) for stage in PLANS[size]))

    def _stage(self, stage: tuple[Block, ...]) -> nn.Sequential:
        layers: list[nn.Module] = []
        for block in stage:
            kinds = {"conv": _Convolution, "edge": _Edge, "uib": _Bottleneck}
            layers.append(kinds[block.kind](self.channels, block))
            self.channels = block.channels
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Compute features of x [N,3,H,W]."""
        x = functional.relu(self.bn1(self.conv_stem(x)), inplace=True)
        features: Tensor = self.blocks(x)
        return features


def _convolution(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, depthwise: bool = False
) -> nn.Conv2d:
    return nn.Conv2d(
        inputs, outputs, kernel, stride=stride, padding=kernel // 2,
        groups=inputs if depthwise else 1, bias=False,
    )  # fmt: skip


class _Convolution(nn.Module):
    """A convolution with batch norm and ReLU."""

    def __init__(self, inputs: int, block: Block) -> None:
        super().__init__()
        self.conv = _convolution(inputs, block.channels, block.first, stride=block.stride)
        self.bn1 = nn.BatchNorm2d(block.channels)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn1(self.conv(x)), inplace=True)


class _Edge(nn.Module):
    """A 3x3 convolution to more channels, and a 1x1 convolution without activation."""

    def __init__(self, inputs: int, block: Block) -> None:
        super().__init__()
        self.conv_exp = _convolution(inputs, block.hidden, 3, stride=block.stride)
        self.bn1 = nn.BatchNorm2d(block.hidden)
        self.conv_pwl = _convolution(block.hidden, block.channels, 1)
        self.bn2 = nn.BatchNorm2d(block.channels)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv_exp(x)), inplace=True)
        projected: Tensor = self.bn2(self.conv_pwl(x))
        return projected


class _Normed(nn.Module):
    """A convolution with batch norm, and a ReLU if ``active``."""

    def __init__(self, conv: nn.Conv2d, *, active: bool) -> None:
        super().__init__()
        self.conv, self.active = conv, active
        self.bn = nn.BatchNorm2d(conv.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return functional.relu(x, inplace=True) if self.active else x


class _Bottleneck(nn.Module):
    """The universal inverted bottleneck; the input is added if the shape does not change."""

    def __init__(self, inputs: int, block: Block) -> None:
        super().__init__()
        hidden, outputs = block.hidden, block.channels
        self.shortcut = block.stride == 1 and inputs == outputs
        self.dw_start = self.dw_mid = None
        if block.first:
            kernel = _convolution(inputs, inputs, block.first, depthwise=True)
            self.dw_start = _Normed(kernel, active=False)
        self.pw_exp = _Normed(_convolution(inputs, hidden, 1), active=True)
        if block.middle:
            kernel = _convolution(hidden, hidden, block.middle, stride=block.stride, depthwise=True)
            self.dw_mid = _Normed(kernel, active=True)
        self.pw_proj = _Normed(_convolution(hidden, outputs, 1), active=False)

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.dw_start is None else self.dw_start(x)
        y = self.pw_exp(y)
        if self.dw_mid is not None:
            y = self.dw_mid(y)
        projected: Tensor = self.pw_proj(y)
        return x + projected if self.shortcut else projected


@torch.no_grad()
def adopt_mobilenet(encoder: MobileNetV4, state: Mapping[str, Tensor]) -> str | None:
    """Copy weights that timm published for ImageNet into an encoder.

    ``state`` holds ``conv_stem.*``, ``bn1.*`` and ``blocks.*``, with or without the layers behind
    them. Returns a description of what was copied, or None if it is not a MobileNet. ValueError if
    a tensor is missing or has another shape.
    """
    if not {"conv_stem.weight", "blocks.0.0.bn1.weight"} <= state.keys():
        return None
    wanted = {k: v for k, v in encoder.state_dict().items() if v.is_floating_point()}
    for key, tensor in wanted.items():
        given = state.get(key)
        if given is None or given.shape != tensor.shape or not given.is_floating_point():
            got = "nothing" if given is None else f"{list(given.shape)} of {given.dtype}"
            raise ValueError(
                f"mobilenet: {key} must be floats {list(tensor.shape)}, got {got}; is it "
                "MobileNetV4 of this size?"
            )
    encoder.load_state_dict({key: state[key] for key in wanted}, strict=False)
    return f"the encoder of MobileNetV4 ({len(wanted)} of {len(state)} tensors)"
