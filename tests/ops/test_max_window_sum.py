from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tensors import (
    INF,
    NAN,
    NEGATIVE_NAN,
    VIEWS,
    every_device,
    noise,
    plain,
    same_bits,
    views,
)
from torch import Tensor

from pycc.ops import density_map, max_window_sum, max_window_sum_reference, reference
from pycc.random import Stream


def same_numbers(first: Tensor, second: Tensor) -> bool:
    """The same bits, with one NaN."""
    canonical = [torch.where(tensor.isnan(), NAN, tensor) for tensor in (first, second)]
    return same_bits(*canonical)


def agree(maps: Tensor, window: tuple[int, int], device: torch.device | str = "cpu") -> None:
    """Kernel and twin have the same bits."""
    sums, places = max_window_sum(maps.to(device), window)
    expected, where = max_window_sum_reference(plain(maps), window)
    assert (sums.dtype, places.dtype) == (torch.float64, torch.int64)
    assert sums.device.type == torch.device(device).type
    assert torch.equal(places.cpu(), where)
    assert same_numbers(sums.cpu(), expected)


def by_hand(grid: np.ndarray, window: tuple[int, int]) -> tuple[float, tuple[int, int]]:
    """Every window summed by itself in exact integers (or IEEE rules where there is no number)."""
    best, place = -INF, (0, 0)
    for y in range(grid.shape[0] - window[0] + 1):
        for x in range(grid.shape[1] - window[1] + 1):
            values = grid[y : y + window[0], x : x + window[1]].tolist()
            total = sum(sum(row) for row in values)
            if total != total:
                return total, (y, x)
            if total > best:
                best, place = total, (y, x)
    return best, place


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, tuple[int, int]]:
    count = draw(st.integers(0, 3))
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 70))
    high = draw(st.one_of(st.integers(1, height), st.integers(1, min(height, 6)), st.just(height)))
    wide = draw(st.one_of(st.integers(1, width), st.integers(1, min(width, 6)), st.just(width)))
    stream = Stream(draw(st.integers(0, 2**32)), "sums")
    values = torch.from_numpy(stream.uniform(-1.0, 1.0, (count, height, width))).float()
    kind = draw(st.sampled_from(["any", "positive", "negative", "few", "sparse", "wide", "flat"]))
    if kind == "positive":
        values = values.abs()
    if kind == "negative":
        values = -values.abs()
    if kind == "few":
        values = values.round()  # -0.0 too
    if kind == "sparse":
        values = torch.where(values > 0.98, values, 0.0)
    if kind == "wide":
        values = torch.sign(values) * torch.exp(60.0 * values)
    if kind == "flat":
        values = torch.full_like(values, draw(st.sampled_from([0.0, -0.0, 0.1, -0.1, INF, -INF])))
    if values.numel():
        for special in draw(st.lists(st.sampled_from([NAN, NEGATIVE_NAN, INF, -INF]), max_size=3)):
            values.view(-1)[int(stream.integers(values.numel(), 1)[0])] = special
    return draw(views(values)), (high, wide)


@settings(every_device, max_examples=300)
@given(problem=problems())
def test_kernel_and_twin_have_the_same_bits(problem, device: torch.device) -> None:
    agree(*problem, device)


@every_device
@given(problem=problems())
def test_it_is_the_best_of_all_windows(problem, device: torch.device) -> None:
    maps, window = problem
    rounded = torch.where(maps.isfinite(), maps.clamp(-9, 9).round(), maps)  # sums are exact
    sums, places = max_window_sum(rounded.to(device), window)
    for n, grid in enumerate(rounded.numpy()):
        total, place = by_hand(grid, window)
        np.testing.assert_equal(sums[n].item() + 0.0, total + 0.0)
        assert tuple(places[n].tolist()) == place


@every_device
@given(problem=problems(), dtype=st.sampled_from([torch.float64, torch.half, torch.bfloat16]))
def test_maps_of_other_dtypes_are_refused(problem, dtype: torch.dtype, device) -> None:
    maps, window = problem
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=f"max_window_sum: maps must be float32, got {name}"):
        max_window_sum(maps.to(device, dtype), window)


