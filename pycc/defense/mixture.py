"""Several counters as one."""

from __future__ import annotations

from collections.abc import Sequence

from pycc.robust.mixture import Mixture
from pycc.types import Counter


def mixed(counters: Sequence[Counter], shares: Sequence[float] | None = None) -> Mixture:
    """The sum of what counters say, each times its share (None: equal shares that sum to 1).

    ``mixed([masked(first, 81, 40.0), masked(second, 81, 20.0)])`` masks each counter's own fullest
    window; ``pycc.certify.mixed`` adds their intervals up. A second counter of a smaller receptive
    field narrows the interval of the first, and two that err differently err less together.

    ValueError for no counter, counters of different strides, and shares of another number or not
    above 0; when called, for maps of different sizes.
    """
    return Mixture(counters, shares)
