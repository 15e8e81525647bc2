from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tensors import INF, NAN, NEGATIVE_NAN, VIEWS, every_device, noise, plain, views
from torch import Tensor

from pycc.ops import (
    ablate,
    log_probability_inside,
    log_probability_untouched,
    reference,
    topk_overlap,
    topk_overlap_reference,
)
from pycc.random import Stream

SPECIAL = torch.tensor([0.0, -0.0, 1.0, -1.0, INF, -INF, NAN, NEGATIVE_NAN, 1e-45, -1e-45])


def by_sorting(a: Tensor, b: Tensor, k: int) -> list[int]:
    """Python's stable sort, with NaN above infinity."""

    def largest(row: Tensor) -> set[int]:
        keys = [(value == value, -value if value == value else 0.0) for value in row.tolist()]
        return set(sorted(range(len(keys)), key=keys.__getitem__)[:k])

    rows = zip(a.flatten(1), b.flatten(1), strict=True)
    return [len(largest(first) & largest(second)) for first, second in rows]


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    shape = (draw(st.integers(0, 3)), draw(st.integers(0, 9)), draw(st.integers(0, 40)))
    stream = Stream(draw(st.integers(0, 2**32)), "overlap")
    kind = draw(st.sampled_from(["any", "few values", "special"]))
    maps = []
    for _ in range(2):
        if kind == "special":
            maps.append(SPECIAL[torch.from_numpy(stream.integers(len(SPECIAL), shape))])
        else:
            values = torch.from_numpy(stream.uniform(-1.0, 1.0, shape)).float()
            maps.append(values if kind == "any" else values.mul(3).round() / 3)
    cells = shape[1] * shape[2]
    k = draw(st.one_of(st.integers(0, cells), st.sampled_from([0, cells // 20, cells])))
    return draw(views(maps[0])), draw(views(maps[1])), k


@every_device
@given(problem=problems())
def test_it_is_the_overlap_of_stable_sorts(problem, device: torch.device) -> None:
    a, b, k = problem
    expected = torch.tensor(by_sorting(plain(a), plain(b), k), dtype=torch.int64)
    for op in (topk_overlap, topk_overlap_reference):
        got = op(a.to(device), b.to(device), k)
        assert got.dtype == torch.int64
        assert got.device.type == device.type
        assert torch.equal(got.cpu(), expected)


@every_device
@given(
    problem=problems(),
    second=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.half, torch.bfloat16, torch.int64]),
)
def test_maps_of_other_dtypes_are_refused(problem, second: bool, dtype, device) -> None:
    a, b, k = problem
    there = [a.to(device), b.to(device)]
    there[second] = there[second].to(dtype)
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=f"topk_overlap: {'ab'[second]} must be .* got {name}"):
        topk_overlap(*there, k)


def maps_of(kind: str, count: int, cells: int) -> Tensor:
    values = noise(count, cells, seed=cells)
    if kind == "ascending":
        return torch.arange(cells).float().expand(count, -1).contiguous()
    if kind == "descending":
        return maps_of("ascending", count, cells).flip(1)
    if kind == "equal":
        return torch.full_like(values, 3.0)
    if kind == "few values":
        return (values * 4).floor()
    if kind == "mostly zero":
        return torch.where(values < 0.99, 0.0, values)
    if kind == "one NaN":
        values[:, cells // 3] = NAN
    if kind == "outlier":
        values[:, cells // 2] = 3e38
    if kind == "wide":
        return torch.from_numpy(Stream(3, "wide").normal((count, cells)) * 30).exp().float()
    return values


@pytest.mark.parametrize("kind", [
    "noise", "ascending", "descending", "equal", "few values", "mostly zero", "one NaN", "outlier",
    "wide",
])  # fmt: skip
@pytest.mark.parametrize("k", [1, 45, 1000, 2500, 10_006, 10_007])
def test_large_maps_of_every_kind(kind: str, k: int, device: torch.device) -> None:
    a, b = maps_of(kind, 2, 10_007).to(device), noise(2, 10_007, seed=5).to(device)
    for first, second in ((a, b), (b, a), (a, a)):
        assert torch.equal(topk_overlap(first, second, k), topk_overlap_reference(first, second, k))
    assert topk_overlap(a, a, k).tolist() == [k, k]


def test_ties_go_to_the_lower_index(device: torch.device) -> None:
    equal = torch.zeros(1, 6, device=device)
    last = torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]], device=device)
    assert [topk_overlap(equal, last, k).item() for k in range(7)] == [0, 0, 0, 0, 2, 4, 6]
    zeros = torch.tensor([[-0.0, 0.0, -0.0, 0.0]], device=device)  # one value
    first = torch.tensor([[1.0, 0.0, 0.0, 0.0]], device=device)
    assert topk_overlap(zeros, first, 1).tolist() == [1]
    nans = torch.tensor([[1.0, NEGATIVE_NAN, NAN, INF]], device=device)
    assert topk_overlap(nans, torch.tensor([[0.0, 1.0, 0.0, 0.0]], device=device), 1).item() == 1


