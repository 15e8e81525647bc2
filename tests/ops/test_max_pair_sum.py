from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.marks import long
from support.tensors import INF, NAN, VIEWS, every_device, noise, plain, same_bits, views
from torch import Tensor

from pycc.ops import (
    density_map,
    max_pair_sum,
    max_pair_sum_reference,
    max_window_sum,
    reference,
)
from pycc.random import Stream

Results = tuple[Tensor, Tensor]


def same(got: Results, expected: Results) -> None:
    """The same bits, on any devices."""
    assert (got[0].dtype, got[1].dtype) == (torch.float64, torch.int64)
    assert same_bits(got[0], expected[0])
    assert torch.equal(got[1].cpu(), expected[1].cpu())


def agree(maps: Tensor, window: tuple[int, int], allowance, device="cpu") -> Results:
    """Kernel and twin have the same bits."""
    got = max_pair_sum(maps.to(device), window, allowance)
    assert got[0].device.type == torch.device(device).type
    same(got, max_pair_sum_reference(plain(maps), window, allowance))
    return got


def by_hand(grid: np.ndarray, window: tuple[int, int], allowance: float) -> tuple:
    """The definition, cell by cell in exact numbers: omega and the first places that attain it."""
    cells = {at: Fraction(float(value)) for at, value in np.ndenumerate(grid)}
    places = list(
        itertools.product(*(range(n - m + 1) for n, m in zip(grid.shape, window, strict=True)))
    )
    sets = [
        {(y, x) for y in range(top, top + window[0]) for x in range(left, left + window[1])}
        for top, left in places
    ]

    def total(some: set) -> Fraction:
        return sum((cells[at] for at in some), Fraction(0))

    sums = [total(mine) for mine in sets]
    best, where = max(sums), (places[sums.index(max(sums))], (-1, -1))
    for place, mine, kept in zip(places, sets, sums, strict=True):
        rest = [total(other - mine) for other in sets]
        added = Fraction(0) if allowance == INF else max(rest) - Fraction(allowance)
        if kept + max(Fraction(0), added) > best:
            best, where = kept + added, (place, places[rest.index(max(rest))])
    return best, where


KINDS = ["any", "few", "sparse", "wide", "flat", "faint"]


@st.composite
def problems(draw: st.DrawFn, most: int = 16) -> tuple[Tensor, tuple[int, int]]:
    count = draw(st.integers(0, 3))
    height, width = draw(st.integers(1, most)), draw(st.integers(1, most + 4))
    high, wide = (
        draw(st.integers(1, size) | st.integers(1, min(size, 4)) | st.just(size))
        for size in (height, width)
    )
    stream = Stream(draw(st.integers(0, 2**32)), "pairs")
    values = torch.from_numpy(stream.uniform(size=(count, height, width))).float()
    kind = draw(st.sampled_from(KINDS))
    values = {
        "any": lambda: values,
        "few": lambda: (3.0 * values).floor(),
        "sparse": lambda: torch.where(values > 0.97, values.round(), -0.0),
        "wide": lambda: torch.exp(60.0 * values - 30.0),
        "flat": lambda: torch.full_like(values, draw(st.sampled_from([0.0, 0.1, 1.0, 3e38]))),
        "faint": lambda: values * 1e-40,  # not normal in float32
    }[kind]()
    return values, (high, wide)


def allowances(maps: Tensor, window: tuple[int, int]) -> list[float]:
    """None, all, and some on the scale of what windows hold."""
    most = float(max_window_sum(maps, window)[0].max()) if len(maps) else 1.0
    return [0.0, 0.3 * most, 0.9 * most, most, 2.0 * most, INF]


@settings(every_device, max_examples=300)
@given(problem=problems(), data=st.data())
def test_kernel_and_twin_have_the_same_bits(problem, data, device: torch.device) -> None:
    maps, window = problem
    allowance = data.draw(st.sampled_from(allowances(maps, window)))
    agree(data.draw(views(maps)), window, allowance, device)


