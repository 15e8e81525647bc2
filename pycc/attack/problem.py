"""The problem of an attack: the part of each image that its patch can change, for each counter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pycc import ops
from pycc.attack.objective import Aim, gained, objectives
from pycc.attack.patch import Place
from pycc.local import Box
from pycc.registry import Registry

combinations: Registry[Callable[[Tensor], Tensor]] = Registry("combination")
"""Losses [M,N,D] of M counters -> [N,D]."""


@combinations.register("mean")
def _mean(losses: Tensor) -> Tensor:
    """APAM's black-box loss (arXiv 2104.10868, eq. 9): the mean over the counters."""
    return losses.mean(0)


@combinations.register("worst")
def _worst(losses: Tensor) -> Tensor:
    """The loss of the counter that withstands best: the patch must move all of them."""
    return losses.amax(0)


class NoGradientError(ValueError):
    """A gradient is needed of a counter that has none."""


class CellMap(Protocol):
    """A counter's map of the cells that a patch can change, such as ``pycc.local.Local``."""

    clean: Tensor
    """[N,1,hc,wc]: of the clean images."""

    @property
    def follows_layers(self) -> bool:
        """Whether only the changed part of each layer is computed, not the full window."""

    def __call__(self, pixels: Tensor, /) -> Tensor:
        """Compute the map [N·D,1,hc,wc] with other pixels [N·D,3,h,w] in the boxes."""


@dataclass(frozen=True, eq=False)
class AttackedRegion:
    """The parts of N images that a patch can change, and one counter's map of them.

    >>> from pycc.local import Box, Local
    >>> counter = torch.nn.Conv2d(3, 1, 1).eval().requires_grad_(False)
    >>> image, ones = torch.rand(1, 3, 8, 8), torch.ones(1, 1, 8, 8)
    >>> local = Local(counter, image, Box(0, 0, 8, 8))
    >>> number = torch.tensor([64.0])
    >>> region = AttackedRegion(
    ...     local, image, torch.zeros(1, 2, dtype=torch.int64), ones, ones, number, number, number
    ... )
    >>> list(region.change(torch.rand(1, 3, 8, 8)).shape)
    [1, 1, 1, 8, 8]
    """

    local: CellMap
    pixels: Tensor
    """[N,3,h,w], RGB in [0,1]: the box of each clean image that the patch may change."""
    top_left: Tensor
    """[N,2] int64 (y, x): where the patch lies in its box."""
    density: Tensor
    """[N,1,hc,wc], people per cell: the ground truth, from the full image."""
    weight: Tensor
    """[N,1,hc,wc] in [0,1]: how much of a cell lies in the region of interest."""
    cells: Tensor
    """[N]: the sum of the weights over the full image (its number of cells without a region)."""
    count: Tensor
    """[N], people: the counter's count of the clean full image."""
    truth: Tensor
    """[N], people: the annotated heads."""
    own: Box | None = None
    """The cells of the map that lie in the box, at least in part; None: none are set apart."""

    def change(self, attacked: Tensor) -> Tensor:
        """Compute the change [N,D,1,hc,wc] of the map with pixels [N·D,3,h,w] in the boxes."""
        cells = self.local(attacked)
        shape = len(self.pixels), -1, *cells.shape[1:]
        return cells.reshape(shape) - self.local.clean[:, None]


class Problem:
    """The attacked regions of the same N images for each of M counters, attacked together.

    >>> from pycc.local import Box, Local
    >>> counter = torch.nn.Conv2d(3, 1, 1).eval().requires_grad_(False)
    >>> image, ones = torch.zeros(1, 3, 8, 8), torch.ones(1, 1, 8, 8)
    >>> local = Local(counter, image, Box(0, 0, 8, 8))
    >>> number = torch.tensor([64.0])
    >>> region = AttackedRegion(
    ...     local, image, torch.zeros(1, 2, dtype=torch.int64), ones, ones, number, number, number
    ... )
    >>> problem = Problem([region], index=(0,), side=4)
    >>> added = problem.added(torch.ones(1, 3, 4, 4), torch.ones(4, 4))  # 16 pixels turn white
    >>> torch.allclose(added, 16 * counter.weight.sum(), atol=1e-4)
    True
    """

    def __init__(
        self,
        regions: Sequence[AttackedRegion],
        index: tuple[int, ...],
        side: int,
        *,
        combine: str = "mean",
        moved: Callable[[Sequence[Place]], list[Problem]] | None = None,
        shapes: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.regions = tuple(regions)
        self.index = index
        """The images' positions in the data set: the keys of their randomness."""
        self.side = side
        """Pixels of the patch's side."""
        self.shapes = tuple(shapes)
        """(H, W) of the images."""
        self.moved = moved
        """The same images with the patch elsewhere, as one problem or several."""
        self._combine = combine

    def __len__(self) -> int:
        return len(self.index)

    @property
    def like(self) -> Tensor:
        """A tensor of the device and element type that patches should have."""
        return self.regions[0].pixels

    def loss(self, paste: Callable[[AttackedRegion], Tensor], objective: str, aim: Aim) -> Tensor:
        """Compute the losses [N] with the boxes [N·D,3,h,w] that ``paste`` makes of each region.

        NoGradientError if the pixels need a gradient and the counter has none.
        """
        loss = objectives[objective]
        losses = torch.stack(
            [loss(_changed(region, paste(region)), region, aim) for region in self.regions]
        )
        return combinations[self._combine](losses).mean(1)

    def reach(self) -> list[float]:
        """N times the cells of the region of interest that a patch can change."""
        return self.regions[0].weight.sum((1, 2, 3)).tolist()

    def added(self, patch: Tensor, patch_mask: Tensor) -> Tensor:
        """Compute the people [N] that patches [N,3,p,p] add to the (first) counter's count."""
        region = self.regions[0]
        return gained(region.change(pasted(region, patch, patch_mask)), region)[:, 0]


def _changed(region: AttackedRegion, pixels: Tensor) -> Tensor:
    cells = region.change(pixels)
    if pixels.requires_grad and not cells.requires_grad:
        raise NoGradientError(
            "attack: the counter gives no gradient; use attack query without PGD "
            "(--pgd-steps 0), or make the patches on another counter"
        )
    return cells


def pasted(region: AttackedRegion, patch: Tensor, patch_mask: Tensor) -> Tensor:
    """The boxes with the patches, untransformed."""
    return ops.paste_patch(region.pixels, patch, top_left=region.top_left, mask=patch_mask)


def replaced(image: Tensor, _: AttackedRegion) -> Tensor:
    """The boxes are the image itself: the ``paste`` of a problem in which all pixels may change."""
    return image
