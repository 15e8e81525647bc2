"""A patch on paper: enlarged to its true size, on a page with crop marks and a scale bar."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pycc.data import load_image, load_opacity
from pycc.data.dataset import read_bytes
from pycc.runs import check_new, write_atomic

MOST_MM, MOST_DPI, MOST_DOTS = 5000.0, 4800.0, 20_000
"""The widest patch, the finest printer, and the longest side of a page in dots."""

_INCH = 25.4
_MARGIN, _GAP, _MARK, _LINE, _TEXT, _BAR = 10.0, 2.0, 5.0, 0.1, 3.0, 50.0
"""Millimetres: white around the patch; patch to mark; its length and width; text; scale bar."""
_EDGE = 5.0
"""Millimetres that printers may leave out at the edges of the paper: no text or bar lies there."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Kit:
    """A patch ready to be printed, and its sizes.

    >>> folder = Path("kit")
    >>> kit = Kit(
    ...     folder / "patch.png", folder / "page.pdf", folder / "kit.json", pixels=(81, 81),
    ...     dots=(2362, 2362), dpi=300.0, width_mm=200.0, height_mm=200.0, pixels_per_inch=10.3,
    ... )  # fmt: skip
    >>> kit.page.name
    'page.pdf'
    """

    patch: Path
    """The patch alone, ``patch.png``: exact pixels, and the resolution that gives the true size."""
    page: Path
    """``page.pdf``: the patch at true size in the middle of a page."""
    facts: Path
    """``kit.json``: all numbers."""
    pixels: tuple[int, int]
    """(height, width) of the patch, in its own pixels."""
    dots: tuple[int, int]
    """(height, width) of the patch on paper, in printed dots."""
    dpi: float
    """Printed dots per inch."""
    width_mm: float
    """True width on paper: a whole number of dots, so up to half a dot off what was asked for."""
    height_mm: float
    """True height on paper, likewise."""
    pixels_per_inch: float
    """The patch's own pixels per inch on paper: the effective resolution."""


def print_kit(
    picture: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    width_mm: float,
    dpi: float = 300.0,
) -> Kit:
    """Write a patch ready to be printed ``width_mm`` millimetres wide into the folder ``out``.

    ``picture`` is a patch as attack runs keep it (``RUN/patches``): what is transparent is not part
    of it and stays the paper's white. It is enlarged to round(width_mm / 25.4 * dpi) dots by
    nearest neighbour, so that every dot has the colour of one pixel of the patch; the height
    follows from the aspect. ``patch.png`` holds these dots exactly; ``page.pdf`` holds them as JPEG
    of the highest quality (within 5 of 255 levels) between crop marks whose inner edges are the
    patch's, above its sizes and a bar of 50 mm that shows whether the printer scaled the page;
    ``kit.json`` holds the numbers. The same patch and sizes give the same bytes.

    PNG stores whole dots per metre, which bounds its error by half a dot per metre of patch; the
    PDF is exact. A printer too coarse for the patch's pixels is a UserWarning.

    ValueError for a width outside (0, 5000] mm, a resolution outside (0, 4800] dpi, a page of more
    than 20,000 dots a side, a patch of less than a dot, a picture that cannot be read, is partially
    transparent or nothing but transparent, and a folder that holds anything; OSError if it cannot
    be written. After an error the folder is as it was.

    >>> import tempfile
    >>> import torch
    >>> from pycc import data
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     data.save_image(f"{folder}/patch.png", torch.zeros(3, 16, 16))
    ...     kit = print_kit(f"{folder}/patch.png", f"{folder}/kit", width_mm=25.4, dpi=64)
    >>> kit.dots, kit.pixels_per_inch
    ((64, 64), 16.0)
    """
    if not 0 < width_mm <= MOST_MM:
        raise ValueError(f"print_kit: width_mm must be in (0, {MOST_MM:g}], got {width_mm}")
    if not 0 < dpi <= MOST_DPI:
        raise ValueError(f"print_kit: dpi must be in (0, {MOST_DPI:g}], got {dpi}")
    source, folder = Path(picture), Path(out)
    check_new(folder)
    pixels = _read(source)
    height, width = pixels.shape[:2]
    dots = _dots(pixels.shape[:2], width_mm, dpi)
    height_mm, width_mm = (side / dpi * _INCH for side in dots)
    sheet = _Sheet(dots, dpi, f"{width_mm:.1f} x {height_mm:.1f} mm, {dpi:g} dpi: {source.name}")
    if max(sheet.shape) > MOST_DOTS:
        raise ValueError(
            f"print_kit: the page must have at most {MOST_DOTS} dots a side, "
            f"got {sheet.shape[1]}x{sheet.shape[0]} for {width_mm:.1f} mm at {dpi:g} dpi"
        )
    kit = Kit(
        patch=folder / "patch.png",
        page=folder / "page.pdf",
        facts=folder / "kit.json",
        pixels=(height, width),
        dots=dots,
        dpi=float(dpi),
        width_mm=width_mm,
        height_mm=height_mm,
        pixels_per_inch=width / dots[1] * dpi,
    )
    if dots[0] < height or dots[1] < width:
        warnings.warn(
            f"{source}: {dots[1]}x{dots[0]} printed dots cannot show {width}x{height} pixels: at "
            f"{width_mm:.1f} mm they are {kit.pixels_per_inch:.1f} per inch, the dots {dpi:g}",
            stacklevel=2,
        )
    printed = enlarged(pixels, dots)
    facts = _facts(kit, sheet) | {
        "picture": source.name,
        "sha256": hashlib.sha256(read_bytes(source)).hexdigest(),
    }
    _write(
        {
            kit.patch: _encoded(Image.fromarray(printed), "PNG", dpi=(dpi, dpi)),
            kit.page: _encoded(
                sheet.draw(printed), "PDF", resolution=dpi, quality=100, subsampling=0,
                title=source.stem, creationDate=None, modDate=None,
            ),
            kit.facts: (json.dumps(facts, sort_keys=True, indent=2) + "\n").encode(),
        }
    )  # fmt: skip
    return kit


