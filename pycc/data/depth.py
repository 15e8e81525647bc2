"""16-bit image files: the value of white, and colour, of which Pillow returns the upper bits."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from pycc.data.reading import Reading, open_picture

_FEW_BITS = (8, 10, 12)
"""Bit depths of cameras whose values are often stored in 16 bits without scaling."""


def stored(picture: Image.Image) -> str:
    """Return how the file stores a pixel, in Pillow's notation ("RGB;16B"); "" if unknown."""
    tiles = getattr(picture, "tile", None)  # exists before decoding only
    arguments = tiles[0][3] if tiles else None
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def of_16_bits(picture: Image.Image) -> bool:
    """Return whether the file has 16-bit values; it does not state how many bits are used.

    JPEG 2000, and PGM or PPM with another maximum than 65535, do state it, and Pillow scales by it.
    """
    tiles = getattr(picture, "tile", None)
    if picture.format == "JPEG2000" or (tiles and tiles[0][0].startswith("ppm")):
        return False
    kept = stored(picture)
    if picture.mode in ("RGB", "RGBA", "LA"):
        return ";16" in kept
    return (picture.mode == "I" or picture.mode.startswith("I;16")) and kept != "I;12"


def colour_of_16_bits(
    path: Path, picture: Image.Image, kept: str, reading: Reading
) -> NDArray[np.float32] | None:
    """Read RGB [3,H,W] of 16-bit colour by ``bit_depth``; None if the upper 8 bits are enough.

    ``kept`` is the result of ``stored`` before the image was decoded. Transparent images are laid
    on white; their opacity always has 16 bits. ValueError for colour premultiplied by opacity.
    """
    if kept.startswith("RGBa"):  # Pillow divides by the upper bits alone
        if reading.bit_depth is not None:
            raise ValueError(
                "bit_depth (--bit-depth) is for pictures whose colour is not multiplied with their "
                "opacity: save it so, or without transparency"
            )
        return None
    upper = np.asarray(picture)
    if reading.bit_depth is None and upper[..., :3].max() > 4095 >> 8:
        return None
    values, opacity = _all_bits(path, picture, kept, upper.astype(np.int64))
    white = white_of(path, int(values[opacity > 0].max(initial=0)), reading)
    if reading.bit_depth is None:
        return None
    share = opacity[..., None] / 65535
    colours = values / white * share + (1.0 - share)
    return np.ascontiguousarray(colours.transpose(2, 0, 1), np.float32)


def _all_bits(
    path: Path, picture: Image.Image, kept: str, upper: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return 16-bit colour [H,W,3] and opacity [H,W] of a file.

    Pillow takes the first of two bytes in one byte order and the second in the other.
    """
    if kept == "LA;16B":  # has one order only: its four bytes are read directly
        grey, low, opacity, low_opacity = np.moveaxis(_decoded(path, "RGBA"), -1, 0)
        return np.repeat((grey * 256 + low)[..., None], 3, 2), opacity * 256 + low_opacity
    other = "B" if sys.byteorder == "little" else "L"
    values = upper * 256 + _decoded(path, kept[:-1] + {"L": "B", "B": "L", "N": other}[kept[-1]])
    colours = values[..., :3]
    if values.shape[2] == 4:
        return colours, values[..., 3]
    clear = picture.info.get("transparency")  # the transparent colour
    visible = np.full(colours.shape[:2], clear is None) | (colours != (clear or (0, 0, 0))).any(-1)
    return colours, visible * np.int64(65535)


def _decoded(path: Path, kept: str) -> NDArray[np.int64]:
    """Decode an upright image to 8-bit values [H,W,C] as if it stored its pixels as ``kept``."""
    make = getattr(ImageFile, "_Tile", lambda *parts: parts)  # plain tuples before Pillow 11
    with open_picture(path) as picture:
        assert isinstance(picture, ImageFile.ImageFile)
        tiles = []
        for codec, extents, offset, arguments in picture.tile:
            changed = (kept, *arguments[1:]) if isinstance(arguments, tuple) else kept
            tiles.append(make(codec, extents, offset, changed))
        picture.tile = tiles
        return np.asarray(ImageOps.exif_transpose(picture)).astype(np.int64)


def white_of(path: Path, highest: int, reading: Reading) -> int:
    """Return the value of white in a 16-bit image whose highest value is ``highest``.

    ValueError for values above those of ``bit_depth``; a warning if the file seems to have fewer
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
