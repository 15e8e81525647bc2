"""The two-mask defense: the minimum over masks of the maximum over second masks of the count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pycc.checks import check_whole
from pycc.defense.base import Defended, DefendedModule, Defense, check_finite, defended
from pycc.defense.mask_pairs import check_masks, hidden, mask_boxes, two_mask_table
from pycc.defense.retained import BUDGET, check_fill
from pycc.types import Counter


@dataclass(frozen=True)
class TwoMask(Defense):
    """The minimum over masks m of the maximum over masks m' of the count under both."""

    patch_size: int
    masks: tuple[int, int]
    fill: tuple[float, float, float]
    budget: int
    straight_through: bool = False
    op: ClassVar[str] = "two_mask"

    def __post_init__(self) -> None:
        check_whole(self.op, "patch_size", self.patch_size, 1)
        check_whole(self.op, "budget", self.budget, 1)

    def density(self, counter: Counter, images: Tensor) -> Tensor:
        """Compute the maps of the images under the two masks that attain the count."""
        check_finite(self.op, images)
        colour = torch.tensor(self.fill, device=images.device)
        shape = images.shape[2], images.shape[3]
        boxes = mask_boxes(shape, patch_size=self.patch_size, masks=self.masks)
        covered = []
        for image in images:
            table = two_mask_table(
                counter, image.detach(), patch_size=self.patch_size,
                masks=self.masks, fill=self.fill, budget=self.budget,
            )  # fmt: skip
            most, second = table.max(1)
            first = int(most.argmin())
            covered.append(hidden(image, [boxes[first], boxes[int(second[first])]], colour))
        density = torch.cat([counter(image[None]) for image in covered])
        if self.straight_through:
            plain = counter(images)
            return plain + (density - plain).detach()
        return density


def two_mask(
    counter: Counter,
    *,
    patch_size: int,
    masks: int | tuple[int, int] = 36,
    fill: float | Sequence[float],
    budget: int = BUDGET,
    straight_through: bool = False,
) -> Defended | DefendedModule:
    """Defend a counter by two masks: min over m of max over m' of the count under masks m and m'.

    At least one mask hides a patch of ``patch_size`` pixels completely, wherever it lies, so that
    one row of the table of counts does not depend on the patch. ``pycc.certify.two_mask`` certifies
    these counts. The map is that of the image under the two masks that attain the count. The
    gradient passes through this map alone: hidden pixels have none. If the counter has a bounded
    receptive field, the table costs less than its M (M + 1) / 2 counts
    (:func:`pycc.defense.mask_pairs.two_mask_table`). The receptive field is None.

    Args:
        counter: any counter, in eval mode when it is called.
        patch_size: side of the patch, in pixels.
        masks: number of masks, a square number, or (rows, columns).
        fill: the masks' colour, one number or three (RGB) in [0,1].
        budget: number of pixels that are counted at once, which bounds the memory.
        straight_through: whether the gradient is that of the counter on the image without masks,
            for attacks; counts are the same.

    Raises:
        ValueError: another number of masks or a colour outside [0,1]; when the counter is called, a
            patch that is larger than the image.

    Source:
        PatchCleanser (Xiang, Mahloujifar and Mittal, USENIX Security 2022), for classifiers.

    Example:
        >>> import torch
        >>> from pycc import defense, models
        >>> pool = torch.nn.AvgPool2d(8).eval()  # one person per white cell
        >>> counter = models.wrap(pool, preprocess=lambda x: x[:, :1], stride=8, receptive_field=8)
        >>> defended = defense.two_mask(counter, patch_size=8, masks=(1, 3), fill=0.0)
        >>> with torch.no_grad():  # of 3 people, a mask hides 1.625
        ...     float(defended(torch.ones(1, 3, 8, 24)).sum())
        1.375
    """
    return defended(
        counter,
        TwoMask(
            patch_size, check_masks(masks), check_fill(TwoMask.op, fill), budget, straight_through
        ),
    )
