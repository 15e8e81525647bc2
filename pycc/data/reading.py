"""How picture files are opened: the options for it, and errors that name the file."""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from PIL import Image

MAX_IMAGE_PIXELS = 178_956_970
"""Pixels of the largest picture that is read unless more are asked for: where Pillow takes a file
for a decompression bomb."""
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
"""What Pillow raises on broken files."""
_pillows_limit = threading.Lock()


@dataclass(frozen=True)
class Reading:
    """How the picture files of a data set are read; also the flags of the commands for it.

    ValueError for a number out of range.
    """

    bit_depth: int | None = field(
        default=None,
        metadata={
            "help": "bits of the values in 16-bit picture files, where they are fewer: 2^BITS - 1 "
            "is white; other files are read as usual",
            "metavar": "BITS",
        },
    )
    max_image_pixels: int = field(
        default=MAX_IMAGE_PIXELS,
        metadata={"help": "refuse pictures of more pixels", "metavar": "N"},
    )

    def __post_init__(self) -> None:
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
"""How pictures are read where nothing else is asked for."""


def open_picture(
    source: str | Path | IO[bytes], formats: tuple[str, ...] | None = None
) -> Image.Image:
    """``PIL.Image.open`` of any number of pixels, without Pillow's warning of large pictures.

    Its limit is a global of Pillow: it is lifted while the header is read, and then restored.
    """
    with _pillows_limit:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            return Image.open(source, formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = before


@contextmanager
def opened(path: Path, reading: Reading) -> Iterator[Image.Image]:
    """The opened picture; whatever breaks while it is read becomes a ValueError with its name."""
    try:
        with open_picture(path) as picture:
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
