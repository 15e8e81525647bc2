"""Bands for the people in the windows of a map, which depend on what surrounds each window alone.

The band of a window W is g(W) -+ margin sqrt(g(W) + 10), where a completion network predicts g(W)
without the content of W. If one window contains all that a patch changes, its band is that of the
clean map, whatever the patch shows. A patch after which every window lies in its band therefore
leaves the sum of the map in [min_W S - S_W + low(W), max_W S - S_W + high(W)] of the clean map
(docs/concepts/proofs.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pycc.defense.completed import CompletionModel
from pycc.defense.min_max import Place, plan_of, single_windows
from pycc.defense.surroundings import MOST_PEOPLE, UNIT, whole_units

BASE = 10.0
"""People, added to predictions in the scale of a band. With less, windows in which almost nobody is
predicted decide the margin, and bands of full windows are wider than they need be."""


@dataclass(frozen=True, eq=False)
class Bands:
    """The windows of one map and their bands, in whole units; all are exact."""

    total: int
    """The sum of the map."""
    sums: Tensor
    """[n,m] int64: the sum of each window."""
    guesses: Tensor
    """[n,m] int64: what the network predicts for each."""
    low: Tensor
    """[n,m] int64: lower ends, at least 0."""
    high: Tensor
    """[n,m] int64"""

    @classmethod
    def of(cls, cells: Tensor, completion: CompletionModel, margin: float) -> Bands:
        """Compute the bands of a map [h,w], people per cell.

        Every sum with a ``score`` of at most ``margin`` lies in its band.
        """
        units = whole_units(cells)
        sums, guesses = single_windows(units, completion.grid, completion.network)
        half = (margin * _scale(guesses) / UNIT).ceil().clamp(max=MOST_PEOPLE / UNIT).long()
        return cls(int(units.sum()), sums, guesses, (guesses - half).clamp(min=0), guesses + half)

    @property
    def excess(self) -> Tensor:
        """By how much each sum leaves its band: [n,m] int64, 0 or less inside."""
        return torch.maximum(self.sums - self.high, self.low - self.sums)

    @property
    def alarm(self) -> bool:
        """Whether a window leaves its band."""
        return bool((self.excess > 0).any())

    @property
    def outlier(self) -> Place:
        """The window that leaves its band the most."""
        return _place(self.excess, largest=True)

    @property
    def low_at(self) -> Place:
        """The window that a patch must change for the lower end."""
        return _place(self.low - self.sums, largest=False)

    @property
    def high_at(self) -> Place:
        """The window that a patch must change for the upper end."""
        return _place(self.high - self.sums, largest=True)

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the largest sum, people, that a patch causes without an alarm."""
        low = self.total + int((self.low - self.sums).min())
        high = self.total + int((self.high - self.sums).max())
        return low * UNIT, high * UNIT

    @property
    def count(self) -> float:
        """The sum of the map, people; after an alarm the outlier counts as it is predicted."""
        units = self.total
        if self.alarm:
            units += int((self.guesses - self.sums)[self.outlier])
        return units * UNIT


def score(cells: Tensor, completion: CompletionModel) -> float:
    """Return the least margin for which a map [h,w], people per cell, raises no alarm.

    It is max_W |S_W - g(W)| / sqrt(g(W) + 10).
    """
    sums, guesses = single_windows(whole_units(cells), completion.grid, completion.network)
    return float(((sums - guesses).double() * UNIT / _scale(guesses)).abs().max())


def inside_of(cells: Tensor, completion: CompletionModel, place: Place) -> Tensor:
    """Return the cells of a window of a map [h,w]: [h,w] bool."""
    inside = torch.zeros_like(cells, dtype=torch.bool)
    inside[plan_of(completion.grid, (cells.shape[0], cells.shape[1])).inside(place)] = True
    return inside


def _scale(guesses: Tensor) -> Tensor:
    """Return sqrt(g + 10), g in people: errors grow with the root of what is predicted."""
    return (guesses.double() * UNIT + BASE).sqrt()


def _place(values: Tensor, *, largest: bool) -> Place:
    flat = int(values.argmax() if largest else values.argmin())
    row, column = divmod(flat, values.shape[1])
    return row, column
