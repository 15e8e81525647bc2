"""MCNN, the multi-column counter, in its published formats.

Zhang et al., "Single-Image Crowd Counting via Multi-Column Convolutional Neural Network", CVPR
2016. Three columns of different kernel sizes see heads of different sizes; a 1x1 convolution fuses
them into a density map at a quarter of the resolution.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pycc.models.base import MODELS, CounterModel, is_number, shown

Variant = Literal["gray", "rgb", "c3"]
Input = Literal["gray255", "gray_half", "rgb255", "rgb_standard"]

# (output channels, kernel side) of the four convolutions of each column; a 2x2 max pooling
# follows the first and the second.
_COLUMNS = (
    ((16, 9), (32, 7), (16, 7), (8, 7)),
    ((20, 7), (40, 5), (20, 5), (10, 5)),
    ((24, 5), (48, 3), (24, 3), (12, 3)),
)
_STRIDE = 4
# Column 1: 9, pooling 10, +6·2 = 22, pooling 24, +6·4 = 48, +6·4 = 72 pixels.
_RECEPTIVE_FIELD = 72

_LUMA = (0.299, 0.587, 0.114)
"""ITU-R 601 weights of R, G, B, as PIL's mode "L" and OpenCV's grey conversion use."""

_MOST = float(torch.finfo(torch.float32).max)
"""The largest finite number that preprocessing can use."""


@dataclass(frozen=True)
class _Convention:
    """What belongs to a published format: layout, input, final activation, output scale."""

    named_blocks: bool
    input: Input
    final_relu: bool
    scale: float


_VARIANTS: dict[Variant, _Convention] = {
    # svishwa/crowdcount-mcnn: the network that patch attacks on counters use.
    "gray": _Convention(True, "gray255", True, 1.0),
    # CommissarMa/MCNN-pytorch.
    "rgb": _Convention(False, "rgb255", False, 1.0),
    # gjy3035/C-3-Framework enlarges the map 4x by nearest neighbour (each cell is counted 16
    # times) and trains it x100; the enlargement has no parameters and is left out here.
    "c3": _Convention(True, "rgb_standard", True, 16 / 100),
}
_CHANNELS: dict[Input, int] = {"gray255": 1, "gray_half": 1, "rgb255": 3, "rgb_standard": 3}


class _ConvRelu(nn.Module):
    """A convolution under the key ``conv`` and its ReLU, the block of the published code."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, relu: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return functional.relu(x, inplace=True) if self.relu else x


