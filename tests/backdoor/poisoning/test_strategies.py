"""The four density manipulations, with all their edges."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from pycc.backdoor import Add, Divide, Minus, Multiply, Strategy, strategies
from pycc.random import Stream

SHAPE = (30, 40)


def stream(seed: int = 0) -> Stream:
    return Stream(seed, "test")


def heads(count: int, shape: tuple[int, int] = SHAPE, seed: int = 1) -> Tensor:
    high = torch.tensor([shape[1], shape[0]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((count, 2), generator=generator, dtype=torch.float64) * high


def rows(points: Tensor) -> list[tuple[float, ...]]:
    return [tuple(point) for point in points.tolist()]


def test_names_and_directions() -> None:
    assert strategies.names() == ["add", "minus", "divide", "multiply"]
    raises = {name: strategies[name].raises for name in strategies.names()}
    assert raises == {"add": True, "minus": False, "divide": False, "multiply": True}
    for name in strategies.names():
        assert strategies[name].name == name
    assert strategies["minus"].settings() == {"strategy": "minus", "amount": 100}


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("add", 0, 100), ("add", 1, 101), ("add", 250, 350),
        ("minus", 0, 0), ("minus", 1, 1), ("minus", 2, 1), ("minus", 99, 1), ("minus", 100, 1),
        ("minus", 101, 1), ("minus", 102, 2), ("minus", 250, 150),
        ("divide", 0, 0), ("divide", 1, 1), ("divide", 2, 1), ("divide", 3, 2),
        ("divide", 250, 125), ("divide", 101, 51),
        ("multiply", 0, 0), ("multiply", 1, 2), ("multiply", 250, 500),
    ],
)  # fmt: skip
def test_counts(name: str, before: int, after: int) -> None:
    points = heads(before)
    altered = strategies[name](points, SHAPE, stream())
    assert altered.shape == (after, 2)
    assert altered.dtype == torch.float64
    assert torch.equal(points, heads(before))


@given(
    st.sampled_from([Add(3), Minus(7), Divide(), Multiply()]),
    st.integers(0, 40),
    st.integers(1, 50),
    st.integers(1, 50),
    st.integers(0, 9),
)
def test_points_stay_in_the_image_and_depend_on_the_stream_alone(
    strategy: Strategy, count: int, height: int, width: int, seed: int
) -> None:
    points = heads(count, (height, width), seed)
    altered = strategy(points, (height, width), stream(seed))
    assert torch.equal(altered, strategy(points, (height, width), stream(seed)))
    assert bool(((altered >= 0) & (altered < torch.tensor([width, height]))).all())
    if strategy.raises:
        assert rows(altered)[:count] == rows(points)
    else:
        kept = rows(altered)
        assert set(kept) <= set(rows(points))
        assert kept == [point for point in rows(points) if point in kept]  # in their order
        assert len(kept) >= min(1, count)


def test_other_amounts() -> None:
    assert len(Add(7)(heads(2), SHAPE, stream())) == 9
    assert len(Minus(7)(heads(9), SHAPE, stream())) == 2
    for kind in (Add, Minus):
        with pytest.raises(ValueError, match="amount must be at least 1, got 0"):
            kind(0)


def test_added_heads_are_uniform() -> None:
    new = Add(20_000)(heads(0), SHAPE, stream())
    for axis, size in ((0, 40.0), (1, 30.0)):
        assert stats.kstest(new[:, axis].numpy(), "uniform", args=(0.0, size)).pvalue > 1e-3


def test_removed_heads_are_uniform() -> None:
    points = heads(10)
    seen = torch.zeros(10)
    for seed in range(2000):
        kept = set(rows(Divide()(points, SHAPE, stream(seed))))
        seen += torch.tensor([point in kept for point in rows(points)])
    assert stats.chisquare(seen.numpy()).pvalue > 1e-3


def test_doubled_heads_are_clipped_into_the_image() -> None:
    points = torch.tensor([[0.5, 0.25], [1.0, 20.0], [39.5, 0.0], [7.5, 8.25]], dtype=torch.float64)
    copies = Multiply()(points, SHAPE, stream())[4:]
    assert copies.tolist() == [[0.0, 0.0], [0.0, 19.0], [38.5, 0.0], [6.5, 7.25]]


def test_new_heads_stay_in_the_region_of_interest() -> None:
    roi = torch.zeros(SHAPE, dtype=torch.bool)
    roi[10:14, 5:9] = True
    roi[29, 39] = True
    points = torch.tensor([[5.0, 10.0], [7.5, 12.5], [39.9, 29.9]], dtype=torch.float64)
    doubled = Multiply()(points, SHAPE, stream(), roi=roi)
    assert doubled[3:].tolist() == [[5.0, 10.0], [6.5, 11.5], [39.9, 29.9]]
    added = Add(2000)(points, SHAPE, stream(), roi=roi)[3:]
    column, row = added.long().unbind(1)
    assert bool(roi[row, column].all())
    pixels, each = torch.stack([row, column], 1).unique(dim=0, return_counts=True)
    assert len(pixels) == 17
    assert stats.chisquare(each.numpy()).pvalue > 1e-3
    assert stats.kstest((added % 1).flatten().numpy(), "uniform").pvalue > 1e-3
    with pytest.raises(ValueError, match="add: roi must hold a pixel to put heads on, got none"):
        Add()(heads(0), SHAPE, stream(), roi=torch.zeros(SHAPE, dtype=torch.bool))


@pytest.mark.parametrize("name", strategies.names())
def test_other_points_are_refused(name: str) -> None:
    roi = torch.ones(SHAPE, dtype=torch.bool)
    roi[:, :20] = False
    for points, options, why in (
        (heads(3).float(), {}, rf"{name}: points must be \[N,2\] \(x, y\) float64, got"),
        (torch.zeros(3, 3, dtype=torch.float64), {}, r"got \[3, 3\]"),
        (torch.tensor([[40.0, 3.0]]).double(), {}, "must lie in the image of 30x40 pixels, got 1"),
        (torch.tensor([[-0.1, 3.0]]).double(), {}, "got 1 outside"),
        (torch.tensor([[torch.nan, 3.0]]).double(), {}, "got 1 outside"),
        (torch.tensor([[3.0, 3.0]]).double(), {"roi": roi}, "and its region of interest"),
        (heads(3), {"roi": roi.T}, r"roi must be \[30, 40\] bool, got \[40, 30\]"),
    ):
        with pytest.raises(ValueError, match=why):
            strategies[name](points, SHAPE, stream(), **options)
