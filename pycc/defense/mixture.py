"""Mixtures: the weighted sum of the density maps of several counters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from pycc.checks import check_images
from pycc.defense.base import Around, alarms_of
from pycc.grid import minimum_side, period_of
from pycc.local import Box, LastDensityCache, Local
from pycc.types import Counter


class Mixture(nn.Module):
    """A counter whose map is the sum of the maps of other counters, each times its share.

    Intervals on the counters give one on their mixture, also if a patch affects all at once.
    ``counters`` is at least one counter, all of one stride; those that are modules become
    submodules. ``shares`` are above 0 (None: equal shares that sum to 1). Raises ValueError
    otherwise.
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
        """The largest of the counters' receptive fields, in pixels; None if one is unbounded."""
        fields = [counter.receptive_field for counter in self.counters]
        if any(field is None for field in fields):
            return None
        return max(cast(list[int], fields))

    @property
    def period(self) -> int:
        """The least common multiple of the counters' periods, in pixels."""
        return math.lcm(*(period_of(counter) for counter in self.counters))

    @property
    def minimum_side(self) -> int:
        """The largest of the counters' minimum sides, in pixels."""
        return max(minimum_side(counter) for counter in self.counters)

    def get_extra_state(self) -> str:
        """Return the shares as text, so that the identity of mixtures of other shares differs."""
        return repr(self.shares)

    def set_extra_state(self, state: object) -> None:
        """Raise ValueError for the state of a mixture with other shares."""
        if state != repr(self.shares):
            raise ValueError(f"mixed: the state must be of shares {self.shares!r}, got {state!r}")

    def forward(self, images: Tensor) -> Tensor:
        """Compute the density map [N,1,h,w], people per cell, of images [N,3,H,W] (RGB in [0,1]).

        Raises:
            ValueError: images of another shape or with values outside [0,1].
        """
        check_images("mixed", images)
        return self._sum([counter(images) for counter in self.counters])

    def alarms(self, images: Tensor, /) -> Tensor | None:
        """Return for which images a counter raises an alarm: [N] bool; None without alarms."""
        parts = (alarms_of(counter, images) for counter in self.counters)
        raised = [part for part in parts if part is not None]
        return torch.stack(raised).any(0) if raised else None

    def _sum(self, maps: Sequence[Tensor]) -> Tensor:
        if len({density.shape for density in maps}) > 1:
            shapes = ", ".join(str(list(density.shape)) for density in maps)
            raise ValueError(f"mixed: counters must give maps of one size, got {shapes}")
        total = self.shares[0] * maps[0]
        for share, density in zip(self.shares[1:], maps[1:], strict=True):
            total = total + share * density
        return total

    def around(self, windows: Tensor, box: Box) -> Around:
        """Return the map as a function of the pixels inside a box; see ``pycc.local.Local``."""
        clean = [density_of(windows) for density_of in self._clean]
        locals_ = [Local(counter, windows, box) for counter in self.counters]

        def compute(pixels: Tensor) -> Tensor:
            draws = len(pixels) // len(windows)
            maps = []
            for clean_map, local in zip(clean, locals_, strict=True):
                now = local(pixels)
                if local.cells == Box(0, 0, clean_map.shape[2], clean_map.shape[3]):
                    maps.append(now)
                    continue
                density = clean_map.repeat_interleave(draws, 0)
                change = now - local.clean.repeat_interleave(draws, 0)
                place = (..., *local.cells.slices)
                density[place] = density[place] + change
                maps.append(density)
            return self._sum(maps)

        return compute, Box(0, 0, clean[0].shape[2], clean[0].shape[3])


def parts_of(counter: Counter) -> tuple[tuple[Counter, ...], tuple[float, ...]]:
    """Return the counters of a mixture and their shares; for another counter, itself and 1."""
    if isinstance(counter, Mixture):
        return counter.counters, counter.shares
    return (counter,), (1.0,)


def mixed(counters: Sequence[Counter], shares: Sequence[float] | None = None) -> Mixture:
    """Combine counters into one whose map is the sum of their maps, each times its share.

    ``mixed([masked(first, patch_size=81, allowance=40.0), ...])`` masks the fullest window of each
    counter separately; ``pycc.certify.mixed`` adds their intervals. A second counter with a smaller
    receptive field narrows the interval of the first, and the errors of two different counters
    partly cancel.

    Args:
        counters: at least one counter, all of one stride.
        shares: one number above 0 per counter; None: equal shares that sum to 1.

    Raises:
        ValueError: no counter, counters of different strides, shares of another number or not above
            0; when the mixture is called, maps of different sizes.

    Example:
        >>> import torch
        >>> from pycc import defense, models
        >>> pool = torch.nn.AvgPool2d(8).eval()  # one person per white cell
        >>> counter = models.wrap(pool, preprocess=lambda x: x[:, :1], stride=8, receptive_field=8)
        >>> mixture = defense.mixed([counter, defense.clipped(counter, 0.5)])
        >>> float(mixture(torch.ones(1, 3, 32, 32)).sum())  # the mean of 16 and 8
        12.0
    """
    return Mixture(counters, shares)


def with_parts(counter: Counter, replace: Callable[[int, Counter], Counter]) -> Counter:
    """Replace a counter, or each counter of an ensemble, whose shares are kept.

    ``replace`` is called with the number of each counter and the counter.
    """
    counters, shares = parts_of(counter)
    replaced = [replace(number, part) for number, part in enumerate(counters)]
    return replaced[0] if shares == (1.0,) else mixed(replaced, shares)
