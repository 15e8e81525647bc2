"""Images with their ground truth, kept between epochs as far as memory allows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_PIECE = 1 << 16
"""Values that are turned into 8 bits at once."""


@dataclass(frozen=True, eq=False)
class Whole:
    """An image, cut to whole cells, and its ground truth."""

    name: str
    image: Tensor
    """[3,h,w] uint8, or float32 in [0,1] where 8 bits would lose something: see ``as_float``."""
    target: Tensor
    """[1,h//s,w//s] float32, people per cell."""
    points: Tensor
    """[N,2] float64 (x, y), heads that count, in pixels."""
    mask: Tensor | None
    """[h,w] bool, the region of interest."""
    shape: tuple[int, int]
    """Height and width before it was cut."""

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        parts = (self.image, self.target, self.points, self.mask)
        return sum(part.numel() * part.element_size() for part in parts if part is not None)


class Cache:
    """The images asked for last, of ``limit`` bytes together; at least the last one."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._kept: OrderedDict[int, Whole] = OrderedDict()
        self._bytes = 0

    def get(self, index: int, make: Callable[[int], Whole]) -> Whole:
        """Image ``index``, made where it is not kept."""
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        whole = make(index)
        self._kept[index] = whole
        self._bytes += whole.size
        while self._bytes > self.limit and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].size
        return whole


def stored(image: Tensor) -> Tensor:
    """An image in 8 bits, or a copy where that would lose something.

    Piece by piece: what fits into the processor's cache is converted and compared there.
    """
    kept = torch.empty(image.shape, dtype=torch.uint8)
    pieces = (torch.split(one.reshape(-1), _PIECE) for one in (image.contiguous(), kept))
    for piece, into in zip(*pieces, strict=True):
        levels = (piece * 255.0).round_()
        into.copy_(levels)
        if not torch.equal(levels.div_(255.0), piece):
            return image.clone()
    return kept


def as_float(kept: Tensor) -> Tensor:
    """What ``stored`` keeps, in [0,1]."""
    return kept.float() / 255.0 if kept.dtype == torch.uint8 else kept