def _dots(pixels: tuple[int, ...], width_mm: float, dpi: float) -> tuple[int, int]:
    """Return (height, width) in printed dots of a patch of (height, width) pixels."""
    columns = width_mm / _INCH * dpi
    dots = round(columns / pixels[1] * pixels[0]), round(columns)
    if min(dots) < 1:
        raise ValueError(
            f"print_kit: a patch must be at least one dot wide and high, got {width_mm:g} mm "
            f"at {dpi:g} dpi for {pixels[1]}x{pixels[0]} pixels"
        )
    return dots


def _facts(kit: Kit, sheet: _Sheet) -> dict[str, object]:
    """The sizes, as ``kit.json`` stores them."""
    numbers = ("pixels", "dots", "dpi", "width_mm", "height_mm", "pixels_per_inch")
    return {
        **{name: getattr(kit, name) for name in numbers},
        "page_dots": sheet.shape,
        "page_mm": [side / kit.dpi * _INCH for side in sheet.shape],
        "top_left_dots": sheet.top_left,
        "scale_bar_mm": _BAR,
    }


def enlarged(pixels: Pixels, shape: tuple[int, int]) -> Pixels:
    """Enlarge [H,W,C] to [*shape,C]: a dot has the colour of the pixel that its middle lies in."""
    # (dot + 1/2) * pixels / dots, rounded down, in integers: no rounding can shift a block's edge.
    rows, columns = (
        (2 * np.arange(after) + 1) * before // (2 * after)
        for before, after in zip(pixels.shape[:2], shape, strict=True)
    )
    return np.ascontiguousarray(pixels[rows][:, columns])


