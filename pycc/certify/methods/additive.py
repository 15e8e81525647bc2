"""Certificate C2: the sum of cells and blocks of cells, each limited by a cap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pycc import defense
from pycc.certify.calibration import CalibratedNumber, Calibration, cap_of
from pycc.certify.maps import map_of, rounding_room, shape_of, slack_map
from pycc.certify.methods.base import (
    CalibrationMaps,
    Certificate,
    CertifiedImage,
    NeededNumber,
    certificates,
)
from pycc.checks import check_whole
from pycc.defense.capping import BLOCK, Caps, additive_bounds, capped_maps
from pycc.defense.windows import window_of
from pycc.settings import check_fields, flag
from pycc.types import Counter, Interval

_CAP, _BLOCK_CAP = "cap", "block cap"


def additive(
    counter: Counter,
    image: Tensor,
    *,
    patch_size: int,
    caps: Tensor | float | None = None,
    block_cap: float | None = None,
    block: int = BLOCK,
    patches: int = 1,
) -> Interval:
    """Bound the sum of capped cells and blocks of every image with ``patches`` patches (C2).

    ``caps`` is the limit in people per cell, a number or [h,w]; ``block_cap`` that of a block of
    ``block`` x ``block`` cells. At least one of them is needed, fixed beforehand on training data
    (``cap_of``), unless the network limits its cells: without ``caps`` the counter's own
    ``most_per_cell`` holds, which changes no count. The defended counter is
    ``pycc.defense.clipped`` with the same arguments. Outside the affected windows cells keep their
    clean values; inside they lie in [0, caps], and a block counts at most its cap. Deterministic.

    ValueError as for ``masked``, and for caps that are not positive or of another size than the
    map.

    >>> from pycc import data, models
    >>> counter = models.load("mcnn-synthetic")
    >>> image = data.open("synthetic", shape=(96, 128))[0].image
    >>> interval = additive(counter, image, patch_size=20, caps=0.5)
    >>> interval.low <= interval.count <= interval.high
    True
    """
    cells = map_of(counter, image)
    window = window_of(counter, patch_size, shape_of(image), shape_of(cells))
    limit = getattr(counter, "most_per_cell", None) if caps is None else caps
    return additive_of(cells, window, Caps(limit, block_cap, block), patches=patches)


def additive_of(
    cells: Tensor, window: tuple[int, int], caps: Caps, *, patches: int = 1
) -> Interval:
    """Compute ``additive`` from a density map [1,h,w] and a window of cells (height, width)."""
    check_whole("certify", "patches", patches, 1)
    bounds = additive_bounds(cells, window, caps, patches=patches)
    most = caps.total(cells)
    room = rounding_room(float(cells.double().sum()))
    low = max(0.0, float(bounds.low[0]) - room)
    high = min(float(bounds.high[0]), most) + room
    vacuous = low <= 0.0 and high >= most
    return Interval(
        low=low,
        high=high,
        method="additive",
        deterministic=True,
        count=float(capped_maps(cells, caps).double().sum()),
        vacuous=vacuous,
        reason="patches can touch every cell" if vacuous else None,
    )


@certificates.register("additive")
@dataclass(frozen=True)
class Additive(Certificate):
    """The sum of capped cells and blocks of 8 x 8 cells.

    ``cap`` and ``block_cap`` are in people; None calibrates them.

    >>> from pycc.certify import Additive
    >>> method = Additive(cap=0.5)
    >>> method.name, method.uncalibrated
    ('additive', ('block_cap',))
    """

    name = "additive"
    from_map = True
    slack_label = "people that a patch around a cell adds or removes"
    cap: float | None = flag(None, "people that a cell may hold (default: calibrated)")
    block_cap: float | None = flag(None, "people that 8 x 8 cells may hold (default: calibrated)")
    patches: int = flag(1, "patches in the image at once", advanced=True)

    def __post_init__(self) -> None:
        check_fields(type(self).__name__, self)
        self.check_people("cap", positive=True)
        self.check_people("block_cap", positive=True)
        self.check_positive("patches")

    @property
    def uncalibrated(self) -> tuple[str, ...]:
        """The caps that are not given."""
        return tuple(name for name in ("cap", "block_cap") if getattr(self, name) is None)

    def needed_numbers(self, patch_sizes: Sequence[int], counters: int) -> Iterator[NeededNumber]:
        """Iterate over both caps."""
        yield NeededNumber(_CAP, given=self.cap)
        yield NeededNumber(_BLOCK_CAP, given=self.block_cap)

    def calibrate(
        self, images: CalibrationMaps, patch_sizes: Sequence[int]
    ) -> Iterator[CalibratedNumber]:
        """Choose caps that nearly all cells and blocks of the (weighted) maps do not exceed."""
        sums = [
            torch.stack([
                share * cells for share, cells in zip(images.shares, maps, strict=True)
            ]).sum(0)
            for maps in zip(*images.maps, strict=True)
        ]  # fmt: skip
        for kind, given, side in ((_CAP, self.cap, 1), (_BLOCK_CAP, self.block_cap, BLOCK)):
            if given is not None:
                yield CalibratedNumber(kind, given, "given", 0)
            else:
                yield CalibratedNumber(kind, cap_of(sums, block=side), images.source, len(sums))

    def interval(
        self, counter: Counter, image: CertifiedImage, patch_size: int, calibration: Calibration
    ) -> Interval:
        """Return the interval of the density map."""
        window = window_of(counter, patch_size, image.shape, image.cells)
        return additive_of(image.density, window, _caps(calibration), patches=self.patches)

    def defended(
        self, counter: Counter, patch_size: int, calibration: Calibration, *, seed: int
    ) -> Counter:
        """Return ``pycc.defense.clipped``."""
        caps = _caps(calibration)
        return defense.clipped(counter, caps.cell, block_cap=caps.block, block=caps.side)

    def slack_map(
        self, density: Tensor, window: tuple[int, int], calibration: Calibration
    ) -> Tensor:
        """Compute the largest gain or loss [h,w], in people, by a patch around each cell."""
        return slack_map(density, window, _caps(calibration))


def _caps(calibration: Calibration) -> Caps:
    return Caps(calibration.value(_CAP), calibration.value(_BLOCK_CAP))
