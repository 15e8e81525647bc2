"""The base class of defenses, and the defended counters that are made with one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from pycc.checks import check_images
from pycc.counters import check_eval
from pycc.grid import minimum_side, period_of, window_field
from pycc.local import Box, LastDensityCache, TracedGraph, aligned, influence
from pycc.types import Counter

Around = tuple[Callable[[Tensor], Tensor], Box]
"""The defended map as a function of the pixels in a box, and the cells that it computes."""


@dataclass(frozen=True, eq=False)
class Change:
    """A change of the pixels inside a box, as a defense evaluates it without the other pixels."""

    windows: Tensor
    """[N,3,h,w], images or windows of images, unchanged."""
    box: Box
    """The pixels that change, inside the windows."""
    traced: TracedGraph
    """The graph of the counter without the defense."""
    clean: LastDensityCache
    """The counter without the defense, with the map of the last windows."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the windows, in pixels."""
        return self.windows.shape[2], self.windows.shape[3]

    def influenced(self, counter: Counter) -> tuple[Box, Box]:
        """Return the window that determines the change of the map, and the change's box in it."""
        seen = influence(
            aligned(self.box, self.shape, counter.stride), self.shape, stride=counter.stride,
            receptive_field=window_field(counter),
        )  # fmt: skip
        return seen, self.box.moved(-seen.top, -seen.left)


class Defense(ABC):
    """The settings of a defense, and how a counter defended by it counts.

    Subclasses are frozen dataclasses; they set ``op`` and implement ``density``.

    Example:
        >>> import torch
        >>> from dataclasses import dataclass
        >>> from pycc import models
        >>> from pycc.defense import DefendedModule, Defense
        >>> @dataclass(frozen=True)
        ... class Rounded(Defense):
        ...     op = "rounded"
        ...
        ...     def density(self, counter, images):
        ...         return counter(images).round()
        >>> pool = torch.nn.AvgPool2d(8).eval()  # one person per white cell
        >>> counter = models.wrap(pool, preprocess=lambda x: x[:, :1], stride=8)
        >>> DefendedModule(counter, Rounded())(0.75 * torch.ones(1, 3, 8, 8))
        tensor([[[[1.]]]])
    """

    op: ClassVar[str]
    """The name of the defense's function in ``pycc.defense``, for errors."""

    def check_counter(self, counter: Counter) -> None:  # noqa: B027  (most take any counter)
        """Raise ValueError for a counter that this defense cannot defend."""

    def stride(self, counter: Counter) -> int:
        """Pixels per cell of the defended counter's map; by default that of the counter."""
        return counter.stride

    def receptive_field(self, counter: Counter) -> int | None:
        """Side in pixels of the square that a defended cell depends on; None if unbounded."""
        return None

    def period(self, counter: Counter) -> int:
        """Pixels by which images must move for defended maps to; by default the counter's."""
        return period_of(counter)

    @abstractmethod
    def density(self, counter: Counter, images: Tensor) -> Tensor:
        """Compute the defended map [N,1,h,w] of images [N,3,H,W], people per cell."""

    def alarms(self, counter: Counter, images: Tensor) -> Tensor | None:
        """Return which images raise an alarm: [N] bool; by default those of the counter inside."""
        return alarms_of(counter, images)

    def around(self, counter: Counter, change: Change) -> Around | None:
        """Return the defended map as a function of the changed pixels, and the cells it covers.

        ``pycc.local.Local`` calls this. None, the default, means that nothing is faster than to
        evaluate the defended counter on the full window.
        """
        return None


@runtime_checkable
class Alarming(Protocol):
    """A counter that may refuse to count an image."""

    def alarms(self, images: Tensor, /) -> Tensor | None:
        """Return which images [N,3,H,W] raise an alarm: [N] bool; None if none ever does."""


def alarms_of(counter: Counter, images: Tensor) -> Tensor | None:
    """Return which images [N,3,H,W] raise an alarm: [N] bool; None for counters without alarms."""
    return counter.alarms(images) if isinstance(counter, Alarming) else None


