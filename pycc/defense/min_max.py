"""The minimum over windows of the maximum over second windows, and its interval.

For windows W and W' of a family, and for none of them, let A(W, W') be a number that is computed
without the content of W and W'. The prediction is min_W max_W' A(W, W'). If some window of the
family contains all that a patch changes, the prediction of the attacked map lies between
min A(W, W*) and max A(W*, W') over W* in the family, whatever the patch shows
(docs/concepts/proofs.md). ``pycc.defense.two_mask`` takes counts under two masks for A; here A is
the sum of the visible cells plus what a completion network predicts for the hidden ones:

A(W, W') = S - S_{W and W' united} + g(W) + (1 - |W and W' shared| / |W'|) g(W').

``pycc.defense.masked`` is the rule A = S - S_{W and W' united} + allowance in the same theorem. It
keeps its own kernel, ``pycc.ops.max_pair_sum``, which serves windows at every cell in floating
point; its figures would change in whole units and on a grid of windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from pycc.checks import check_whole
from pycc.defense.completion_net import CompletionNetwork, FirstLayer
from pycc.defense.surroundings import (
    UNIT,
    BlockLimits,
    blanked_span,
    summed,
    surroundings,
)
from pycc.ops import WindowPairs, pair_extremes

_FAR = 1 << 62
"""More than any entry, and small enough to be added to one."""
_STEPS_PER_WINDOW = 12
"""By default windows begin every twelfth of the cells that a patch reaches."""

Place = tuple[int, int]
"""Row and column of a window in its family, or of a cell in its map."""


@dataclass(frozen=True)
class WindowGrid:
    """Square windows of cells, of which one contains whatever a patch reaches.

    Along an axis of n cells, a patch reaches ``reach`` = k consecutive cells at most, beginning at
    some t in [0, n - k]. Windows are K = k + q - 1 cells long, with q = ``step``, and begin at the
    multiples of q below n - K and at n - K. One of them contains the cells t to t + k - 1: if
    t >= n - K, the last one, which ends at n. Otherwise i q <= t <= i q + q - 1 for a multiple
    i q <= t < n - K, and the window there ends at i q + k + q - 1 >= t + k.

    >>> grid = WindowGrid(reach=5, step=2)
    >>> grid.side, grid.starts(11)
    (6, [0, 2, 4, 5])
    """

    reach: int
    step: int

    def __post_init__(self) -> None:
        check_whole("completion", "reach", self.reach, 1)
        check_whole("completion", "step", self.step, 1)

    @classmethod
    def of(cls, reach: int) -> WindowGrid:
        """Return the grid with the default step for windows of ``reach`` cells."""
        return cls(reach, max(1, round(reach / _STEPS_PER_WINDOW)))

    @property
    def side(self) -> int:
        """Cells per axis of a window."""
        return self.reach + self.step - 1

    def starts(self, cells: int) -> list[int]:
        """Return the first cells of the windows along an axis of ``cells`` cells."""
        last = max(0, cells - self.side)
        return [*range(0, last, self.step), last]


@dataclass(frozen=True, eq=False)
class _Axis:
    """The windows along one axis, and for each pair of them what they hide from each other."""

    starts: Tensor
    """[n] int64: first cells."""
    length: int
    """Cells of a window: the grid's side, or the axis if it is shorter."""
    blocks: BlockLimits
    spans: tuple[tuple[int, int], ...]
    """The pairs of blocks that second windows hide, each once."""
    span_of: Tensor
    """[n,n] int64: the number of the span that window j hides from window i; -1 without one."""
    near: Tensor
    """[n,2] int64: windows [first, end) that hide blocks of each."""
    needed_spans: tuple[tuple[int, ...], ...]
    """For each window the numbers of the spans that are hidden from it."""

    @classmethod
    def of(cls, grid: WindowGrid, cells: int) -> _Axis:
        starts = grid.starts(cells)
        length = min(grid.side, cells)
        spans: dict[tuple[int, int], int] = {}
        numbers = []
        for start in starts:
            hidden = [blanked_span(other - start, grid.side) for other in starts]
            numbers.append([-1 if s is None else spans.setdefault(s, len(spans)) for s in hidden])
        span_of, first = torch.tensor(numbers), torch.tensor(starts)
        # Offsets grow along a row, so the windows that hide something are consecutive.
        met = span_of >= 0
        begin = met.int().argmax(1)
        return cls(
            first, length, BlockLimits.of(starts, grid.side, cells), tuple(spans), span_of,
            torch.stack((begin, begin + met.sum(1)), 1),
            tuple(tuple(sorted({n for n in row if n >= 0})) for row in numbers),
        )  # fmt: skip

    def needed(self) -> tuple[Tensor, Tensor]:
        """Return each window with each span that is hidden from it: two [k] int64."""
        pairs = [(i, span) for i, spans in enumerate(self.needed_spans) for span in spans]
        window, span = torch.tensor(pairs).unbind(1)
        return window, span


