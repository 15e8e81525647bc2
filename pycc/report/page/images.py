"""Images and density maps as data of a page, of bounded size."""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pycc.report.overlay import coloured

_QUALITY = 78
_LEVELS = 16
"""Colours of a density map: more cost bytes and are not seen."""
_MAP_SIDE = 128
"""Most cells of a density map's longer side that are kept apart."""
_PATCH_SIDE = 128


def jpeg_uri(image: Image.Image, *, side: int, most: int) -> tuple[str, int, int]:
    """A JPEG of an image as data, with its width and height.

    Args:
        image: of any mode.
        side: the longer side, at most, in pixels.
        most: bytes that the file may have; smaller sides are tried until it has no more. The last
            of them, of 64 pixels, is taken whatever its size.

    >>> uri, width, height = jpeg_uri(Image.new("RGB", (300, 200)), side=150, most=10_000)
    >>> uri[:23], width, height
    ('data:image/jpeg;base64,', 150, 100)
    """
    rgb = image.convert("RGB")
    while True:
        scale = min(1.0, side / max(rgb.size))
        size = tuple(max(1, round(length * scale)) for length in rgb.size)
        shown = rgb if scale == 1.0 else rgb.resize((size[0], size[1]), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        shown.save(stream, "JPEG", quality=_QUALITY)
        data = stream.getvalue()
        if len(data) <= most or side <= 64:
            return _uri("jpeg", data), *shown.size
        # Bytes grow somewhat slower than pixels.
        side = max(64, math.floor(0.93 * max(shown.size) * math.sqrt(most / len(data))))


def patch_uri(file: Path) -> str:
    """A patch as data, transparent outside its shape, of at most 128 pixels a side."""
    with Image.open(file) as opened:
        patch = opened.convert("RGBA" if opened.mode == "RGBA" else "RGB")
    patch.thumbnail((_PATCH_SIDE, _PATCH_SIDE))
    stream = io.BytesIO()
    if max(patch.size) < 64 or patch.mode == "RGBA":
        patch.save(stream, "PNG", optimize=True)
        return _uri("png", stream.getvalue())
    patch.save(stream, "JPEG", quality=_QUALITY)
    return _uri("jpeg", stream.getvalue())


def map_uri(cells: NDArray[np.float32], top: float) -> str:
    """A density map [h,w] as PNG data, transparent where it counts nobody.

    The colour is that of the fourth root of a cell's share of ``top``: a cell of an attacked map
    may hold a hundred times as many people as those of the clean one beside it, which must stay
    visible. Cells above ``top`` have its colour. Large maps are brought to fewer cells by their
    largest.

    >>> map_uri(np.ones((2, 3), np.float32), 1.0)[:22]
    'data:image/png;base64,'
    """
    step = math.ceil(max(cells.shape) / _MAP_SIDE)
    if step > 1:
        rows, columns = (-(-length // step) * step for length in cells.shape)
        padded = np.zeros((rows, columns), np.float32)
        padded[: cells.shape[0], : cells.shape[1]] = cells
        cells = padded.reshape(rows // step, step, columns // step, step).max((1, 3))
    share = np.clip(cells / max(top, 1e-12), 0.0, 1.0) ** 0.25
    image = Image.fromarray(np.rint(share * (_LEVELS - 1)).astype(np.uint8), "P")
    colour, opacity = coloured(np.linspace(0.0, 1.0, _LEVELS))
    image.putpalette(np.rint(colour).astype(np.uint8).tobytes())
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True, bits=8,
               transparency=np.rint(255 * opacity).astype(np.uint8).tobytes())  # fmt: skip
    return _uri("png", stream.getvalue())


def picture_uri(file: Path, *, side: int = 1400) -> tuple[str, int, int]:
    """A drawn picture as data, with its width and height; at most ``side`` pixels wide or high."""
    with Image.open(file) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "WEBP", quality=82)
    return _uri("webp", stream.getvalue()), *picture.size


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