def heads(count: int, shape: tuple[int, int], sigma: float, seed: int) -> Tensor:
    points = Stream(seed, "heads").uniform(size=(count, 2)) * [shape[1], shape[0]]
    return density_map(torch.from_numpy(points), sigma, shape)


@pytest.mark.parametrize("window", [(1, 1), (3, 100), (28, 28), (64, 33), (81, 70), (150, 260)])
@pytest.mark.parametrize("kind", ["heads", "noise", "ones", "zeros", "steps", "late", "faint"])
def test_bounds_leave_out_no_winner(kind: str, window, device: torch.device) -> None:
    shape = (150, 261)
    maps = {
        "heads": lambda: torch.stack([heads(60, shape, 3.0, 1), heads(5, shape, 9.0, 2)]),
        "noise": lambda: noise(2, *shape),
        "ones": lambda: torch.full((2, *shape), 0.1),
        "zeros": lambda: torch.zeros(2, *shape),
        "steps": lambda: torch.arange(150.0)[:, None].expand(2, *shape) / 7,
        "late": lambda: torch.cat((torch.full((1, *shape), 0.3), noise(1, *shape))).flip(0, 1, 2),
        "faint": lambda: noise(2, *shape) * 1e-40,  # not normal in float32
    }[kind]()
    agree(maps, window, device)


@pytest.mark.parametrize("special", [NAN, NEGATIVE_NAN, INF])
@pytest.mark.parametrize("window", [(5, 7), (40, 45), (70, 64)])
def test_one_special_value_wins_in_its_first_window_only(special, window, device) -> None:
    maps = noise(1, 150, 200).to(device)
    maps[0, 120, 150] = special
    sums, places = max_window_sum(maps, window)
    assert places.tolist() == [[120 - window[0] + 1, 150 - window[1] + 1]]
    assert same_numbers(sums.cpu(), torch.tensor([special]).double())
    # Windows beside it are not poisoned.
    maps[0, 120, 150] = -INF
    expected = torch.where(maps == -INF, -1e6, maps)
    sums, places = max_window_sum(maps, window)
    finite, where = max_window_sum(expected, window)
    assert torch.equal(places, where)
    assert torch.equal(sums, finite)


def test_opposite_infinities_make_nan_and_nan_is_the_largest(device: torch.device) -> None:
    maps = torch.tensor([[[INF, 1.0, 1.0, INF, -INF, 5.0, NAN]]], device=device)
    sums, places = max_window_sum(maps, (1, 2))
    assert sums.isnan().all()
    assert places.tolist() == [[0, 3]]
    sums, places = max_window_sum(maps[..., :4], (1, 2))
    assert (sums.tolist(), places.tolist()) == ([INF], [[0, 0]])


def test_sums_are_float64_and_do_not_drift(device: torch.device) -> None:
    """One large value in a corner: a running sum or an integral image would lose the small ones."""
    maps = torch.full((1, 60, 80), 2.0**-40, device=device)
    maps[0, 0, 0] = -(2.0**60)
    sums, places = max_window_sum(maps, (8, 8))
    assert sums.tolist() == [64 * 2.0**-40]
    assert places.tolist() == [[0, 1]]


def test_ties_and_signs_of_zero(device: torch.device) -> None:
    zeros = torch.tensor([[[-0.0, -0.0, 0.0, -0.0]]], device=device)
    sums, places = max_window_sum(zeros, (1, 1))
    assert places.tolist() == [[0, 0]]
    assert torch.signbit(sums).tolist() == [True]
    twice = torch.zeros(1, 30, 30, device=device)
    twice[0, 20, 3] = twice[0, 4, 25] = 1.0
    assert max_window_sum(twice, (4, 4))[1].tolist() == [[1, 22]]


