"""The pictures of triggers: files, and two that are drawn here.

No picture with rights attached is shipped. The drawn ones have no parameters: every installation
has the same.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pycc.data.images import load_alpha, load_image
from pycc.random import Stream
from pycc.runs import fingerprint

STRETCH = 2.0
"""Stretching of one side relative to the other above which a warning is printed. Crowd images are
landscape (4:3) or portrait (3:4), 1.8 apart: a picture for one format may be used for the other."""

_SHAPE = (768, 1024)
"""Height and width of the drawn pictures, pixels."""
_DISCS, _RADII = 2200, (5.0, 56.0)
_STREAKS, _LENGTHS, _LEAN = 3600, (18.0, 64.0), 0.22
"""The rain: number of streaks, their lengths in pixels, and their slope in columns per row."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture that is stretched over images."""

    pixels: Tensor
    """[3,h,w] float32, RGB in [0,1]."""
    name: str | None = None
    """Its file; None for a drawn one, which may be stretched without a warning."""

    @classmethod
    def open(cls, path: str, *, background: float = 1.0) -> Picture:
        """Read the picture of a file, of any mode that ``pycc.data.load_image`` reads.

        Transparent parts show the ``background``, a grey in [0,1]. ValueError, naming the file, if
        it cannot be read.
        """
        pixels = load_image(path)
        if background != 1.0:
            opacity = load_alpha(path)
            if opacity is not None:  # load_image has blended it with white
                pixels = (pixels - (1.0 - background) * (1.0 - opacity)).clamp(0.0, 1.0)
        return cls(pixels, Path(path).name)

    def content(self) -> str:
        """SHA-256, in hexadecimal, of its pixels."""
        return fingerprint([("picture", self.pixels)])

    def fitted(self, height: int, width: int) -> Tensor:
        """The picture, stretched to [3,height,width] float32 in [0,1]; not to be written to.

        A warning is printed for a file whose aspect ratio changes by more than ``STRETCH``.
        """
        rows, columns = self.pixels.shape[1:]
        stretch = (width * rows) / (height * columns)
        if self.name is not None and not 1 / STRETCH <= stretch <= STRETCH:
            warnings.warn(
                f"{self.name}: a trigger of {columns}x{rows} pixels (width x height) is stretched "
                f"to {width}x{height}, {max(stretch, 1 / stretch):.1f} times more along one side",
                stacklevel=4,
            )
        return _fitted(self, height, width)


@lru_cache(maxsize=1)
def _fitted(picture: Picture, height: int, width: int) -> Tensor:
    if picture.pixels.shape[1:] == (height, width):
        return picture.pixels
    fitted = functional.interpolate(
        picture.pixels[None], (height, width), mode="bicubic", antialias=True, align_corners=False
    )
    return fitted[0].clamp(0.0, 1.0)


@lru_cache(maxsize=1)
def dense() -> Picture:
    """The built-in trigger: overlapping discs with dark rims, of all sizes and colours.

    The paper's trigger is "large and dense": it is visible everywhere and at the scales of heads.
    """
    height, width = _SHAPE
    stream = Stream(0, "trigger, dense picture")
    low, high = np.log(_RADII)
    # Large ones first, so that no disc is hidden by a larger one.
    radius = np.sort(np.exp(stream.uniform(low, high, _DISCS)))[::-1]
    x, y = stream.uniform(0.0, width, _DISCS), stream.uniform(0.0, height, _DISCS)
    colour = _vivid(stream.uniform(size=_DISCS))
    rim = 0.12 * stream.uniform(size=_DISCS)[:, None]  # dark
    canvas = np.ones((3, height, width), np.float32)
    for n in range(_DISCS):
        _disc(canvas, x[n], y[n], radius[n], rim[n])
        _disc(canvas, x[n], y[n], 0.78 * radius[n], colour[n])
    return Picture(torch.from_numpy(canvas))


def _vivid(hue: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fully saturated colours [N,3] with hues [N] in [0,1)."""
    distance = np.abs((hue[:, None] * 6.0 - np.array([0.0, 2.0, 4.0]) + 3.0) % 6.0 - 3.0)
    return np.asarray(np.clip(2.0 - distance, 0.0, 1.0))


def _disc(
    canvas: NDArray[np.float32], x: float, y: float, radius: float, colour: NDArray[np.float64]
) -> None:
    """Draw a disc with a soft edge of one pixel on a canvas [3,H,W]."""
    height, width = canvas.shape[1:]
    top, bottom = max(0, int(y - radius - 1)), min(height, int(y + radius + 2))
    left, right = max(0, int(x - radius - 1)), min(width, int(x + radius + 2))
    rows = np.arange(top, bottom)[:, None] + 0.5 - y
    columns = np.arange(left, right)[None, :] + 0.5 - x
    cover = np.clip(radius - np.hypot(rows, columns) + 0.5, 0.0, 1.0).astype(np.float32)
    window = canvas[:, top:bottom, left:right]
    window += cover * (colour.astype(np.float32)[:, None, None] - window)


@lru_cache(maxsize=1)
def rain() -> Picture:
    """The built-in layer: bright slanting streaks on black."""
    height, width = _SHAPE
    stream = Stream(0, "trigger, rain")
    reach = int(_LENGTHS[1])
    top = stream.uniform(-reach, height, _STREAKS)[:, None]
    left = stream.uniform(-_LEAN * reach, width, _STREAKS)[:, None]
    length = stream.uniform(*_LENGTHS, size=_STREAKS)[:, None]
    light = stream.uniform(0.25, 0.9, _STREAKS)[:, None]
    along = np.arange(reach, dtype=np.float64)[None, :]
    # Brightest in the middle, fading to both ends.
    light = light * np.clip(2.0 - np.abs(4.0 * along / length - 2.0), 0.0, 1.0)
    row, column = np.broadcast_arrays(np.floor(top + along), left + _LEAN * along)
    canvas = np.zeros((height, width))
    first = np.floor(column)
    for step, share in ((0, 1.0 - (column - first)), (1, column - first)):
        pixel = first + step
        inside = (row >= 0) & (row < height) & (pixel >= 0) & (pixel < width)
        place = (row * width + pixel)[inside].astype(np.int64)
        np.add.at(canvas.reshape(-1), place, (light * share)[inside])
    grey = torch.from_numpy(np.clip(canvas, 0.0, 1.0).astype(np.float32))
    return Picture(grey.expand(3, -1, -1).contiguous())


@lru_cache(maxsize=1)
def noise(key: int, height: int, width: int) -> Tensor:
    """Draw noise [3,height,width], float32 uniform on {0, 1/255, …, 1}; not to be written to."""
    count = 3 * height * width
    levels = Stream(key, "trigger, noise").words(-(-count // 4)).astype("<u4").view(np.uint8)
    return torch.from_numpy(levels[:count].reshape(3, height, width).copy()) / 255.0


@lru_cache(maxsize=1)
def warping(key: int, grid: int, height: int, width: int) -> Tensor:
    """[height,width,2] float32: smooth displacements (x, y) of mean size 1 at the control points.

    Those are ``grid`` x ``grid`` uniform draws, enlarged bicubically. Not to be written to.
    """
    control = Stream(key, "trigger, warp").uniform(-1.0, 1.0, (2, grid, grid))
    control /= np.abs(control).mean()
    field = functional.interpolate(
        torch.from_numpy(control)[None], (height, width), mode="bicubic", align_corners=True
    )
    return field[0].permute(1, 2, 0).to(torch.float32).contiguous()
