from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.exact import columns, log_ratio, problems, triples

from pycc.ops import (
    largest_untouched,
    largest_untouched_reference,
    log_probability_inside,
    log_probability_inside_reference,
    log_probability_untouched,
    log_probability_untouched_reference,
)
from pycc.ops.log_probability import MAX_POPULATION, ROUNDINGS, STIRLING_ERROR

KERNELS = [log_probability_untouched, log_probability_inside]
TWINS = [log_probability_untouched_reference, log_probability_inside_reference]
LARGEST = [largest_untouched, largest_untouched_reference]
IMAGE = 3 * 1024 * 700
U = 2.0**-53


@pytest.fixture
def digits() -> Iterator[None]:
    with localcontext() as context:
        context.prec = 60
        yield


def rounded(cases: list[tuple[int, int, int]], device: torch.device) -> Iterator[tuple]:
    """Each case with its log probability down, nearest and up."""
    sizes = [column.to(device) for column in columns(cases)]
    values = (log_probability_untouched(*sizes, rounding=r).tolist() for r in ROUNDINGS)
    return zip(cases, *values, strict=True)


@pytest.mark.parametrize("pair", [KERNELS, TWINS])
def test_the_paper_s_table_3(pair, device: torch.device) -> None:
    n = torch.tensor([3 * p * p for p in (20, 40, 81, 163)], device=device)
    untouched, inside = (op(IMAGE, n, 45).exp().tolist() for op in pair)
    assert untouched == pytest.approx([0.975194, 0.904331, 0.661137, 0.182740], abs=1e-6)
    assert inside == pytest.approx([1.7266e-147, 4.0072e-120, 1.7745e-92, 3.9699e-65], rel=5e-5)


def test_the_published_numbers(fixture, device: torch.device) -> None:
    numbers = fixture("bounds")
    table = dict(zip(numbers["columns"].tolist(), numbers["table"].T, strict=True))
    d, n, k = (torch.from_numpy(table[name]).long().to(device) for name in "dnk")
    for op, name in zip(KERNELS, ("upper", "lower"), strict=True):
        got, published = op(d, n, k).cpu().numpy(), table[f"log_{name}"]
        normal = published > -700
        np.testing.assert_allclose(np.exp(got), table[name], rtol=1e-12, atol=1e-300)
        np.testing.assert_allclose(got[normal], published[normal], rtol=0, atol=1e-12)
        np.testing.assert_allclose(got, published, rtol=1e-15)  # -inf where k > n


def test_small_populations_exhaustively(digits, device: torch.device) -> None:
    cases = [(d, n, k) for d in range(41) for n in range(d + 1) for k in range(d + 1)]
    for (d, n, k), low, value, high in rounded(cases, device):
        if n + k > d or n == 0 or k == 0:
            assert low == value == high == (-math.inf if n + k > d else 0.0)
            continue
        exact = log_ratio(d, n, k)
        assert Decimal(low) <= exact <= Decimal(high) <= 0, (d, n, k)
        assert abs(Decimal(value) - exact) <= Decimal(6 * U) * -exact, (d, n, k)


