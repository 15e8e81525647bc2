"""What an attacker wants of the counter: losses that a patch minimises.

Each is the full image's loss up to a constant, computed from the cells that the patch can change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from pycc.registry import Registry

if TYPE_CHECKING:
    from pycc.attack.problem import AttackedRegion


@dataclass(frozen=True)
class Aim:
    """The numbers that an objective may need."""

    factor: float
    """t of the density target t·l, and of the count t times the annotated heads."""
    target_count: float | None
    """c*, people; None where it is a multiple of the annotated heads."""

    def wanted(self, truth: Tensor) -> Tensor:
        """[N]: the count that objective ``target`` wants of images with ``truth`` [N] heads."""
        if self.target_count is not None:
            return torch.full_like(truth, self.target_count)
        return self.factor * truth


class Objective(Protocol):
    """A loss for each image."""

    def __call__(self, change: Tensor, region: AttackedRegion, aim: Aim, /) -> Tensor:
        """[N,D] from ``change`` [N,D,1,hc,wc]: attacked minus clean map, people per cell."""


objectives: Registry[Objective] = Registry("objective")

MEANS = frozenset({"density"})
"""Objectives that are a mean over the image's cells; the others are in people, a sum over cells."""
DENSITY = frozenset({"density", "pap"})
"""Objectives that need the true density."""


def needs_heads(objective: str, aim: Aim) -> bool:
    """Whether it is about the annotated heads, so that images without annotation are no input."""
    return objective in DENSITY or (objective == "target" and aim.target_count is None)


def attack_gain(objective: str, aim: Aim, *, count: float, clean: float, truth: float) -> float:
    """People that an attack has moved a count towards its goal: 0 for the clean count.

    ``truth`` may be NaN where the objective needs no heads.
    """
    if objective in ("target", "density"):
        wanted = float(aim.wanted(torch.tensor(truth, dtype=torch.float64)))
        return abs(clean - wanted) - abs(count - wanted)
    return clean - count if objective == "under" else count - clean


def can_gain(objective: str, aim: Aim, *, clean: float, truth: float) -> bool:
    """Whether ``attack_gain`` can be above 0: not if the clean count is already the wanted one."""
    if objective in ("target", "density"):
        return clean != float(aim.wanted(torch.tensor(truth, dtype=torch.float64)))
    return objective != "under" or clean > 0


def gained(change: Tensor, region: AttackedRegion) -> Tensor:
    """[N,D]: people that the patch adds to the count, inside the region of interest."""
    return (region.weight[:, None] * change).sum((2, 3, 4))


@objectives.register("density")
def density(change: Tensor, region: AttackedRegion, aim: Aim) -> Tensor:
    """APAM's J (arXiv 2104.10868, eq. 7): mean squared error against l* = t·l over all cells.

    The mean, not half of it. With a = clean − t·l and the change d, the change of a cell's squared
    error is d·(d + 2a); the clean image's loss, a constant, is left out.
    """
    target = (region.local.clean - aim.factor * region.density)[:, None]
    change_of_squares = region.weight[:, None] * change * (change + 2 * target)
    return change_of_squares.sum((2, 3, 4)) / region.cells[:, None]


@objectives.register("over")
def over(change: Tensor, region: AttackedRegion, aim: Aim) -> Tensor:
    """Count as many people as possible: minus the count."""
    return -gained(change, region)


@objectives.register("under")
def under(change: Tensor, region: AttackedRegion, aim: Aim) -> Tensor:
    """Count as few people as possible: the count."""
    return gained(change, region)


@objectives.register("target")
def target(change: Tensor, region: AttackedRegion, aim: Aim) -> Tensor:
    """Count c* people: (count − c*)² / (2·|clean − c*|), whose slope is near 1 at first.

    The divisor, a constant, brings the loss of each image to people: images of small and large
    crowds then count alike where several share a patch.
    """
    far = region.count - aim.wanted(region.truth)
    scale = 2 * far.abs().clamp(min=1.0)
    return torch.square(far[:, None] + gained(change, region)) / scale[:, None]


@objectives.register("pap")
def pap(change: Tensor, region: AttackedRegion, aim: Aim) -> Tensor:
    """PAP's weighting: −Σ σ(l − out)·out, the weights σ(…) held fixed in the gradient.

    Cells that count fewer people than there are weigh more: the patch spreads what it adds. The
    Grad-CAM term of the published objective, which needs the inside of one network, is left out.
    """
    clean = region.local.clean[:, None]
    # Less what the clean image has, so that losses of different places can be compared. The maps
    # have one layout and are subtracted before the sum: without change, the loss is exactly 0.
    maps = clean + torch.zeros_like(change), clean + change
    before, after = (torch.sigmoid(region.density[:, None] - m).detach() * m for m in maps)
    return (region.weight[:, None] * (before - after)).sum((2, 3, 4))
