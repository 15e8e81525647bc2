"""Certificate C4: the counts under all pairs of masks, one of which hides the patch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pycc import defense
from pycc.certify.ablations import nonnegative, widened
from pycc.certify.calibration import Calibration
from pycc.certify.methods.base import Certificate, CertifiedImage, certificates
from pycc.counters import check_eval
from pycc.defense.mask_pairs import check_masks, two_mask_table
from pycc.settings import check_fields, flag
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
    """Bound min over m of max over m' of the count under masks m and m', for any counter (C4).

    ``image`` is [3,H,W], RGB in [0,1]; ``fill`` one number or three. ``masks`` is their number, or
    the numbers down and across. ``progress`` is called with pairs
    of masks.

    For every place of the patch some mask hides it, and under that mask the attacked image equals
    the clean one. The interval consists of the least and the largest count of the clean image under
    all pairs of masks (two masks as in PatchCleanser, Xiang, Mahloujifar and Mittal, USENIX
    Security 2022). Deterministic; the defended counter is ``pycc.defense.two_mask``.

    ValueError for a patch that does not fit into the image, a number of masks that is neither a
    square number nor a pair, and a counter in train mode.

    >>> from pycc import data, models
    >>> counter = models.load("mcnn-synthetic")
    >>> image = data.open("synthetic", shape=(96, 128))[0].image
    >>> interval = two_mask(counter, image, patch_size=20, masks=4, fill=0.45)
    >>> interval.low <= interval.count <= interval.high
    True
    """
    check_eval("certify", counter)
    table = two_mask_table(
        counter, image, patch_size=patch_size, masks=masks, fill=fill, progress=progress
    )
    nonnegative(table)
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
    """The minimum over masks m of the maximum over masks m' of the count under both.

    >>> from pycc.certify import TwoMask
    >>> TwoMask(masks=9).needs_images, TwoMask.from_map
    (True, False)
    """

    name = "two-mask"
    needs_fill = True
    masks: int = flag(36, "number of masks, a square number")

    def __post_init__(self) -> None:
        check_fields(type(self).__name__, self)
        check_masks(self.masks)

    def interval(
        self, counter: Counter, image: CertifiedImage, patch_size: int, calibration: Calibration
    ) -> Interval:
        """Return the interval of the table of all pairs."""
        return two_mask(
            counter, image.image, patch_size=patch_size, masks=self.masks,
            fill=calibration.colour, progress=image.progress,
        )  # fmt: skip

    def defended(
        self, counter: Counter, patch_size: int, calibration: Calibration, *, seed: int
    ) -> Counter:
        """Return ``pycc.defense.two_mask``, with the gradient of the counter without masks."""
        return defense.two_mask(
            counter,
            patch_size=patch_size,
            masks=self.masks,
            fill=calibration.colour,
            straight_through=True,
        )
