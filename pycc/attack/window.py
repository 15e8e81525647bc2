"""Which part of an image an attack has to look at.

A counter with a bounded receptive field feels a patch only in the cells whose field meets it, and
these cells need only the union of their fields. All other cells are constants of the loss, so a
window of the image gives the gradient of the whole image.
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


@dataclass(frozen=True)
class Place:
    """A square patch in an image."""

    side: int
    """Pixels."""
    top_left: tuple[int, int]
    """(y, x), pixels."""


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
    if extent.top >= height or extent.left >= width or extent.bottom <= 0 or extent.right <= 0:
        raise ValueError(f"influence: extent must meet the image {height}x{width}, got {extent}")
    rows, columns = (
        _interval(*ends, size, stride, receptive_field)
        for ends, size in (
            ((extent.top, extent.bottom), height),
            ((extent.left, extent.right), width),
        )
    )
    return Box(rows[0], columns[0], rows[1], columns[1])


def _interval(
    start: int, stop: int, size: int, stride: int, receptive_field: int | None
) -> tuple[int, int]:
    """One axis of ``influence``: first pixel and the one after the last."""
    if receptive_field is None:
        return 0, size
    reach = receptive_field - 1
    low = (start - reach) // stride * stride
    # The worst alignment that any start can have, so that the length does not depend on it.
    length = -(-(stop - start + 2 * reach + stride - 1) // stride) * stride
    return max(0, low), min(size, low + length)
