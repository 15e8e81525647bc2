"""Several counters as one: the mean of what they say, by shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

from torch import Tensor, nn

from pycc.checks import check_images
from pycc.local import Box, LastDensityCache, Local
from pycc.types import Counter


class Mixture(nn.Module):
    """A counter whose map is the sum of other counters' maps, each times its share.

    An interval on each of them gives one on their mixture, whatever a patch does to all at once.
    ``counters`` are at least one, of one stride; those that are modules are parts of this one.
    ``shares`` are above 0 (None: equal shares that sum to 1). ValueError for anything else.
    """

    def __init__(self, counters: Sequence[Counter], shares: Sequence[float] | None = None) -> None:
        super().__init__()
        if not counters:
            raise ValueError("mixed: expected at least one counter, got none")
        if len({counter.stride for counter in counters}) > 1:
            strides = ", ".join(str(counter.stride) for counter in counters)
            raise ValueError(f"mixed: counters must have one stride, got {strides}")
        shares = [1.0 / len(counters)] * len(counters) if shares is None else list(shares)
        if len(shares) != len(counters):
            raise ValueError(
                f"mixed: expected a share for each of {len(counters)} counters, got {len(shares)}"
            )
        if not all(math.isfinite(share) and share > 0 for share in shares):
            raise ValueError(f"mixed: shares must be above 0, got {shares}")
        self.shares = tuple(float(share) for share in shares)
        self.counters = tuple(counters)
        self._clean = tuple(LastDensityCache(counter) for counter in counters)
        self.parts = nn.ModuleList(c for c in counters if isinstance(c, nn.Module))
        self.training = self.parts.training = any(part.training for part in self.parts)

    @property
    def stride(self) -> int:
        """Pixels per cell."""
        return self.counters[0].stride

    @property
    def receptive_field(self) -> int | None:
        """The largest of the counters'; None where one has no bound."""
        fields = [counter.receptive_field for counter in self.counters]
        if any(field is None for field in fields):
            return None
        return max(cast(list[int], fields))

    @property
    def minimum_side(self) -> int:
        """The largest of the counters'."""
        return max(int(getattr(c, "minimum_side", c.stride)) for c in self.counters)

    def get_extra_state(self) -> str:
        """The shares: mixtures that differ in these alone differ."""
        return repr(self.shares)

    def set_extra_state(self, state: object) -> None:
        """ValueError for the state of another mixture."""
        if state != repr(self.shares):
            raise ValueError(f"mixed: the state must be of shares {self.shares!r}, got {state!r}")

    def forward(self, images: Tensor) -> Tensor:
        """Density map [N,1,h,w], people per cell, of images [N,3,H,W] (RGB in [0,1]).

        ValueError for images of another shape or with values outside [0,1].
        """
        check_images("mixed", images)
        return self._sum([counter(images) for counter in self.counters])

    def _sum(self, maps: Sequence[Tensor]) -> Tensor:
        if len({one.shape for one in maps}) > 1:
            shapes = ", ".join(str(list(one.shape)) for one in maps)
            raise ValueError(f"mixed: counters must give maps of one size, got {shapes}")
        total = self.shares[0] * maps[0]
        for share, one in zip(self.shares[1:], maps[1:], strict=True):
            total = total + share * one
        return total

    def around(self, windows: Tensor, box: Box) -> tuple[Callable[[Tensor], Tensor], Box]:
        """How the map changes with the pixels inside a box (``pycc.local.Local``): part by part."""
        clean = [remembered(windows) for remembered in self._clean]
        locals_ = [Local(counter, windows, box) for counter in self.counters]

        def compute(pixels: Tensor) -> Tensor:
            draws = len(pixels) // len(windows)
            maps = []
            for whole, local in zip(clean, locals_, strict=True):
                now = local(pixels)
                if local.cells == Box(0, 0, whole.shape[2], whole.shape[3]):
                    maps.append(now)
                    continue
                density = whole.repeat_interleave(draws, 0)
                change = now - local.clean.repeat_interleave(draws, 0)
                place = (..., *local.cells.slices)
                density[place] = density[place] + change
                maps.append(density)
            return self._sum(maps)

        return compute, Box(0, 0, clean[0].shape[2], clean[0].shape[3])


def parts_of(counter: Counter) -> tuple[tuple[Counter, ...], tuple[float, ...]]:
    """The counters of a mixture and their shares; another counter is its own only part."""
    if isinstance(counter, Mixture):
        return counter.counters, counter.shares
    return (counter,), (1.0,)


def mixed(counters: Sequence[Counter], shares: Sequence[float] | None = None) -> Mixture:
    """The sum of what counters say, each times its share (None: equal shares that sum to 1).

    ``mixed([masked(first, 81, 40.0), masked(second, 81, 20.0)])`` masks each counter's own fullest
    window; ``pycc.certify.mixed`` adds their intervals up. A second counter of a smaller receptive
    field narrows the interval of the first, and two that err differently err less together.

    ValueError for no counter, counters of different strides, and shares of another number or not
    above 0; when called, for maps of different sizes.
    """
    return Mixture(counters, shares)
