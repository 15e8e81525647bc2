"""largest_untouched: how much may change, by comparison with fractions."""

from __future__ import annotations

import itertools
import math
import random
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.exact import columns, log_ratio, problems, ratio, triples
from support.tensors import every_device, views
from torch import Tensor

from pycc.ops import (
    _native,
    largest_untouched,
    largest_untouched_reference,
    log_probability_untouched,
)
from pycc.ops.log_probability import MAX_POPULATION, largest_count

LARGEST = [largest_untouched, largest_untouched_reference]
IMAGE = 3 * 1024 * 700


def near(ratios: list[Fraction]) -> list[float]:
    """The float64 next to each, and those beside it."""
    return [math.nextafter(float(p), side) for p in ratios for side in (0.0, float(p), 1.0)]


def largest(d: int, k: int, p: float) -> int:
    """By comparison of fractions."""
    return max(n for n in range(d - k + 1) if ratio(d, n, k) >= Fraction(p))


@every_device
@given(sizes=problems((9, 14), (0, 9)), seed=st.integers(0, 2**32), data=st.data())
def test_the_largest_of_any_shape_and_stride(sizes, seed: int, data, device) -> None:
    rng = random.Random(seed)
    shape = (*torch.broadcast_shapes(*(torch.as_tensor(size).shape for size in sizes)),)
    ends = [2.0**-1022, math.nextafter(1.0, 0.0), 1.0]
    some = near([ratio(d, n, k) for d, n, k in ((9, 2, 3), (12, 4, 4), (14, 5, 9))])
    values = [rng.choice([rng.random() or 1.0, *some, *ends]) for _ in range(math.prod(shape))]
    tensor = torch.tensor(values, dtype=torch.float64).reshape(shape)
    p = data.draw(
        st.sampled_from(ends) | views(tensor) | views(tensor[..., :1] if shape else tensor)
    )
    there = [value.to(device) if isinstance(value, Tensor) else value for value in (*sizes, p)]
    for op in LARGEST:
        got = op(*there)
        assert got.dtype == torch.int64
        assert got.shape == torch.broadcast_shapes(shape, torch.as_tensor(p).shape)
        for at in np.ndindex(*got.shape):
            d, k = (int(torch.as_tensor(size).expand(got.shape)[at]) for size in sizes)
            each = torch.as_tensor(p, dtype=torch.float64).expand(got.shape)[at].item()
            assert got[at].item() == largest(d, k, each)


@given(problems((9, 14), (0, 9)), st.sampled_from([torch.float32, torch.half, torch.int64]))
def test_probabilities_of_other_dtypes_are_refused(sizes, dtype: torch.dtype) -> None:
    for op in LARGEST:
        with pytest.raises(ValueError, match="largest_untouched: probability must be float64, got"):
            op(*sizes, torch.ones(3, dtype=dtype))


@pytest.mark.parametrize("side", [-math.inf, math.inf])
def test_a_logarithm_may_err_by_a_few_units_in_its_last_place(side, monkeypatch) -> None:
    """With bounds of the other side that have no room to spare, as they are allowed to be."""
    logarithm = Tensor.log

    def log(x: Tensor) -> Tensor:
        return torch.nextafter(logarithm(x), torch.full_like(x, side))

    def tight(d: Tensor, n: Tensor, k: Tensor, rounding: str) -> Tensor:
        values = []
        for case in zip(*(x.tolist() for x in torch.broadcast_tensors(d, n, k)), strict=True):
            exact = log_ratio(*case) if ratio(*case) else Decimal("-Infinity")
            value = float(exact)
            wrong = Decimal(value) > exact if rounding == "down" else Decimal(value) < exact
            outside = -math.inf if rounding == "down" else math.inf
            values.append(math.nextafter(value, outside) if wrong else value)
        return torch.tensor(values, dtype=torch.float64)

    monkeypatch.setattr(Tensor, "log", log)
    for d, k in ((12, 5), (30, 11), (40, 20)):
        wanted = near([ratio(d, n, k) for n in range(1, d - k + 1)])
        p = torch.tensor(wanted, dtype=torch.float64)
        got = largest_count(tight, torch.tensor([d]), k, p).tolist()
        assert got == [largest(d, k, each) for each in wanted]


def test_subnormal_probabilities_are_refused_even_where_they_are_taken_for_zero() -> None:
    tiny = torch.tensor([0.5, 1e-310], dtype=torch.float64)
    message = r"largest_untouched: probability must be within \[2.22507e-308, 1\], got"
    for flush in (False, True):
        torch.set_flush_denormal(flush)
        try:
            assert largest_untouched(100, 45, 2.0**-1022).item() == 55
            for p in (1e-310, 5e-324, tiny):
                with pytest.raises(ValueError, match=message):
                    largest_untouched(100, 45, p)
        finally:
            torch.set_flush_denormal(False)


@pytest.mark.parametrize("op", LARGEST)
def test_the_largest_is_exact_where_the_comparison_is_close(op, device: torch.device) -> None:
    for k, d in itertools.combinations_with_replacement(range(9), 2):
        wanted = [2.0**-1022, 0.5, *near([ratio(d, n, k) for n in range(d - k + 1)])]
        got = op(d, k, torch.tensor(wanted, dtype=torch.float64, device=device))
        for p, n in zip(wanted, got.tolist(), strict=True):
            assert n == largest(d, k, p), (d, k, p)


@pytest.mark.parametrize("op", LARGEST)
def test_the_largest_of_large_populations(op, device: torch.device) -> None:
    cases = triples(150, most=400)
    sizes = [column.to(device) for column in columns(cases)]
    # As a user inverts: the probability is the float64 nearest to one that occurs.
    wanted = log_probability_untouched(*sizes).exp().clamp_min(1e-200)
    result = op(sizes[0], sizes[2], wanted).tolist()
    for (d, _, k), n, p in zip(cases, result, wanted.tolist(), strict=True):
        assert ratio(d, n, k) >= Fraction(p) > ratio(d, n + 1, k)


@pytest.mark.compiled
def test_the_largest_broadcasts_and_knows_its_ends() -> None:
    d, p = torch.tensor([[IMAGE], [100]]), torch.tensor([1.0, 0.5, 1e-300], dtype=torch.float64)
    got = largest_untouched(d, 45, p)
    assert got.shape == (2, 3)
    assert got[:, 0].tolist() == [0, 0]
    assert got[1, 2] == 55  # C(45,45)/C(100,45) is above 1e-300
    assert largest_untouched(7, 0, 0.3).item() == 7
    assert largest_untouched(7, 7, 0.3).item() == 0
    assert largest_untouched(0, 0, 1).item() == 0
    assert largest_untouched(d[:0], 45, 0.5).shape == (0, 1)
    assert _native.module().max_population == MAX_POPULATION
    assert largest_untouched(MAX_POPULATION, 1, 0.5).item() == MAX_POPULATION // 2
