"""Baselines: patches that are not optimised, which an attack has to beat."""

from __future__ import annotations

from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pycc.attack import patch as patches
from pycc.attack.evaluation.checked import CheckedImage, SampleCache, counted_points
from pycc.registry import Registry


class Baseline(Protocol):
    """A patch that is not optimised."""

    def __call__(
        self,
        side: int,
        /,
        *,
        seed: int,
        item: CheckedImage,
        items: tuple[CheckedImage, ...],
        samples: SampleCache,
    ) -> Tensor | None:
        """A patch [3,side,side] in [0,1] for image ``item`` of ``items``; None if it has none."""


baselines: Registry[Baseline] = Registry("baseline")


def _flat(side: int, *, value: float, **_: object) -> Tensor:
    return torch.full((3, side, side), value)


baselines.register("grey")(partial(_flat, value=0.5))
baselines.register("black")(partial(_flat, value=0.0))


@baselines.register("noise")
def noise(side: int, *, seed: int, item: CheckedImage, **_: object) -> Tensor:
    """Uniform noise."""
    return patches.noise(side, seed=seed, purpose="noise", image=item.index)


@baselines.register("crowd")
def crowd(
    side: int,
    *,
    item: CheckedImage,
    items: tuple[CheckedImage, ...],
    samples: SampleCache,
    **_: object,
) -> Tensor | None:
    """The square that holds most heads of the next image that is large enough and has heads.

    The middle square of the next if images are not annotated. None if there is no such other image.
    """
    start = [other.index for other in items].index(item.index)
    for offset in range(1, len(items)):
        other = items[(start + offset) % len(items)]
        if min(other.shape) >= side and other.truth != 0:
            sample = samples[other.index]
            if sample.annotated:
                y, x = fullest(counted_points(sample).numpy(), other.shape, side)
            else:
                y, x = patches.centre(other.shape, side)
            return sample.image[:, y : y + side, x : x + side].clone()
    return None


def fullest(points: np.ndarray, shape: tuple[int, int], side: int) -> tuple[int, int]:
    """Top left (y, x) of the square with most of ``points`` [M,2] (x, y), among those around one.

    A square around each head (moved inside the image) is tried; of equals, the first head's.
    """
    height, width = shape
    left = np.clip(np.round(points[:, 0] - side / 2), 0, width - side)
    top = np.clip(np.round(points[:, 1] - side / 2), 0, height - side)
    held = np.empty(len(points), np.int64)
    for number, (x, y) in enumerate(zip(left, top, strict=True)):
        inside = (points[:, 0] >= x) & (points[:, 0] < x + side)
        inside &= (points[:, 1] >= y) & (points[:, 1] < y + side)
        held[number] = np.count_nonzero(inside)
    best = int(held.argmax())
    return int(top[best]), int(left[best])
