"""Single random numbers from a stream, drawn in blocks, since each generator call is slow."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pycc.random import Stream

_AHEAD = 256


class Dice:
    """Scalars and short arrays of one stream, in order; large arrays come from ``stream``."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._ready: list[float] = []

    def __call__(self, low: float = 0.0, high: float = 1.0) -> float:
        """Draw uniformly from [low, high)."""
        if not self._ready:
            self._ready = self.stream.uniform(size=_AHEAD).tolist()[::-1]
        return low + (high - low) * self._ready.pop()

    def below(self, high: int) -> int:
        """Draw an integer of {0, …, high − 1}."""
        return min(int(self(0.0, high)), high - 1)

    def array(self, count: int, low: float = 0.0, high: float = 1.0) -> NDArray[np.float64]:
        """Draw ``count`` numbers uniformly from [low, high), [count]."""
        return np.array([self(low, high) for _ in range(count)])
