"""C4: the count that pairs of masks agree on, of which one hides the patch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pycc import defense
from pycc.certify.ablations import people_of, widened
from pycc.certify.calibration import Calibration
from pycc.certify.maps import check_eval
from pycc.certify.methods.base import Certificate, CertifiedImage, certificates
from pycc.defense.mask_pairs import check_masks, two_mask_table
from pycc.settings import flag
from pycc.types import Counter, Interval, Progress


def two_mask(
    counter: Counter,
    image: Tensor,
    *,
    patch_size: int,
    masks: int | tuple[int, int] = 36,
    fill: float | Sequence[float],
    progress: Progress | None = None,
) -> Interval:
    """C4: min over m of max over m' of the count with masks m and m' hidden; any counter.

    Some mask hides every place of the patch, so that every attacked image agrees with the clean
    one under it. The interval is the least and the largest count of the clean image's table of all
    pairs (Xiang, Mahloujifar and Mittal, "PatchCleanser", USENIX Security 2022, for the idea of two
    masks). Deterministic; the defended counter is ``pycc.defense.two_mask``.

    ValueError for a patch that does not fit, masks that are no square number or pair, and a counter
    in train mode.

    >>> from pycc import data, models
    >>> counter = models.load("mcnn-synthetic")
    >>> image = data.open("synthetic", shape=(96, 128))[0].image
    >>> interval = two_mask(counter, image, patch_size=20, masks=4, fill=0.45)
    >>> interval.low <= interval.count <= interval.high
    True
    """
    check_eval(counter)
    table = two_mask_table(
        counter, image, patch_size=patch_size, masks=masks, fill=fill, progress=progress
    )
    people_of(table)
    interval = Interval(
        low=float(table.min()),
        high=float(table.max()),
        method="two-mask",
        deterministic=True,
        count=float(table.max(1).values.min()),
    )
    return widened(interval)


@certificates.register("two-mask")
@dataclass(frozen=True)
class TwoMask(Certificate):
    """The least over masks m of the largest count over masks m' with both hidden; any counter.

    >>> from pycc.certify import TwoMask
    >>> TwoMask(masks=9).needs_images, TwoMask.from_map
    (True, False)
    """

    name = "two-mask"
    needs_fill = True
    masks: int = flag(36, "number of masks, a square number")

    def __post_init__(self) -> None:
        check_masks(self.masks)

    def interval(
        self, counter: Counter, image: CertifiedImage, patch_size: int, calibration: Calibration
    ) -> Interval:
        """The interval of the table of all pairs."""
        return two_mask(
            counter, image.image, patch_size=patch_size, masks=self.masks,
            fill=calibration.colour, progress=image.progress,
        )  # fmt: skip

    def defended(
        self, counter: Counter, patch_size: int, calibration: Calibration, *, seed: int
    ) -> Counter:
        """``pycc.defense.two_mask``, with the gradient of the counter without masks."""
        return defense.two_mask(
            counter,
            patch_size=patch_size,
            masks=self.masks,
            fill=calibration.colour,
            straight_through=True,
        )
