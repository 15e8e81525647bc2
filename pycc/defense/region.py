"""Counts of a region of interest alone."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from pycc.types import Counter


class Regional(nn.Module):
    """A counter of images of one size, of which only a region counts.

    ``weight`` [h,w] in [0,1]: the share of each cell that lies in the region. A cell's place
    decides what it counts, so no window of an image can stand for it: there is no receptive field.
    ValueError when called, for images with a map of another size.
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
        """Density [N,1,h,w] of images [N,3,H,W], people per cell, 0 outside the region."""
        density: Tensor = self.counter(images)
        if density.shape[-2:] != self.weight.shape:
            raise ValueError(
                f"region: the map must have the region's {list(self.weight.shape)} cells, got "
                f"{list(density.shape[-2:])}"
            )
        return density * self.weight.to(density)
