"""Samples with their ground truth, as they are kept between epochs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_PIECE = 1 << 16
"""Values that are converted to 8 bits at once."""


@dataclass(frozen=True, eq=False)
class CachedSample:
    """An image, cut to whole cells, and its ground truth."""

    name: str
    image: Tensor
    """[3,h,w] uint8, or float32 in [0,1] if 8 bits would lose precision: see ``as_float``."""
    target: Tensor
    """[1,h//s,w//s] float32, people per cell."""
    points: Tensor
    """[N,2] float64 (x, y), heads in the region of interest, in pixels."""
    roi: Tensor | None
    """[h,w] bool, the region of interest."""
    shape: tuple[int, int]
    """Height and width before it was cut."""
    boxes: Tensor | None = None
    """[N] float64, the sides of the heads' boxes in pixels, if the recipe has them."""

    @property
    def size(self) -> int:
        """Its size in bytes."""
        parts = (self.image, self.target, self.points, self.roi, self.boxes)
        return sum(part.numel() * part.element_size() for part in parts if part is not None)


def stored(image: Tensor) -> Tensor:
    """Return an image in 8 bits, or a copy if that would lose precision.

    It is converted in pieces that fit into the processor's cache.
    """
    kept = torch.empty(image.shape, dtype=torch.uint8)
    pieces = (torch.split(t.reshape(-1), _PIECE) for t in (image.contiguous(), kept))
    for piece, into in zip(*pieces, strict=True):
        levels = (piece * 255.0).round_()
        into.copy_(levels)
        if not torch.equal(levels.div_(255.0), piece):
            return image.clone()
    return kept


def as_float(kept: Tensor) -> Tensor:
    """Return what ``stored`` returned as float32 in [0,1]."""
    return kept.float() / 255.0 if kept.dtype == torch.uint8 else kept