@settings(every_device, max_examples=60)
@given(problem=problems(6), allowance=st.sampled_from([0.0, 1.0, 2.5, 7.0, 1e3, INF]))
def test_it_is_the_definition(problem, allowance: float, device: torch.device) -> None:
    maps, window = problem
    rounded = (4.0 * maps.clamp(max=2.0)).round()  # sums are exact
    values, places = max_pair_sum(rounded.to(device), window, allowance)
    for n, grid in enumerate(rounded.numpy()):
        value, where = by_hand(grid, window, allowance)
        assert values[n].item() == value
        assert tuple(map(tuple, places[n].tolist())) == where


@every_device
@given(problem=problems(6), share=st.floats(0.0, 1.0))
def test_rounding_stays_within_its_bound(problem, share: float, device: torch.device) -> None:
    maps, window = problem
    for grid in maps[:1]:
        allowance = share * float(grid.double().sum())
        value, _ = by_hand(grid.numpy(), window, allowance)
        total = sum(Fraction(float(cell)) for cell in grid.flatten())
        got = Fraction(max_pair_sum(grid[None].to(device), window, allowance)[0].item())
        assert abs(got - value) <= Fraction(12 * sum(grid.shape), 2**53) * total


def heads(count: int, shape: tuple[int, int], sigma: float, seed: int) -> Tensor:
    points = Stream(seed, "heads").uniform(size=(count, 2)) * [shape[1], shape[0]]
    return density_map(torch.from_numpy(points), sigma, shape)


def blob(height: int, width: int, sigma: float) -> Tensor:
    """All that there is lies around one place, so that the best windows overlap."""
    y, x = torch.arange(float(height))[:, None] - 0.4 * height, torch.arange(float(width))
    return torch.exp(-(y**2 + (x - 0.5 * width) ** 2) / (2 * sigma**2))


SHAPE = (34, 41)
MAPS = {
    "heads": lambda: torch.stack([heads(60, SHAPE, 3.0, 1), heads(4, SHAPE, 6.0, 2)]),
    "noise": lambda: noise(2, *SHAPE),
    "ones": lambda: torch.ones(1, *SHAPE),
    "tenths": lambda: torch.full((1, *SHAPE), 0.1),
    "zeros": lambda: torch.zeros(1, *SHAPE),
    "steps": lambda: (torch.arange(34.0)[:, None] / 7).expand(1, *SHAPE),
    "blob": lambda: torch.stack([blob(*SHAPE, 5.0), blob(*SHAPE, 14.0)]),
    "spike": lambda: torch.zeros(1, *SHAPE).index_fill_(1, torch.tensor([20]), 1.0),
    "dots": lambda: (noise(2, *SHAPE) > 0.99).float(),
}


@pytest.mark.parametrize("window", [(3, 30), (7, 7), (34, 41), *long((1, 1), (16, 13), (25, 30))])
@pytest.mark.parametrize("kind", MAPS)
def test_pruning_leaves_out_no_winner(kind: str, window, device: torch.device) -> None:
    maps = MAPS[kind]()
    for allowance in allowances(maps, window):
        agree(maps, window, allowance, device)


def test_two_windows_apart_and_overlapping(device: torch.device) -> None:
    maps = torch.zeros(1, 8, 12, device=device)
    maps[0, 1, 1], maps[0, 6, 9] = 5.0, 3.0
    values, places = max_pair_sum(maps, (2, 2), 1.0)
    assert (values.tolist(), places.tolist()) == ([7.0], [[[0, 0], [5, 8]]])
    # A row of ones, 5 of them: windows of 3 overlap in one cell, which counts once.
    ones = torch.ones(1, 1, 5, device=device)
    values, places = max_pair_sum(ones, (1, 3), 0.5)
    assert (values.tolist(), places.tolist()) == ([4.5], [[[0, 0], [0, 2]]])


