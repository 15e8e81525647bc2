"""The base of counters of points: heads are counted, with the gradient of a smooth stand-in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from pycc.models.base import CounterModel

Cells = Literal["points", "scores"]
CELLS: tuple[Cells, ...] = ("points", "scores")


class PointCounter(CounterModel):
    """A counter whose cells are numbers of heads.

    The gradient of such a count is 0 nearly everywhere, so that of the ``scores``, a smooth
    stand-in, takes its place. A subclass returns ``people`` from ``density``, and adds ``heads``,
    which locates the points.

    >>> import torch
    >>> class Bright(PointCounter):
    ...     name = "bright"
    ...     def density(self, output):
    ...         scores = output.sigmoid()
    ...         return self.people(lambda: scores > 0.5, scores)
    >>> counter = Bright(torch.nn.Conv2d(3, 1, 4, stride=4), stride=4, receptive_field=4).eval()
    >>> density = counter(torch.rand(1, 3, 8, 8))
    >>> density.equal(density.round()), density.requires_grad
    (True, True)
    """

    cells: Cells = "points"
    """``"points"`` counts heads, ``"scores"`` the stand-in, which is another number."""

    def smooth(self) -> None:
        """Count the smooth stand-in from now on: the function whose derivative the gradient is."""
        self.cells = "scores"

    def people(self, heads: Callable[[], Tensor], scores: Tensor) -> Tensor:
        """Return people per cell [N,1,h,w]: ``heads()`` in value, ``scores`` in gradient."""
        if self.cells == "scores":
            return scores
        # The value is exactly that of the heads, the gradient that of the stand-in.
        return heads().to(scores.dtype) + (scores - scores.detach())
