"""Defenses on the density map: limits on cells, and masking of the fullest window."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pycc.checks import check_whole
from pycc.defense.base import Around, Change, Defended, DefendedModule, Defense, defended
from pycc.defense.capping import BLOCK, Caps, capped_maps
from pycc.defense.masking import masked_maps
from pycc.defense.windows import check_maps, check_patch, window_of
from pycc.local import Box, Local
from pycc.types import Counter


class OnMap(Defense):
    """A defense that is a function of the counter's density map alone."""

    @abstractmethod
    def after(self, counter: Counter, density: Tensor, shape: tuple[int, int]) -> Tensor:
        """Compute the defended map [N,1,h,w] from the counter's, for images of ``shape`` (H, W)."""

    def density(self, counter: Counter, images: Tensor) -> Tensor:
        """Compute the defended map of the counter's map."""
        return self.after(counter, counter(images), (images.shape[2], images.shape[3]))

    def around(self, counter: Counter, change: Change) -> Around | None:
        """Evaluate the counter only around the change, and defend the updated map."""
        windows, shape, stride = change.windows, change.shape, counter.stride
        seen, inner = change.influenced(counter)
        part = windows[..., *seen.slices].contiguous()
        local = Local(counter, part, inner, traced=change.traced)
        clean_maps = change.clean(windows)
        place = local.cells.moved(seen.top // stride, seen.left // stride)

        def compute(pixels: Tensor) -> Tensor:
            draws = len(pixels) // len(windows)
            density = clean_maps.repeat_interleave(draws, 0)
            # Add the difference, not the values: cells whose field is cut by the window do not
            # change, but a counter without known layers gives them other values in a window.
            before, now = density[..., *place.slices], local(pixels)
            updated = before + (now - local.clean.repeat_interleave(draws, 0))
            # Rounding must not make cells negative that are 0.
            least = torch.minimum(before, now.detach()).clamp(max=0.0)
            density[..., *place.slices] = torch.where(updated < least, least, updated)
            return self.after(counter, density, shape)

        return compute, Box(0, 0, clean_maps.shape[2], clean_maps.shape[3])


@dataclass(frozen=True)
class Clipped(OnMap):
    """Cells clamped to [0, cap], and blocks of cells scaled down to their cap."""

    caps: Caps
    op: ClassVar[str] = "clipped"

    def receptive_field(self, counter: Counter) -> int | None:
        """The counter's, if only cells have caps, the same everywhere; else None."""
        return counter.receptive_field if self.caps.anywhere else None

    def after(self, counter: Counter, density: Tensor, shape: tuple[int, int]) -> Tensor:
        """Compute the capped map."""
        return capped_maps(density[:, 0], self.caps)[:, None]

    def around(self, counter: Counter, change: Change) -> Around | None:
        """Return None if the window can be counted alone, or if every cell sees the full image.

        In both cases nothing is faster than the general method of ``pycc.local.Local``.
        """
        if self.caps.anywhere or counter.receptive_field is None:
            return None
        return super().around(counter, change)


def clipped(
    counter: Counter,
    caps: Tensor | float | None = None,
    *,
    block_cap: float | None = None,
    block: int = BLOCK,
) -> Defended | DefendedModule:
    """Defend a counter by upper limits on the cells of its map, and on blocks of cells.

    Cells are clamped to [0, cap]; their gradient is 0 outside. Certificates need cells that are not
    negative, and additive certificates (``pycc.certify.additive``) also caps that were fixed on
    training data. The receptive field is the counter's, or None if caps depend on the place.

    Args:
        counter: any counter, in eval mode when it is called.
        caps: people per cell, a number or [h,w] (for images of one size, such as those of a fixed
            camera); None only clamps at 0.
        block_cap: people per block; the cells of a fuller block are scaled down. None sets no
            limit.
        block: side of a block, in cells. Blocks begin at the map's top left corner.

    Raises:
        ValueError: caps that are not above 0; when the counter is called, a map whose size is not
            that of ``caps``.

    Example:
        >>> import torch
        >>> from pycc import defense, models
        >>> pool = torch.nn.AvgPool2d(8).eval()  # one person per white cell
        >>> counter = models.wrap(pool, preprocess=lambda x: x[:, :1], stride=8, receptive_field=8)
        >>> image = torch.ones(1, 3, 32, 32)  # 16 cells
        >>> [float(c(image).sum()) for c in (counter, defense.clipped(counter, 0.25))]
        [16.0, 4.0]
    """
    return defended(counter, Clipped(Caps(caps, block_cap, block)))


@dataclass(frozen=True)
class Masked(OnMap):
    """Reduction of the fullest window that a patch can touch to an allowance."""

    patch_size: int
    allowance: float
    straight_through: bool = False
    op: ClassVar[str] = "masked"

    def __post_init__(self) -> None:
        check_whole(self.op, "patch_size", self.patch_size, 1)
        if not (math.isfinite(self.allowance) and self.allowance >= 0):
            raise ValueError(f"masked: allowance must be at least 0, got {self.allowance}")

    def check_counter(self, counter: Counter) -> None:
        """Raise ValueError for a counter without a bounded receptive field."""
        if counter.receptive_field is None:
            raise ValueError(
                "masked: counter must have a bounded receptive field, got none; count isolated "
                "tiles with pycc.defense.tiled"
            )

    def after(self, counter: Counter, density: Tensor, shape: tuple[int, int]) -> Tensor:
        """Compute the map, with its fullest window reduced to the allowance."""
        check_patch(self.op, self.patch_size, shape)
        maps = check_maps(self.op, density)
        window = window_of(counter, self.patch_size, shape, (maps.shape[1], maps.shape[2]))
        reduced = masked_maps(maps, window, self.allowance)[:, None]
        if self.straight_through:
            return density + (reduced - density).detach()
        return reduced


def masked(
    counter: Counter, *, patch_size: int, allowance: float, straight_through: bool = False
) -> Defended | DefendedModule:
    """Defend a counter by masking: reduce the fullest window of its map to an allowance.

    The window has the size of what a patch of ``patch_size`` pixels can touch. The count is
    S - max(0, max_W S_W - allowance), where S is the sum of all cells and S_W that of a window W;
    the cells of the first fullest window are scaled. ``pycc.certify.masked`` certifies these
    counts. The receptive field is None.

    Args:
        counter: a counter with a bounded receptive field, in eval mode when it is called.
        patch_size: side of the patch, in pixels.
        allowance: people that the window keeps, at least 0, fixed on training data. With 0 the
            window is removed, and a patch in it gets no gradient.
        straight_through: whether the gradient is that of the counter without the mask, for attacks
            that would otherwise get no gradient (backward pass differentiable approximation,
            Athalye, Carlini and Wagner, ICML 2018); counts are the same.

    Raises:
        ValueError: a negative allowance, or a counter without a bounded receptive field; when the
            counter is called, a patch larger than the image, or negative cells (use ``clipped``).

    Source:
        Masking the strongest window is the method of PatchGuard (Xiang et al., USENIX Security
        2021) for classifiers.

    Example:
        >>> import torch
        >>> from pycc import defense, models
        >>> pool = torch.nn.AvgPool2d(8).eval()  # one person per white cell
        >>> counter = models.wrap(pool, preprocess=lambda x: x[:, :1], stride=8, receptive_field=8)
        >>> masked = defense.masked(counter, patch_size=8, allowance=1.0)
        >>> float(masked(torch.ones(1, 3, 32, 32)).sum())  # windows of 2 x 2 cells: 16 - (4 - 1)
        13.0
    """
    return defended(counter, Masked(patch_size, float(allowance), straight_through))
