"""16-bit pictures: what white is in them, and colour of which Pillow gives the upper bits alone."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from pycc.data.reading import Reading, open_picture

_FEW_BITS = (8, 10, 12)
"""Bits that cameras give and that are often kept, unscaled, in 16."""


def stored(picture: Image.Image) -> str:
    """How the file stores a pixel, by Pillow's name of it ("RGB;16B"); "" where that is unknown."""
    tiles = getattr(picture, "tile", None)  # of pictures that are not decoded yet
    arguments = tiles[0][3] if tiles else None
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def of_16_bits(picture: Image.Image) -> bool:
    """Whether values have 16 bits in the file, which does not say how many of them are used.

    JPEG 2000, and PGM or PPM with another maximum than 65535, say so, and Pillow scales by it.
    """
    tiles = getattr(picture, "tile", None)
    if picture.format == "JPEG2000" or (tiles and tiles[0][0].startswith("ppm")):
        return False
    kept = stored(picture)
    if picture.mode in ("RGB", "RGBA", "LA"):
        return ";16" in kept
    return (picture.mode == "I" or picture.mode.startswith("I;16")) and kept != "I;12"


def colour_of_16_bits(
    path: Path, picture: Image.Image, reading: Reading
) -> NDArray[np.float32] | None:
    """RGB [3,H,W] of 16-bit colour by ``bit_depth``; None without, where the upper 8 bits do."""
    clear = "A" in picture.getbands() or "transparency" in picture.info
    if reading.bit_depth is not None and clear:
        raise ValueError(
            "bit_depth (--bit-depth) is for pictures without transparency; save it without"
        )
    upper = np.asarray(picture)[..., :3].astype(np.int64)
    if reading.bit_depth is None and upper.max() > 4095 >> 8:
        return None
    # With transparency there may be no lower bits to have: then the highest that they can be.
    values = upper * 256 + (np.where(upper > 0, 255, 0) if clear else _lower_bits(path))
    white = white_of(path, int(values.max()), reading)
    if reading.bit_depth is None:
        return None
    return np.ascontiguousarray((values / white).transpose(2, 0, 1), np.float32)


def _lower_bits(path: Path) -> NDArray[np.int64]:
    """The lower 8 of 16-bit colour [H,W,C], of which Pillow gives the upper ones.

    It takes the first of two bytes in one order of them and the second in the other.
    """
    other = "B" if sys.byteorder == "little" else "L"
    swapped = {"L": "B", "B": "L", "N": other}
    make = getattr(ImageFile, "_Tile", lambda *parts: parts)  # plain tuples before Pillow 11
    with open_picture(path) as picture:
        assert isinstance(picture, ImageFile.ImageFile)
        tiles = []
        for codec, extents, offset, arguments in picture.tile:
            first, *rest = arguments if isinstance(arguments, tuple) else (arguments,)
            turned = f"{first[:-1]}{swapped[first[-1]]}"
            whole = (turned, *rest) if isinstance(arguments, tuple) else turned
            tiles.append(make(codec, extents, offset, whole))
        picture.tile = tiles
        return np.asarray(ImageOps.exif_transpose(picture)).astype(np.int64)


def white_of(path: Path, highest: int, reading: Reading) -> int:
    """The value of white in a 16-bit picture whose highest value is this.

    ValueError for values that ``bit_depth`` has not; a warning where the file seems to have fewer
    bits.
    """
    if reading.bit_depth is not None:
        white: int = 2**reading.bit_depth - 1
        if highest > white:
            raise ValueError(
                f"expected values of at most {white}, those of {reading.bit_depth} bits "
                f"(bit_depth, --bit-depth), got {highest}"
            )
        return white
    bits = next((bits for bits in _FEW_BITS if highest < 2**bits), None)
    if bits is not None and highest > 0:
        warnings.warn(
            f"{path}: its highest value is {highest} of the 65535 that a 16-bit picture may have, "
            f"so it is read as nearly black; if its values have {bits} bits take "
            f"bit_depth={bits} (--bit-depth {bits})",
            stacklevel=2,
        )
    return 65535