def test_the_overlap_does_not_see_the_scale_of_a_map() -> None:
    """A map times 10 counts ten times as many people and has the same overlap with any other."""
    a, b = noise(3, 20, 30), noise(3, 20, 30, seed=1)
    assert torch.equal(topk_overlap(10.0 * a, b, 100), topk_overlap(a, b, 100))
    assert topk_overlap(10.0 * a, a, 100).tolist() == [100] * 3


D, N, KEPT, DRAWS = 100, 9, 8, 4000  # entries, those that a patch changes, those kept, draws


def ablated_twins() -> tuple[Tensor, Tensor]:
    """DRAWS ablations of an image and of its twin with a patch, which keep the same entries."""
    image = noise(1, 1, 10, 10) + 1.0
    twin = image.clone()
    twin[..., 2:5, 3:6] += 1.0
    first, second = (ablate(x, KEPT, seed=1, fill=0.0, draws=DRAWS) for x in (image, twin))
    return first, second


@pytest.mark.parametrize("k", [5, KEPT])
def test_theorem_1_of_apam_does_not_hold(k: int) -> None:
    """A counter that ignores its input breaks both sides of (10), lower <= Pr(R = i) <= upper."""
    lower = log_probability_inside(D, N, KEPT, rounding="down").exp().item()
    upper = log_probability_untouched(D, N, KEPT, rounding="up").exp().item()
    assert 0.0 < lower < upper < 1.0

    def count(ablated: Tensor) -> Tensor:
        return noise(1, 6, 6).expand(len(ablated), -1, -1)

    overlap = topk_overlap(*(count(ablated) for ablated in ablated_twins()), k)
    share = [float((overlap == i).double().mean()) for i in range(k + 1)]
    assert share == [0.0] * k + [1.0]
    assert share[k] > upper
    assert share[0] < lower


def test_what_holds_instead(device: torch.device) -> None:
    """Same ablation, same map: the mean of R/K is at least C(d-n,k) / C(d,k), for any counter."""
    first, second = (x.flatten(1).to(device) for x in ablated_twins())
    untouched = log_probability_untouched(D, N, KEPT).exp().item()
    deviation = (untouched * (1 - untouched) / DRAWS) ** 0.5
    same = (first == second).all(1)
    assert abs(float(same.double().mean()) - untouched) < 4 * deviation
    for seed in range(3):
        weights = noise(D, 36, seed=seed + 2).to(device) - 0.5
        # A row by itself: in a product of matrices its place might change the sum.
        maps = [(x[:, :, None] * weights).sum(1) for x in (first, second)]
        overlap = topk_overlap(*maps, 5)
        assert bool((overlap[same] == 5).all())
        assert bool((overlap < 5).any())
        assert float(overlap.double().mean()) / 5 >= untouched - 4 * deviation


