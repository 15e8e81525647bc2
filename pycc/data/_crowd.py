"""The people of a built-in scene: where they stand, and how they are painted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pycc.data import _people
from pycc.data._backdrop import Array, Camera, Thing, smooth, things
from pycc.data._dice import Dice

_FEWEST, _MOST = 20, 800
_SMALLEST_HEAD, _LARGEST_HEAD = 5.0, 36.0
_SEEN = 1.0 / 3.0
"""Share of a head that must be visible for it to be annotated."""
_ROW, _COLUMN = 0.6, 1.15
"""Distances of neighbours down and across the image, in head diameters."""


class Crowd:
    """The people of a scene and where they stand, from far to near."""

    def __init__(self, dice: Dice, other: Dice, shape: tuple[int, int], heads: int | None) -> None:
        height, width = shape
        if heads is None:
            most = max(_FEWEST, min(_MOST, height * width // 384))
            heads = int(_FEWEST * ((most + 1) / _FEWEST) ** dice())
        horizon = height * dice(-0.7, 0.33)
        near = float(12.0 * (_LARGEST_HEAD / 12.0) ** dice(0.1, 1.0))
        for attempt in range(24):
            self.camera = Camera(shape, horizon, near / (height - horizon))
            cells = _lattice(dice, self.camera)
            if len(cells) >= 1.45 * heads:
                # Objects may hide too much of a dense crowd: only the first attempt has them.
                self.things = things(other, self.camera) if attempt == 0 else []
                if self._place(dice, cells, heads):
                    return
            near, horizon = max(7.0, near * 0.92), horizon - 0.12 * height
        raise ValueError(f"scene: {heads} heads do not fit into {height} x {width} pixels")

    def _place(self, dice: Dice, cells: NDArray[np.float64], heads: int) -> bool:
        """Choose ``heads`` visible people among the cells; return False if too few are visible."""
        camera = self.camera
        spread = dice.stream.uniform(size=len(cells))
        rank = np.argsort(-(_pattern(dice, camera, cells) - np.log(-np.log(spread))))
        chosen = rank[: int(1.35 * heads) + 4]
        # From far to near; ``order`` keeps the order in which they were chosen.
        order = np.argsort(cells[chosen, 1], kind="stable")
        places = cells[chosen][order]
        count = len(places)
        grown = dice.stream.uniform(0.9, 1.1, count) * [camera.diameter(y) for y in places[:, 1]]
        low = camera.horizon > -0.08 * camera.shape[0]
        poses = dice.stream.integers(_people.POSES, count)
        self.figures = [
            _people.figure(_people.size_class(size), int(pose), not low)
            for size, pose in zip(grown, poses, strict=True)
        ]
        self.flipped = bool(dice() < 0.5)
        self.corners = [
            (round(x - figure.centre[0]), round(y - figure.centre[1]))
            for (x, y), figure in zip(places, self.figures, strict=True)
        ]
        self.points = np.array(
            [
                (left + figure.centre[0], top + figure.centre[1])
                for (left, top), figure in zip(self.corners, self.figures, strict=True)
            ]
        ).reshape(-1, 2)
        seen = self._seen() & (self.points >= 0).all(1)
        seen &= (self.points < (camera.shape[1], camera.shape[0])).all(1)
        kept = np.sort(np.argsort(np.where(seen, order, len(order)), kind="stable")[:heads])
        if int(seen.sum()) < heads:
            return False
        self.figures = [self.figures[i] for i in kept]
        self.corners = [self.corners[i] for i in kept]
        self.points = self.points[kept]
        return True

    def _in_order(self) -> list[tuple[float, int | Thing]]:
        """List people (by number) and objects, from far to near."""
        items: list[tuple[float, int | Thing]] = [
            (float(point[1]), number) for number, point in enumerate(self.points)
        ]
        items += [(thing.y, thing) for thing in self.things]
        return sorted(items, key=lambda item: item[0])

    def _window(self, number: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Return the box of a figure in the picture, and the part of the figure in it."""
        left, top = self.corners[number]
        high, wide = self.figures[number].keep.shape
        height, width = self.camera.shape
        upper, lower = max(0, top), max(0, min(height, top + high))
        first, last = max(0, left), max(0, min(width, left + wide))
        inside = (slice(upper - top, lower - top), slice(first - left, last - left))
        return (slice(upper, lower), slice(first, last)), inside

    def _seen(self) -> NDArray[np.bool_]:
        """Return whose head is visible enough, [N]."""
        owner = np.full(self.camera.shape, -1, np.int32)
        size = np.zeros(len(self.figures))
        for _, item in self._in_order():
            if isinstance(item, Thing):
                (x, y), (high, wide) = item.corner, item.keep.shape
                np.copyto(owner[y : y + high, x : x + wide], -1, where=item.keep < 0.5)
                continue
            figure = self.figures[item]
            window, inside = self._window(item)
            view = owner[window]
            np.copyto(view, -1, where=_turned(figure.body, self.flipped)[inside])
            np.copyto(view, item, where=_turned(figure.head, self.flipped)[inside])
            size[item] = np.count_nonzero(figure.head)
        visible = np.bincount(owner[owner >= 0], minlength=len(size))
        return np.asarray(visible >= _SEEN * size)

    def paint(self, dice: Dice, picture: Array) -> None:
        """Paint all people and objects into the image [3,H,W]."""
        count = len(self.figures)
        colours = _people.wardrobe(dice.stream, count)
        colours *= dice.stream.uniform(0.8, 1.1, (count, 1, 1)).astype(np.float32)
        haze = dice(0.0, 0.5) * np.array([0.75, 0.78, 0.8])
        for _, item in self._in_order():
            if isinstance(item, Thing):
                (x, y), (high, wide) = item.corner, item.keep.shape
                view = picture[:, y : y + high, x : x + wide]
                view *= item.keep
                view += item.paint
                continue
            figure = self.figures[item]
            window, inside = self._window(item)
            far = float(np.exp(-self.camera.diameter(self.points[item, 1]) / 7.0))
            shades = colours[item] * np.float32(1.0 - 0.5 * far) + (0.5 * far * haze)
            person = (shades.T.astype(np.float32) @ figure.weights).reshape(3, *figure.keep.shape)
            view = picture[:, window[0], window[1]]
            view *= _turned(figure.keep, self.flipped)[inside]
            view += _turned(person, self.flipped)[:, inside[0], inside[1]]