class _Sheet:
    """The page, in dots: where the patch lies on it, and what is drawn around.

    From top to bottom: white, the patch between its crop marks, a line of text, the scale bar. The
    page is as wide as the widest of them needs, and the patch lies in its middle.
    """

    def __init__(self, patch: tuple[int, int], dpi: float, text: str) -> None:
        self._patch, self._dpi = patch, dpi
        # A printer too coarse for small letters gets larger ones, and with them a larger page.
        self._font = ImageFont.load_default(max(8, self._up(_TEXT)))
        self._text = text if len(text) <= 80 else f"{text[:40]}...{text[-37:]}"
        self._label = f"{_BAR:g} mm if printed at 100 %"
        self._row = math.ceil(self._extent("Xg")[1])
        self._wide = (
            self._extent(self._text)[0],
            self._exact(_BAR) + self._up(_GAP) + self._extent(self._label)[0],
        )
        margin, edge = self._up(_MARGIN), self._up(_EDGE)
        # The lines of text and bar, each of a row and a gap, begin a gap below the crop marks.
        self._lines = [
            2 * self._up(_GAP) + self._up(_MARK) + number * (self._row + self._up(_GAP))
            for number in range(2)
        ]
        below = max(margin, self._lines[1] + self._row + edge)
        width = max(patch[1] + 2 * margin, *(wide + 2 * edge for wide in self._wide))
        # In the middle to the dot: both margins are equal.
        left = math.ceil((width - patch[1]) / 2)
        self.top_left = below, left
        self.shape = patch[0] + 2 * below, patch[1] + 2 * left

    def _exact(self, millimetres: float) -> int:
        """Convert millimetres to dots, to the nearest."""
        return round(millimetres / _INCH * self._dpi)

    def _up(self, millimetres: float) -> int:
        """Convert millimetres to dots, rounded up."""
        return math.ceil(millimetres / _INCH * self._dpi)

    def _extent(self, text: str) -> tuple[int, int]:
        """Return (width, height) of a line of text, in dots."""
        left, top, right, bottom = self._font.getbbox(text)
        return math.ceil(right - left), math.ceil(bottom - top)

    def draw(self, patch: Pixels) -> Image.Image:
        """The page, RGB, with the patch [h,w,3 or 4] that is white where it is transparent."""
        page = Image.new("RGB", self.shape[::-1], "white")
        pen = ImageDraw.Draw(page)
        self._draw_marks(pen)
        top, left = self.top_left
        first, second = (top + self._patch[0] + line for line in self._lines)
        text, bar = ((self.shape[1] - wide) // 2 for wide in self._wide)
        pen.text((text, first), self._text, "black", self._font, anchor="lt")
        self._draw_bar(pen, second, bar)
        page.paste(Image.fromarray(patch[..., :3]), (left, top))
        return page

    def _draw_marks(self, pen: ImageDraw.ImageDraw) -> None:
        """Two lines at each corner, along the patch's edges but on the paper's side of them."""
        line, gap, length = max(1, self._exact(_LINE)), self._up(_GAP), self._exact(_MARK)
        sides = [(a, a + dots) for a, dots in zip(self.top_left, self._patch, strict=True)]
        # Where a mark begins before and behind the patch: along its edge, and away from it.
        along_y, along_x = ((start - line, end) for start, end in sides)
        away_y, away_x = ((start - gap - length, end + gap) for start, end in sides)
        for y, x in itertools.product(range(2), repeat=2):
            _bar(pen, along_y[y], away_x[x], line, length)
            _bar(pen, away_y[y], along_x[x], length, line)

    def _draw_bar(self, pen: ImageDraw.ImageDraw, top: int, left: int) -> None:
        """The scale bar, from outer edge to outer edge, with a tick every 10 mm, and its label."""
        line, length = max(1, self._exact(2 * _LINE)), self._exact(_BAR)
        _bar(pen, top + self._row - line, left, line, length)
        for tick in range(6):
            place = min(self._exact(tick * _BAR / 5), length - line)
            high = self._row if tick in (0, 5) else self._row // 2
            _bar(pen, top + self._row - high, left + place, high, line)
        right = left + length + self._up(_GAP), top
        pen.text(right, self._label, "black", self._font, anchor="lt")


def _bar(pen: ImageDraw.ImageDraw, top: int, left: int, height: int, width: int) -> None:
    """A black bar of as many dots: Pillow's rectangles include their last row and column."""
    if height > 0 and width > 0:
        pen.rectangle((left, top, left + width - 1, top + height - 1), fill="black")


def _read(path: Path) -> Pixels:
    """A picture as [H,W,3], or [H,W,4] where some of it is transparent, and white there."""
    colours = load_image(path).permute(1, 2, 0).numpy()
    levels = np.rint(colours * np.float32(255.0)).astype(np.uint8)
    there = load_opacity(path)
    if there is None:
        return levels
    if not bool(there.any()):
        raise ValueError(f"{path}: expected a patch, got nothing but transparent pixels")
    return np.concatenate([levels, np.uint8(255) * there.numpy()[..., None].astype(np.uint8)], 2)


def _encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def _write(files: Mapping[Path, bytes]) -> None:
    """Write the files of one folder, made if need be, or leave nothing behind."""
    folder = next(iter(files)).parent
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in files.items():
            write_atomic(path, content)
    except BaseException:
        with suppress(OSError):
            for path in files:
                path.unlink(missing_ok=True)
                path.with_name(f".{path.name}.part").unlink(missing_ok=True)
            for place in made:
                place.rmdir()
        raise