@pytest.mark.long
def test_rounding_is_outward_and_tight(digits, device: torch.device) -> None:
    d, k = 10**9, 10**5
    cases = [*triples(8000), (d, k, k), (d, 4_000_000, k), (d, d // 2, k), (d, d - k - 3, k)]
    below = 0
    for case, low, value, high in rounded(cases, device):
        exact = log_ratio(*case)
        assert Decimal(low) <= exact <= Decimal(high) <= 0, case
        error = float(abs(Decimal(value) - exact))
        apart = float(max(exact - Decimal(low), Decimal(high) - exact))
        assert error <= 5 * U * -value, case
        assert apart <= 40 * U * -value, case
        assert value < -745 or error <= 5e-13, case
        assert value < -745 or apart <= (1e-12 if value > -300 else 2e-12), case
        below += Decimal(value) < exact
    # A wrong direction would be seen: not moved outwards, half of the values lie on either side.
    assert 0.4 < below / len(cases) < 0.6


def test_the_table_of_stirling_errors(digits) -> None:
    two_pi = 2 * Decimal("3.14159265358979323846264338327950288419716939937510582097494")
    for x in range(1, 16):
        logarithm = (x + Decimal("0.5")) * Decimal(x).ln() - x + two_pi.ln() / 2
        assert STIRLING_ERROR[x] == float(Decimal(math.factorial(x)).ln() - logarithm)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("event", [0, 1])
def test_kernel_and_twin_agree_to_the_bit(event: int, rounding: str, device: torch.device) -> None:
    op, twin = KERNELS[event], TWINS[event]
    small = list(itertools.product(range(1, 30), range(30), range(30)))
    cases = triples(20_000) + [case for case in small if max(case) == case[0]]
    sizes = [column.to(device) for column in columns(cases)]
    assert torch.equal(op(*sizes, rounding=rounding), twin(*sizes, rounding=rounding))
    on_cpu = op(*columns(cases), rounding=rounding)
    assert torch.equal(op(*sizes, rounding=rounding).cpu(), on_cpu)


@given(problems((40, 60), (0, 40), (0, 40)), st.sampled_from(ROUNDINGS), st.integers(0, 1))
def test_any_shape_any_stride(problem, rounding: str, event: int) -> None:
    tensors = [torch.as_tensor(size) for size in problem]
    got = KERNELS[event](*problem, rounding=rounding)
    assert torch.equal(got, TWINS[event](*problem, rounding=rounding))
    assert got.shape == torch.broadcast_shapes(*(tensor.shape for tensor in tensors))
    for at in np.ndindex(*got.shape):
        d, n, k = (int(tensor.expand(got.shape)[at]) for tensor in tensors)
        alone = KERNELS[event](d, n, k, rounding=rounding)
        assert alone.shape == ()
        assert alone.item() == got[at].item()


def test_symmetry_monotony_and_sums(device: torch.device) -> None:
    d, n, k = (column.to(device) for column in columns(triples(20_000)))
    untouched = log_probability_untouched(d, n, k)
    assert torch.equal(untouched, log_probability_untouched(d, k, n))
    assert torch.equal(untouched, log_probability_inside(d, d - n, k))
    fewer = log_probability_untouched(d, n - 1, k, rounding="up")
    assert bool((fewer >= log_probability_untouched(d, n, k, rounding="down")).all())
    # Either no given entry is drawn, or the first i are not and the next one is.
    d, n, k = 100_000, torch.arange(2000, device=device), 300
    p = log_probability_untouched(d, n, k).exp()
    hit = (p * k / (d - n)).cumsum(0)
    torch.testing.assert_close(1 - p[1:], hit[:-1], rtol=0, atol=1e-12)


def test_threads_and_sizes_do_not_matter(with_threads) -> None:
    d, n, k = columns(triples(30_001))
    results = []
    for threads in (1, 2, 5):
        with_threads(threads)
        results.append(log_probability_untouched(d, n, k, rounding="down"))
    assert all(torch.equal(results[0], other) for other in results[1:])
    for count in (0, 1, 511, 512, 513, 1500):
        part = log_probability_untouched(d[:count], n[:count], k[:count], rounding="down")
        assert torch.equal(part, results[0][:count])


NAN = torch.tensor([0.5, math.nan], dtype=torch.float64)
BAD = [
    ({"d": 10.0}, TypeError, "d must be an int, got float"),
    ({"k": True}, TypeError, "k must be an int, got bool"),
    ({"d": MAX_POPULATION + 1}, ValueError, r"d must be within \[0, 4503599627370496\]"),
    ({"k": -1}, ValueError, "k must be within"),
    ({"k": torch.ones(2)}, ValueError, "k must be int64 or int32, got float32"),
    ({"k": torch.ones(2).bool()}, ValueError, "k must be int64 or int32, got bool"),
    ({"d": torch.tensor(9, device="meta")}, ValueError, "d must hold values"),
    (
        {"d": torch.tensor(9), "k": torch.tensor(3, device="meta")},
        ValueError,
        r"k must be on the device of the other tensors \(cpu\), got meta",
    ),
    ({"d": torch.tensor([9, 9]), "k": torch.tensor([3] * 3)}, ValueError, "must broadcast"),
    ({"k": torch.tensor([3]).to_sparse()}, ValueError, "k must be a dense tensor"),
    ({"k": 11}, ValueError, r"sizes must satisfy 0 <= .* got d=10, .*k=11$"),
    ({"k": torch.tensor([3, 11])}, ValueError, r"got d=10, .*k=11 at \[1\]$"),
    ({"d": torch.tensor([9, -(2**63)])}, ValueError, r"sizes must satisfy .* got d=-9.*at \[1\]$"),
    ({"n": 11}, ValueError, "got d=10, n=11, k=3$"),
    ({"n": torch.tensor([[4, 10], [-1, 3]])}, ValueError, r"n=-1, k=3 at \[1, 0\]"),
    ({"n": torch.tensor(-(2**63))}, ValueError, "sizes must satisfy"),
    ({"rounding": "outward"}, ValueError, "rounding must be one of 'down', 'nearest', 'up'"),
    ({"probability": 0.0}, ValueError, r"probability must be within \[2.22507e-308, 1\], got 0"),
    ({"probability": 1.5}, ValueError, r"probability must be within .*, 1\], got 1.5"),
    ({"probability": math.nan}, ValueError, r"probability must be within .*, 1\], got nan"),
    ({"probability": "half"}, TypeError, "probability must be a number"),
    ({"probability": NAN}, ValueError, r"must be within \[2.22507e-308, 1\], got nan to nan"),
    ({"probability": 3 * NAN[:1]}, ValueError, r"must be within .*, 1\], got 1.5 to 1.5"),
    ({"probability": NAN.float()}, ValueError, "probability must be float64"),
    (
        {"probability": NAN.to("meta")},
        ValueError,
        r"probability must be on the device of d and k \(cpu\), got meta",
    ),
]
GOOD = [({"d": 10, "n": 4, "k": 3, "rounding": "up"}, op) for op in KERNELS + TWINS]
GOOD += [({"d": 10, "k": 3, "probability": 0.5}, op) for op in LARGEST]


@pytest.mark.parametrize(
    ("op", "arguments", "error", "message"),
    [(op, good | bad, *says) for good, op in GOOD for bad, *says in BAD if {*bad} <= {*good}],
)
def test_bad_arguments(op, arguments, error, message) -> None:
    with pytest.raises(error, match=f"{op.__name__.removesuffix('_reference')}: .*{message}"):
        op(**arguments)


@pytest.mark.parametrize("op", KERNELS)
def test_cuda_does_not_wait_to_see_what_is_out_of_bounds(op, device: torch.device) -> None:
    n = torch.tensor([4, 11, -1], device=device)
    if device.type == "cpu":
        with pytest.raises(ValueError, match=r"n=11, k=3 at \[1\]"):
            op(10, n, 3)
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = op(10, n, 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert got.isnan().tolist() == [False, True, True]