class _DefendedCounter:
    """The counter interface that ``Defended`` and ``DefendedModule`` share."""

    counter: Counter
    """The counter without the defense."""
    defense: Defense
    _known: tuple[TracedGraph, LastDensityCache] | None = None

    @property
    def stride(self) -> int:
        """Pixels per cell."""
        return self.defense.stride(self.counter)

    @property
    def receptive_field(self) -> int | None:
        """Side in pixels of the square that a cell depends on and that a window must contain.

        None if it is unbounded, or if a window alone would be counted differently.
        """
        return self.defense.receptive_field(self.counter)

    @property
    def period(self) -> int:
        """Pixels by which an image must move for its map to move with it."""
        return self.defense.period(self.counter)

    @property
    def minimum_side(self) -> int:
        """Smallest height and width, in pixels, that give a map of at least one cell."""
        return minimum_side(self.counter)

    def around(self, windows: Tensor, box: Box) -> Around | None:
        """Return the map as a function of the pixels inside a box; see ``pycc.local.Local``."""
        check_eval(self.defense.op, self.counter)
        if self._known is None:
            self._known = TracedGraph(self.counter), LastDensityCache(self.counter)
        return self.defense.around(self.counter, Change(windows, box, *self._known))

    def alarms(self, images: Tensor, /) -> Tensor | None:
        """Return which images raise an alarm: [N] bool; None for a defense without alarms.

        Images are checked as those of ``forward``.
        """
        self._check(images)
        return self.defense.alarms(self.counter, images)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the density map [N,1,h,w], people per cell, of images [N,3,H,W] (RGB in [0,1]).

        Raises:
            ValueError: images of another shape or with values outside [0,1], a counter in train
                mode, and whatever the defense or the counter refuses.
        """
        self._check(images)
        return self.defense.density(self.counter, images)

    def _check(self, images: Tensor) -> None:
        check_images(self.defense.op, images)
        check_eval(self.defense.op, self.counter)


class Defended(_DefendedCounter):
    """A defended counter made of a counter that is not an ``nn.Module``.

    Example:
        >>> import torch
        >>> from pycc import defense
        >>> class Bright:  # one person per white cell of 8 x 8 pixels
        ...     stride, receptive_field = 8, 8
        ...
        ...     def __call__(self, images):
        ...         return torch.nn.functional.avg_pool2d(images[:, :1], 8)
        >>> counter = defense.clipped(Bright(), 0.25)
        >>> isinstance(counter, defense.Defended), float(counter(torch.ones(1, 3, 32, 32)).sum())
        (True, 4.0)
    """

    def __init__(self, counter: Counter, defense: Defense) -> None:
        self.counter, self.defense = counter, defense

    def __call__(self, images: Tensor, /) -> Tensor:
        """Compute the density map [N,1,h,w] of images [N,3,H,W]."""
        return self.forward(images)


class DefendedModule(_DefendedCounter, nn.Module):
    """A defended counter that is an ``nn.Module`` with the parameters of the counter inside.

    Its state dict also contains the defense's settings as text, so that the identity of counters
    with different settings differs.

    Example:
        >>> import torch
        >>> from pycc import defense, models
        >>> pool = torch.nn.AvgPool2d(8).eval()  # one person per white cell
        >>> counter = models.wrap(pool, preprocess=lambda x: x[:, :1], stride=8, receptive_field=8)
        >>> defended = defense.masked(counter, patch_size=8, allowance=1.0)
        >>> isinstance(defended, defense.DefendedModule), defended.stride, defended.training
        (True, 8, False)
    """

    def __init__(self, counter: nn.Module, defense: Defense) -> None:
        super().__init__()
        self.counter = cast(Counter, counter)
        self.defense = defense
        self.training = counter.training

    def get_extra_state(self) -> str:
        """Return the defense's settings as text."""
        return repr(self.defense)

    def set_extra_state(self, state: object) -> None:
        """Raise ValueError for the state of a defense with other settings."""
        if state != repr(self.defense):
            raise ValueError(
                f"{self.defense.op}: the state must be that of {self.defense!r}, got {state!r}"
            )


def defended(counter: Counter, defense: Defense) -> Defended | DefendedModule:
    """Return the counter defended by ``defense``; ValueError if the defense cannot be applied."""
    defense.check_counter(counter)
    if isinstance(counter, nn.Module):
        return DefendedModule(counter, defense)
    return Defended(counter, defense)


def check_finite(op: str, images: Tensor) -> None:
    """Raise ValueError for images with NaN or infinity.

    Because it depends on values, it also stops at once an attempt of ``pycc.local.Local`` to trace
    a defense that is not a sequence of layers.
    """
    if not torch.isfinite(images).all():
        raise ValueError(f"{op}: images must be finite, got NaN or infinity")