@pytest.mark.parametrize("allowance", [0.0, 2.0, INF])
def test_one_window_alone(allowance: float, device: torch.device) -> None:
    """Where a second adds nothing, or no more than the allowance, or there is none."""
    maps = torch.zeros(1, 6, 7, device=device)
    maps[0, 3, 4] = maps[0, 3, 5] = 2.0
    values, places = max_pair_sum(maps, (2, 2), allowance)
    assert (values.tolist(), places.tolist()) == ([4.0], [[[2, 4], [-1, -1]]])
    values, places = max_pair_sum(maps, (6, 7), allowance)
    assert (values.tolist(), places.tolist()) == ([4.0], [[[0, 0], [-1, -1]]])
    values, places = max_pair_sum(maps, (1, 1), max(allowance, 2.0))
    assert (values.tolist(), places.tolist()) == ([2.0], [[[3, 4], [-1, -1]]])


def test_without_an_allowance_to_spare_it_is_the_largest_window_sum(device: torch.device) -> None:
    maps = heads(40, (90, 120), 4.0, 3)[None].to(device)
    value, places = max_pair_sum(maps, (17, 23), INF)
    sums, corners = max_window_sum(maps, (17, 23))
    torch.testing.assert_close(value, sums, rtol=1e-12, atol=0.0)
    assert torch.equal(places[:, 0], corners)
    # One window as attacked, one as masked: never more than twice the largest, never less than it.
    for allowance in (0.0, 1.0, 3.0):
        omega = max_pair_sum(maps, (17, 23), allowance)[0]
        assert (omega >= value).all()
        assert (omega <= value + (value - allowance).clamp(min=0.0)).all()


def test_ties_take_the_first_pair(device: torch.device) -> None:
    four = torch.zeros(1, 20, 20, device=device)
    for y, x in ((3, 15), (4, 2), (15, 3), (16, 16)):
        four[0, y, x] = 1.0
    assert max_pair_sum(four, (1, 1), 0.0)[1].tolist() == [[[3, 15], [4, 2]]]
    assert max_pair_sum(four, (3, 3), 0.5)[1].tolist() == [[[1, 13], [2, 0]]]
    ones = torch.ones(1, 9, 9, device=device)
    assert max_pair_sum(ones, (3, 3), 0.0)[1].tolist() == [[[0, 0], [0, 3]]]
    assert max_pair_sum(ones, (8, 8), 0.0)[1].tolist() == [[[0, 0], [1, 1]]]


def test_an_allowance_for_each_map(device: torch.device) -> None:
    maps = noise(5, 20, 21).to(device)
    each = torch.tensor([0.0, 1.5, 10.0, 1e300, INF], dtype=torch.float64)
    for op in (max_pair_sum, max_pair_sum_reference):
        values, places = op(maps, (5, 6), each.to(device))
        for n, allowance in enumerate(each.tolist()):
            alone = op(maps[n : n + 1], (5, 6), allowance)
            same((values[n : n + 1], places[n : n + 1]), alone)
        assert places[:, 1].eq(-1).all(1).tolist() == [False, False, False, True, True]


def test_empty_batches(device: torch.device) -> None:
    for op in (max_pair_sum, max_pair_sum_reference):
        values, places = op(torch.zeros(0, 5, 6, device=device), (2, 2), 1.0)
        assert (values.shape, places.shape) == ((0,), (0, 2, 2))


@pytest.mark.parametrize("view", [*VIEWS, lambda t: t.permute(2, 0, 1), lambda t: t[:, ::2, 5:]])
def test_views_are_read_right(view, device: torch.device) -> None:
    maps = view(noise(3, 12, 14).to(device))
    same(max_pair_sum(maps, (3, 2), 0.5), max_pair_sum_reference(plain(maps.cpu()), (3, 2), 0.5))