def test_a_window_as_large_as_the_map_and_empty_batches(device: torch.device) -> None:
    maps = torch.arange(24.0, device=device).reshape(2, 3, 4)
    sums, places = max_window_sum(maps, (3, 4))
    assert sums.tolist() == [66.0, 210.0]
    assert places.tolist() == [[0, 0], [0, 0]]
    for op in (max_window_sum, max_window_sum_reference):
        sums, places = op(maps[:0], (2, 2))
        assert (sums.shape, places.shape) == ((0,), (0, 2))


def test_a_wide_map(device: torch.device) -> None:
    """Wider than a CUDA block's shared memory."""
    maps = noise(2, 3, 5000)
    for window in ((1, 1), (2, 700), (3, 4096), (2, 5000)):
        agree(maps, window, device)


@pytest.mark.parametrize("view", [*VIEWS, lambda t: t.permute(2, 0, 1), lambda t: t[:, ::2, 5:]])
def test_views_are_read_right(view, device: torch.device) -> None:
    maps = view(noise(3, 30, 40).to(device))
    expected = max_window_sum_reference(plain(maps), (3, 2))
    for got, wanted in zip(max_window_sum(maps, (3, 2)), expected, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("count", [1, 3, 20])
@pytest.mark.parametrize("make", [torch.rand, torch.ones])
def test_threads_and_batches_do_not_matter(count: int, make, with_threads) -> None:
    torch.manual_seed(0)
    maps, results = make(count, 700, 800), []
    for threads in (1, 2, 7):
        with_threads(threads)
        results.append(max_window_sum(maps, (81, 50)))
    results.append(max_window_sum(maps[-1:], (81, 50)))
    for sums, places in results[1:]:
        assert torch.equal(sums, results[0][0][-len(sums) :])
        assert torch.equal(places, results[0][1][-len(places) :])


def test_gradients_are_not_followed_and_the_twin_can_be_asked_for() -> None:
    maps = noise(2, 9, 9).requires_grad_()
    for op in (max_window_sum, max_window_sum_reference):
        assert not op(maps, (2, 2))[0].requires_grad
    with reference():
        assert torch.equal(max_window_sum(maps, (2, 2))[0], max_window_sum(maps, (2, 2))[0])


GOOD = noise(2, 4, 5)


@pytest.mark.parametrize(
    ("maps", "window", "error", "message"),
    [
        ([1.0], (1, 1), TypeError, r"maps must be a tensor \[N,h,w\], got list"),
        (GOOD[0], (1, 1), ValueError, r"maps must be \[N,h,w\], got \[4, 5\]"),
        (GOOD.double(), (1, 1), ValueError, "maps must be float32, got float64"),
        (GOOD.half(), (1, 1), ValueError, "maps must be float32, got float16"),
        (GOOD.to("meta"), (1, 1), ValueError, "maps must hold values, got a meta tensor"),
        (GOOD.to_sparse(), (1, 1), ValueError, "maps must be a dense tensor"),
        (GOOD, 3, TypeError, r"window must be \(height, width\), got int"),
        (GOOD, (1, 2, 3), ValueError, r"window must be \(height, width\), got \[1, 2, 3\]"),
        (GOOD, (1.0, 2), TypeError, r"window\[0\] must be an int, got float"),
        (GOOD, (0, 2), ValueError, r"window must be within \[1, 4\] x \[1, 5\], .*got \(0, 2\)"),
        (GOOD, (4, 6), ValueError, r"window must be within \[1, 4\] x \[1, 5\], .*got \(4, 6\)"),
        (GOOD, (5, 5), ValueError, "window must be within"),
        (GOOD, (-1, 5), ValueError, r"window\[0\] must be within"),
        (GOOD[:, :0], (1, 1), ValueError, r"window must be within \[1, 0\] x \[1, 5\]"),
        (GOOD[:, :, :0], (1, 1), ValueError, r"window must be within \[1, 4\] x \[1, 0\]"),
    ],
)
@pytest.mark.parametrize("op", [max_window_sum, max_window_sum_reference])
def test_bad_arguments(op, maps, window, error, message) -> None:
    with pytest.raises(error, match=f"max_window_sum: .*{message}"):
        op(maps, window)
