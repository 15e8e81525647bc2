"""Built-in crowd scenes: people in perspective, drawn procedurally.

A scene is a pure function of (seed, split, index, shape, heads). Head diameters grow linearly from
the horizon down (about 5 to 36 pixels). People stand on a jittered lattice of the ground, in
groups, lanes or crowds. They are painted from far to near, so that near people hide parts of far
ones; light, lens and sensor noise are applied last. At least a third of every annotated head is
visible.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pycc.data._backdrop import Array, backdrop, smooth
from pycc.data._crowd import Crowd
from pycc.data._dice import Dice
from pycc.data.dataset import Dataset, builtin
from pycc.random import Stream
from pycc.types import Sample

SPLITS = ("train", "val", "test")

_SIDE = 64
"""Shortest side of a scene, in pixels."""


def scene(
    seed: int,
    index: int,
    *,
    shape: tuple[int, int] = (480, 640),
    heads: int | None = None,
    split: str = "train",
) -> Sample:
    """Draw scene number ``index`` of a split: image [3,H,W] of 8-bit values / 255, points [N,2].

    Without ``heads`` their number is log-uniform on 20…800 (at most one per 384 pixels, and at
    least 20). No two splits share a scene. ValueError if a side of ``shape`` is below 64 pixels,
    the split is unknown, or the heads do not fit.

    >>> scene(0, 3, shape=(96, 128), heads=12)
    Sample('train-0-3', image [3, 96, 128], 12 heads)
    """
    _check(shape, heads, split)

    def dice(part: str) -> Dice:
        return Dice(Stream(seed, f"scene {split} {part}", image=index))

    crowd = Crowd(dice("crowd"), dice("things"), shape, heads)
    picture = backdrop(dice("backdrop"), crowd.camera)
    crowd.paint(dice("colours"), picture)
    pixels = _expose(dice("lens"), picture)
    return Sample(
        name=_name(split, seed, index),
        image=torch.from_numpy(pixels).to(torch.float32) / 255.0,
        points=torch.from_numpy(crowd.points),
    )


@builtin.register("synthetic")
class Scenes(Dataset):
    """The first ``count`` scenes of a split, all of one size; options as for ``scene``."""

    origin = "synthetic"

    def __init__(
        self,
        *,
        split: str,
        seed: int = 0,
        shape: tuple[int, int] = (480, 640),
        heads: int | None = None,
        count: int = 100,
        limit: int | None = None,
    ) -> None:
        if count < 1:
            raise ValueError(f"synthetic: count must be at least 1, got {count}")
        _check(shape, heads, split)
        self.name = f"synthetic/{split}"
        self.names = [_name(split, seed, index) for index in range(count)[:limit]]
        self._split, self._seed, self._shape, self._heads = split, seed, shape, heads

    def _load(self, index: int) -> Sample:
        return scene(self._seed, index, shape=self._shape, heads=self._heads, split=self._split)


def _name(split: str, seed: int, index: int) -> str:
    return f"{split}-{seed}-{index}"


def _check(shape: tuple[int, int], heads: int | None, split: str) -> None:
    height, width = shape
    if min(height, width) < _SIDE:
        raise ValueError(f"scene: shape must be at least {_SIDE} x {_SIDE}, got {height} x {width}")
    if split not in SPLITS:
        raise ValueError(f"scene: split must be one of {', '.join(SPLITS)}, got {split!r}")
    if heads is not None and heads < 0:
        raise ValueError(f"scene: heads must be at least 0, got {heads}")


def _expose(dice: Dice, picture: Array) -> NDArray[np.uint8]:
    """Apply light, lens and sensor: image [3,H,W] -> 8-bit image [3,H,W]."""
    _, height, width = picture.shape
    light = 1.0 + dice(0.05, 0.25) * smooth(dice, (2, 3), (height, width))
    y = np.linspace(-1.0, 1.0, height, dtype=np.float32)[:, None]
    x = np.linspace(-1.0, 1.0, width, dtype=np.float32)[None, :]
    light *= 1.0 - dice(0.0, 0.22) * (x * x + y * y)
    light *= np.float32(dice(0.85, 1.5))
    warm = dice(-0.12, 0.12)
    grey = dice() < 0.08
    softness = dice(0.0, 0.3)
    if grey:
        picture = np.broadcast_to(picture.mean(0, keepdims=True), picture.shape)
    grain = _grain(dice, height + 8, width + 8) * dice(0.004, 0.03)
    gamma, black = dice(0.8, 1.25), dice(0.0, 0.06)
    # The tone curve is read from a table: a power per pixel would take half of the time.
    curve = np.linspace(0.0, 1.0, 1025) ** gamma
    table = ((black + (1.0 - black) * curve) * 255.0).astype(np.float32)
    pixels = np.empty((3, height, width), np.uint8)
    for channel in range(3):
        plane = picture[channel] * light * np.float32(1.0 if grey else 1.0 + warm * (1 - channel))
        plane = _soften(_soften(plane, softness).T, softness).T
        tone = table[(np.clip(plane, 0.0, 1.0) * 1024.0).astype(np.int16)]
        shift = 0 if grey else 4 * channel
        tone += 255.0 * grain[shift : shift + height, shift : shift + width]
        pixels[channel] = np.clip(np.rint(tone), 0.0, 255.0).astype(np.uint8)
    return pixels


def _soften(plane: Array, share: float) -> Array:
    """Blur along rows: each pixel gives ``share`` of its value to its two neighbours."""
    soft = plane * np.float32(1.0 - share)
    soft[:, 1:] += np.float32(share / 2) * plane[:, :-1]
    soft[:, :-1] += np.float32(share / 2) * plane[:, 1:]
    soft[:, 0] += np.float32(share / 2) * plane[:, 0]
    soft[:, -1] += np.float32(share / 2) * plane[:, -1]
    return soft


def _grain(dice: Dice, height: int, width: int) -> Array:
    """Make sensor noise [H,W] of deviation about 1: sums of two bytes of random words."""
    count = height * width
    halves = dice.stream.words(-(-count // 2)).view(np.uint8).reshape(-1, 2).astype(np.float32)
    centred = (halves.sum(1) - 255.0) / np.float32(104.5)
    return np.asarray(centred[:count].reshape(height, width), np.float32)
