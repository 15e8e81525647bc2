"""Where a patch moves a certified count most, by the certificate itself."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from pycc import ops
from pycc.attack.evaluation.location import Candidates
from pycc.certify.engine import map_inside
from pycc.certify.methods import ON_MAPS, Calibrated
from pycc.defense.mixture import parts_of
from pycc.defense.windows import window_of, window_sums
from pycc.types import Counter, Sample


class Weakest:
    """The windows at which an interval's ends are reached, as places of a patch.

    Its upper end belongs to the emptiest window: there a patch has most to add. Its lower end
    belongs to the window whose loss is largest, with what the mask then takes elsewhere (C3), or to
    the fullest one (C2). An attack that knows the defense begins there.
    """

    def __init__(self, counter: Counter, known: Calibrated) -> None:
        self.counters = parts_of(counter)[0]
        self.known = known
        self._maps: dict[str, list[Tensor]] = {}

    def candidates(self, method: str, objective: str) -> Candidates | None:
        """First rows and columns by sample and side; None where the certificate names none."""
        if method not in ON_MAPS:
            return None
        return partial(self._places, method, objective)

    def _places(
        self, method: str, objective: str, sample: Sample, patch: int
    ) -> list[tuple[int, int]]:
        height, width = sample.image.shape[1:]
        if sample.name not in self._maps:
            self._maps[sample.name] = [map_inside(one, sample).cpu() for one in self.counters]
        places = []
        for number, (counter, cells) in enumerate(
            zip(self.counters, self._maps[sample.name], strict=True)
        ):
            window = window_of(counter, patch, (height, width), (cells.shape[1], cells.shape[2]))
            if objective == "under" and method == "masked":
                allowance = float(self.known.allowances[patch][number].value)
                pair: list[list[int]] = ops.max_pair_sum(cells, window, allowance)[1][0].tolist()
                corners = [corner for corner in pair if min(corner) >= 0]
            else:
                sums = window_sums(cells, window)[0]
                best = int(sums.argmin() if objective == "over" else sums.argmax())
                corners = [list(divmod(best, sums.shape[1]))]
            # The last pixel of those that reach this window's first cell and none before it: a
            # patch from there on reaches as many cells as the window has.
            field, stride = counter.receptive_field, counter.stride
            assert field is not None
            rim = max(0, -(-(field - stride) // 2)) + stride - 1
            for row, column in corners:
                y, x = row * stride + rim, column * stride + rim
                places.append((min(y, height - patch), min(x, width - patch)))
        return places
