"""MCNN, the multi-column counter, in its published formats.

Zhang et al., "Single-Image Crowd Counting via Multi-Column Convolutional Neural Network", CVPR
2016. Three columns of different kernel sizes respond to heads of different sizes; a 1x1 convolution
fuses them into a density map at a quarter of the resolution.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pycc.models import initial
from pycc.models.base import MODELS, CounterModel
from pycc.models.convention import C3_RGB, CHANNELS, Convention, Kind, convention
from pycc.models.options import choice
from pycc.models.recipe import Crop, Optimiser, Recipe

Variant = Literal["gray", "rgb", "c3"]

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


@dataclass(frozen=True)
class _Format:
    """The properties of a published format: layout, input, final activation, output scale."""

    named_blocks: bool
    input: Convention
    final_relu: bool
    scale: float


_VARIANTS: dict[Variant, _Format] = {
    # svishwa/crowdcount-mcnn: the network that patch attacks on counters use.
    "gray": _Format(True, Convention("gray255"), True, 1.0),
    # CommissarMa/MCNN-pytorch.
    "rgb": _Format(False, Convention("rgb255"), False, 1.0),
    # gjy3035/C-3-Framework enlarges the map 4x by nearest neighbour (each cell is counted 16
    # times) and trains it x100; the enlargement has no parameters and is left out here.
    "c3": _Format(True, C3_RGB, True, 16 / 100),
}


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

    With ``named_blocks`` a convolution's key is ``branch1.0.conv.weight`` (pooling takes indices 1
    and 3), without it ``branch1.0.weight`` (a ReLU has its own index).
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
        """Compute the map [N,1,h,w] of x [N,channels,H,W], both in the weights' convention."""
        columns = [self.branch1(x), self.branch2(x), self.branch3(x)]
        fused: Tensor = self.fuse(torch.cat(columns, dim=1))
        return fused


@MODELS.register("mcnn")
class MCNN(CounterModel):
    """MCNN as a counter.

    * ``variant``: ``"gray"`` (svishwa/crowdcount-mcnn; 127,953 parameters), ``"rgb"``
      (CommissarMa/MCNN-pytorch; 133,705), ``"c3"`` (C-3-Framework).
    * ``input``: the input convention, see ``pycc.models.convention.Convention``; by default the
      variant's: ``"gray255"``, ``"rgb255"``, ``"rgb_standard"``.
    * ``final_relu``: whether a ReLU follows the fusing convolution. By default the variant's: yes
      for "gray" and "c3", no for "rgb".
    * ``scale``: people per cell for an output of 1. By default 1; for "c3" 16/100, since its map is
      enlarged four times each way and trained multiplied by 100.
    * ``resize``: 4 resizes both sides to the next lower multiple of 4 before counting, as the
      published loader does (bilinear, half-pixel centres, no anti-aliasing); None does not resize.
      The map has the same size either way. With resizing a cell no longer depends on a fixed
      window, so ``receptive_field`` is None.
    * ``mean``, ``std``: three numbers each, for ``"rgb_standard"`` only; by default those that
      C-3-Framework measured on ShanghaiTech A.

    A fresh network has the published initialisation: weights N(0, 0.01), biases 0, drawn from
    torch's global generator. The loss is the published one, the mean squared error over cells.
    """

    name = "mcnn"
    minimum_side = _STRIDE
    adjustable = frozenset({"resize"})
    not_in_keys: ClassVar = {"final_relu": (True, False)}

    def __init__(
        self,
        *,
        variant: Variant = "gray",
        input: Kind | None = None,
        final_relu: bool | None = None,
        scale: float | None = None,
        resize: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        choice("mcnn", "variant", variant, _VARIANTS)
        form = _VARIANTS[variant]
        input_convention = convention("mcnn", input, form.input, mean=mean, std=std)
        if final_relu is not None:
            choice("mcnn", "final_relu", final_relu, (True, False))
        choice("mcnn", "resize", resize, (None, _STRIDE))
        relu = form.final_relu if final_relu is None else final_relu
        super().__init__(
            MCNNNet(
                CHANNELS[input_convention.kind], named_blocks=form.named_blocks, final_relu=relu
            ),
            stride=_STRIDE,
            receptive_field=_RECEPTIVE_FIELD if resize is None else None,
            scale=form.scale if scale is None else scale,
            convention=input_convention,
        )
        self.variant, self.final_relu, self.resize = variant, relu, resize
        initial.gaussian(self.net)
        # Twice as fast on CPUs with wide vectors; in a state dict only the strides differ.
        self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def preprocess(self, images: Tensor) -> Tensor:
        """Convert images [N,3,H,W], RGB in [0,1], to network input [N,1 or 3,H,W].

        It is differentiable.
        """
        x = self.convention(images)
        if self.resize is not None:
            height, width = images.shape[-2:]
            size = (height // self.resize * self.resize, width // self.resize * self.resize)
            if size != (height, width):
                x = functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
        return x

    def options(self) -> dict[str, object]:
        """Return the keyword arguments that build this counter again; JSON values only."""
        return {
            "variant": self.variant,
            "final_relu": self.final_relu,
            "scale": self.scale,
            "resize": self.resize,
            **self.convention.options(),
        }

    def recipe(self) -> Recipe:
        """Return the recipe of svishwa/crowdcount-mcnn; other formats' are not public in full."""
        if self.variant != "gray":
            return super().recipe()
        return Recipe(
            source="svishwa/crowdcount-mcnn",
            optimisers=(Optimiser("adam", 1e-5),),
            epochs=2001,
            batch=1,
            density={"": "svishwa_window"},
            down_sampling="linear4",
            crop=Crop("quarter_sides", number=9, multiple=8),
            validation_share=0.1,
            notes=(
                "the declared momentum of 0.9 is not used",
                "seed 64678, order of images by seed 2468; validated every second epoch",
                "29 of 300 (A), 39 of 400 (B) images are held out: the split is strict",
                "the paper has a linear last layer and geometry-adaptive kernels",
            ),
        )

    def reading(self, input: str) -> MCNN | None:
        """Return the same counter with its first kernels rescaled for input in [0,1] or in 0…255.

        Adam's steps have one size in all kernels. For levels of 0…255 a step in the first kernels
        changes their output 255 times as much, which is why published learning rates are small.
        """
        factor = self.convention.factor(input)
        if factor is None:
            return None
        counter = copy.deepcopy(self)
        counter.convention = replace(self.convention, kind=cast("Kind", input))
        with torch.no_grad():
            for name, module in counter.net.named_modules():
                first = name.startswith(("branch1.0", "branch2.0", "branch3.0"))
                if first and isinstance(module, nn.Conv2d):
                    module.weight.mul_(factor)
        return counter

    @classmethod
    def recognise(cls, state: Mapping[str, Tensor]) -> dict[str, object] | None:
        """Recognise the variant by its keys and its number of channels.

        Keys such as ``branch1.0.weight`` mean "rgb".
        """
        columns = ("branch1", "branch2", "branch3")
        if "head.0.weight" in state:  # pycc's narrow counter has the same columns
            return None
        if any(f"{column}.0.weight" in state for column in columns):
            return {"variant": "rgb"}
        firsts = [state.get(f"{column}.0.conv.weight") for column in columns]
        kernels = [first for first in firsts if first is not None]
        if not kernels:
            return None
        return {"variant": "c3" if kernels[0].ndim == 4 and kernels[0].shape[1] == 3 else "gray"}
