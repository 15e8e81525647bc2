"""The largest and least entries of windows paired with windows near them, in whole units."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pycc.ops import _check, _native

_OP = "pair_extremes"
_FAR = 1 << 62
"""Without a near window, the extremes are -_FAR and _FAR."""
_MOST_SUMMED, _MOST_GUESSED = 1 << 60, 1 << 53
"""Limits of sums, so that no entry overflows, and of guesses, so that float64 holds them."""
_AT_ONCE = 1 << 21
"""Pairs of windows that the twin evaluates at once: about 200 MB of temporary tensors."""


@dataclass(frozen=True, eq=False)
class WindowPairs:
    """Windows of a map, and what is guessed for each of them beside each window near it.

    All windows have one size, and begin at every pair of n rows and m columns. Window W' hides a
    span of the surroundings of W along each axis; W' is near W if it hides one along both. The
    entry of W and a near W', with S a sum of cells and g a guess, is

    A(W, W') = S - S_{W and W' united} + g(W) + round((1 - |W and W' shared| / |W'|) g(W')),

    rounded to the nearest whole number, halves to the even one.

    Raises:
        TypeError: a part that is not a tensor.
        ValueError: a part of another shape or dtype or on another device, windows that leave the
            map, spans out of range or whose nearness is not symmetric, and numbers that are
            negative or too large (sums over 2^60, guesses over 2^53).

    Example:
        >>> import torch
        >>> from pycc import ops
        >>> table = torch.tensor([[0, 0, 0, 0], [0, 5, 6, 10]])  # of cells 5, 1, 4
        >>> guesses = torch.tensor([[[[2], [2]]]])  # of two windows of two cells
        >>> near = torch.zeros(2, 2, dtype=torch.int64)
        >>> places = torch.tensor([0]), torch.tensor([0, 1])
        >>> pairs = ops.WindowPairs(table, guesses, *places, near[:1, :1], near, (1, 2))
        >>> pairs.entries(0, 0, 1).tolist()
        [[[6, 3], [3, 7]]]
    """

    table: Tensor
    """[h+1,w+1] int64: sums of the cells above and to the left of each corner of the map."""
    guesses: Tensor
    """[n,s,m,t] int64: by row of the window, row span, column of the window and column span."""
    row_starts: Tensor
    """[n] int64: first rows of cells."""
    column_starts: Tensor
    """[m] int64: first columns of cells."""
    row_spans: Tensor
    """[n,n] int64: the span that windows of row j hide from those of row i; -1 if they are far."""
    column_spans: Tensor
    """[m,m] int64"""
    window: tuple[int, int]
    """Height and width of the windows, cells."""

    def __post_init__(self) -> None:
        shaped = _check.shaped
        guesses = shaped(_OP, "guesses", self.guesses, "[n,s,m,t]", (None,) * 4)
        n, spans, m, more = guesses.shape
        table = shaped(_OP, "table", self.table, "[h+1,w+1]", (None, None))
        for name, expected, sizes in (
            ("row_starts", f"[{n}]", (n,)),
            ("column_starts", f"[{m}]", (m,)),
            ("row_spans", f"[{n}, {n}]", (n, n)),
            ("column_spans", f"[{m}, {m}]", (m, m)),
        ):
            shaped(_OP, name, getattr(self, name), expected, sizes)
        for name in (
            "table", "guesses", "row_starts", "column_starts", "row_spans", "column_spans",
        ):  # fmt: skip
            tensor: Tensor = getattr(self, name)
            _check.typed(_OP, name, tensor, torch.int64)
            _check.on_device(_OP, name, tensor, table.device, "table")
            _check.not_meta(_OP, name, tensor)
        _within("table", table, 0, _MOST_SUMMED)
        _within("guesses", guesses, 0, _MOST_GUESSED)
        cells = [size - 1 for size in table.shape]
        limits = [
            _check.integer(_OP, "window", side, 1, most)
            for side, most in zip(self.window, cells, strict=True)
        ]
        _within("row_starts", self.row_starts, 0, cells[0] - limits[0])
        _within("column_starts", self.column_starts, 0, cells[1] - limits[1])
        for name, tensor, most in (
            ("row_spans", self.row_spans, spans), ("column_spans", self.column_spans, more),
        ):  # fmt: skip
            _within(name, tensor, -1, most - 1)
            if not torch.equal(tensor < 0, (tensor < 0).T):
                raise ValueError(f"{_OP}: {name} must be symmetric in which pairs are far")

    def entries(self, row: int, begin: int, end: int) -> Tensor:
        """Compute the entries of a row of windows and the rows [begin, end): [end-begin,m,m].

        By second row, column and second column. All of these rows must be near; entries of far
        columns have no meaning.
        """
        m = len(self.column_starts)
        high, wide = self.window
        others = slice(begin, end)
        spans = self.column_spans.clamp(min=0).expand(end - begin, m, m)
        mine = self.guesses[row, self.row_spans[row, others]].gather(2, spans)
        number = torch.arange(begin, end, device=self.table.device)
        theirs = self.guesses[number, self.row_spans[others, row]].gather(2, spans).transpose(1, 2)
        first, last = _shared(self.row_starts[row], self.row_starts[others], high)
        left, right = _shared(self.column_starts[:, None], self.column_starts, wide)
        strips = self.table[last] - self.table[first]
        shared = strips[:, right] - strips[:, left]
        area = (last - first)[:, None, None] * (right - left)
        own = 1.0 - area.double() / (high * wide)
        theirs = (theirs.double() * own).round().to(torch.int64)
        sums = self.sums()
        hidden = sums[row, None, :, None] + sums[others, None] - shared
        return self.table[-1, -1] - hidden + mine + theirs

    def sums(self) -> Tensor:
        """Sum the cells of each window: [n,m] int64."""
        high, wide = self.window
        strips = self.table[self.row_starts + high] - self.table[self.row_starts]
        return strips[:, self.column_starts + wide] - strips[:, self.column_starts]


def _shared(a: Tensor, b: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Return the first cell that two windows share and the one after the last; equal if none."""
    first = torch.maximum(a, b)
    return first, (torch.minimum(a, b) + length).maximum(first)


def _within(name: str, values: Tensor, low: int, high: int) -> None:
    if values.numel() and not low <= int(values.min()) <= int(values.max()) <= high:
        got = f"{int(values.min())} to {int(values.max())}"
        raise ValueError(f"{_OP}: {name} must be within [{low}, {high}], got {got}")


def pair_extremes(pairs: WindowPairs) -> tuple[Tensor, Tensor]:
    """Find the largest and the least entry of each window over the windows near it, exactly.

    Args:
        pairs: the windows and their guesses, on the CPU or a CUDA device.

    Returns:
        Two [n,m] int64. A window without near ones has -2^62 and 2^62. Not differentiable.

    Source:
        The min-max certificate of ``pycc.certify.completion``.

    Example:
        >>> import torch
        >>> from pycc import ops
        >>> table = torch.tensor([[0, 0, 0, 0], [0, 5, 6, 10]])  # of cells 5, 1, 4
        >>> guesses = torch.tensor([[[[2], [2]]]])  # of two windows of two cells
        >>> near = torch.zeros(2, 2, dtype=torch.int64)
        >>> places = torch.tensor([0]), torch.tensor([0, 1])
        >>> pairs = ops.WindowPairs(table, guesses, *places, near[:1, :1], near, (1, 2))
        >>> most, least = ops.pair_extremes(pairs)
        >>> most.tolist(), least.tolist()
        ([[6, 7]], [[3, 3]])
    """
    if _native.use_reference():
        return pair_extremes_reference(pairs)
    n, row_spans, m, column_spans = pairs.guesses.shape
    most, least = (pairs.table.new_empty((n, m)) for _ in range(2))
    sizes = _native.module().PairSizes(
        height=len(pairs.table) - 1, width=pairs.table.shape[1] - 1, rows=n, columns=m,
        row_spans=row_spans, column_spans=column_spans,
        window_height=pairs.window[0], window_width=pairs.window[1],
    )  # fmt: skip
    parts = (
        pairs.table, pairs.guesses, pairs.row_starts, pairs.column_starts, pairs.row_spans,
        pairs.column_spans,
    )  # fmt: skip
    contiguous = [part.contiguous() for part in parts]
    _native.run(_OP, pairs.table.device, most, least, *contiguous, sizes)
    return most, least


def pair_extremes_reference(pairs: WindowPairs) -> tuple[Tensor, Tensor]:
    """Compute :func:`pair_extremes` in pure torch.

    Example:
        >>> import torch
        >>> from pycc import ops
        >>> one = torch.zeros(1, 1, dtype=torch.int64)
        >>> table = torch.tensor([[0, 0], [0, 7]])
        >>> pairs = ops.WindowPairs(table, one[None, None] + 3, one[0], one[0], one, one, (1, 1))
        >>> ops.pair_extremes_reference(pairs)
        (tensor([[3]]), tensor([[3]]))
    """
    n, _, m, _ = pairs.guesses.shape
    most, least = (pairs.table.new_full((n, m), value) for value in (-_FAR, _FAR))
    near = pairs.column_spans >= 0
    chunk = max(1, _AT_ONCE // max(1, m * m))
    for row in range(n if near.any() else 0):
        begins = torch.nonzero(pairs.row_spans[row] >= 0).flatten().tolist()
        for first in range(0, len(begins), chunk):
            for begin, end in _runs(begins[first : first + chunk]):
                entries = pairs.entries(row, begin, end)
                highest = torch.where(near, entries, -_FAR).amax((0, 2))
                lowest = torch.where(near, entries, _FAR).amin((0, 2))
                most[row] = torch.maximum(most[row], highest)
                least[row] = torch.minimum(least[row], lowest)
    return most, least


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Group ascending numbers into runs [first, end) of consecutive ones."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number:
            runs[-1] = runs[-1][0], number + 1
        else:
            runs.append((number, number + 1))
    return runs
