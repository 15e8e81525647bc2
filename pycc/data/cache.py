"""A cache of values that are expensive to make, such as decoded images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LastUsed(Generic[K, V]):
    """Values by key: those that were used last, up to a limit of their sizes, at least one.

    ``size`` returns the size of a value, in the unit of the ``limit``.

    >>> squares: LastUsed[int, int] = LastUsed(2, size=lambda value: 1)
    >>> [squares.get(number, lambda n: n * n) for number in (2, 3, 4, 3)], len(squares)
    ([4, 9, 16, 9], 2)
    """

    def __init__(self, limit: float, size: Callable[[V], float]) -> None:
        self._limit, self._size = limit, size
        self._kept: OrderedDict[K, V] = OrderedDict()
        self._held = 0.0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: K, make: Callable[[K], V]) -> V:
        """Return the value of a key; ``make`` makes it if it is not kept."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        value = self._kept[key] = make(key)
        self._held += self._size(value)
        while self._held > self._limit and len(self._kept) > 1:
            self._held -= self._size(self._kept.popitem(last=False)[1])
        return value