def test_shapes(device: torch.device) -> None:
    flat = torch.tensor([1.0, NAN, -1.0], device=device)  # one cell a map
    assert topk_overlap(flat, flat, 1).tolist() == [1, 1, 1]
    assert topk_overlap(flat, flat, 0).tolist() == [0, 0, 0]
    none, bare = torch.zeros(0, 5, device=device), torch.zeros(2, 0, device=device)
    assert topk_overlap(none, none, 5).shape == (0,)
    assert topk_overlap(bare, bare, 0).tolist() == [0, 0]


@pytest.mark.parametrize("view", [*VIEWS, lambda t: t.permute(2, 0, 1), lambda t: t[:, ::2, 5:]])
def test_views_are_read_right(view, device: torch.device) -> None:
    a, b = noise(4, 6, 50).to(device), noise(4, 6, 50, seed=1).to(device)
    expected = topk_overlap_reference(plain(view(a)), plain(view(b)), 17)
    assert torch.equal(topk_overlap(view(a), view(b), 17), expected)


def test_threads_do_not_matter(with_threads) -> None:
    a, b, results = noise(50, 40_000), noise(50, 40_000, seed=1), []
    for threads in (1, 2, 7):
        with_threads(threads)
        results.append(topk_overlap(a, b, 999))
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_gradients_are_not_followed_and_the_twin_can_be_asked_for() -> None:
    a, b = noise(2, 30).requires_grad_(), noise(2, 30, seed=1)
    assert not topk_overlap(a, b, 3).requires_grad
    with reference():
        assert torch.equal(topk_overlap(a, b, 3), topk_overlap_reference(a, b, 3))


GOOD = noise(2, 4, 5)


@pytest.mark.parametrize(
    ("a", "b", "k", "error", "message"),
    [
        ([1.0], GOOD, 1, TypeError, r"a must be a tensor \[N,...\], got list"),
        (GOOD, None, 1, TypeError, "b must be a tensor"),
        (torch.tensor(1.0), GOOD, 1, ValueError, r"a must be \[N,...\], got \[\]"),
        (GOOD.double(), GOOD, 1, ValueError, "a must be float32, got float64"),
        (GOOD, GOOD.half(), 1, ValueError, "b must be float32, got float16"),
        (GOOD.long(), GOOD, 1, ValueError, "a must be float32, got int64"),
        (GOOD.to_sparse(), GOOD, 1, ValueError, "a must be a dense tensor"),
        (GOOD, GOOD.to("meta"), 1, ValueError, r"b must be on the device of a \(cpu\), got meta"),
        (GOOD.to("meta"), GOOD, 1, ValueError, "a must hold values, got a meta tensor"),
        (GOOD, GOOD[:1], 1, ValueError, r"b must be \[2, 4, 5\] like a, got \[1, 4, 5\]"),
        (GOOD, GOOD.flatten(1), 1, ValueError, r"b must be \[2, 4, 5\] like a, got \[2, 20\]"),
        (GOOD, GOOD, -1, ValueError, r"k must be within \[0, 20\], got -1"),
        (GOOD, GOOD, 21, ValueError, r"k must be within \[0, 20\], got 21"),
        (GOOD, GOOD, 1.0, TypeError, "k must be an int, got float"),
        (GOOD, GOOD, True, TypeError, "k must be an int, got bool"),
        (
            torch.zeros(1, 1).expand(1, 2**32),
            torch.zeros(1, 1).expand(1, 2**32),
            1,
            ValueError,
            r"a must have fewer than 2\^32 cells per row, got 4294967296",
        ),
    ],
)
@pytest.mark.parametrize("op", [topk_overlap, topk_overlap_reference])
def test_bad_arguments(op, a, b, k, error, message) -> None:
    with pytest.raises(error, match=f"topk_overlap: .*{message}"):
        op(a, b, k)
