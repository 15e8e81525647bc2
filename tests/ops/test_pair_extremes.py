from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tensors import every_device, transposed
from torch import Tensor

from pycc.ops import WindowPairs, pair_extremes, pair_extremes_reference, reference
from pycc.random import Stream

FAR = 2**62


def symmetric(stream: Stream, count: int, spans: int, share: float) -> Tensor:
    """Spans of pairs of windows, far where a symmetric draw exceeds ``share``."""
    values = torch.from_numpy(stream.integers(max(spans, 1), (count, count))).long()
    drawn = torch.from_numpy(stream.uniform(size=(count, count)))
    far = torch.maximum(drawn, drawn.T) > share
    return torch.where(far if spans else torch.ones_like(far), -1, values)


def problem(
    seed: int, *, cells: tuple[int, int], windows: tuple[int, int], window: tuple[int, int],
    spans: tuple[int, int] = (3, 2), share: float = 0.7, most: int = 2**40,
) -> WindowPairs:  # fmt: skip
    stream = Stream(seed, "pairs")
    units = torch.from_numpy(stream.integers(most, cells)).long()
    table = torch.nn.functional.pad(units.cumsum(0).cumsum(1), (1, 0, 1, 0))
    guesses = stream.integers(most, (windows[0], spans[0], windows[1], spans[1]))
    starts = (
        torch.from_numpy(stream.integers(size - side + 1, (count,))).long().sort().values
        for size, side, count in zip(cells, window, windows, strict=True)
    )
    far = (symmetric(stream, *pair, share) for pair in zip(windows, spans, strict=True))
    return WindowPairs(table, torch.from_numpy(guesses).long(), *starts, *far, window)


def moved(pairs: WindowPairs, device: torch.device) -> WindowPairs:
    return replace(pairs, **{
        name: value.to(device) for name, value in vars(pairs).items() if isinstance(value, Tensor)
    })  # fmt: skip


def by_hand(pairs: WindowPairs) -> tuple[list[list[int]], list[list[int]]]:
    """Cell by cell, in Python's whole numbers; the part of a guess as a float, as documented."""
    units = pairs.table.diff(dim=0).diff(dim=1).tolist()
    high, wide = pairs.window
    tops, lefts = pairs.row_starts.tolist(), pairs.column_starts.tolist()
    rows, columns = pairs.row_spans.tolist(), pairs.column_spans.tolist()
    guesses = pairs.guesses.tolist()

    def cells(i: int, j: int) -> set[tuple[int, int]]:
        return {(tops[i] + y, lefts[j] + x) for y in range(high) for x in range(wide)}

    total = sum(map(sum, units))
    most, least = [], []
    for i in range(len(tops)):
        for j in range(len(lefts)):
            entries = []
            for k in range(len(tops)):
                for m in range(len(lefts)):
                    if rows[i][k] < 0 or columns[j][m] < 0:
                        continue
                    mine, theirs = cells(i, j), cells(k, m)
                    hidden = sum(units[y][x] for y, x in mine | theirs)
                    share = 1.0 - len(mine & theirs) / (high * wide)
                    own = round(guesses[k][rows[k][i]][m][columns[m][j]] * share)
                    entries.append(total - hidden + guesses[i][rows[i][k]][j][columns[j][m]] + own)
            most.append(max(entries, default=-FAR))
            least.append(min(entries, default=FAR))
    high_rows, low_rows = (
        [row[n : n + len(lefts)] for n in range(0, len(row), len(lefts))] for row in (most, least)
    )
    return high_rows, low_rows


@every_device
@given(
    seed=st.integers(0, 2**32),
    windows=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    window=st.tuples(st.integers(1, 4), st.integers(1, 5)),
    spans=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    share=st.sampled_from([0.0, 0.5, 1.0]),
    most=st.sampled_from([3, 2**20, 2**52]),
)
def test_it_is_the_definition(seed, windows, window, spans, share, most, device) -> None:
    pairs = problem(seed, cells=(6, 7), windows=windows, window=window, spans=spans, share=share,
                    most=most)  # fmt: skip
    expected = by_hand(pairs)
    for op in (pair_extremes, pair_extremes_reference):
        got = op(moved(pairs, device))
        assert [tensor.device.type for tensor in got] == [device.type] * 2
        assert tuple(tensor.tolist() for tensor in got) == expected