@dataclass(frozen=True, eq=False)
class Plan:
    """The windows of maps of one size; ``plan_of`` keeps the last ones."""

    grid: WindowGrid
    shape: tuple[int, int]
    rows: _Axis
    columns: _Axis

    @property
    def everywhere(self) -> bool:
        """Whether one window is the full map, so that the prediction cannot depend on it."""
        return len(self.rows.starts) == len(self.columns.starts) == 1

    def corner(self, place: Place) -> Place:
        """Return the first cell (row, column) of a window."""
        return int(self.rows.starts[place[0]]), int(self.columns.starts[place[1]])

    def sums(self, table: Tensor) -> Tensor:
        """Sum over all windows: [n,m]; ``table`` is that of ``summed``."""
        strips = table[self.rows.starts + self.rows.length] - table[self.rows.starts]
        columns = self.columns.starts
        return strips[:, columns + self.columns.length] - strips[:, columns]

    def surroundings(self, table: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Compute the features [36,n,8] of the windows at rows and columns [n] of the family.

        ``table`` is that of ``summed``.
        """
        parts = (
            axis.blocks.at(places, table.device)
            for axis, places in ((self.rows, rows), (self.columns, columns))
        )
        (high, row_shares), (wide, column_shares) = parts
        return surroundings(table, high, wide, row_shares, column_shares)

    def inside(self, place: Place) -> tuple[slice, slice]:
        """Return the rows and columns of the cells of a window."""
        top, left = self.corner(place)
        return slice(top, top + self.rows.length), slice(left, left + self.columns.length)

    def hidden(self, place: Place, other: Place | None) -> tuple[int, int] | None:
        """Return the numbers of the spans that another window hides from a window, or None."""
        if other is None:
            return None
        rows = int(self.rows.span_of[place[0], other[0]])
        columns = int(self.columns.span_of[place[1], other[1]])
        return None if min(rows, columns) < 0 else (rows, columns)


@lru_cache(maxsize=32)
def plan_of(grid: WindowGrid, shape: tuple[int, int]) -> Plan:
    """Plan the windows of maps [h,w] of this shape."""
    return Plan(grid, shape, _Axis.of(grid, shape[0]), _Axis.of(grid, shape[1]))


@dataclass(frozen=True, eq=False)
class MinMax:
    """The prediction of a map and its interval, and where they are attained."""

    prediction: int
    """In whole units, exact, as are both ends."""
    low: int
    high: int
    first: Place | None
    """The window W of the prediction; None if it is the empty one."""
    second: Place | None
    """The window W' of the prediction."""
    guesses: tuple[int, int]
    """What the network predicts for W and W', each without the other; 0 for the empty one."""
    low_at: Place
    """The window that a patch must change for the lower end."""
    high_at: Place

    @property
    def people(self) -> tuple[float, float, float]:
        """Lower end, prediction and upper end, people."""
        return self.low * UNIT, self.prediction * UNIT, self.high * UNIT


def min_max(units: Tensor, grid: WindowGrid, network: CompletionNetwork) -> MinMax:
    """Compute the prediction of a map [h,w] int64 (``whole_units``) and its interval.

    All sums are exact, so that the result does not depend on their order, nor an entry A(W, W') on
    the content of W and W'.
    """
    plan = plan_of(grid, (units.shape[0], units.shape[1]))
    return _attained(Table(units, plan, network.to(units.device)))


def guess(
    cells: Tensor, plan: Plan, network: CompletionNetwork, window: Place, other: Place | None
) -> Tensor:
    """Predict the people in a window of a map [h,w] without another: a scalar, differentiable.

    Its value is that of ``Table.guess`` up to rounding.
    """
    row, column = torch.tensor(window)[:, None]
    layer = FirstLayer.of(network, plan.surroundings(summed(cells.double()), row, column))
    spans = plan.hidden(window, other)
    if spans is None:
        return network.people(layer.full())[0]
    whole, left, right = layer.beside(plan.rows.spans[spans[0]])
    first, end = plan.columns.spans[spans[1]]
    return network.people(whole + left[first] + right[end])[0]


def single_windows(
    units: Tensor, grid: WindowGrid, network: CompletionNetwork
) -> tuple[Tensor, Tensor]:
    """Return the sums of all windows and their predictions without a second window: [n,m] int64.

    ``units`` [h,w] int64 is the map (``whole_units``).
    """
    plan, table = plan_of(grid, (units.shape[0], units.shape[1])), summed(units)
    network = network.to(units.device)
    columns = torch.arange(len(plan.columns.starts))
    guesses = []
    for row in range(len(plan.rows.starts)):  # one row at a time, to bound the memory
        features = plan.surroundings(table, torch.full_like(columns, row), columns)
        guesses.append(network.units(FirstLayer.of(network, features).full()))
    return plan.sums(table), torch.stack(guesses)


def _attained(table: Table) -> MinMax:
    """Reduce a table of pairs to its prediction and interval."""
    most, least = table.extremes()
    alone, total = table.alone, table.total
    empty_row = max(int(alone.max()), total)
    first = _place(most, most.argmin()) if int(most.min()) <= empty_row else None
    row = alone if first is None else table.row(first)
    best = _place(row, row.argmax())
    nothing = total if first is None else int(alone[first])
    second = best if int(row[best]) > nothing else None
    low_row = _place(least, least.argmin())
    low_columns = alone if int(alone.min()) <= int(least.min()) else table.row(low_row)
    return MinMax(
        prediction=min(int(most.min()), empty_row),
        low=min(int(least.min()), int(alone.min())),
        high=int(most.max()),
        first=first,
        second=second,
        guesses=(table.guess(first, second), table.guess(second, first)),
        low_at=_place(low_columns, low_columns.argmin()),
        high_at=_place(most, most.argmax()),
    )


def _place(values: Tensor, flat: Tensor) -> Place:
    row, column = divmod(int(flat), values.shape[1])
    return row, column


class Table:
    """The entries A(W, W') of one map, which are computed row by row, in whole units."""

    def __init__(self, units: Tensor, plan: Plan, network: CompletionNetwork) -> None:
        self._plan, self._network = plan, network
        self._table = summed(units)
        self.total = int(self._table[-1, -1])
        """A of no windows: the sum of the map."""
        sums = plan.sums(self._table)
        guesses = [self._guesses(row) for row in range(len(plan.rows.starts))]
        free = self._free = torch.stack([row[0] for row in guesses])
        self._guess = torch.stack([row[1] for row in guesses])
        device = units.device
        self._pairs = WindowPairs(
            self._table, self._guess, plan.rows.starts.to(device), plan.columns.starts.to(device),
            plan.rows.span_of.to(device), plan.columns.span_of.to(device),
            (plan.rows.length, plan.columns.length),
        )  # fmt: skip
        self.alone = self.total - sums + free
        """[n,m] int64: A of each window and the empty one, and of the empty one and each window."""
        self._added = free - sums
        """By how much a far window changes an entry."""

    def _guesses(self, row: int) -> tuple[Tensor, Tensor]:
        """Predict the windows of a row: [m] with all surroundings, [s,m,t] with spans blanked.

        Entries that no second window needs stay 0.
        """
        rows, columns = self._plan.rows, self._plan.columns
        device = self._table.device
        places = torch.full((len(columns.starts),), row), torch.arange(len(columns.starts))
        layer = FirstLayer.of(self._network, self._plan.surroundings(self._table, *places))
        shape = (len(rows.spans), len(columns.starts), len(columns.spans))
        blanked = torch.zeros(shape, dtype=torch.int64, device=device)
        window, span = columns.needed()
        limits = torch.tensor(columns.spans)[span]
        window, begin, end = (t.to(device) for t in (window, limits[:, 0], limits[:, 1]))
        for number in rows.needed_spans[row]:
            whole, left, right = layer.beside(rows.spans[number])
            hidden = whole[window] + left[begin, window] + right[end, window]
            blanked[number, window, span.to(device)] = self._network.units(hidden)
        return self._network.units(layer.full()), blanked

    def guess(self, window: Place | None, other: Place | None) -> int:
        """Return what the network predicts for a window without another; 0 for the empty one."""
        if window is None:
            return 0
        spans = self._plan.hidden(window, other)
        if spans is None:
            return int(self._free[window])
        return int(self._guess[window[0], spans[0], window[1], spans[1]])

    def extremes(self) -> tuple[Tensor, Tensor]:
        """Return the largest and the least entry of each row: [n,m] int64 each.

        The largest is over all second windows and none of them, the least over all second windows.
        """
        far_most, far_least = _elsewhere(self._added, self._plan)
        most, least = pair_extremes(self._pairs)
        far = self.alone + far_most, self.alone + far_least
        return torch.maximum(most, far[0]).maximum(self.alone), torch.minimum(least, far[1])

    def row(self, place: Place) -> Tensor:
        """Compute the entries [n,m] of one window and every second window."""
        row, column = place
        entries = self.alone[place] + self._added
        begin, end = self._plan.rows.near[row].tolist()
        left, right = self._plan.columns.near[column].tolist()
        near = self._pairs.entries(row, begin, end)[:, column, left:right]
        entries[begin:end, left:right] = near
        return entries


def _elsewhere(values: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Return the largest and least of values [n,m] outside the near windows of each: [n,m] each.

    What lies outside a rectangle lies above, below, left or right of it. Without far windows the
    results are -_FAR and _FAR.
    """
    rows, columns = (axis.near.to(values.device) for axis in (plan.rows, plan.columns))

    def most(numbers: Tensor) -> Tensor:
        lines, posts = numbers.amax(1), numbers.amax(0)
        beside = [_running_most(line, near) for line, near in ((lines, rows), (posts, columns))]
        return torch.maximum(beside[0][:, None], beside[1])

    return most(values), -most(-values)


def _running_most(line: Tensor, near: Tensor) -> Tensor:
    """Return the largest of a line [n] outside the entries [first, end) of each: [n]."""
    nothing = line.new_full((1,), -_FAR)
    before = torch.cat((nothing, line.cummax(0).values))
    after = torch.cat((line.flip(0).cummax(0).values.flip(0), nothing))
    return torch.maximum(before[near[:, 0]], after[near[:, 1]])
