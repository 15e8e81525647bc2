"""The count that two masks agree on: whatever a patch does, one mask hides it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pycc.defense.base import Defended, DefendedModule, Defense, check_finite, defended
from pycc.defense.mask_pairs import check_masks, hidden, mask_boxes, two_mask_table
from pycc.defense.retained import BUDGET, check_fill, check_whole
from pycc.types import Counter


@dataclass(frozen=True)
class TwoMask(Defense):
    """min over masks m of the max over masks m' of the count with both hidden."""

    patch: int
    masks: tuple[int, int]
    fill: tuple[float, float, float]
    budget: int
    straight_through: bool = False
    op: ClassVar[str] = "two_mask"

    def __post_init__(self) -> None:
        check_whole(self.op, "patch", self.patch, 1)
        check_whole(self.op, "budget", self.budget, 1)

    def density(self, counter: Counter, images: Tensor) -> Tensor:
        """The maps of the images with the two masks that attain it, one image after another."""
        check_finite(self.op, images)
        colour = torch.tensor(self.fill, device=images.device)
        boxes = mask_boxes((images.shape[2], images.shape[3]), self.patch, self.masks)
        covered = []
        for image in images:
            table = two_mask_table(
                counter, image.detach(), self.patch,
                masks=self.masks, fill=self.fill, budget=self.budget,
            )  # fmt: skip
            most, second = table.max(1)
            first = int(most.argmin())
            covered.append(hidden(image, [boxes[first], boxes[int(second[first])]], colour))
        found = torch.cat([counter(one[None]) for one in covered])
        if self.straight_through:
            plain = counter(images)
            return plain + (found - plain).detach()
        return found


def two_mask(
    counter: Counter,
    patch: int,
    *,
    masks: int | tuple[int, int] = 36,
    fill: float | Sequence[float],
    budget: int = BUDGET,
    straight_through: bool = False,
) -> Defended | DefendedModule:
    """min over m of max over m' of the count with masks m and m' hidden.

    Some mask hides a patch of ``patch`` pixels wherever it lies, so that one row of the table of
    counts does not depend on it (PatchCleanser, Xiang et al., USENIX Security 2022, for classes;
    what it certifies of counts is ``pycc.certify.two_mask``). ``masks`` is a square number, or
    (rows, columns); ``fill`` their colour, one number or three (RGB) in [0,1]. The map is that of
    the two masks which attain the count, and the gradient goes through these alone: pixels that
    they hide have none. The table costs less than its M (M + 1) / 2 counts where the counter has a
    bounded receptive field (:func:`pycc.defense.mask_pairs.two_mask_table`). ``budget`` is
    the number of pixels counted at once. With ``straight_through`` the gradient is that of the
    counter on the image without masks, for attacks; counts are the same.

    ValueError for another number of masks or a colour outside [0,1]; when called, for a patch that
    is larger than the image.
    """
    return defended(
        counter,
        TwoMask(patch, check_masks(masks), check_fill(TwoMask.op, fill), budget, straight_through),
    )
