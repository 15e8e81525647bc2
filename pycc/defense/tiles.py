"""Counting of isolated tiles: no tile can affect the count of another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pycc.checks import check_whole
from pycc.defense.base import Defended, DefendedModule, Defense, defended
from pycc.grid import minimum_side
from pycc.types import Counter


@dataclass(frozen=True)
class Tiled(Defense):
    """Tiles that are counted separately; each is one cell of the map."""

    tile: int
    op: ClassVar[str] = "tiled"

    def __post_init__(self) -> None:
        check_whole(self.op, "tile", self.tile, 1)

    def check_counter(self, counter: Counter) -> None:
        """Raise ValueError for a tile that the counter cannot take as an image."""
        if self.tile % counter.stride:
            raise ValueError(
                f"tiled: tile must be a multiple of the stride {counter.stride}, got {self.tile}"
            )
        if self.tile < minimum_side(counter):
            raise ValueError(
                f"tiled: tile must be at least the counter's {minimum_side(counter)} pixels, "
                f"got {self.tile}"
            )

    def stride(self, counter: Counter) -> int:
        """The tile's side."""
        return self.tile

    def receptive_field(self, counter: Counter) -> int | None:
        """The tile's side: a cell depends on its own tile and on nothing else."""
        return self.tile

    def period(self, counter: Counter) -> int:
        """The tile's side."""
        return self.tile

    def density(self, counter: Counter, images: Tensor) -> Tensor:
        """Compute the count of each tile."""
        least = minimum_side(counter)
        down, across = (_cuts(size, self.tile, least) for size in images.shape[2:])
        if not down or not across:
            raise ValueError(
                f"tiled: images must be at least {least}x{least} pixels, "
                f"got {images.shape[2]}x{images.shape[3]}"
            )
        rows = []
        for lines, height in down:
            parts = [_counts(counter, images[..., lines, c], height, width) for c, width in across]
            rows.append(torch.cat(parts, 3))
        return torch.cat(rows, 2)


def _cuts(size: int, tile: int, least: int) -> list[tuple[slice, int]]:
    """Cut one axis into a part of full tiles and a smaller tile; return slices and tile sides.

    A rest of fewer than ``least`` pixels is dropped.
    """
    end = size // tile * tile
    cuts = [(slice(0, end), tile)] if end else []
    rest = size - end
    return [*cuts, (slice(end, size), rest)] if rest >= max(least, 1) else cuts


def _counts(counter: Counter, images: Tensor, height: int, width: int) -> Tensor:
    """Count the equal tiles of images [N,3,R*height,C*width]; return the counts [N,1,R,C]."""
    number, channels = images.shape[:2]
    rows, columns = images.shape[2] // height, images.shape[3] // width
    tiles = images.reshape(number, channels, rows, height, columns, width)
    tiles = tiles.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, height, width)
    return counter(tiles).sum((1, 2, 3)).reshape(number, 1, rows, columns)


def tiled(counter: Counter, tile: int) -> Defended | DefendedModule:
    """Defend a counter by counting tiles of ``tile`` x ``tile`` pixels as separate images.

    The map has one cell per tile, so that stride and receptive field are both ``tile``: a patch of
    p pixels touches at most ceil((p - 1) / tile) + 1 cells of an axis, also for counters with an
    unbounded receptive field. People who are cut by a border are counted differently: the price of
    the certificate is accuracy near the cuts.

    A rest at the right or bottom is a smaller tile. It is not counted if it has fewer pixels than
    the counter takes (its ``minimum_side`` or, if it has none, its stride), as counters drop pixels
    that do not fill a cell.

    Args:
        counter: any counter, in eval mode when it is called.
        tile: side of a tile in pixels, a multiple of the counter's stride.

    Raises:
        ValueError: a tile that is not a multiple of the counter's stride, or smaller than the
            counter takes; when the counter is called, an image with a side smaller than it takes.

    Example:
        >>> import torch
        >>> from pycc import defense, models
        >>> pool = torch.nn.AvgPool2d(8).eval()  # one person per white cell
        >>> counter = models.wrap(pool, preprocess=lambda x: x[:, :1], stride=8)
        >>> tiled = defense.tiled(counter, 16)
        >>> tiled(torch.ones(1, 3, 32, 24)).tolist(), tiled.receptive_field
        ([[[[4.0, 2.0], [4.0, 2.0]]]], 16)
    """
    return defended(counter, Tiled(tile))
