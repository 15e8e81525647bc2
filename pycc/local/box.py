"""Boxes of pixels or cells, and the part of an image that a change can affect.

If a counter has a bounded receptive field, a change of some pixels affects only the cells whose
field contains a changed pixel, and these cells depend only on the union of their fields. All other
cells keep their values, so that a window of the image determines the change of the full map.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Box:
    """A rectangle of pixels or cells: rows [top, bottom) and columns [left, right).

    Example:
        >>> from pycc.local import Box
        >>> box = Box(top=2, left=1, bottom=6, right=4)
        >>> box.shape, box.moved(1, 0), box.intersection(Box(0, 0, 2, 2)).empty
        ((4, 3), Box(top=3, left=1, bottom=7, right=4), True)
    """

    top: int
    left: int
    bottom: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width; negative for some empty intersections."""
        return self.bottom - self.top, self.right - self.left

    @property
    def slices(self) -> tuple[slice, slice]:
        """The index of the box into the last two axes of an array."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def empty(self) -> bool:
        """Whether the box contains no pixel or cell."""
        return self.bottom <= self.top or self.right <= self.left

    def moved(self, down: int, across: int) -> Box:
        """Return the box moved by ``down`` rows and ``across`` columns."""
        return Box(self.top + down, self.left + across, self.bottom + down, self.right + across)

    def union(self, other: Box) -> Box:
        """Return the smallest box that contains both boxes."""
        return Box(
            min(self.top, other.top),
            min(self.left, other.left),
            max(self.bottom, other.bottom),
            max(self.right, other.right),
        )

    def intersection(self, other: Box) -> Box:
        """Return the box of what both contain; it may be empty."""
        return Box(
            max(self.top, other.top),
            max(self.left, other.left),
            min(self.bottom, other.bottom),
            min(self.right, other.right),
        )

    def clipped(self, shape: tuple[int, int]) -> Box:
        """Return the part of the box inside an array of ``shape`` (H, W)."""
        return self.intersection(Box(0, 0, *shape))


def aligned(extent: Box, shape: tuple[int, int], stride: int) -> Box:
    """Extend a box to multiples of ``stride``, clipped by an image.

    Args:
        extent: a box of pixels that meets the image.
        shape: (H, W) of the image, in pixels.
        stride: pixels per cell.

    Returns:
        A box that contains ``extent`` inside the image and begins at multiples of ``stride``.
        Unless it is clipped, its sides depend only on the extent's sides and the stride, so that
        the boxes of different images have equal shapes.

    Raises:
        ValueError: an extent that does not meet the image.

    Example:
        >>> from pycc.local import Box, aligned
        >>> aligned(Box(9, 17, 12, 20), (64, 64), 8)
        Box(top=8, left=16, bottom=24, right=32)
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
    """Find the window of an image that determines how changes inside a box change the map.

    A receptive field of r pixels that meets the extent lies within r − 1 pixels of it, whatever its
    offset to its cell. So the window [top − r + 1, bottom + r − 1), aligned outwards to the stride
    s, contains the full field of every affected cell, and its cells are cells of the full map. If
    it is clipped by the image, its border is that of the image, and so is the padding. The sides
    of a window that is not clipped depend only on the extent's sides, r and s, so that windows of
    different images have equal shapes.

    Args:
        extent: the box of pixels that change; it meets the image.
        shape: (H, W) of the image, in pixels.
        stride: pixels per cell of the counter.
        receptive_field: side in pixels of what a cell depends on; None (unbounded) gives the full
            image.

    Returns:
        The window, in pixels, inside the image.

    Raises:
        ValueError: an extent that does not meet the image.

    Example:
        >>> from pycc.local import Box, influence
        >>> influence(Box(48, 48, 56, 56), (128, 128), stride=8, receptive_field=9)
        Box(top=40, left=40, bottom=72, right=72)
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
    """Return the first pixel and the one after the last, along one axis."""
    low, length = reached(start, stop, stride, reach)
    return max(0, low), min(size, low + length)


def reached(start: int, stop: int, stride: int, reach: int) -> tuple[int, int]:
    """Return the first pixel and the length of the unclipped window of ``influence`` along an axis.

    ``start`` and ``stop`` bound the pixels that change, ``reach`` is the receptive field less 1.
    The length is that of the worst alignment of any start, so that it does not depend on the start.
    """
    low = (start - reach) // stride * stride
    return low, -(-(stop - start + 2 * reach + stride - 1) // stride) * stride