def _turned(values: NDArray, flipped: bool) -> NDArray:  # type: ignore[type-arg]
    """Mirror values left to right if the light comes from the right."""
    return values[..., ::-1] if flipped else values


def _lattice(dice: Dice, camera: Camera) -> NDArray[np.float64]:
    """Return places [M,2] (x, y) where people may stand: jittered rows on the ground."""
    height, width = camera.shape
    y = max(1.0, camera.horizon + _SMALLEST_HEAD / camera.slope)
    rows = []
    while y < height - 1.0:
        rows.append(y)
        y += _ROW * camera.diameter(y)
    jitter = dice(0.15, 0.45)
    row = np.array(rows)
    size = camera.slope * (row - camera.horizon)
    count = (width / (_COLUMN * size)).astype(np.int64) + 1
    start = dice.stream.uniform(size=len(rows))
    line = np.repeat(np.arange(len(rows)), count)
    place = np.arange(len(line)) - np.repeat(np.cumsum(count) - count, count)
    shake = dice.stream.uniform(-jitter, jitter, (2, len(line)))
    x = (place + start[line] + shake[0]) * _COLUMN * size[line]
    cells = np.stack([x, row[line] + shake[1] * _ROW * size[line]], axis=1)
    inside = (cells >= 1.0).all(1) & (cells < (width - 1.0, height - 1.0)).all(1)
    return np.asarray(cells[inside])


def _pattern(dice: Dice, camera: Camera, cells: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the log-preference [M] of the cells: for groups, lanes, one mass, or smooth noise."""
    height, width = camera.shape
    strength = dice(0.5, 4.0)
    diameter = camera.slope * (cells[:, 1] - camera.horizon)
    across = (cells[:, 0] - width / 2) / diameter
    along = np.log(diameter) / camera.slope
    kind = dice.below(4)
    if kind == 0:
        # Groups of a few people: smooth noise on the scale of a few heads.
        waves = dice.stream.normal((12, 2)) / dice(1.5, 5.0)
        phases = dice.stream.uniform(0.0, 2 * np.pi, 12)
        angle = across[:, None] * waves[:, 0] + along[:, None] * waves[:, 1] + phases
        return np.asarray(strength * 0.7 * np.cos(angle).sum(1) / np.sqrt(6.0))
    if kind == 1:
        turn, wide = dice(-1.2, 1.2), dice(6.0, 20.0)
        lane = (across * np.cos(turn) + along * np.sin(turn)) / wide + dice()
        return np.asarray(strength * np.cos(2 * np.pi * lane))
    if kind == 2:
        centres = dice.stream.uniform(0.0, 1.0, (dice.below(3) + 1, 2)) * (width, height)
        radius = dice.stream.uniform(0.12, 0.5, len(centres)) * max(height, width)
        offset = (cells[:, None] - centres) / radius[:, None]
        near = np.exp(-0.5 * (offset * offset).sum(2)).max(1)
        return np.asarray(2.0 * strength * near)
    field = smooth(dice, (5, 7), camera.shape)
    x, y = cells.astype(np.int64).T
    return np.asarray(0.5 * strength * field[y, x], np.float64)
