"""Which part of an image a change can reach: nothing is left out, and shapes do not vary."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycc.local import Box, aligned, influence

BOXES = st.builds(
    lambda top, left, height, width: Box(top, left, top + height, left + width),
    st.integers(-30, 30),
    st.integers(-30, 30),
    st.integers(1, 30),
    st.integers(1, 30),
)
SHAPES = st.tuples(st.integers(1, 60), st.integers(1, 60))


def box(top: int, left: int, side: int) -> Box:
    return Box(top, left, top + side, left + side)


def places(of: Box) -> set[tuple[int, int]]:
    return {(y, x) for y in range(of.top, of.bottom) for x in range(of.left, of.right)}


@given(BOXES, BOXES, SHAPES)
def test_sets_of_places(first: Box, other: Box, shape: tuple[int, int]) -> None:
    both = first.intersection(other)
    assert places(both) == places(first) & places(other)
    assert both.empty == (not places(both))
    image = {(y, x) for y in range(shape[0]) for x in range(shape[1])}
    assert places(first.clipped(shape)) == places(first) & image
    union = first.union(other)
    assert places(union) >= places(first) | places(other)
    for smaller in (
        Box(union.top + 1, union.left, union.bottom, union.right),
        Box(union.top, union.left + 1, union.bottom, union.right),
        Box(union.top, union.left, union.bottom - 1, union.right),
        Box(union.top, union.left, union.bottom, union.right - 1),
    ):
        assert not places(smaller) >= places(first) | places(other)


def test_sides_for_mcnn() -> None:
    sides = [
        influence(box(300, 401, p), (768, 1024), stride=4, receptive_field=72).shape
        for p in (20, 40, 81, 163)
    ]
    assert sides == [(168, 168), (188, 188), (228, 228), (308, 308)]


def test_unbounded_field_takes_the_image() -> None:
    window = influence(box(3, 9, 5), (101, 139), stride=4, receptive_field=None)
    assert window == Box(0, 0, 101, 139)


@given(
    st.integers(-30, 100),
    st.integers(1, 60),
    st.integers(1, 16),
    st.integers(1, 50),
    st.integers(20, 300),
)
def test_an_axis(start: int, side: int, stride: int, field: int, size: int) -> None:
    extent = Box(start, 0, start + side, 1)
    if start >= size or start + side <= 0:
        with pytest.raises(ValueError, match="influence: extent must meet the image"):
            influence(extent, (size, 9), stride=stride, receptive_field=3)
        with pytest.raises(ValueError, match="aligned: extent must meet the image"):
            aligned(extent, (size, 9), stride)
        return
    window = influence(extent, (size, 9), stride=stride, receptive_field=field)
    low, high = window.top, window.bottom
    assert low % stride == 0
    assert low == 0 or low <= start - field + 1
    assert high == size or (high % stride == 0 and high >= start + side + field - 1)
    if low > 0 and high < size:
        moved = influence(
            Box(start + stride + 1, 0, start + side + stride + 1, 1),
            (10_000, 9),
            stride=stride,
            receptive_field=field,
        )
        assert moved.shape[0] == high - low


@given(BOXES, SHAPES, st.integers(1, 16))
def test_aligned_covers_the_extent(extent: Box, shape: tuple[int, int], stride: int) -> None:
    if extent.clipped(shape).empty:
        return
    result = aligned(extent, shape, stride)
    assert places(result) >= places(extent.clipped(shape))
    assert result == result.clipped(shape)
    assert result.top % stride == result.left % stride == 0
    for end, size in zip((result.bottom, result.right), shape, strict=True):
        assert end == size or end % stride == 0
    # Not larger than the worst offset asks for.
    for side, length in zip(result.shape, extent.shape, strict=True):
        assert side < length + 2 * stride


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 30), st.integers(1, 16))
def test_aligned_shape_does_not_depend_on_the_offset(
    top: int, left: int, side: int, stride: int
) -> None:
    first = aligned(box(0, 0, side), (500, 500), stride)
    assert aligned(box(top, left, side), (500, 500), stride).shape == first.shape
