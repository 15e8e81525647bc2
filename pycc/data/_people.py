"""People of the built-in scenes: shaded figures of a few colours, cached by size and pose.

A figure is made of five colours (skin, hair, top, bottom, accent). Its sprite stores, per pixel,
how much of each colour is visible there, shading included. Painting one person is then a product
with the person's five colours, so a scene of hundreds of people is fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pycc.data._dice import Dice
from pycc.random import Stream

Array = NDArray[np.float32]

SKIN, HAIR, TOP, BOTTOM, ACCENT = range(5)
POSES = 16
SIZE_STEP = 1.1
"""Ratio of neighbouring head diameters among the cached sizes."""

_SKINS = [(0.94, 0.78, 0.67), (0.87, 0.68, 0.54), (0.72, 0.52, 0.39), (0.5, 0.34, 0.25)]
_HAIRS = [(0.07, 0.06, 0.06), (0.14, 0.1, 0.08), (0.3, 0.2, 0.12), (0.62, 0.5, 0.32)]


@dataclass(frozen=True)
class Figure:
    """One pose at one size."""

    weights: Array
    """[5,h*w]: share of each colour, shading included."""
    keep: Array
    """[h,w]: share of the background that remains visible."""
    body: NDArray[np.bool_]
    """[h,w]: pixels that hide what is behind them."""
    head: NDArray[np.bool_]
    """[h,w]: pixels of the head."""
    centre: tuple[float, float]
    """(x, y) of the head's centre from the sprite's corner, in pixels."""


def size_class(diameter: float) -> int:
    """Return the nearest cached size for a head of this diameter in pixels."""
    return max(0, round(float(np.log(diameter / 3.0) / np.log(SIZE_STEP))))


@lru_cache(maxsize=1024)
def figure(size: int, pose: int, steep: bool) -> Figure:
    """Draw figure number ``pose``, lit from the left; its head has diameter 3 * SIZE_STEP**size.

    ``steep`` is the view of a raised camera: a shortened body and more of the top of the head.
    """
    return _Painter(3.0 * SIZE_STEP**size, pose, steep).figure()


class _Painter:
    """Draws one figure; lengths are in head diameters, the origin is the head's centre."""

    def __init__(self, diameter: float, pose: int, steep: bool) -> None:
        self.dice = Dice(Stream(0, "figure", image=pose, step=int(steep)))
        self.diameter, self.pose, self.steep = diameter, pose, steep
        self.tall = 3.3 if steep else 5.9
        self.left, self.top = 1.35, 0.75
        width, height = (
            int(np.ceil(length * diameter)) for length in (2 * self.left, self.top + self.tall)
        )
        self.x = ((np.arange(width) + 0.5) / diameter - self.left).astype(np.float32)[None, :]
        self.y = ((np.arange(height) + 0.5) / diameter - self.top).astype(np.float32)[:, None]
        self.weights = np.zeros((5, height, width), np.float32)
        self.keep = np.ones((height, width), np.float32)

    def ellipse(self, x: float, y: float, rx: float, ry: float, power: float = 2.0) -> Array:
        """Return the coverage [h,w] of a (super)ellipse whose edge is one pixel soft."""
        radius = (np.abs((self.x - x) / rx) ** power + np.abs((self.y - y) / ry) ** power) ** (
            1.0 / power
        )
        edge = (1.0 - radius) * (min(rx, ry) * self.diameter) + 0.5
        return np.asarray(np.clip(edge, 0.0, 1.0), np.float32)

    def lit(self, x: float, y: float, rx: float, ry: float) -> Array:
        """Return the shading [h,w] of a rounded body under light from the upper left."""
        nx, ny = np.clip((self.x - x) / rx, -1, 1), np.clip((self.y - y) / ry, -1, 1)
        nz = np.sqrt(np.maximum(1.0 - nx * nx - 0.6 * ny * ny, 0.0))
        shade = 0.5 + 0.55 * np.maximum(-0.5 * nx - 0.45 * ny + 0.65 * nz, 0.0)
        return np.asarray(shade, np.float32)

    def add(self, colour: int, cover: Array, shade: Array | float) -> None:
        """Paint a part over the existing ones."""
        through = 1.0 - cover
        self.weights *= through
        self.weights[colour] += cover * shade
        self.keep *= through

    def part(self, colour: int, x: float, y: float, rx: float, ry: float, power: float = 2) -> None:
        """Paint a shaded ellipse."""
        self.add(colour, self.ellipse(x, y, rx, ry, power), self.lit(x, y, rx, ry))

    def figure(self) -> Figure:
        self._ground()
        self._body()
        body = self.keep < 0.5
        head = self._head()
        weights = np.ascontiguousarray(self.weights.reshape(5, -1))
        centre = (self.left * self.diameter, self.top * self.diameter)
        return Figure(weights, self.keep, body | head, head, centre)

    def _ground(self) -> None:
        feet = self.tall - 0.25
        self.add(HAIR, 0.5 * self.ellipse(0.35, feet, 0.95, 0.2), 0.0)

    def _body(self) -> None:
        squeeze = 0.55 if self.steep else 1.0
        facing = self.pose % 4
        wide = self.dice(0.82, 1.0) * (0.68 if facing >= 2 else 1.0)
        hip, feet = 0.55 + 2.2 * squeeze, self.tall - 0.3
        stride = self.dice(0.1, 0.4)
        for side in (-1, 1):
            x = side * stride
            self.part(BOTTOM, x, (hip + feet) / 2 - 0.2, 0.3, (feet - hip) / 2 + 0.45, 3)
            self.part(HAIR, x, feet, 0.24, 0.13)
        middle, half = 0.5 + 1.15 * squeeze, 1.28 * squeeze
        for side in (-1, 1):
            swing = self.dice(-0.1, 0.2)
            x = side * (wide + swing * 0.4)
            self.part(SKIN, x, middle + half * 0.95, 0.15, 0.2)
            self.part(TOP, x * 0.93, middle, 0.24, half * 0.95, 3)
        folds = 1.0 + 0.1 * np.sin(
            5.0 * self.x + 7.0 * self.y + 2 * np.sin(3 * self.y + 9 * self.x)
        )
        cover = self.ellipse(0.0, middle, wide * 0.9, half, 3.2)
        self.add(TOP, cover, (self.lit(0, middle, wide, half * 1.5) * folds).astype(np.float32))
        if self.pose % 3 == 1:
            self.part(ACCENT, 0.3 * wide, middle + 0.2 * squeeze, 0.45 * wide, 0.7 * squeeze, 4)
        self.part(SKIN, 0.0, 0.5, 0.2, 0.22, 3)

    def _head(self) -> NDArray[np.bool_]:
        facing, style = self.pose % 4, self.pose // 4
        side = {0: 0.0, 1: 0.0, 2: -0.13, 3: 0.13}[facing]
        shell = ACCENT if style == 3 else HAIR
        if style == 1:
            self.part(HAIR, -0.6 * side, 0.25, 0.45, 0.55, 2.5)
        cover = self.ellipse(0.0, 0.0, 0.43, 0.5)
        self.add(shell, cover, self.lit(0.0, 0.0, 0.43, 0.5))
        if facing != 1:
            drop = 0.17 if self.steep else 0.1
            width = 0.33 if style == 0 else 0.29
            self.part(SKIN, side, drop, width, 0.47 - drop)
            for eye in (-0.13, 0.13):
                if eye * side >= 0.0:
                    self.add(HAIR, 0.7 * self.ellipse(1.4 * side + eye, drop, 0.07, 0.05), 1.0)
            self.add(HAIR, 0.35 * self.ellipse(1.3 * side, drop + 0.22, 0.11, 0.04), 1.0)
        elif style != 3:
            for ear in (-0.43, 0.43):
                self.part(SKIN, ear, 0.05, 0.07, 0.12)
        if style == 2:
            crown = self.ellipse(0.0, -0.2, 0.46, 0.36) * (self.y < -0.12)
            self.add(ACCENT, crown.astype(np.float32), self.lit(0.0, -0.1, 0.46, 0.42))
            self.part(ACCENT, 1.5 * side, -0.14, 0.4, 0.08)
        return self.ellipse(0.0, 0.0, 0.45, 0.52) > 0.5


