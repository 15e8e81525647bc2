"""Certificate C7: the count, or an alarm."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor

from pycc import defense
from pycc.certify._check import inside
from pycc.certify.calibration import (
    FALSE_ALARMS,
    MARGIN,
    CalibratedNumber,
    Calibration,
)
from pycc.certify.conformal import conformal_margin
from pycc.certify.maps import Objective, map_of, mixed, rounding_room, shape_of
from pycc.certify.methods.base import (
    CalibrationMaps,
    CertifiedImage,
    NeededNumber,
    certificates,
)
from pycc.certify.methods.networks import NetworkCertificate, check_fitted, patch_cell
from pycc.defense.bands import BASE, Bands, score
from pycc.defense.completed import CompletionModel
from pycc.defense.min_max import plan_of
from pycc.defense.mixture import parts_of, with_parts
from pycc.defense.windows import check_patch
from pycc.settings import flag
from pycc.types import Counter, Interval

_NAME = "alarm"
_PARTS = 3
"""Every third calibration image takes no part in the fit and determines the margin."""


def alarm(
    counter: Counter, image: Tensor, *, patch_size: int, calibration: Calibration
) -> Interval:
    """Bound the count of every attacked image that raises no alarm (C7).

    ``image`` is [3,H,W], RGB in [0,1]. ``patch_size`` is the side in pixels of a square patch, at
    any place and of any content. ``calibration`` is from ``calibrate`` with the method ``alarm``,
    the same counter and patch size. The defended counter is ``pycc.defense.alarmed``.

    A network predicts the people g(W) of a window W without its content, and an image raises an
    alarm if some sum S_W leaves the band g(W) -+ margin sqrt(g(W) + 10). The band of the window W*
    around a patch does not depend on the patch. Without an alarm S_W* lies in it, so the count lies
    in S - S_W* plus the band; the interval's ends are the extremes over W*. They are exact
    (``pycc.defense.bands``), and moved outward by what the rounding of cells outside the patch's
    reach can change. Deterministic, but a patch can provoke an alarm; ``completion`` has none.
    ``Interval.alarm`` states whether the image itself raises one.

    ValueError for a counter in train mode or without a bounded receptive field, an image of another
    type or range, cells that are negative or not finite, a patch that does not fit into the image,
    and a calibration without this patch size or for another counter.

    >>> from pycc import data, models
    >>> from pycc.certify import Alarm, calibrate
    >>> counter = models.load("mcnn-synthetic")
    >>> scenes = data.open("synthetic", split="train", shape=(64, 64), limit=2)
    >>> method = Alarm(false_alarms=0.5)
    >>> calibration = calibrate(counter, scenes, method=method, patch_sizes=[4])
    >>> interval = alarm(counter, scenes[0].image, patch_size=4, calibration=calibration)
    >>> interval.low <= interval.count <= interval.high, interval.alarm
    (True, False)
    """
    check_fitted(counter, calibration.completed(patch_size, method=_NAME))
    cells = map_of(counter, image)
    check_patch(_NAME, patch_size, shape_of(image))
    return alarm_of(cells, *_band_of(calibration, patch_size, 0))


def alarm_of(cells: Tensor, model: CompletionModel, margin: float) -> Interval:
    """Compute ``alarm`` from a density map [1,h,w]."""
    bands = Bands.of(cells[0], model, margin)
    # The rounding of cells moves the visible sum by this much, a prediction by slope times, and
    # half a band, margin sqrt(g + BASE), by at most margin / (2 sqrt(BASE)) times the prediction.
    moved = 1.0 + model.network.slope * (1.0 + margin / (2.0 * math.sqrt(BASE)))
    room = rounding_room(float(cells.double().sum())) * moved
    everywhere = plan_of(model.grid, shape_of(cells)).everywhere
    low, high = bands.ends
    return Interval(
        low=max(0.0, low - room),
        high=high + room,
        method=_NAME,
        deterministic=True,
        count=bands.count,
        vacuous=everywhere,
        reason="one window that a patch can touch is the full map" if everywhere else None,
        alarm=bands.alarm,
    )


def _band_of(
    calibration: Calibration, patch_size: int, number: int
) -> tuple[CompletionModel, float]:
    """Return the completion and the margin of a counter; ValueError if one is missing."""
    model = calibration.completion(patch_size=patch_size, counter=number, method=_NAME)
    return model, calibration.value(MARGIN, patch_size, number)


@certificates.register(_NAME)
@dataclass(frozen=True)
class Alarm(NetworkCertificate):
    """The count, or an alarm; an ensemble raises one if a counter of it does.

    The margin is a conformal quantile (``conformal_margin``) of
    max_W |S_W - g(W)| / sqrt(g(W) + 10) on every third calibration image; the network is fitted to
    the others. They need no annotation. The rate of false alarms holds for images that are
    exchangeable with these thirds: the counter, too, must not have been trained on them. Counters
    of an ensemble share the rate equally.

    >>> from pycc.certify import Alarm
    >>> Alarm(false_alarms=0.1).settings()["false_alarms"]
    0.1
    """

    name = _NAME
    false_alarms: float = flag(
        0.05, "probability of an alarm for a clean image like those that are calibrated on"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        inside(self.name, "false_alarms", self.false_alarms)

    def maps_to_fit(self, maps: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return two thirds of the maps."""
        return [cells for number, cells in enumerate(maps) if number % _PARTS]

    def check_images(
        self, images: CalibrationMaps, patch_size: int, usable: int, *, fitted: bool
    ) -> None:
        """Raise ValueError if the margin would be infinite, or the network have no map."""
        least = math.ceil(1 / Fraction(repr(self._rate(len(images.counters)))) - 1)
        least = max(2, _PARTS * (least - 1) + 1)  # every third image gives a score
        if usable < least:
            raise ValueError(
                f"{images.source}: a margin for {patch_size} pixels and a rate of "
                f"{self.false_alarms:g} false alarms needs {least} images at least as large, got "
                f"{usable}; give more calibration images or a higher rate (false_alarms)"
            )

    def _rate(self, counters: int) -> float:
        """Return the rate of each of several counters, of which each may raise the alarm."""
        return self.false_alarms / counters

    def needed_numbers(self, patch_sizes: Sequence[int], counters: int) -> Iterator[NeededNumber]:
        """Iterate over the rate, and a margin per patch size and counter."""
        yield NeededNumber(FALSE_ALARMS, given=self.false_alarms)
        for patch_size in patch_sizes:
            for number in range(counters):
                yield NeededNumber(MARGIN, patch_size, number)

    def calibrate(
        self, images: CalibrationMaps, patch_sizes: Sequence[int]
    ) -> Iterator[CalibratedNumber]:
        """Compute the margins on images that took no part in a fit."""
        yield CalibratedNumber(FALSE_ALARMS, self.false_alarms, "given", 0)
        for entry in images.completions:
            if entry.method != self.name:
                continue
            maps = images.usable(entry.counter, entry.patch_size)[::_PARTS]
            scores = [score(cells, entry.model) for cells in maps]
            margin = conformal_margin(scores, self._rate(len(images.counters)))
            yield CalibratedNumber(
                MARGIN, margin, images.source, len(maps), entry.patch_size, entry.counter
            )

    def interval(
        self, counter: Counter, image: CertifiedImage, patch_size: int, calibration: Calibration
    ) -> Interval:
        """Return the interval of the counter, or of the weighted sum of an ensemble."""
        _, shares = parts_of(counter)
        intervals = [
            alarm_of(cells, *_band_of(calibration, patch_size, number))
            for number, cells in enumerate(image.parts)
        ]
        return mixed(intervals, shares)

    def defended(
        self, counter: Counter, patch_size: int, calibration: Calibration, *, seed: int
    ) -> Counter:
        """Return ``pycc.defense.alarmed``, with gradients that lead back into the bands."""

        def alarmed(number: int, part: Counter) -> Counter:
            model, margin = _band_of(calibration, patch_size, number)
            return defense.alarmed(
                part, patch_size=patch_size, completion=model, margin=margin,
                straight_through=True,
            )  # fmt: skip

        return with_parts(counter, alarmed)

    def weakest_windows(
        self,
        density: Tensor,
        window: tuple[int, int],
        objective: Objective,
        calibration: Calibration,
        patch_size: int,
        number: int,
    ) -> list[tuple[int, int]]:
        """Return the middle of the window at which the interval's end is reached."""
        model, margin = _band_of(calibration, patch_size, number)
        bands = Bands.of(density[0], model, margin)
        place = bands.high_at if objective == "over" else bands.low_at
        return [patch_cell(model.grid, shape_of(density), window, place)]
