"""Certificate C3: the count with its fullest window reduced to an allowance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pycc import defense, ops
from pycc.certify.calibration import CalibratedNumber, Calibration
from pycc.certify.maps import Objective, map_of, mixed, rounding_room, shape_of, weakest_window
from pycc.certify.methods.base import (
    CalibrationMaps,
    Certificate,
    CertifiedImage,
    NeededNumber,
    certificates,
)
from pycc.defense.masking import allowance_of, masked_bounds, masked_maps
from pycc.defense.mixture import parts_of, with_parts
from pycc.defense.windows import window_of
from pycc.settings import check_fields, flag
from pycc.types import Counter, Interval

_KIND = "allowance"


def masked(counter: Counter, image: Tensor, *, patch_size: int, allowance: float) -> Interval:
    """Bound the masked count S - max(0, max_W S_W - allowance) of every attacked image (C3).

    ``image`` is [3,H,W], RGB in [0,1]. ``patch_size`` is the side in pixels of a square patch, at
    any place and of any content. ``allowance``, in people, is fixed beforehand on training data
    (``allowance_of``). The defended counter is ``pycc.defense.masked`` with the same arguments.

    Let the patch affect cells of the window W*, whose sum becomes a instead of S_{W*}. Upper bound:
    the fullest window has a sum of at least a, so the masked count is at most
    S - S_{W*} + min(a, allowance). Lower bound: the fullest window has a sum of at most
    max_W S_{W without W*} + a, so the masked count is at least
    S - S_{W*} - max(0, max_W S_{W without W*} - allowance). Deterministic.

    ValueError for a counter in train mode or without a bounded receptive field, an image of another
    type or range, cells that are negative or not finite, a patch that does not fit into the image,
    and a negative allowance.

    >>> from pycc import data, models
    >>> counter = models.load("mcnn-synthetic")
    >>> image = data.open("synthetic", shape=(96, 128))[0].image
    >>> interval = masked(counter, image, patch_size=20, allowance=2.0)
    >>> interval.low <= interval.count <= interval.high
    True
    """
    cells = map_of(counter, image)
    window = window_of(counter, patch_size, shape_of(image), shape_of(cells))
    return masked_of(cells, window, allowance)


def masked_of(cells: Tensor, window: tuple[int, int], allowance: float) -> Interval:
    """Compute ``masked`` from a density map [1,h,w] and a window of cells (height, width)."""
    if not isinstance(allowance, int | float) or not 0 <= allowance < float("inf"):
        raise ValueError(
            f"certify: allowance must be a number of people, at least 0, got {allowance!r}"
        )
    bounds = masked_bounds(cells, window, allowance)
    count = float(masked_maps(cells, window, allowance).double().sum())
    room = rounding_room(float(cells.double().sum()))
    everywhere = window == shape_of(cells)
    return Interval(
        low=max(0.0, float(bounds.low[0]) - room),
        high=float(bounds.high[0]) + room,
        method="masked",
        deterministic=True,
        count=count,
        vacuous=everywhere,
        reason="the patch can touch every cell" if everywhere else None,
    )


@certificates.register("masked")
@dataclass(frozen=True)
class Masked(Certificate):
    """The masked count; each counter of an ensemble is masked separately.

    ``allowance`` is in people; None calibrates it for each patch size and counter.

    >>> from pycc.certify import Masked
    >>> method = Masked(allowance=2.0)
    >>> method.needs_images, method.settings()
    (False, {'name': 'masked', 'allowance': 2.0})
    """

    name = "masked"
    from_map = True
    allowance: float | None = flag(None, "people that a window may hold (default: calibrated)")

    def __post_init__(self) -> None:
        check_fields(type(self).__name__, self)
        self.check_people("allowance", positive=False)

    @property
    def needs_heads(self) -> bool:
        """Whether allowances are calibrated, which needs the errors against heads."""
        return self.allowance is None

    @property
    def uncalibrated(self) -> tuple[str, ...]:
        """The allowance, unless it is given."""
        return ("allowance",) if self.allowance is None else ()

    def needed_numbers(self, patch_sizes: Sequence[int], counters: int) -> Iterator[NeededNumber]:
        """Iterate over one allowance for each patch size and counter."""
        for patch_size in patch_sizes:
            for counter in range(counters):
                yield NeededNumber(_KIND, patch_size, counter, self.allowance)

    def calibrate(
        self, images: CalibrationMaps, patch_sizes: Sequence[int]
    ) -> Iterator[CalibratedNumber]:
        """Choose allowances of least certified error, each on images that its patch fits into."""
        for needed in self.needed_numbers(patch_sizes, len(images.counters)):
            patch_size, number = needed.patch_size, needed.counter
            assert patch_size is not None
            assert number is not None
            value, source, used = self.allowance, "given", 0
            if value is None:
                usable = [
                    (cells, truth, window_of(images.counters[number], patch_size, shape,
                                             shape_of(cells)))
                    for cells, truth, shape in zip(
                        images.maps[number], images.truths, images.shapes, strict=True
                    )
                    if patch_size <= min(shape)
                ]  # fmt: skip
                if not usable:
                    raise ValueError(
                        f"{images.source}: an allowance for {patch_size} pixels must be fixed on "
                        f"images at least as large, got none among {len(images.truths)}; give "
                        "larger calibration images, or the allowance"
                    )
                value = allowance_of(*(list(column) for column in zip(*usable, strict=True)))
                source, used = images.source, len(usable)
            yield CalibratedNumber(_KIND, value, source, used, patch_size, number)

    def interval(
        self, counter: Counter, image: CertifiedImage, patch_size: int, calibration: Calibration
    ) -> Interval:
        """Return the interval of the counter, or of the weighted sum of an ensemble."""
        counters, shares = parts_of(counter)
        intervals = [
            masked_of(
                cells, window_of(part, patch_size, image.shape, image.cells),
                calibration.value(_KIND, patch_size, number),
            )
            for number, (part, cells) in enumerate(zip(counters, image.parts, strict=True))
        ]  # fmt: skip
        return mixed(intervals, shares)

    def defended(
        self, counter: Counter, patch_size: int, calibration: Calibration, *, seed: int
    ) -> Counter:
        """Return ``pycc.defense.masked``, with the gradient of the counter without the mask."""

        def masked(number: int, part: Counter) -> Counter:
            allowance = calibration.value(_KIND, patch_size, number)
            return defense.masked(
                part, patch_size=patch_size, allowance=allowance, straight_through=True
            )

        return with_parts(counter, masked)

    def weakest_windows(
        self,
        density: Tensor,
        window: tuple[int, int],
        objective: Objective,
        calibration: Calibration,
        patch_size: int,
        number: int,
    ) -> list[tuple[int, int]]:
        """Return the emptiest window for the upper end, both of ``max_pair_sum`` for the lower."""
        if objective == "over":
            return [weakest_window(density, window, objective)]
        allowance = calibration.value(_KIND, patch_size, number)
        pair: Tensor = ops.max_pair_sum(density, window, allowance)[1][0]
        corners = [(row, column) for row, column in pair.to(torch.int64).tolist()]
        return [corner for corner in corners if min(corner) >= 0]