@pytest.mark.compiled  # the twin has no threads, and takes minutes
@pytest.mark.parametrize("count", [1, 3, 20])
def test_threads_and_batches_do_not_matter(count: int, with_threads) -> None:
    maps = torch.stack([heads(30 + n, (150, 170), 4.0, n) for n in range(count)])
    results = []
    for threads in (1, 2, 7):
        with_threads(threads)
        results.append(max_pair_sum(maps, (31, 28), 0.7))
    results.append(max_pair_sum(maps[-1:], (31, 28), 0.7))
    for values, places in results[1:]:
        same((values, places), tuple(part[-len(values) :] for part in results[0]))


def test_gradients_are_not_followed_and_the_twin_can_be_asked_for() -> None:
    maps = noise(2, 9, 9).requires_grad_()
    for op in (max_pair_sum, max_pair_sum_reference):
        assert not op(maps, (2, 2), 0.5)[0].requires_grad
    with reference():
        same(max_pair_sum(maps, (2, 2), 0.5), max_pair_sum_reference(maps, (2, 2), 0.5))


GOOD = noise(2, 4, 5)
EACH = torch.tensor([0.0, 1.0], dtype=torch.float64)


def one(value: float) -> Tensor:
    maps = GOOD.clone()
    maps[1, 2, 3] = value
    return maps


@pytest.mark.parametrize(
    ("maps", "window", "allowance", "error", "message"),
    [
        ([1.0], (1, 1), 0.0, TypeError, r"maps must be a tensor \[N,h,w\], got list"),
        (GOOD[0], (1, 1), 0.0, ValueError, r"maps must be \[N,h,w\], got \[4, 5\]"),
        (GOOD.double(), (1, 1), 0.0, ValueError, "maps must be float32, got float64"),
        (GOOD.half(), (1, 1), 0.0, ValueError, "maps must be float32, got float16"),
        (GOOD.to("meta"), (1, 1), 0.0, ValueError, "maps must hold values, got a meta tensor"),
        (one(-1e-30), (1, 1), 0.0, ValueError, "maps must be finite and at least 0, got -1e-30"),
        (one(INF), (1, 1), 0.0, ValueError, "maps must be finite and at least 0, .* to inf"),
        (one(-INF), (1, 1), 0.0, ValueError, "maps must be finite and at least 0, got -inf"),
        (one(NAN), (1, 1), 0.0, ValueError, "maps must be finite and at least 0, got nan"),
        (GOOD, 3, 0.0, TypeError, r"window must be \(height, width\), got int"),
        (GOOD, (1.0, 2), 0.0, TypeError, r"window\[0\] must be an int, got float"),
        (GOOD, (0, 2), 0.0, ValueError, r"window must be within \[1, 4\] x \[1, 5\]"),
        (GOOD, (4, 6), 0.0, ValueError, r"window must be within .*got \(4, 6\)"),
        (GOOD[:, :0], (1, 1), 0.0, ValueError, r"window must be within \[1, 0\] x \[1, 5\]"),
        (GOOD, (1, 1), None, TypeError, "allowance must be a number, got NoneType"),
        (GOOD, (1, 1), -1.0, ValueError, r"allowance must be within \[0, inf\], got -1"),
        (GOOD, (1, 1), NAN, ValueError, r"allowance must be within \[0, inf\], got nan"),
        (GOOD, (1, 1), EACH[:1], ValueError, r"allowance must be a number or \[2\], got \[1\]"),
        (GOOD, (1, 1), EACH.long(), ValueError, "allowance must be float32 or float64, got int64"),
        (GOOD, (1, 1), EACH - 1.0, ValueError, r"allowance must be .*within \[0, inf\], got -1"),
        (GOOD, (1, 1), EACH * NAN, ValueError, "allowance must be .*got nan"),
    ],
)
@pytest.mark.parametrize("op", [max_pair_sum, max_pair_sum_reference])
def test_bad_arguments(op, maps, window, allowance, error, message) -> None:
    with pytest.raises(error, match=f"max_pair_sum: .*{message}"):
        op(maps, window, allowance)
