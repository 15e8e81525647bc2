"""Defenses on the density map: cells within limits, and the fullest window masked."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pycc.defense.base import Defended, DefendedModule, Defense, defended
from pycc.defense.capping import BLOCK, Caps, capped_maps
from pycc.defense.masking import masked_maps
from pycc.defense.retained import check_whole
from pycc.defense.windows import window_of
from pycc.local import Box, LastDensityCache, Local, TracedGraph, aligned, influence
from pycc.types import Counter


class OnMap(Defense):
    """A defense that looks at the counter's map alone."""

    @abstractmethod
    def after(self, counter: Counter, density: Tensor, shape: tuple[int, int]) -> Tensor:
        """The defended map [N,1,h,w] of the counter's, for images of ``shape``."""

    def density(self, counter: Counter, images: Tensor) -> Tensor:
        """The counter's map, defended."""
        return self.after(counter, counter(images), (images.shape[2], images.shape[3]))

    def around(
        self,
        counter: Counter,
        windows: Tensor,
        box: Box,
        traced: TracedGraph,
        clean: LastDensityCache,
    ) -> tuple[Callable[[Tensor], Tensor], Box] | None:
        """The counter is asked about the changed surroundings only, its map defended anew."""
        shape, stride = (windows.shape[2], windows.shape[3]), counter.stride
        seen = influence(
            aligned(box, shape, stride), shape, stride=stride,
            receptive_field=counter.receptive_field,
        )  # fmt: skip
        inner = box.moved(-seen.top, -seen.left)
        local = Local(counter, windows[..., *seen.slices].contiguous(), inner, traced=traced)
        whole = clean(windows)
        place = local.cells.moved(seen.top // stride, seen.left // stride)

        def compute(pixels: Tensor) -> Tensor:
            draws = len(pixels) // len(windows)
            density = whole.repeat_interleave(draws, 0)
            # Only the change: cells that the window does not show their whole field do not change,
            # but a counter without known layers gives them other values there.
            before, now = density[..., *place.slices], local(pixels)
            found = before + (now - local.clean.repeat_interleave(draws, 0))
            # Rounding takes nobody away from cells that hold nobody.
            least = torch.minimum(before, now.detach()).clamp(max=0.0)
            density[..., *place.slices] = torch.where(found < least, least, found)
            return self.after(counter, density, shape)

        return compute, Box(0, 0, whole.shape[2], whole.shape[3])


@dataclass(frozen=True)
class Clipped(OnMap):
    """Cells clamped to [0, cap], blocks of them scaled to their cap."""

    caps: Caps
    op: ClassVar[str] = "clipped"

    def receptive_field(self, counter: Counter) -> int | None:
        """That of the counter, where caps are the same everywhere and of cells alone."""
        return counter.receptive_field if self.caps.anywhere else None

    def after(self, counter: Counter, density: Tensor, shape: tuple[int, int]) -> Tensor:
        """The map, capped."""
        return capped_maps(density[:, 0], self.caps)[:, None]

    def around(
        self,
        counter: Counter,
        windows: Tensor,
        box: Box,
        traced: TracedGraph,
        clean: LastDensityCache,
    ) -> tuple[Callable[[Tensor], Tensor], Box] | None:
        """Nothing quicker than the window alone, where that is counted as a part of the image.

        Nor is there for a counter of which every cell sees the whole image.
        """
        if self.caps.anywhere or counter.receptive_field is None:
            return None
        return super().around(counter, windows, box, traced, clean)


def clipped(
    counter: Counter,
    caps: Tensor | float | None = None,
    *,
    block_cap: float | None = None,
    block: int = BLOCK,
) -> Defended | DefendedModule:
    """The counter with the cells of its map clamped to [0, caps], and blocks of them to a cap.

    ``caps`` are people a cell, a number or [h,w] (for a camera that does not move: images of one
    size); None clamps at 0 alone. ``block_cap`` are people in a block of ``block`` x ``block``
    cells, from the map's top left corner; a fuller block's cells are scaled down. Certificates need
    cells that are not negative, and additive ones also caps, fixed beforehand on training data
    (``pycc.certify.additive``). The gradient is 0 in cells beyond the limits. The receptive field
    is the counter's own, but None for caps that differ from place to place.

    ValueError for caps that are not above 0; when called, for a map of another size than theirs.
    """
    return defended(counter, Clipped(Caps(caps, block_cap, block)))


@dataclass(frozen=True)
class Masked(OnMap):
    """The fullest window that a patch can touch, reduced to an allowance."""

    patch: int
    allowance: float
    straight_through: bool = False
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

    def after(self, counter: Counter, density: Tensor, shape: tuple[int, int]) -> Tensor:
        """The map, less what its fullest window holds beyond the allowance."""
        if self.patch > min(shape):
            raise ValueError(
                f"masked: patch must fit into the image of {shape[0]}x{shape[1]}, "
                f"got {self.patch} pixels"
            )
        maps = density[:, 0]
        least = float(maps.detach().min())
        if not least >= 0:  # true for NaN too
            raise ValueError(
                f"masked: cells must not be negative, got {least:.3g}; count with "
                "pycc.defense.clipped(counter)"
            )
        window = window_of(counter, self.patch, shape, (maps.shape[1], maps.shape[2]))
        found = masked_maps(maps, window, self.allowance)[:, None]
        if self.straight_through:
            return density + (found - density).detach()
        return found


def masked(
    counter: Counter, patch: int, allowance: float, *, straight_through: bool = False
) -> Defended | DefendedModule:
    """The counter, of whose fullest window of cells only ``allowance`` people count.

    The window is as large as what a patch of ``patch`` pixels can touch. The count is
    S - max(0, max_W S_W - allowance), S the sum of all cells and S_W that of a window W; the cells
    of the first fullest window are scaled. Masking the strongest window is the idea of PatchGuard
    (Xiang et al., USENIX Security 2021), there for classes; what it certifies of counts is
    ``pycc.certify.masked``. ``allowance`` is fixed on training data; 0 masks the whole window, and
    a patch in it then gets no gradient. With ``straight_through`` the gradient is that of the
    counter without the mask, for attacks that would stand still there (backward pass differentiable
    approximation, Athalye, Carlini and Wagner, ICML 2018); counts are the same.

    ValueError for a negative allowance and for a counter without a bounded receptive field; when
    called, for a patch that is larger than the image and for negative cells (use ``clipped``).
    """
    return defended(counter, Masked(patch, float(allowance), straight_through))
