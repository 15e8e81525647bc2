"""Counters of a region of interest."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from pycc.types import Counter


class Regional(nn.Module):
    """A counter that only counts a region of interest, in images of one size.

    ``weight`` [h,w] in [0,1] is the share of each cell that lies in the region. Since the weight
    depends on a cell's place, a window of an image cannot be counted alone, and the receptive field
    is None. When called, it raises ValueError for images whose map has another size.
    """

    receptive_field = None

    def __init__(self, counter: Counter, weight: Tensor) -> None:
        super().__init__()
        self.counter = cast(nn.Module, counter)
        self.weight = weight
        self.training = bool(getattr(counter, "training", False))

    @property
    def stride(self) -> int:
        """Pixels per cell."""
        return cast(Counter, self.counter).stride

    def forward(self, images: Tensor) -> Tensor:
        """Compute the density [N,1,h,w] of images [N,3,H,W], in people per cell, 0 outside."""
        density: Tensor = self.counter(images)
        if density.shape[-2:] != self.weight.shape:
            raise ValueError(
                f"region: the map must have the region's {list(self.weight.shape)} cells, got "
                f"{list(density.shape[-2:])}"
            )
        return density * self.weight.to(density)