class MCNNNet(nn.Module):
    """The published network: x [N,channels,H,W] -> [N,1,h,w], h and w the sides halved twice.

    With ``named_blocks`` a convolution's key is ``branch1.0.conv.weight`` (pooling takes indices
    1 and 3), without it ``branch1.0.weight`` (ReLU takes an index of its own).
    """

    def __init__(self, channels: int, *, named_blocks: bool, final_relu: bool) -> None:
        super().__init__()
        self.branch1, self.branch2, self.branch3 = (
            self._column(channels, column, named_blocks) for column in _COLUMNS
        )
        fused = sum(column[-1][0] for column in _COLUMNS)
        self.fuse: nn.Sequential
        if named_blocks:
            self.fuse = nn.Sequential(_ConvRelu(fused, 1, 1, relu=final_relu))
        else:
            tail = [nn.ReLU()] if final_relu else []
            self.fuse = nn.Sequential(nn.Conv2d(fused, 1, 1), *tail)

    @staticmethod
    def _column(
        channels: int, convolutions: Sequence[tuple[int, int]], named_blocks: bool
    ) -> nn.Sequential:
        layers: list[nn.Module] = []
        for index, (outputs, kernel) in enumerate(convolutions):
            if named_blocks:
                layers.append(_ConvRelu(channels, outputs, kernel))
            else:
                layers.append(nn.Conv2d(channels, outputs, kernel, padding=kernel // 2))
                layers.append(nn.ReLU(inplace=True))
            if index < 2:
                layers.append(nn.MaxPool2d(2))
            channels = outputs
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N,1,h,w] of x [N,channels,H,W], both in the convention of the weights."""
        columns = [self.branch1(x), self.branch2(x), self.branch3(x)]
        fused: Tensor = self.fuse(torch.cat(columns, dim=1))
        return fused


@MODELS.register("mcnn")
class MCNN(CounterModel):
    """MCNN as a counter.

    * ``variant``: ``"gray"`` (svishwa/crowdcount-mcnn; 127,953 parameters), ``"rgb"``
      (CommissarMa/MCNN-pytorch; 133,705), ``"c3"`` (C-3-Framework).
    * ``input``: what the network is fed. ``"gray255"`` grey 0…255; ``"gray_half"`` grey,
      (x - 127.5) / 128; ``"rgb255"`` RGB 0…255; ``"rgb_standard"`` RGB of [0,1], standardised
      with ``mean`` and ``std``. Grey is 0.299 R + 0.587 G + 0.114 B. By default the variant's.
    * ``final_relu``: whether a ReLU follows the fusing convolution. By default the variant's:
      yes for "gray" and "c3", no for "rgb".
    * ``scale``: people per cell for an output of 1. By default 1; "c3" 16/100, since its map is
      enlarged four times each way and trained multiplied by 100.
    * ``resize``: 4 resizes both sides to the next lower multiple of 4 before counting, as the
      published loader does (bilinear, half-pixel centres, no anti-aliasing); None counts the
      image as it is. The map has the same size either way. With resizing a cell no longer sees
      a fixed window, so ``receptive_field`` is None.
    * ``mean``, ``std``: three numbers each, for ``"rgb_standard"`` only; by default those that
      C-3-Framework measured on ShanghaiTech A.

    A fresh network has the published initialisation: weights N(0, 0.01), biases 0, drawn from
    torch's global generator. The loss is the published one, the mean squared error over cells.
    """

    name = "mcnn"
    minimum_side = _STRIDE
    adjustable = frozenset({"resize"})

    def __init__(
        self,
        *,
        variant: Variant = "gray",
        input: Input | None = None,
        final_relu: bool | None = None,
        scale: float | None = None,
        resize: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        if not isinstance(variant, str) or variant not in _VARIANTS:
            raise ValueError(f"mcnn: variant must be {_known(_VARIANTS)}, got {shown(variant)}")
        convention = _VARIANTS[variant]
        kind = convention.input if input is None else input
        if not isinstance(kind, str) or kind not in _CHANNELS:
            raise ValueError(f"mcnn: input must be {_known(_CHANNELS)}, got {shown(input)}")
        if _CHANNELS[kind] != _CHANNELS[convention.input]:
            raise ValueError(
                f"mcnn: variant {variant!r} has {_CHANNELS[convention.input]} input channels, "
                f"input {input!r} gives {_CHANNELS[kind]}"
            )
        if final_relu is not None and not isinstance(final_relu, bool):
            raise ValueError(f"mcnn: final_relu must be True or False, got {shown(final_relu)}")
        if resize is not None and not (isinstance(resize, int) and resize == _STRIDE):
            raise ValueError(f"mcnn: resize must be None or {_STRIDE}, got {shown(resize)}")
        if kind != "rgb_standard" and (mean is not None or std is not None):
            raise ValueError(f"mcnn: mean and std belong to input 'rgb_standard', got {kind!r}")
        relu = convention.final_relu if final_relu is None else final_relu
        super().__init__(
            MCNNNet(_CHANNELS[kind], named_blocks=convention.named_blocks, final_relu=relu),
            stride=_STRIDE,
            receptive_field=_RECEPTIVE_FIELD if resize is None else None,
            scale=convention.scale if scale is None else scale,
        )
        self.variant, self.input, self.final_relu, self.resize = variant, kind, relu, resize
        self.mean = _three("mean", mean, (0.410824894905, 0.370634973049, 0.359682112932))
        self.std = _three("std", std, (0.278580576181, 0.26925137639, 0.27156367898))
        self._initialise()
        # Twice as fast on CPUs with wide vectors; a state dict only carries it as strides.
        self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _initialise(self) -> None:
        for module in self.net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def preprocess(self, images: Tensor) -> Tensor:
        """Network input [N,1 or 3,H,W] of images [N,3,H,W] (RGB in [0,1]); differentiable."""
        x = images
        if self.input in ("gray255", "gray_half"):
            red, green, blue = images.unbind(1)
            x = (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue).unsqueeze(1)
        if self.input == "rgb_standard":
            mean = images.new_tensor(self.mean).view(3, 1, 1)
            x = (x - mean) / images.new_tensor(self.std).view(3, 1, 1)
        else:
            x = x * 255.0
        if self.input == "gray_half":
            x = (x - 127.5) / 128.0
        if self.resize is not None:
            height, width = images.shape[-2:]
            size = (height // self.resize * self.resize, width // self.resize * self.resize)
            if size != (height, width):
                x = functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
        return x

    def options(self) -> dict[str, object]:
        """The keyword arguments that build this counter again; JSON values only."""
        options: dict[str, object] = {
            "variant": self.variant,
            "input": self.input,
            "final_relu": self.final_relu,
            "scale": self.scale,
            "resize": self.resize,
        }
        if self.input == "rgb_standard":
            options |= {"mean": list(self.mean), "std": list(self.std)}
        return options

    @classmethod
    def recognise(cls, state: Mapping[str, Tensor]) -> dict[str, object] | None:
        """The variant by its keys (``branch1.0.weight``: "rgb") and its number of channels."""
        columns = ("branch1", "branch2", "branch3")
        if any(f"{column}.0.weight" in state for column in columns):
            return {"variant": "rgb"}
        firsts = [state.get(f"{column}.0.conv.weight") for column in columns]
        there = [first for first in firsts if first is not None]
        if not there:
            return None
        return {"variant": "c3" if there[0].ndim == 4 and there[0].shape[1] == 3 else "gray"}


def _known(names: Iterable[str]) -> str:
    return " or ".join(repr(name) for name in names)


def _three(
    what: str, values: Sequence[float] | None, default: tuple[float, float, float]
) -> tuple[float, float, float]:
    if values is None:
        return default
    if (
        not isinstance(values, list | tuple)
        or len(values) != 3
        or not all(is_number(value) and abs(value) <= _MOST for value in values)
    ):
        raise ValueError(f"mcnn: {what} must be three finite numbers, got {shown(values)}")
    if what == "std" and min(values) <= 0:
        raise ValueError(f"mcnn: std must be positive, got {shown(values)}")
    return float(values[0]), float(values[1]), float(values[2])
