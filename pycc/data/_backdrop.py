"""The background of the built-in scenes: ground, sky, walls and objects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pycc.data._dice import Dice

Array = NDArray[np.float32]

_GROUNDS = [(0.45, 0.45, 0.46), (0.66, 0.61, 0.53), (0.33, 0.43, 0.22), (0.6, 0.42, 0.33)]
_GROUNDS += [(0.76, 0.7, 0.56), (0.3, 0.31, 0.34), (0.72, 0.72, 0.72), (0.5, 0.52, 0.58)]


@dataclass(frozen=True)
class Camera:
    """Perspective: a head at image row y has diameter slope * (y - horizon), in pixels."""

    shape: tuple[int, int]
    horizon: float
    slope: float

    def diameter(self, y: float) -> float:
        """Head diameter, in pixels, at image row y."""
        return self.slope * (y - self.horizon)


@dataclass(frozen=True)
class Thing:
    """A painted object that stands among the people and may hide some of them."""

    y: float
    """Image row of its depth: people below it stand in front."""
    corner: tuple[int, int]
    """(x, y) of the corner of its window, inside the image."""
    paint: Array
    """[3,h,w], colour multiplied by coverage."""
    keep: Array
    """[h,w], share of the background that remains visible."""


def smooth(dice: Dice, cells: tuple[int, int], shape: tuple[int, int]) -> Array:
    """Make smooth noise [H,W] of about unit range: random cells, bicubically enlarged."""
    grid = dice.stream.uniform(-1.0, 1.0, cells).astype(np.float32)
    field = Image.fromarray(grid).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    return np.asarray(field, np.float32)


def rough(dice: Dice, side: int, steepness: float) -> Array:
    """Make periodic fractal noise [side,side], mean 0, deviation 1, spectrum f**-steepness."""
    grain = (dice.stream.words(side * side // 4).view(np.uint8).astype(np.float32)).reshape(
        side, side
    )
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    frequency[0, 0] = np.inf
    field = np.fft.irfft2(np.fft.rfft2(grain) * frequency**-steepness, s=(side, side))
    return np.asarray(field / field.std(), np.float32)


def backdrop(dice: Dice, camera: Camera) -> Array:
    """Paint the image [3,H,W] of the place without people."""
    height, width = camera.shape
    edge = int(np.clip(np.ceil(camera.horizon + 1.5 / camera.slope), 0, height))
    picture = np.empty((3, height, width), np.float32)
    if edge < height:
        _ground(dice, camera, picture, edge)
    if edge > 0:
        _sky(dice, picture[:, :edge])
        _skyline(dice, camera, picture, edge)
    return picture


def _ground(dice: Dice, camera: Camera, picture: Array, edge: int) -> None:
    """Paint noise, paving and markings that lie in the ground's plane."""
    height, width = camera.shape
    depth = (np.arange(edge, height, dtype=np.float32) + 0.5 - camera.horizon)[:, None]
    # One head diameter on the ground is the unit across; along, the same length in perspective.
    across = (np.arange(width, dtype=np.float32)[None, :] - width / 2) / (camera.slope * depth)
    turn = dice(-0.9, 0.9)
    along = dice(0.6, 1.1) * width / (camera.slope * depth)
    u = across * np.float32(np.cos(turn)) - along * np.float32(np.sin(turn))
    v = across * np.float32(np.sin(turn)) + along * np.float32(np.cos(turn))
    size = (camera.slope * depth).clip(0.0, 24.0)
    texture = rough(dice, 256, dice(0.7, 1.5))
    scale = dice(8.0, 30.0)
    rows, columns = (v * scale).astype(np.int64) % 256, (u * scale).astype(np.int64) % 256
    light = dice(0.02, 0.09) * texture[rows, columns] * (size / 24.0) ** 0.5
    light += 0.08 * smooth(dice, (6, 8), (height - edge, width))
    light += 0.05 * smooth(dice, (25, 33), (height - edge, width))
    kind = dice()
    if kind < 0.6:
        pitch = dice(1.2, 5.0)
        joint = dice(0.03, 0.09)
        seen = (size / 10.0).clip(0.0, 1.0)
        bond = np.floor(v / pitch) * (0.5 if kind < 0.3 else 0.0)
        cell = u / pitch + bond
        lines = ((cell % 1.0) < joint) | ((v / pitch % 1.0) < joint)
        light -= dice(0.08, 0.25) * seen * lines
        tone = (np.floor(cell) * 37 + np.floor(v / pitch) * 91) % 17 / 16.0 - 0.5
        light += dice(0.0, 0.12) * seen * tone.astype(np.float32)
    elif kind < 0.8:
        pitch = dice(9.0, 22.0)
        light += 0.28 * ((u / pitch % 1.0) < 0.06) * (size / 8.0).clip(0.0, 1.0)
    base = np.array(_GROUNDS[dice.below(len(_GROUNDS))], np.float32)
    base = base * np.float32(dice(0.7, 1.15))
    tint = smooth(dice, (3, 4), (height - edge, width)) * np.float32(0.05)
    for channel in range(3):
        plane = base[channel] * (1.0 + 1.6 * light)
        picture[channel, edge:] = plane + tint * (channel - 1)


