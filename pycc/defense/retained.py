"""The kinds of image parts that a draw retains, and the draws that a patch can touch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pycc import ops
from pycc.checks import check_whole
from pycc.random import Stream

BUDGET = 1 << 21
"""Default number of pixels counted at once: about 1 GB of activations for a VGG-16 front end."""


def check_fill(op: str, fill: float | Sequence[float]) -> tuple[float, float, float]:
    """Return an RGB colour in [0,1] made of one number or three; ValueError for anything else."""
    values = (fill,) * 3 if isinstance(fill, (int, float)) else tuple(fill)
    if len(values) != 3 or not all(0.0 <= float(value) <= 1.0 for value in values):
        raise ValueError(f"{op}: fill must be a number or three (RGB) in [0,1], got {fill!r}")
    return float(values[0]), float(values[1]), float(values[2])


@dataclass(frozen=True)
class Pixels:
    """Keep k uniformly random pixels, all channels of a pixel together.

    Raises:
        ValueError: k below 1.
        TypeError: k that is not an int.

    Example:
        >>> from pycc.defense.retained import Pixels
        >>> Pixels(17).check((4, 4))
        Traceback (most recent call last):
        ...
        ValueError: ablated: k must be at most the 16 pixels of an image of 4x4, got 17
    """

    k: int
    op: ClassVar[str] = "ablated"
    unit: ClassVar[str] = "pixel"
    channels: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_whole(self.op, "k", self.k, 1)

    def check(self, shape: tuple[int, int], name: str | None = None) -> None:
        """Raise ValueError if an image of ``shape`` (H, W) has fewer than k pixels (entries).

        The error begins with ``name``, such as that of the image, or else with ``op``.
        """
        most = self.channels * shape[0] * shape[1]
        if self.k > most:
            raise ValueError(
                f"{name or self.op}: k must be at most the {most} {self.unit}s of an image of "
                f"{shape[0]}x{shape[1]}, got {self.k}"
            )


@dataclass(frozen=True)
class Elements(Pixels):
    """Keep k uniformly random entries of the image array, as in the code of arXiv 2104.10868.

    Example:
        >>> from pycc.defense.retained import Elements
        >>> Elements(48).check((4, 4))  # an image of 4x4 pixels has 48 entries
    """

    unit: ClassVar[str] = "element"
    channels: ClassVar[int] = 3


@dataclass(frozen=True)
class Bands:
    """Keep the columns [x, x + width), wrapping around, with uniform x.

    Raises:
        ValueError: a width below 1.
        TypeError: a width that is not an int.

    Example:
        >>> from pycc.defense.retained import Bands
        >>> Bands(3).window((48, 64)), Bands(3).positions((48, 64))
        ((48, 3), 64)
    """

    width: int
    op: ClassVar[str] = "banded"

    def __post_init__(self) -> None:
        check_whole(self.op, "width", self.width, 1)

    def check(self, shape: tuple[int, int]) -> None:
        """Raise ValueError for a band wider than an image of ``shape`` (H, W)."""
        check_whole(self.op, "width", self.width, 1, shape[1])

    def window(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Return (height, width) of the retained window, in pixels."""
        return shape[0], self.width

    def positions(self, shape: tuple[int, int]) -> int:
        """Return the number of places of the window."""
        return shape[1]

    def corner(self, number: int, shape: tuple[int, int]) -> tuple[int, int]:
        """Return (y, x) of the place of this number."""
        return 0, number