def test_a_real_size(device: torch.device, with_threads) -> None:
    pairs = problem(1, cells=(96, 128), windows=(21, 30), window=(13, 14), spans=(6, 6))
    expected = pair_extremes_reference(pairs)
    for threads in (1, 2, 7):
        with_threads(threads)
        got = pair_extremes(moved(pairs, device))
        assert all(torch.equal(a.cpu(), b) for a, b in zip(got, expected, strict=True))


def test_views_are_read_right_and_the_twin_can_be_asked_for() -> None:
    pairs = problem(2, cells=(9, 8), windows=(3, 4), window=(4, 3))
    seen = replace(pairs, table=transposed(pairs.table), guesses=transposed(pairs.guesses))
    expected = pair_extremes_reference(pairs)
    with reference():
        by_twin = pair_extremes(seen)
    for got in (pair_extremes(seen), by_twin):
        assert all(map(torch.equal, got, expected))


def test_entries_do_not_depend_on_what_both_windows_hide() -> None:
    """Guesses apart, which see neither: other cells in both windows leave all their entries."""
    pairs = problem(3, cells=(9, 8), windows=(3, 4), window=(4, 3), share=1.0)
    (top, bottom), (left, right) = pairs.row_starts[[0, 2]].tolist(), pairs.column_starts[[1, 3]]
    units = pairs.table.diff(dim=0).diff(dim=1)
    for y, x in ((top, left), (bottom, right)):
        units[y : y + 4, x : x + 3] = torch.randint(2**40, (4, 3))
    table = torch.nn.functional.pad(units.cumsum(0).cumsum(1), (1, 0, 1, 0))
    other = replace(pairs, table=table)
    assert not torch.equal(other.table, pairs.table)
    assert pairs.entries(0, 2, 3)[0, 1, 3] == other.entries(0, 2, 3)[0, 1, 3]


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("table", None, TypeError, r"table must be a tensor \[h\+1,w\+1\], got NoneType"),
        ("table", torch.zeros(3, 3), ValueError, "table must be int64, got float32"),
        ("table", torch.full((7, 8), -1), ValueError, "table must be within .*, got -1 to -1"),
        ("table", torch.full((7, 8), 2**61), ValueError, r"table must be within \[0, 1152921504"),
        ("guesses", torch.zeros(2, 3).long(), ValueError, r"guesses must be \[n,s,m,t\], got"),
        ("guesses", torch.full((2, 3, 2, 2), -5), ValueError, "guesses must be within .* got -5"),
        ("row_starts", torch.tensor([0, 3]), ValueError, r"row_starts must be within \[0, 2\]"),
        ("row_starts", torch.zeros(3).long(), ValueError, r"row_starts must be \[2\], got \[3\]"),
        ("row_spans", torch.full((2, 2), 3), ValueError, r"row_spans must be within \[-1, 2\]"),
        ("column_spans", torch.tensor([[0, -1], [1, 0]]), ValueError, "must be symmetric in which"),
        ("column_spans", torch.zeros(2, 2), ValueError, "column_spans must be int64, got float32"),
        ("window", (0, 3), ValueError, r"window must be within \[1, 6\], got 0"),
        ("window", (4, 8), ValueError, r"window must be within \[1, 7\], got 8"),
        ("window", (4, 3.0), TypeError, "window must be an int, got float"),
        ("table", torch.zeros(7, 8, device="meta").long(), ValueError, "device of table|a meta te"),
    ],
)
def test_bad_arguments(name, value, error, message) -> None:
    pairs = problem(4, cells=(6, 7), windows=(2, 2), window=(4, 3), spans=(3, 2))
    with pytest.raises(error, match=f"pair_extremes: .*({message})"):
        replace(pairs, **{name: value})
