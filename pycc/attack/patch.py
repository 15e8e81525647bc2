"""A patch's side, shape, place and first content."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pycc.random import Stream
from pycc.registry import Registry


@dataclass(frozen=True)
class Place:
    """A square patch in an image.

    >>> Place(side=16, top_left=(8, 24))
    Place(side=16, top_left=(8, 24))
    """

    side: int
    """Pixels."""
    top_left: tuple[int, int]
    """(y, x), pixels."""


shapes: Registry[Callable[[int], Tensor]] = Registry("patch shape")
"""Masks [side,side] of 0 and 1 by name."""


@shapes.register("square")
def square(side: int) -> Tensor:
    """All pixels of the square: [side,side] float32."""
    return torch.ones(side, side)


@shapes.register("disc")
def disc(side: int) -> Tensor:
    """The published disc: [side,side] float32 of 0 and 1.

    Centre (c, c) with c = side // 2, radius min(c, side − c) − 2; a pixel belongs to it if its
    distance is at most the radius (Adv-Crowd ``circle_transform``). Raises ValueError below four
    pixels, where nothing is left.
    """
    centre = side // 2
    radius = min(centre, side - centre) - 2
    if radius < 0:
        raise ValueError(f"disc: side must be at least 4 pixels, got {side}")
    away = torch.arange(side) - centre
    return (away[:, None] ** 2 + away[None, :] ** 2 <= radius**2).float()


def side_in_pixels(size: int | float, width: int) -> int:
    """Side of a patch: an int is pixels, a float a share of the image's width, rounded down.

    Shares of .02, .04, .08, .16 of 1024 pixels are the published 20, 40, 81, 163.
    """
    return size if isinstance(size, int) else math.floor(size * width + 1e-9)


def centre(shape: tuple[int, int], side: int) -> tuple[int, int]:
    """Top left (y, x) of a patch in the middle of an image of ``shape`` (H, W)."""
    return (shape[0] - side) // 2, (shape[1] - side) // 2


def anywhere(
    shape: tuple[int, int],
    side: int,
    *,
    seed: int,
    image: int,
    purpose: str = "location",
    step: int = 0,
) -> tuple[int, int]:
    """Top left (y, x) drawn uniformly from all places inside an image of ``shape`` (H, W)."""
    y, x = Stream(seed, purpose, image=image, step=step).uniform(size=2)
    return math.floor(y * (shape[0] - side + 1)), math.floor(x * (shape[1] - side + 1))


def noise(
    side: int, *, seed: int, purpose: str, image: int, beta: float = 1.0, step: int = 0
) -> Tensor:
    """Uniform noise [3,side,side] of [0,1), float32.

    ``beta`` in (0,1] is the resolution at which it is drawn, as a share of the side; below 1 it is
    enlarged bilinearly, which makes it smooth (APAM's interpolation tensor β).
    """
    drawn = max(1, math.ceil(side * beta))
    values = Stream(seed, purpose, image=image, step=step, draw=side).uniform(
        size=(1, 3, drawn, drawn)
    )
    picture = torch.from_numpy(values).float()
    if drawn < side:
        picture = functional.interpolate(picture, size=(side, side), mode="bilinear").clamp(0, 1)
    return picture[0]


def roughness(patch: Tensor, patch_mask: Tensor) -> Tensor:
    """S of APAM (arXiv 2104.10868, eq. 6): patch [N,3,p,p], ``patch_mask`` [p,p] -> [N].

    The sum of squared differences of neighbouring pixels, both of them inside the mask.
    """
    across = (patch[..., 1:] - patch[..., :-1]).square() * (patch_mask[:, 1:] * patch_mask[:, :-1])
    down = (patch[..., 1:, :] - patch[..., :-1, :]).square() * (patch_mask[1:] * patch_mask[:-1])
    return across.sum((1, 2, 3)) + down.sum((1, 2, 3))
