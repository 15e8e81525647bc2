"""The objectives of an attacker: losses that a patch minimises, and goals in people."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from pycc.registry import Registry

if TYPE_CHECKING:
    from pycc.attack.problem import AttackedRegion


@dataclass(frozen=True)
class Aim:
    """The numbers that an objective may need.

    >>> Aim(factor=10.0, target_count=None).wanted(torch.tensor([3.0]))
    tensor([30.])
    """

    factor: float
    """t of the density target t·l, and of the count t times the annotated heads."""
    target_count: float | None
    """c*, people; None where it is a multiple of the annotated heads."""

    def wanted(self, truth: Tensor) -> Tensor:
        """Return the counts [N] that objective ``target`` wants, for ``truth`` [N] heads."""
        if self.target_count is not None:
            return torch.full_like(truth, self.target_count)
        return self.factor * truth


class Objective(ABC):
    """A loss for each image, and what it means in people.

    The loss is the full image's up to a constant, computed from the cells that the patch can
    change. A new objective is a subclass whose instance is registered in ``objectives``.

    >>> class Fewer(Objective):
    ...     sign = -1
    ...     def __call__(self, change, region, aim):
    ...         return (region.weight[:, None] * change).sum((2, 3, 4))
    >>> Fewer().attack_gain(Aim(10.0, None), count=4.0, clean=10.0, truth=9.0)
    6.0
    """

    sign: ClassVar[int] = 1
    """1 if more people are wanted, -1 if fewer; not used by an objective that wants a count."""
    wants_count: ClassVar[bool] = False
    """Whether one count is wanted (``Aim.wanted``), not as many or as few people as possible."""
    needs_density: ClassVar[bool] = False
    """Whether the loss compares with the true density."""
    is_mean: ClassVar[bool] = False
    """Whether the loss is a mean over the image's cells; the others are in people, a sum."""
    exact_gradient: ClassVar[bool] = True
    """Whether the gradient is the derivative of the loss."""

    @abstractmethod
    def __call__(self, change: Tensor, region: AttackedRegion, aim: Aim, /) -> Tensor:
        """Compute losses [N,D] from the ``change`` of the map [N,D,1,hc,wc], people per cell."""

    def needs_heads(self, aim: Aim) -> bool:
        """Whether it is about the annotated heads: images without annotation are then no input."""
        return self.needs_density or (self.wants_count and aim.target_count is None)

    def attack_gain(self, aim: Aim, *, count: float, clean: float, truth: float) -> float:
        """People that an attack has moved a count towards its goal: 0 for the clean count.

        ``truth`` may be NaN where the objective needs no heads.
        """
        if self.wants_count:
            wanted = _wanted(aim, truth)
            return abs(clean - wanted) - abs(count - wanted)
        return self.sign * count - self.sign * clean

    def can_gain(self, aim: Aim, *, clean: float, truth: float) -> bool:
        """Whether ``attack_gain`` can be above 0: not if the clean count is already wanted."""
        if self.wants_count:
            return clean != _wanted(aim, truth)
        return self.sign > 0 or clean > 0


def _wanted(aim: Aim, truth: float) -> float:
    return float(aim.wanted(torch.tensor(truth, dtype=torch.float64)))


objectives: Registry[Objective] = Registry("objective")


def gained(change: Tensor, region: AttackedRegion) -> Tensor:
    """Compute the people [N,D] that the patch adds inside the region of interest."""
    return (region.weight[:, None] * change).sum((2, 3, 4))


class Density(Objective):
    """APAM's J (arXiv 2104.10868, eq. 7): mean squared error against l* = t·l over all cells.

    The mean, not half of it. With a = clean − t·l and the change d, the change of a cell's squared
    error is d·(d + 2a); the clean image's loss, a constant, is left out.
    """

    wants_count = needs_density = is_mean = True

    def __call__(self, change: Tensor, region: AttackedRegion, aim: Aim, /) -> Tensor:
        """Compute the losses [N,D]."""
        target = (region.local.clean - aim.factor * region.density)[:, None]
        change_of_squares = region.weight[:, None] * change * (change + 2 * target)
        return change_of_squares.sum((2, 3, 4)) / region.cells[:, None]


class Over(Objective):
    """Count as many people as possible: minus the count."""

    def __call__(self, change: Tensor, region: AttackedRegion, aim: Aim, /) -> Tensor:
        """Compute the losses [N,D]."""
        return -gained(change, region)


class Under(Objective):
    """Count as few people as possible: the count."""

    sign = -1

    def __call__(self, change: Tensor, region: AttackedRegion, aim: Aim, /) -> Tensor:
        """Compute the losses [N,D]."""
        return gained(change, region)


class Erase(Under):
    """Count as few people as possible outside the patch: the count without the patch's own cells.

    A patch may count as people itself. Where heads are compared with an image's maximum (FIDTM), it
    erases all others if it is bright enough in the map; elsewhere it can hide those around it.
    """

    def __call__(self, change: Tensor, region: AttackedRegion, aim: Aim, /) -> Tensor:
        """Compute the losses [N,D]."""
        if region.own is None:
            return gained(change, region)
        others = change.clone()
        others[..., *region.own.slices] = 0.0
        return gained(others, region)


class Target(Objective):
    """Count c* people: (count − c*)² / (2·|clean − c*|), whose slope is near 1 at first.

    The divisor, a constant, brings the loss of each image to people: images of small and large
    crowds then count alike where several share a patch.
    """

    wants_count = True

    def __call__(self, change: Tensor, region: AttackedRegion, aim: Aim, /) -> Tensor:
        """Compute the losses [N,D]."""
        far = region.count - aim.wanted(region.truth)
        scale = 2 * far.abs().clamp(min=1.0)
        return torch.square(far[:, None] + gained(change, region)) / scale[:, None]


class Pap(Objective):
    """PAP's weighting: −Σ σ(l − out)·out, the weights σ(…) held fixed in the gradient.

    Cells that count fewer people than there are weigh more: the patch spreads what it adds. The
    Grad-CAM term of the published objective, which needs the inside of one network, is left out.
    """

    needs_density = True
    exact_gradient = False

    def __call__(self, change: Tensor, region: AttackedRegion, aim: Aim, /) -> Tensor:
        """Compute the losses [N,D]."""
        clean = region.local.clean[:, None]
        # Less what the clean image has, so that losses of different places can be compared. The
        # maps have one layout and are subtracted before the sum: without change, the loss is 0.
        maps = clean + torch.zeros_like(change), clean + change
        before, after = (torch.sigmoid(region.density[:, None] - m).detach() * m for m in maps)
        return (region.weight[:, None] * (before - after)).sum((2, 3, 4))


objectives.register("density")(Density())
objectives.register("over")(Over())
objectives.register("under")(Under())
objectives.register("erase")(Erase())
objectives.register("target")(Target())
objectives.register("pap")(Pap())
