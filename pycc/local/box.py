"""Which part of an image a change can reach.

A counter with a bounded receptive field feels a change of some pixels only in the cells whose field
meets them, and these cells need only the union of their fields. All other cells stay what they are,
so a window of the image tells all that the whole image would.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Box:
    """A rectangle of pixels or cells: rows ``top`` to ``bottom``, excluded, and likewise across."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self.bottom - self.top, self.right - self.left

    @property
    def slices(self) -> tuple[slice, slice]:
        """What to index the last two axes of an array with."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def empty(self) -> bool:
        """Whether it holds nothing."""
        return self.bottom <= self.top or self.right <= self.left

    def moved(self, down: int, across: int) -> Box:
        """The same rectangle elsewhere."""
        return Box(self.top + down, self.left + across, self.bottom + down, self.right + across)

    def union(self, other: Box) -> Box:
        """The smallest rectangle that holds both."""
        return Box(
            min(self.top, other.top),
            min(self.left, other.left),
            max(self.bottom, other.bottom),
            max(self.right, other.right),
        )

    def intersection(self, other: Box) -> Box:
        """What both hold; may be empty."""
        return Box(
            max(self.top, other.top),
            max(self.left, other.left),
            min(self.bottom, other.bottom),
            min(self.right, other.right),
        )

    def clipped(self, shape: tuple[int, int]) -> Box:
        """What lies inside an array of ``shape`` (H, W)."""
        return self.intersection(Box(0, 0, *shape))


def aligned(extent: Box, shape: tuple[int, int], stride: int) -> Box:
    """``extent`` moved outwards to multiples of ``stride``, clipped by an image of ``shape``.

    Unless it is clipped, its side depends only on the extent's side and the stride, so that the
    boxes of different images have equal shapes.

    ValueError if the extent does not meet the image.
    """
    height, width = shape
    if extent.clipped(shape).empty:
        raise ValueError(f"aligned: extent must meet the image {height}x{width}, got {extent}")
    rows = _interval(extent.top, extent.bottom, height, stride, 0)
    columns = _interval(extent.left, extent.right, width, stride, 0)
    return Box(rows[0], columns[0], rows[1], columns[1])


def influence(
    extent: Box, shape: tuple[int, int], *, stride: int, receptive_field: int | None
) -> Box:
    """The window, in pixels, of an image of ``shape`` (H, W) for changes inside ``extent``.

    A field of r pixels that meets the extent lies within r − 1 pixels of it, whatever its offset
    to its cell. So the window [top − r + 1, bottom + r − 1), aligned outwards to the stride s,
    shows every touched cell its whole field, and its cells are cells of the full map; where it is
    clipped by the image its border is the true one, and padding coincides. A window that is not
    clipped has a side that depends only on the extent's side, r and s, so that windows of
    different images have equal shapes.

    ``receptive_field`` None (unbounded) gives the full image. ValueError if the extent does not
    meet the image.
    """
    height, width = shape
    if extent.clipped(shape).empty:
        raise ValueError(f"influence: extent must meet the image {height}x{width}, got {extent}")
    if receptive_field is None:
        return Box(0, 0, height, width)
    rows = _interval(extent.top, extent.bottom, height, stride, receptive_field - 1)
    columns = _interval(extent.left, extent.right, width, stride, receptive_field - 1)
    return Box(rows[0], columns[0], rows[1], columns[1])


def _interval(start: int, stop: int, size: int, stride: int, reach: int) -> tuple[int, int]:
    """One axis: first pixel and the one after the last."""
    low = (start - reach) // stride * stride
    # The worst alignment that any start can have, so that the length does not depend on it.
    length = -(-(stop - start + 2 * reach + stride - 1) // stride) * stride
    return max(0, low), min(size, low + length)
