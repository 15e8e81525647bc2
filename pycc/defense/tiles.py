"""A counter of isolated tiles: what is in one tile cannot be felt in another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pycc.defense.base import Defended, DefendedModule, Defense, defended, minimum_side
from pycc.defense.retained import check_whole
from pycc.types import Counter


@dataclass(frozen=True)
class Tiled(Defense):
    """Tiles that are counted one by one; each is one cell of the map."""

    tile: int
    op: ClassVar[str] = "tiled"

    def __post_init__(self) -> None:
        check_whole(self.op, "tile", self.tile, 1)

    def check_counter(self, counter: Counter) -> None:
        """ValueError for a tile that is no image which the counter takes."""
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

    def density(self, counter: Counter, images: Tensor) -> Tensor:
        """The count of each tile."""
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
    """Stretches of one axis and the side of their tiles: whole tiles, and the rest if any counts.

    A rest of fewer pixels than the counter takes is no tile.
    """
    whole = size // tile * tile
    cuts = [(slice(0, whole), tile)] if whole else []
    rest = size - whole
    return [*cuts, (slice(whole, size), rest)] if rest >= max(least, 1) else cuts


def _counts(counter: Counter, images: Tensor, height: int, width: int) -> Tensor:
    """[N,1,R,C]: the counts of tiles of equal sides that fill images [N,3,R*height,C*width]."""
    number, channels = images.shape[:2]
    rows, columns = images.shape[2] // height, images.shape[3] // width
    tiles = images.reshape(number, channels, rows, height, columns, width)
    tiles = tiles.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, height, width)
    return counter(tiles).sum((1, 2, 3)).reshape(number, 1, rows, columns)


def tiled(counter: Counter, tile: int) -> Defended | DefendedModule:
    """The counter on tiles of ``tile`` x ``tile`` pixels, each counted as an image of its own.

    The map has one cell a tile, which holds its count, so the stride is ``tile``, and the receptive
    field too: a patch of p pixels touches at most ceil((p - 1) / tile) + 1 cells of an axis, for
    every counter, also one whose own receptive field is unbounded. What is cut is counted
    differently: certified counts pay with accuracy near the cuts.

    At the right and at the bottom a rest of the image is a smaller tile, unless it has fewer pixels
    than the counter takes (its ``minimum_side`` or, where it does not say, its stride): such a rest
    is not counted, as counters leave out pixels that fill no cell.

    ValueError for a tile that is no multiple of the counter's stride or smaller than what it takes.
    """
    return defended(counter, Tiled(tile))