def wardrobe(stream: Stream, count: int) -> Array:
    """Draw colours [count,5,3] in [0,1] for ``count`` people: skin, hair, top, bottom, accent."""
    colours = np.empty((count, 5, 3))
    for part, palette, spread in ((SKIN, _SKINS, 0.05), (HAIR, _HAIRS, 0.03)):
        place = stream.uniform(0.0, len(palette) - 1.0, count) ** (1.0 if part == SKIN else 1.3)
        place = np.minimum(place, len(palette) - 1.001)
        low, share = place.astype(np.int64), (place % 1.0)[:, None]
        table = np.array(palette)
        colours[:, part] = table[low] * (1 - share) + table[low + 1] * share
        colours[:, part] += stream.uniform(-spread, spread, (count, 3))
    for part in (TOP, BOTTOM, ACCENT):
        colours[:, part] = _cloth(stream, count, sober=part == BOTTOM)
    if stream.uniform() < 0.2:
        # Supporters of one team: many wear one colour.
        uniform = stream.uniform(size=count) < stream.uniform(0.4, 0.8)
        shade = _cloth(stream, 1, sober=False)
        colours[uniform, TOP] = shade * stream.uniform(0.85, 1.1, (count, 1))[uniform]
    return np.clip(colours, 0.02, 1.0).astype(np.float32)


def _cloth(stream: Stream, count: int, *, sober: bool) -> NDArray[np.float64]:
    """Draw clothing colours [count,3]: dark, grey, light and saturated ones."""
    value = stream.uniform(0.08, 0.95, count) ** (1.8 if sober else 1.1)
    vivid = stream.uniform(0.0, 1.0, count) ** (4.0 if sober else 1.6)
    hue = stream.uniform(0.0, 1.0, count)
    phase = (hue[:, None] + np.array([0.0, 2 / 3, 1 / 3])) * 2 * np.pi
    return np.asarray(value[:, None] * (1.0 - vivid[:, None] * (0.5 - 0.5 * np.cos(phase))))
