"""What every attack on a count shares: the protocol, the registry, the scenes it works on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor

from pycc.attack.window import Box, Place
from pycc.registry import Registry
from pycc.types import Counter


@dataclass(frozen=True, eq=False)
class Scenes:
    """Windows of one shape, cut from N images, with what a loss needs to know of each image.

    Cells of a window that the patch cannot touch may lie near the window's edge and see an
    artificial border there. A loss must therefore use the *change* ``counter(attacked) - clean``,
    which is zero in those cells and exact in the others.
    """

    images: Tensor
    """[N,3,h,w], RGB in [0,1]: the windows, clean."""
    clean: Tensor
    """[N,1,hc,wc], people per cell: the counter's map of the clean windows."""
    density: Tensor
    """[N,1,hc,wc], people per cell: the ground truth, from the full image."""
    weight: Tensor
    """[N,1,hc,wc] in [0,1]: how much of a cell lies in the region of interest."""
    cells: Tensor
    """[N]: the sum of ``weight`` over the full image (its number of cells without a region)."""
    count: Tensor
    """[N], people: the counter's count of the clean full image."""
    top_left: Tensor
    """[N,2] int64 (y, x): where the patch lies in its window."""
    index: tuple[int, ...]
    """The images' positions in the data set: the keys of their randomness."""


class Attack(Protocol):
    """An attack with one patch an image. A dataclass whose fields are the command's flags."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str:
        """The name it is registered under."""

    @property
    def steps(self) -> int:
        """Optimisation steps an image."""

    @property
    def size(self) -> int | float:
        """Side of the patch: an int in pixels, a float as a share of the image's width."""

    def settings(self) -> dict[str, object]:
        """All fields by name, as JSON values."""

    def place(self, shape: tuple[int, int], *, seed: int, image: int) -> Place:
        """Where the patch goes in image number ``image`` of ``shape`` (H, W).

        ValueError if it does not fit.
        """

    def extent(self, place: Place) -> Box:
        """The pixels that the patch may change while it is optimised, before clipping."""

    def mask(self, side: int) -> Tensor:
        """[side,side] float32 of 0 and 1: the patch's shape."""

    def optimise(
        self,
        counter: Counter,
        scenes: Scenes,
        side: int,
        *,
        seed: int,
        step_done: Callable[[int], None],
    ) -> Tensor:
        """Patches [N,3,side,side] in [0,1], one for each scene.

        Calls ``step_done(steps so far)`` after each step.
        """


attacks: Registry[type[Attack]] = Registry("attack")
"""The attacks by the names that the command takes."""