def _sky(dice: Dice, window: Array) -> None:
    """Paint a gradient with clouds."""
    height, width = window.shape[1:]
    fall = np.linspace(0.0, 1.0, height, dtype=np.float32)[:, None]
    clouds = 0.5 + 0.5 * smooth(dice, (4, 7), (height, width))
    clouds += 0.2 * smooth(dice, (12, 18), (height, width))
    cover = clouds.clip(0.0, 1.0) * np.float32(dice(0.1, 0.9))
    top = np.array([0.35, 0.55, 0.85]) * dice(0.6, 1.1)
    for channel in range(3):
        blue = top[channel] * (1 - fall) + 0.85 * fall
        window[channel] = blue * (1 - cover) + (0.9 - 0.1 * (1 - fall)) * cover


def _skyline(dice: Dice, camera: Camera, picture: Array, edge: int) -> None:
    """Paint buildings with windows, then hedges and trees, in front of the sky."""
    width = camera.shape[1]
    x = -dice(0.0, 60.0)
    while x < width:
        wide, high = dice(40.0, 190.0), edge * dice(0.0, 1.3)
        left, right, top = max(0, int(x)), min(width, int(x + wide)), max(0, int(edge - high))
        if dice() < 0.75 and right > left and top < edge:
            wall = dice(0.25, 0.85) * (1.0 + 0.15 * dice.array(3, -1.0, 1.0))
            box = picture[:, top:edge, left:right]
            box[:] = wall[:, None, None]
            pitch = dice.array(2, 8.0, 26.0)
            share = dice.array(2, 0.3, 0.7)
            rows = (np.arange(edge - top) / pitch[0] % 1.0 < share[0])[:, None]
            columns = (np.arange(right - left) / pitch[1] % 1.0 < share[1])[None, :]
            box[:, rows & columns] *= np.float32(dice(0.35, 1.15))
            box += 0.04 * smooth(dice, (5, 5), (edge - top, right - left))
        x += wide + dice(-10.0, 40.0)
    if dice() < 0.6:
        line = edge * dice(0.55, 1.0) - 0.2 * edge * smooth(dice, (1, 14), (1, width))[0]
        line = line + 6.0 * smooth(dice, (1, 90), (1, width))[0]
        foliage = np.arange(edge)[:, None] > line[None, :]
        leaves = 0.75 + 0.5 * smooth(dice, (edge // 5 + 2, width // 5 + 2), (edge, width))
        green = np.array([0.2, 0.3, 0.13]) * dice(0.6, 1.3)
        for channel in range(3):
            np.copyto(picture[channel, :edge], leaves * np.float32(green[channel]), where=foliage)


def things(dice: Dice, camera: Camera) -> list[Thing]:
    """Make objects that are not people: lamp posts, signs, boxes, trees, balloons."""
    height, width = camera.shape
    makers = (_lamp, _sign, _box, _tree, _balloons)
    painted = []
    for _ in range(dice.below(9)):
        y = camera.horizon + 6.0 / camera.slope
        y = dice(max(0.0, min(y, height - 1.0)), height)
        x, maker = dice(0.0, width), makers[dice.below(len(makers))]
        canvas = _Canvas(camera, x, y, camera.diameter(y))
        maker(dice, canvas)
        if (thing := canvas.thing()) is not None:
            painted.append(thing)
    return painted


class _Canvas:
    """A window of the image in which one object is drawn; lengths are in head diameters."""

    def __init__(self, camera: Camera, x: float, y: float, diameter: float) -> None:
        height, width = camera.shape
        self.y, self.diameter = y, diameter
        reach = int(5 * diameter)
        self.left, right = max(0, int(x) - reach), min(width, int(x) + reach)
        self.upper, lower = max(0, int(y - 14 * diameter)), min(height, int(y + 5 * diameter))
        self.u = ((np.arange(self.left, right) + 0.5 - x) / diameter).astype(np.float32)[None, :]
        self.v = ((np.arange(self.upper, lower) + 0.5 - y) / diameter).astype(np.float32)[:, None]
        size = (self.v.shape[0], self.u.shape[1])
        self.paint = np.zeros((3, *size), np.float32)
        self.keep = np.ones(size, np.float32)

    def add(self, cover: Array, colour: NDArray[np.float64], shade: Array | float = 1.0) -> None:
        self.paint *= 1.0 - cover
        self.paint += (cover * shade) * colour.astype(np.float32)[:, None, None]
        self.keep *= 1.0 - cover

    def disc(self, u: float, v: float, radius: float) -> Array:
        distance = np.hypot(self.u - u, self.v - v)
        return np.asarray(np.clip((radius - distance) * self.diameter + 0.5, 0, 1), np.float32)

    def bar(self, u: float, v: float, half_width: float, half_height: float) -> Array:
        inside = np.minimum(half_width - np.abs(self.u - u), half_height - np.abs(self.v - v))
        return np.asarray(np.clip(inside * self.diameter + 0.5, 0, 1), np.float32)

    def ball(self, u: float, v: float, radius: float) -> Array:
        slope = (-0.5 * (self.u - u) - 0.6 * (self.v - v)) / radius
        return np.asarray(np.clip(0.8 + 0.35 * slope, 0.3, 1.2), np.float32)

    def thing(self) -> Thing | None:
        if self.keep.size == 0 or self.keep.min() > 0.5:
            return None
        return Thing(self.y, (self.left, self.upper), self.paint, self.keep)


def _vivid(dice: Dice) -> NDArray[np.float64]:
    return dice.array(3, 0.05, 0.95)


def _lamp(dice: Dice, canvas: _Canvas) -> None:
    metal = np.full(3, dice(0.1, 0.5))
    top, bright = -dice(4.0, 11.0), dice(0.6, 1.0)
    canvas.add(canvas.bar(0.0, (top + 5.0) / 2, 0.12, (5.0 - top) / 2), metal)
    lamps = (0.0,) if dice() < 0.5 else (-0.8, 0.8)
    radius = dice(0.35, 0.6)
    for u in lamps:
        globe = np.array([1.0, 0.97, 0.88]) * bright
        canvas.add(canvas.disc(u, top, radius), globe, canvas.ball(u, top, radius))


def _sign(dice: Dice, canvas: _Canvas) -> None:
    top, radius = -dice(1.0, 4.0), dice(0.5, 1.0)
    canvas.add(canvas.bar(0.0, (top + 5.0) / 2, 0.09, (5.0 - top) / 2), np.full(3, 0.4))
    canvas.add(canvas.disc(0.0, top, radius), _vivid(dice))
    canvas.add(canvas.disc(0.0, top, radius * 0.7), _vivid(dice))


def _box(dice: Dice, canvas: _Canvas) -> None:
    half = dice(0.5, 3.0)
    high = dice(0.5, 1.6)
    colour = _vivid(dice)
    canvas.add(canvas.bar(0.0, 4.6 - high, half, high), colour)
    canvas.add(canvas.bar(0.0, 4.6 - 2 * high, half, 0.2 * high), np.minimum(colour * 1.4, 1.0))


def _tree(dice: Dice, canvas: _Canvas) -> None:
    canvas.add(canvas.bar(0.0, 0.0, 0.3, 4.8), np.array([0.25, 0.18, 0.12]))
    green = np.array([0.22, 0.36, 0.14]) * dice(0.6, 1.4)
    size = canvas.keep.shape
    for _ in range(14):
        u, v = dice(-2.6, 2.6), dice(-9.0, -4.0)
        radius = dice(0.6, 1.7)
        canvas.add(canvas.disc(u, v, radius), green, canvas.ball(u, v, radius))
    leaves = 1.0 + 0.35 * smooth(dice, (size[0] // 4 + 2, size[1] // 4 + 2), size)
    canvas.paint *= leaves


def _balloons(dice: Dice, canvas: _Canvas) -> None:
    for _ in range(1 + dice.below(4)):
        u, v = dice(-1.5, 1.5), dice(-7.0, -2.0)
        radius = dice(0.35, 0.7)
        canvas.add(canvas.bar(u, v / 2 + 1.0, 0.03, 1.0 - v / 2), np.full(3, 0.8))
        canvas.add(canvas.disc(u, v, radius), _vivid(dice), canvas.ball(u, v, radius))
