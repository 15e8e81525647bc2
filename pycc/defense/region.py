"""Counters of a region of interest."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from pycc.defense.mixture import with_parts
from pycc.grid import cell_weight, period_of
from pycc.types import Counter, Sample


class Regional(nn.Module):
    """A counter that only counts a region of interest, in images of one size.

    ``weight`` [h,w] in [0,1] is the share of each cell that lies in the region. Since the weight
    depends on a cell's place, a window of an image cannot be counted alone: the period is larger
    than the image. When called, it raises ValueError for images whose map has another size.
    """

    def __init__(self, counter: Counter, weight: Tensor) -> None:
        super().__init__()
        self.counter = cast(nn.Module, counter)
        self.weight = weight
        self.training = bool(getattr(counter, "training", False))

    @property
    def stride(self) -> int:
        """Pixels per cell."""
        return cast(Counter, self.counter).stride

    @property
    def receptive_field(self) -> int | None:
        """Side in pixels of the square that a cell depends on; None if it is unbounded."""
        return cast(Counter, self.counter).receptive_field

    @property
    def period(self) -> int:
        """Pixels, a multiple of the counter's period, by which no image of this size can move."""
        return period_of(cast(Counter, self.counter)) * (max(self.weight.shape) + 1)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the density [N,1,h,w] of images [N,3,H,W], in people per cell, 0 outside."""
        density: Tensor = self.counter(images)
        if density.shape[-2:] != self.weight.shape:
            raise ValueError(
                f"region: the map must have the region's {list(self.weight.shape)} cells, got "
                f"{list(density.shape[-2:])}"
            )
        return density * self.weight.to(density)


def regional(counter: Counter, sample: Sample, cells: tuple[int, int]) -> Counter:
    """Return the counter of a sample's region, each counter of an ensemble by itself.

    ``cells`` is the size (h, w) of the sample's map. Without a region it is the counter itself.
    """
    if sample.roi is None:
        return counter
    weight = cell_weight(sample.roi, cells, counter.stride)
    return with_parts(counter, lambda _, part: Regional(part, weight))
