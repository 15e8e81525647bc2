"""Defenses on the density map: cells within limits, and the fullest window masked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from pycc.defense.base import Defended, DefendedModule, Defense, defended
from pycc.local import Box, Local, Wirings, aligned, influence
from pycc.robust.kept import check_whole
from pycc.robust.masking import masked_maps
from pycc.robust.windows import window_of
from pycc.types import Counter


@dataclass(frozen=True)
class Clipped(Defense):
    """Cells clamped to [0, caps]."""

    caps: float | None
    op: ClassVar[str] = "clipped"

    def __post_init__(self) -> None:
        if self.caps is not None and not (math.isfinite(self.caps) and self.caps > 0):
            raise ValueError(f"clipped: caps must be a number above 0 or None, got {self.caps}")

    def receptive_field(self, counter: Counter) -> int | None:
        """That of the counter."""
        return counter.receptive_field

    def density(self, counter: Counter, images: Tensor) -> Tensor:
        """The counter's map, clamped."""
        density = counter(images)
        if self.caps is None:
            return density.clamp(min=0.0)
        return density.clamp(min=0.0, max=_within(self.caps, density.dtype))


def _within(caps: float, dtype: torch.dtype) -> float:
    """The largest number of a map's type that is at most ``caps``: rounding must not exceed it."""
    if dtype == torch.float64:
        return caps
    near = np.float32(caps)
    # As a Python float: NumPy would compare in float32, where the two are equal.
    return float(near if float(near) <= caps else np.nextafter(near, np.float32(0)))


def clipped(counter: Counter, caps: float | None = None) -> Defended | DefendedModule:
    """The counter with the cells of its map clamped to [0, caps] people.

    ``caps`` None clamps at 0 alone. Certificates need cells that are not negative, and additive
    ones also caps, fixed beforehand on training data. Geometry is the counter's own; the gradient
    is 0 in cells beyond the limits. ValueError for caps that are no number above 0.
    """
    return defended(counter, Clipped(None if caps is None else float(caps)))


@dataclass(frozen=True)
class Masked(Defense):
    """The fullest window that a patch can touch, reduced to an allowance."""

    patch: int
    allowance: float
    op: ClassVar[str] = "masked"

    def __post_init__(self) -> None:
        check_whole(self.op, "patch", self.patch, 1)
        if not (math.isfinite(self.allowance) and self.allowance >= 0):
            raise ValueError(f"masked: allowance must be at least 0, got {self.allowance}")

    def check_counter(self, counter: Counter) -> None:
        """ValueError without a bounded receptive field."""
        if counter.receptive_field is None:
            raise ValueError(
                "masked: counter must have a bounded receptive field, got none; count isolated "
                "tiles with pycc.defense.tiled"
            )

    def density(self, counter: Counter, images: Tensor) -> Tensor:
        """The counter's map, less what its fullest window holds beyond the allowance."""
        shape = images.shape[2], images.shape[3]
        if self.patch > min(shape):
            raise ValueError(
                f"masked: patch must fit into the image of {shape[0]}x{shape[1]}, "
                f"got {self.patch} pixels"
            )
        return self._less(counter, counter(images), shape)

    def _less(self, counter: Counter, density: Tensor, shape: tuple[int, int]) -> Tensor:
        maps = density[:, 0]
        least = float(maps.detach().min())
        if not least >= 0:  # true for NaN too
            raise ValueError(
                f"masked: cells must not be negative, got {least:.3g}; count with "
                "pycc.defense.clipped(counter)"
            )
        window = window_of(counter, self.patch, shape, (maps.shape[1], maps.shape[2]))
        return masked_maps(maps, window, self.allowance)[:, None]

    def around(
        self, counter: Counter, windows: Tensor, box: Box, wirings: Wirings
    ) -> tuple[Callable[[Tensor], Tensor], Box]:
        """The counter is asked about the changed surroundings only, its window found anew."""
        shape, stride = (windows.shape[2], windows.shape[3]), counter.stride
        seen = influence(
            aligned(box, shape, stride), shape, stride=stride,
            receptive_field=counter.receptive_field,
        )  # fmt: skip
        inner = box.moved(-seen.top, -seen.left)
        local = Local(counter, windows[..., *seen.slices].contiguous(), inner, wirings=wirings)
        clean = counter(windows)
        place = local.cells.moved(seen.top // stride, seen.left // stride)

        def compute(pixels: Tensor) -> Tensor:
            draws = len(pixels) // len(windows)
            density = clean.repeat_interleave(draws, 0)
            # Only the change: cells that the window does not show their whole field do not change,
            # but a counter without known layers gives them other values there.
            change = local(pixels) - local.clean.repeat_interleave(draws, 0)
            density[..., *place.slices] += change
            return self._less(counter, density, shape)

        return compute, Box(0, 0, clean.shape[2], clean.shape[3])


def masked(counter: Counter, patch: int, allowance: float) -> Defended | DefendedModule:
    """The counter, of whose fullest window of cells only ``allowance`` people count.

    The window is as large as what a patch of ``patch`` pixels can touch. The count is
    S - max(0, max_W S_W - allowance), S the sum of all cells and S_W that of a window W; the cells
    of the first fullest window are scaled. Masking the strongest window is the idea of PatchGuard
    (Xiang et al., USENIX Security 2021), there for classes; what it certifies of counts is
    ``pycc.certify.masked``. ``allowance`` is fixed on training data; 0 masks the whole window, and
    a patch in it then gets no gradient.

    ValueError for a negative allowance and for a counter without a bounded receptive field; when
    called, for a patch that is larger than the image and for negative cells (use ``clipped``).
    """
    return defended(counter, Masked(patch, float(allowance)))
