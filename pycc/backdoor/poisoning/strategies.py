"""Density manipulations: changes of the head annotations of poisoned images.

The four of "Vulnerability and Defense: Mitigating Backdoor Attacks in Deep Learning-Based Crowd
Counting Models" (3.2). They change points; density maps are then made as for clean images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from pycc.checks import check_whole
from pycc.grid import heads_in
from pycc.random import Stream
from pycc.registry import Registry


@dataclass(frozen=True)
class Strategy(ABC):
    """One density manipulation.

    Called with points [N,2] (float64, (x, y), inside the image), the image's shape (H, W) and a
    stream of random numbers, it returns new points of the same kind. ``roi`` [H,W] bool is the
    region of interest that the points lie in; the new ones lie in it, too. ValueError for points of
    another kind, and for a field out of range.

    A new strategy returns its points from ``_altered``:

    >>> class Nobody(Strategy):
    ...     name, raises = "nobody", False
    ...
    ...     def _altered(self, points, shape, stream, roi):
    ...         return points[:0]
    >>> points = torch.tensor([[10.0, 20.0], [30.0, 40.0]], dtype=torch.float64)
    >>> len(Nobody()(points, (48, 64), Stream(0, "example")))
    0
    """

    name: ClassVar[str]
    raises: ClassVar[bool]
    """Whether it raises the count."""
    has_amount: ClassVar[bool] = False
    """Whether ``with_amount`` changes the number of heads that are added or removed."""

    def __call__(
        self, points: Tensor, shape: tuple[int, int], stream: Stream, *, roi: Tensor | None = None
    ) -> Tensor:
        """The altered points [M,2] float64."""
        if points.ndim != 2 or points.shape[1] != 2 or points.dtype != torch.float64:
            raise ValueError(
                f"{self.name}: points must be [N,2] (x, y) float64, "
                f"got {list(points.shape)} {points.dtype}"
            )
        height, width = shape
        if roi is not None and (roi.dtype != torch.bool or tuple(roi.shape) != (height, width)):
            raise ValueError(
                f"{self.name}: roi must be [{height}, {width}] bool, "
                f"got {list(roi.shape)} {roi.dtype}"
            )
        outside = len(points) - int(heads_in(points, shape if roi is None else roi).sum())
        if outside:
            where = "image" if roi is None else "image and its region of interest"
            raise ValueError(
                f"{self.name}: points must lie in the {where} of {height}x{width} pixels, "
                f"got {outside} outside"
            )
        return self._altered(points, (height, width), stream, roi)

    @abstractmethod
    def _altered(
        self, points: Tensor, shape: tuple[int, int], stream: Stream, roi: Tensor | None
    ) -> Tensor:
        """The altered points, as a new tensor."""

    def with_amount(self, amount: int) -> Strategy:
        """This strategy with another amount, if it has one.

        >>> Add().with_amount(20), Divide().with_amount(20)
        (Add(amount=20), Divide())
        """
        return self

    def settings(self) -> dict[str, object]:
        """Name and fields, as JSON values."""
        return {"strategy": self.name, **asdict(self)}


strategies: Registry[Strategy] = Registry("strategy")
"""The manipulations with the paper's amounts; for others: ``Add(50)``, ``Minus(50)``."""


@dataclass(frozen=True)
class _OfAmount(Strategy):
    has_amount = True

    amount: int = 100
    """Number of heads that are added or removed."""

    def __post_init__(self) -> None:
        check_whole(self.name, "amount", self.amount, 1)

    def with_amount(self, amount: int) -> Strategy:
        """This strategy with another amount."""
        return replace(self, amount=amount)


@dataclass(frozen=True)
class Add(_OfAmount):
    """Add ``amount`` heads, uniformly at random in the image (or its region of interest).

    >>> points = torch.tensor([[10.0, 20.0], [30.0, 40.0], [50.0, 8.0]], dtype=torch.float64)
    >>> stream = Stream(0, "example")
    >>> len(Add(20)(points, (48, 64), stream))
    23
    """

    name = "add"
    raises = True

    def _altered(
        self, points: Tensor, shape: tuple[int, int], stream: Stream, roi: Tensor | None
    ) -> Tensor:
        if roi is None:
            new = stream.uniform(size=(self.amount, 2)) * np.array(shape[::-1])
        else:
            pixels = roi.nonzero().numpy()
            if not len(pixels):
                raise ValueError("add: roi must hold a pixel to put heads on, got none")
            chosen = pixels[stream.integers(len(pixels), self.amount), ::-1]
            # 32 bits: with more, pixel and place in it may round up to the next pixel.
            new = chosen + stream.words(2 * self.amount).reshape(-1, 2) / 2.0**32
        return torch.cat([points, torch.from_numpy(new)])


@dataclass(frozen=True)
class Minus(_OfAmount):
    """Remove ``amount`` heads at random, but keep at least one if there is any.

    >>> points = torch.tensor([[10.0, 20.0], [30.0, 40.0], [50.0, 8.0]], dtype=torch.float64)
    >>> stream = Stream(0, "example")
    >>> len(Minus(2)(points, (48, 64), stream)), len(Minus(9)(points, (48, 64), stream))
    (1, 1)
    """

    name = "minus"
    raises = False

    def _altered(
        self, points: Tensor, shape: tuple[int, int], stream: Stream, roi: Tensor | None
    ) -> Tensor:
        return _kept(points, max(1, len(points) - self.amount), stream)


@dataclass(frozen=True)
class Divide(Strategy):
    """Remove half of the heads at random, rounded down, so that a single head stays.

    >>> points = torch.tensor([[10.0, 20.0], [30.0, 40.0], [50.0, 8.0]], dtype=torch.float64)
    >>> stream = Stream(0, "example")
    >>> len(Divide()(points, (48, 64), stream))
    2
    """

    name = "divide"
    raises = False

    def _altered(
        self, points: Tensor, shape: tuple[int, int], stream: Stream, roi: Tensor | None
    ) -> Tensor:
        return _kept(points, len(points) - len(points) // 2, stream)


@dataclass(frozen=True)
class Multiply(Strategy):
    """Add a second head at (x − 1, y − 1) for every head (eq. 1), clipped to the image.

    The count doubles. If the place is outside the region of interest, the second head has that of
    the first.

    >>> points = torch.tensor([[10.0, 20.0], [30.0, 40.0], [50.0, 8.0]], dtype=torch.float64)
    >>> stream = Stream(0, "example")
    >>> Multiply()(points, (48, 64), stream)[3:].tolist()
    [[9.0, 19.0], [29.0, 39.0], [49.0, 7.0]]
    """

    name = "multiply"
    raises = True

    def _altered(
        self, points: Tensor, shape: tuple[int, int], stream: Stream, roi: Tensor | None
    ) -> Tensor:
        copies = (points - 1.0).clamp(min=0.0)
        stays = ~heads_in(copies, shape if roi is None else roi)
        return torch.cat([points, torch.where(stays[:, None], points, copies)])


for _strategy in (Add(), Minus(), Divide(), Multiply()):
    strategies.register(_strategy.name)(_strategy)


def _kept(points: Tensor, number: int, stream: Stream) -> Tensor:
    """A random ``number`` of the points, in their order."""
    chosen = np.sort(stream.permutation(len(points))[:number])
    return points[torch.from_numpy(chosen)]
