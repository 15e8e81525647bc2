"""Opening image files: the options, and errors that name the file."""

from __future__ import annotations

import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from PIL import Image, TiffImagePlugin

from pycc.checks import lacks_memory
from pycc.settings import check_fields, flag

MAX_IMAGE_PIXELS = 178_956_970
"""Pixels of the largest image that is read by default; beyond it Pillow suspects a decompression
bomb."""
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""The exceptions that Pillow raises for broken files."""
_pillows_limit = threading.Lock()
_FRAMES = {"AVIF": "frames", "GIF": "frames", "PNG": "frames", "TIFF": "pages", "WEBP": "frames"}
"""Formats with several images in a file, and what these are called. Not MPO, whose further images
are thumbnails and gain maps, nor formats of one image in several sizes or layers."""
_KIND_OF_PAGE = 254
_REDUCED_OR_MASK = 1 | 4
"""Bits of that TIFF tag for a page that is a smaller copy of another one, or its transparency."""


@dataclass(frozen=True)
class Reading:
    """The options for reading the image files of a data set; also the commands' flags for it.

    ValueError for a number out of range, TypeError for another type.
    """

    bit_depth: int | None = flag(
        None, "bits of the values in 16-bit image files, if fewer than 16: 2^BITS - 1 is white; "
        "other files are read as usual", metavar="BITS", advanced=True,
    )  # fmt: skip
    max_image_pixels: int = flag(
        MAX_IMAGE_PIXELS, "refuse images with more pixels", metavar="N", advanced=True
    )

    def __post_init__(self) -> None:
        check_fields("open", self)
        if self.bit_depth is not None and not 1 <= self.bit_depth <= 16:
            raise ValueError(
                f"bit_depth (--bit-depth) must be within [1, 16], got {self.bit_depth}"
            )
        if self.max_image_pixels < 1:
            raise ValueError(
                "max_image_pixels (--max-image-pixels) must be at least 1, "
                f"got {self.max_image_pixels}"
            )


USUAL = Reading()
"""The default options."""


@contextmanager
def memory_errors() -> Iterator[None]:
    """Raise MemoryError for an OSError that means that memory ran out: the file is not at fault."""
    try:
        yield
    except OSError as error:
        if lacks_memory(error):
            raise MemoryError(str(error)) from error
        raise


def open_picture(
    source: str | Path | IO[bytes], formats: tuple[str, ...] | None = None
) -> Image.Image:
    """Open an image of any size with ``PIL.Image.open``, without Pillow's warning of large images.

    Pillow's limit is a global variable: it is removed while the header is read, then restored.
    """
    with _pillows_limit:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            with memory_errors():
                return Image.open(source, formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = before


@contextmanager
def opened(path: Path, reading: Reading) -> Iterator[Image.Image]:
    """Yield the opened image; whatever fails while it is read becomes a ValueError with its name.

    If memory runs out, MemoryError is raised, since the file may be intact.
    """
    try:
        with memory_errors(), open_picture(path) as picture:
            width, height = picture.size
            total = width * height
            if total > reading.max_image_pixels:
                raise ValueError(
                    f"expected at most {reading.max_image_pixels} pixels, got {width} x {height}; "
                    f"max_image_pixels={total} (--max-image-pixels {total}) reads it"
                )
            yield picture
    except BROKEN as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = " ".join(reason.replace(f" {str(path)!r}", "").split())
        raise ValueError(f"{path}: cannot read the image: {reason}") from error


def warn_of_frames(path: Path, picture: Image.Image) -> None:
    """Warn of pages or frames after the first, which are not read.

    Only their headers are read, and only in formats that have them. The image is left at another
    page, so decode it before.
    """
    kind = _FRAMES.get(picture.format or "")
    if kind is None:
        return
    try:
        number = _frames(picture)
    except BROKEN as error:
        warnings.warn(
            f"{path}: only the first of its {kind} is read; the others are broken: {error}",
            stacklevel=3,
        )
        return
    if number > 1:
        warnings.warn(
            f"{path}: only the first of its {number} {kind} is read; save the others as separate "
            "files to count them",
            stacklevel=3,
        )


def _frames(picture: Image.Image) -> int:
    """Return the number of pages or frames of a file, without previews of others."""
    if not getattr(picture, "is_animated", False):
        return 1
    number = int(getattr(picture, "n_frames", 1))
    if not isinstance(picture, TiffImagePlugin.TiffImageFile):
        return number
    pages = 1
    for page in range(1, number):
        picture.seek(page)
        pages += not int(picture.tag_v2.get(_KIND_OF_PAGE, 0)) & _REDUCED_OR_MASK
    return pages
