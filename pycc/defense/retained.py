"""What a draw keeps of an image, and the checks on what is asked of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from pycc import ops
from pycc.random import Stream
from pycc.types import Counter

BUDGET = 1 << 21
"""Pixels that are counted at once: about 1 GB of activations for a VGG-16 front end."""


def check_whole(op: str, name: str, value: object, low: int, high: float = math.inf) -> int:
    """``value`` as a whole number within [low, high]; ValueError, TypeError naming both."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{op}: {name} must be a whole number, got {value!r}")
    if not low <= value <= high:
        limits = f"at least {low}" if high == math.inf else f"within [{low}, {high}]"
        raise ValueError(f"{op}: {name} must be {limits}, got {value}")
    return value


def check_fill(op: str, fill: float | Sequence[float]) -> tuple[float, float, float]:
    """A colour, RGB in [0,1], from one number or three; ValueError for another."""
    values = (fill,) * 3 if isinstance(fill, (int, float)) else tuple(fill)
    if len(values) != 3 or not all(0.0 <= float(value) <= 1.0 for value in values):
        raise ValueError(f"{op}: fill must be a number or three (RGB) in [0,1], got {fill!r}")
    return float(values[0]), float(values[1]), float(values[2])


def check_eval(op: str, counter: Counter) -> None:
    """ValueError where a part of the counter is in train mode: its counts are then not its own."""
    if isinstance(counter, nn.Module) and any(part.training for part in counter.modules()):
        raise ValueError(f"{op}: counter must be in eval mode, got one in train mode")


@dataclass(frozen=True)
class Pixels:
    """k uniformly random pixels are kept, all channels of a pixel together."""

    k: int
    op: ClassVar[str] = "ablated"
    unit: ClassVar[str] = "pixel"
    channels: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_whole(self.op, "k", self.k, 1)

    def check(self, shape: tuple[int, int]) -> None:
        """ValueError where an image of ``shape`` (H, W) has fewer than k."""
        most = self.channels * shape[0] * shape[1]
        if self.k > most:
            raise ValueError(
                f"{self.op}: k must be at most the {most} {self.unit}s of an image of "
                f"{shape[0]}x{shape[1]}, got {self.k}"
            )


@dataclass(frozen=True)
class Elements(Pixels):
    """k uniformly random entries of the array are kept, as arXiv 2104.10868 has published."""

    unit: ClassVar[str] = "element"
    channels: ClassVar[int] = 3


@dataclass(frozen=True)
class Bands:
    """The columns [x, x + width) are kept, wrapping around; x is uniform."""

    width: int
    op: ClassVar[str] = "banded"

    def __post_init__(self) -> None:
        check_whole(self.op, "width", self.width, 1)

    def check(self, shape: tuple[int, int]) -> None:
        """ValueError for a band wider than an image of ``shape`` (H, W)."""
        check_whole(self.op, "width", self.width, 1, shape[1])

    def window(self, shape: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of what is kept."""
        return shape[0], self.width

    def positions(self, shape: tuple[int, int]) -> int:
        """How many places there are."""
        return shape[1]

    def corner(self, number: int, shape: tuple[int, int]) -> tuple[int, int]:
        """(y, x) of one of them."""
        return 0, number


@dataclass(frozen=True)
class Blocks:
    """The block [y, y + side) x [x, x + side) is kept, wrapping around; (y, x) is uniform."""

    side: int
    op: ClassVar[str] = "blocked"

    def __post_init__(self) -> None:
        check_whole(self.op, "side", self.side, 1)

    def check(self, shape: tuple[int, int]) -> None:
        """ValueError for a block that is larger than an image of ``shape`` (H, W)."""
        check_whole(self.op, "side", self.side, 1, min(shape))

    def window(self, shape: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of what is kept."""
        return self.side, self.side

    def positions(self, shape: tuple[int, int]) -> int:
        """How many places there are."""
        return shape[0] * shape[1]

    def corner(self, number: int, shape: tuple[int, int]) -> tuple[int, int]:
        """(y, x) of one of them."""
        return divmod(number, shape[1])


Kind = Pixels | Elements | Bands | Blocks
"""What a draw keeps."""


def corners(
    kind: Bands | Blocks, shape: tuple[int, int], *, draws: int | None, first_draw: int, seed: int
) -> list[tuple[int, int]]:
    """(y, x) of the windows that draws keep in an image of ``shape`` (H, W); all for None."""
    places = kind.positions(shape)
    if draws is None:
        return [kind.corner(number, shape) for number in range(places)]
    numbers = range(first_draw, first_draw + draws)
    streams = (Stream(seed, f"ablation, {kind.op}", draw=number) for number in numbers)
    return [kind.corner(int(stream.integers(places)), shape) for stream in streams]


def most_touched(
    kind: Kind, shape: tuple[int, int], patch: int, *, draws: int | None, seed: int
) -> int:
    """The largest number of draws of which one square patch can touch what they keep: exact.

    The draws are the first ``draws`` of ``seed`` in an image of ``shape`` (H, W), or for None every
    place of a band or block once. ValueError for k pixels without a number of draws, and for a
    patch that does not fit.
    """
    if isinstance(kind, Elements):
        raise ValueError(f"{kind.op}: entries of channels are not kept pixel by pixel")
    if isinstance(kind, Pixels):
        if draws is None:
            raise ValueError(f"{kind.op}: draws must be a number where pixels are kept, got None")
        size = shape[0] * shape[1]
        kept = [ops.ablation_indices(size, kind.k, seed=seed, draw=n) for n in range(draws)]
        return int(ops.mask_hits(torch.stack(kept), shape, patch)[0])
    high, wide = kind.window(shape)
    if draws is None:
        places = (kind.positions(shape) // shape[1], shape[1])
        met = [min(n, side + patch - 1) for n, side in zip(places, (high, wide), strict=True)]
        return met[0] * met[1] if places[0] > 1 else met[1]
    top, left = torch.tensor(corners(kind, shape, draws=draws, first_draw=0, seed=seed)).T
    columns = (left[:, None] + torch.arange(wide)) % shape[1]
    if isinstance(kind, Bands):  # as high as the image: a row says all
        return int(ops.mask_hits(columns, (1, shape[1]), (1, patch))[0])
    rows = (top[:, None] + torch.arange(high)) % shape[0]
    pixels = rows[:, :, None] * shape[1] + columns[:, None]
    return int(ops.mask_hits(pixels.flatten(1), shape, patch)[0])


@dataclass(frozen=True, eq=False)
class Batch:
    """Some draws, counted together."""

    draws: list[int]
    """Their positions among the draws that were asked for."""
    maps: Callable[[Tensor], Tensor]
    """From the image [3,H,W] to their density maps [n,1,h,w]; differentiable in the image."""