@dataclass(frozen=True)
class Blocks:
    """Keep the block [y, y + side) x [x, x + side), wrapping around, with uniform (y, x).

    Raises:
        ValueError: a side below 1.
        TypeError: a side that is not an int.

    Example:
        >>> from pycc.defense.retained import Blocks
        >>> Blocks(3).window((48, 64)), Blocks(3).corner(65, (48, 64))
        ((3, 3), (1, 1))
    """

    side: int
    op: ClassVar[str] = "blocked"

    def __post_init__(self) -> None:
        check_whole(self.op, "side", self.side, 1)

    def check(self, shape: tuple[int, int]) -> None:
        """Raise ValueError for a block that is larger than an image of ``shape`` (H, W)."""
        check_whole(self.op, "side", self.side, 1, min(shape))

    def window(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Return (height, width) of the retained window, in pixels."""
        return self.side, self.side

    def positions(self, shape: tuple[int, int]) -> int:
        """Return the number of places of the window."""
        return shape[0] * shape[1]

    def corner(self, number: int, shape: tuple[int, int]) -> tuple[int, int]:
        """Return (y, x) of the place of this number."""
        return divmod(number, shape[1])


Kind = Pixels | Elements | Bands | Blocks
"""The part of an image that a draw retains."""


def corners(
    kind: Bands | Blocks, shape: tuple[int, int], *, draws: int | None, first_draw: int, seed: int
) -> list[tuple[int, int]]:
    """Return (y, x) of the windows of the draws in an image of ``shape`` (H, W).

    ``draws`` None returns every place once.
    """
    places = kind.positions(shape)
    if draws is None:
        return [kind.corner(number, shape) for number in range(places)]
    numbers = range(first_draw, first_draw + draws)
    streams = (Stream(seed, f"ablation, {kind.op}", draw=number) for number in numbers)
    return [kind.corner(int(stream.integers(places)), shape) for stream in streams]


def most_touched(
    kind: Kind, shape: tuple[int, int], *, patch_size: int, draws: int | None, seed: int
) -> int:
    """Compute the largest number of draws whose retained part one square patch can touch: exact.

    Args:
        kind: the retained part; not :class:`Elements`.
        shape: (H, W) of the image, in pixels.
        patch_size: side of the patch, in pixels.
        draws: the first ``draws`` draws of ``seed``; None takes every place of a band or block
            once.
        seed: any 64-bit integer.

    Raises:
        ValueError: :class:`Elements`, :class:`Pixels` without a number of draws, or a patch that
            does not fit into the image.

    Example:
        >>> from pycc.defense.retained import Bands, most_touched
        >>> most_touched(Bands(4), (32, 32), patch_size=8, draws=None, seed=0)  # 4 + 8 - 1
        11
    """
    if isinstance(kind, Elements):
        raise ValueError(f"{kind.op}: entries of channels are not kept pixel by pixel")
    if isinstance(kind, Pixels):
        if draws is None:
            raise ValueError(f"{kind.op}: draws must be a number where pixels are kept, got None")
        size = shape[0] * shape[1]
        kept = [ops.ablation_indices(size, kind.k, seed=seed, draw=n) for n in range(draws)]
        return int(ops.mask_hits(torch.stack(kept), shape, patch_size)[0])
    high, wide = kind.window(shape)
    if draws is None:
        places = (kind.positions(shape) // shape[1], shape[1])
        met = [min(n, side + patch_size - 1) for n, side in zip(places, (high, wide), strict=True)]
        return met[0] * met[1] if places[0] > 1 else met[1]
    top, left = torch.tensor(corners(kind, shape, draws=draws, first_draw=0, seed=seed)).T
    columns = (left[:, None] + torch.arange(wide)) % shape[1]
    if isinstance(kind, Bands):  # as high as the image: one row is enough
        return int(ops.mask_hits(columns, (1, shape[1]), (1, patch_size))[0])
    rows = (top[:, None] + torch.arange(high)) % shape[0]
    pixels = rows[:, :, None] * shape[1] + columns[:, None]
    return int(ops.mask_hits(pixels.flatten(1), shape, patch_size)[0])


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch of draws that are counted together, from ``ablation_batches``.

    Example:
        >>> import torch
        >>> from pycc.defense.retained import Batch
        >>> batch = Batch([0, 1], lambda image: image.mean() * torch.ones(2, 1, 1, 1))
        >>> batch.maps(torch.ones(3, 8, 8)).shape
        torch.Size([2, 1, 1, 1])
    """

    draws: list[int]
    """The positions of the n draws among all draws."""
    maps: Callable[[Tensor], Tensor]
    """Maps the image [3,H,W] to density maps [n,1,h,w]; differentiable in the image."""
