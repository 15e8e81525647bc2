"""What every defense shares: a rule that turns a counter into another, and the two that wear it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from pycc.checks import check_images
from pycc.defense.retained import check_eval
from pycc.local import Box, LastDensityCache, TracedGraph
from pycc.types import Counter


class Defense(ABC):
    """How a defended counter counts. Subclasses are frozen dataclasses of their settings."""

    op: ClassVar[str]
    """Its function in ``pycc.defense``, which errors name."""

    def check_counter(self, counter: Counter) -> None:  # noqa: B027  (most take any counter)
        """ValueError for a counter that this defense cannot defend."""

    def stride(self, counter: Counter) -> int:
        """Pixels per cell of the defended counter's map: the counter's own."""
        return counter.stride

    def receptive_field(self, counter: Counter) -> int | None:
        """Side in pixels of what a cell of the defended counter depends on; None: on everything."""
        return None

    @abstractmethod
    def density(self, counter: Counter, images: Tensor) -> Tensor:
        """The defended map [N,1,h,w] of images [N,3,H,W], people per cell."""

    def around(
        self,
        counter: Counter,
        windows: Tensor,
        box: Box,
        traced: TracedGraph,
        clean: LastDensityCache,
    ) -> tuple[Callable[[Tensor], Tensor], Box] | None:
        """The defended map for pixels that change inside ``box``, as ``pycc.local.Local`` asks.

        None: nothing is known that is quicker than asking anew.
        """
        return None


class _Wearing:
    """The face of a counter, for a counter that a defense has been put on."""

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
        """Side in pixels of the square that a cell depends on, and that a window needs to show.

        None where it is unbounded, or where a window alone would be counted differently.
        """
        return self.defense.receptive_field(self.counter)

    @property
    def minimum_side(self) -> int:
        """Smallest height and width, in pixels, that give a map of at least one cell."""
        return minimum_side(self.counter)

    def around(self, windows: Tensor, box: Box) -> tuple[Callable[[Tensor], Tensor], Box] | None:
        """How the map changes with the pixels inside a box; see ``pycc.local.Local``."""
        check_eval(self.defense.op, self.counter)
        if self._known is None:
            self._known = TracedGraph(self.counter), LastDensityCache(self.counter)
        return self.defense.around(self.counter, windows, box, *self._known)

    def forward(self, images: Tensor) -> Tensor:
        """Density map [N,1,h,w], people per cell, of images [N,3,H,W] (RGB in [0,1]).

        ValueError for images of another shape or with values outside [0,1], for a counter in train
        mode, and whatever the defense or the counter refuses.
        """
        op = self.defense.op
        check_images(op, images)
        check_eval(op, self.counter)
        return self.defense.density(self.counter, images)


class Defended(_Wearing):
    """A defended counter that is no module, because the counter inside is none."""

    def __init__(self, counter: Counter, defense: Defense) -> None:
        self.counter, self.defense = counter, defense

    def __call__(self, images: Tensor, /) -> Tensor:
        """Density map [N,1,h,w] of images [N,3,H,W]."""
        return self.forward(images)


class DefendedModule(_Wearing, nn.Module):
    """A defended counter that is a module, with the parameters of the one inside.

    Its state dict also holds the defense's settings as text, so that counters which differ in
    these alone differ.
    """

    def __init__(self, counter: nn.Module, defense: Defense) -> None:
        super().__init__()
        self.counter = cast(Counter, counter)
        self.defense = defense
        self.training = counter.training

    def get_extra_state(self) -> str:
        """The settings."""
        return repr(self.defense)

    def set_extra_state(self, state: object) -> None:
        """ValueError for the state of another defense."""
        if state != repr(self.defense):
            raise ValueError(
                f"{self.defense.op}: the state must be that of {self.defense!r}, got {state!r}"
            )


def defended(counter: Counter, defense: Defense) -> Defended | DefendedModule:
    """The counter with the defense on."""
    defense.check_counter(counter)
    if isinstance(counter, nn.Module):
        return DefendedModule(counter, defense)
    return Defended(counter, defense)


def minimum_side(counter: Counter) -> int:
    """Smallest side of an image that a counter takes: what it says of itself, or one cell."""
    return int(getattr(counter, "minimum_side", counter.stride))


def check_finite(op: str, images: Tensor) -> None:
    """ValueError for NaN or infinity.

    Also ends at once every attempt to watch the layers of a defense that is no sequence of layers
    (``pycc.local.Local``): what depends on values cannot be watched.
    """
    if not torch.isfinite(images).all():
        raise ValueError(f"{op}: images must be finite, got NaN or infinity")
