"""The networks of ZIP (EBC-ZIP): MobileNetV4, a small decoder, and heads for two questions.

Ma, Sanchez and Guha, "ZIP: Scalable Crowd Counting via Zero-Inflated Poisson Modeling". One head
says whether a block can hold anybody at all, the other how many it holds then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pycc.models.mobilenet_v4 import MobileNetV4, Size
from pycc.models.zip_bins import ROUNDING, Bins, distance

DECODER: dict[Size, tuple[int, ...]] = {"p": (240,), "n": (480, 240), "t": (480, 240)}
"""Channels behind each block of the decoder."""
ENCODER_STRIDE = 32


class Scores(NamedTuple):
    """The network's two heads, before any softmax."""

    empty: Tensor
    """[N,2,h,w]: a block is empty whatever the rate, or not."""
    bins: Tensor
    """[N,n-1,h,w]: the bins of one head and more."""


class ZIPNet(nn.Module):
    """The published network: x [N,3,H,W] -> map [N,1,h,w].

    h is ⌈H/32⌉*32/block, likewise w. The people of a block are p*r, with p the probability that it
    is not empty by structure and r, its rate, the mean of the bins' counts (without that of the
    empty bin, 0). So 1 <= r <= the last bin's count. In train mode, as published, the result is
    (logits [N,2,h,w], logits [N,n-1,h,w], r, map).

    817,887 parameters ("p"), 3,369,115 ("n"), 8.7 or 10.5 million ("t"), with the bins of some sets
    and blocks. The bins' counts are in the state dict. Loading other ones is refused; those that
    half precision rounded are restored.
    """

    bin_centers: Tensor

    def __init__(self, size: Size, bins: Bins, *, block: int) -> None:
        super().__init__()
        self.bins = bins
        self.register_buffer("bin_centers", torch.tensor(bins.centers).view(1, -1, 1, 1))
        self.backbone = _Backbone(size, block)
        self.bin_head = nn.Conv2d(self.backbone.channels, len(bins.centers) - 1, 1)
        self.pi_head = nn.Conv2d(self.backbone.channels, 2, 1)
        self.register_load_state_dict_pre_hook(_check_centers)  # type: ignore[no-untyped-call]

    def scores(self, x: Tensor) -> Scores:
        """Compute the logits of both heads."""
        features = self.backbone(x)
        return Scores(self.pi_head(features), self.bin_head(features))

    def rates(self, scores: Scores) -> Tensor:
        """Compute the rates [N,1,h,w] of blocks that are not empty by structure."""
        return (scores.bins.softmax(1) * self.bin_centers[:, 1:]).sum(1, keepdim=True)

    def people(self, scores: Scores) -> Tensor:
        """Compute the people [N,1,h,w] of each block."""
        return scores.empty.softmax(1)[:, 1:] * self.rates(scores)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute the map of x, RGB standardised as for CLIP."""
        scores = self.scores(x)
        people = self.people(scores)
        return (*scores, self.rates(scores), people) if self.training else people


def _check_centers(net: nn.Module, state: dict[str, object], prefix: str, *_: object) -> None:
    """Refuse other counts of bins than the network's; restore those that were rounded."""
    assert isinstance(net, ZIPNet)
    key = f"{prefix}bin_centers"
    given = state.get(key)
    if not isinstance(given, Tensor) or given.is_meta:
        return
    if list(given.shape) == list(net.bin_centers.shape):
        if distance(net.bins, given) > ROUNDING:
            last = float(given.flatten()[-1])
            raise ValueError(
                f"its bin_centers are not those of the data set: the last is {last:.6g}, "
                f"expected {net.bins.centers[-1]:.6g}"
            )
        if given.dtype != net.bin_centers.dtype:
            exact = torch.tensor(net.bins.centers, dtype=net.bin_centers.dtype)
            state[key] = exact.view(1, -1, 1, 1)


class _Backbone(nn.Module):
    """Encoder, refiner and decoder: x [N,3,H,W] -> [N,240,h,w]."""

    def __init__(self, size: Size, block: int) -> None:
        super().__init__()
        self.encoder = MobileNetV4(size)
        self.channels = self.encoder.channels
        kind: type[_Light | _Medium] = _Medium if size == "t" else _Light
        doublings = {32: 0, 16: 1, 8: 2}[block]
        self.refiner = _chain(
            [_Doubled(kind(self.channels, self.channels)) for _ in range(doublings)]
        )
        blocks: list[nn.Module] = []
        for outputs in DECODER[size]:
            blocks.append(kind(self.channels, outputs))
            self.channels = outputs
        self.decoder = _chain(blocks)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.decoder(self.refiner(self.encoder(x)))
        return features


def _chain(blocks: list[nn.Module]) -> nn.Module:
    """Join blocks; one alone has no number in the published keys."""
    if len(blocks) == 1:
        return blocks[0]
    return nn.Sequential(*blocks) if blocks else nn.Identity()


class _Doubled(nn.Module):
    """Features enlarged twice, bilinearly, and refined."""

    def __init__(self, refine: nn.Module) -> None:
        super().__init__()
        self.refine = refine

    def forward(self, x: Tensor) -> Tensor:
        x = functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        refined: Tensor = self.refine(x)
        return refined


def _shortcut(inputs: int, outputs: int) -> nn.Module | None:
    if inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))


def _depthwise(channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)


class _Light(nn.Module):
    """A depthwise 3x3 and a 1x1 convolution with batch norms, and a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _depthwise(inputs), nn.BatchNorm2d(inputs)
        self.conv2 = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class _Separable(nn.Module):
    """A depthwise 3x3 convolution and a 1x1 convolution, with nothing between them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.depthwise = _depthwise(inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.pointwise(self.depthwise(x))
        return y


class _Residual(nn.Module):
    """Two separable convolutions with batch norms, and a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _Separable(inputs, outputs), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = _Separable(outputs, outputs), nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class _Medium(nn.Module):
    """A residual block under the name that the published keys have."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.refine = _Residual(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        refined: Tensor = self.refine(x)
        return refined


def described(state: Mapping[str, Tensor]) -> tuple[Size, int] | None:
    """Return the size and the side of a block that keys belong to, or None."""
    if not {"backbone.encoder.conv_stem.weight", "bin_head.weight", "bin_centers"} <= state.keys():
        return None
    size: Size = "n" if any(key.startswith("backbone.decoder.0.") for key in state) else "p"
    if "backbone.encoder.blocks.0.0.conv_exp.weight" in state:
        size = "t"
    doublings = {16: "backbone.refiner.refine.", 8: "backbone.refiner.0."}
    for block, prefix in doublings.items():
        if any(key.startswith(prefix) for key in state):
            return size, block
    return size, ENCODER_STRIDE
