"""The places at which, by its certificate, a patch changes a count most."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from pycc.attack.evaluation.location import Candidates
from pycc.certify.calibration import Calibration
from pycc.certify.maps import Objective, certified_map, shape_of
from pycc.certify.methods.base import Certificate
from pycc.defense.mixture import parts_of
from pycc.defense.windows import window_of
from pycc.grid import field_margin
from pycc.types import Counter, Sample


class WeakestPlaces:
    """The places at which a patch affects the windows that determine an interval's ends.

    An adaptive attack begins there (``Certificate.weakest_windows``). Density maps are kept by the
    sample's name.
    """

    def __init__(self, counter: Counter, calibration: Calibration) -> None:
        self._counters = parts_of(counter)[0]
        self._calibration = calibration
        self._maps: dict[str, list[Tensor]] = {}

    def candidates(self, method: Certificate, objective: Objective) -> Candidates | None:
        """Return a function from sample and patch size to places; None if there are no windows."""
        return partial(self._places, method, objective) if method.from_map else None

    def _places(
        self, method: Certificate, objective: Objective, sample: Sample, patch_size: int
    ) -> Sequence[tuple[int, int]]:
        height, width = shape_of(sample.image)
        if sample.name not in self._maps:
            self._maps[sample.name] = [certified_map(c, sample).cpu() for c in self._counters]
        places = []
        maps = self._maps[sample.name]
        for number, (counter, density) in enumerate(zip(self._counters, maps, strict=True)):
            window = window_of(counter, patch_size, (height, width), shape_of(density))
            field, stride = counter.receptive_field, counter.stride
            assert field is not None
            # The last pixel that affects this window's first cell and no cell before it: a patch
            # that begins there affects as many cells as the window has.
            first = field_margin(stride, field) + stride - 1
            for row, column in method.weakest_windows(
                density, window, objective, self._calibration, patch_size, number
            ):
                y, x = row * stride + first, column * stride + first
                places.append((min(y, height - patch_size), min(x, width - patch_size)))
        return places
