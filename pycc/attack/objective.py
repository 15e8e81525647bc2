"""What an attacker wants of the counter: losses to be minimised over the patch.

Each is the full image's loss less that of the clean image, computed from the window alone: only
the change of the map enters (``Scenes``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pycc.attack.base import Scenes
from pycc.registry import Registry


@dataclass(frozen=True)
class Aim:
    """The numbers that an objective may need."""

    factor: float
    """t of the density target t·l."""
    target_count: float | None
    """c*, people."""


class Objective(Protocol):
    """A loss for each scene."""

    def __call__(self, change: Tensor, scenes: Scenes, aim: Aim, /) -> Tensor:
        """[N] from ``change`` [N,1,hc,wc]: attacked minus clean map, people per cell."""


objectives: Registry[Objective] = Registry("objective")

MEANS = frozenset({"density"})
"""Objectives that are a mean over the image's cells; the others are in people, a sum over cells."""


def _gained(change: Tensor, scenes: Scenes) -> Tensor:
    """[N]: people that the patch adds to the count, inside the region of interest."""
    return (scenes.weight * change).sum((1, 2, 3))


@objectives.register("density")
def density(change: Tensor, scenes: Scenes, aim: Aim) -> Tensor:
    """APAM's J (arXiv 2104.10868, eq. 7): mean squared error against l* = t·l over all cells.

    The mean, not half of it. With a = clean − t·l and the change d, the change of a cell's squared
    error is d·(d + 2a); the clean image's loss, a constant, is left out.
    """
    target = scenes.clean - aim.factor * scenes.density
    return (scenes.weight * change * (change + 2 * target)).sum((1, 2, 3)) / scenes.cells


@objectives.register("over")
def over(change: Tensor, scenes: Scenes, aim: Aim) -> Tensor:
    """Count as many people as possible: minus the count."""
    return -_gained(change, scenes)


@objectives.register("under")
def under(change: Tensor, scenes: Scenes, aim: Aim) -> Tensor:
    """Count as few people as possible: the count."""
    return _gained(change, scenes)


@objectives.register("target")
def target(change: Tensor, scenes: Scenes, aim: Aim) -> Tensor:
    """Count c* people: (count − c*)², in people squared."""
    if aim.target_count is None:
        raise ValueError("objective target: expected target_count, got none")
    return torch.square(scenes.count + _gained(change, scenes) - aim.target_count)
