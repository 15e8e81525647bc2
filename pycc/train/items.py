"""Training items: crops of images with their ground truth, each a function of its number alone."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import overload

import torch
from torch import Tensor
from torch.nn import functional

from pycc import ops
from pycc.data import density, downsample
from pycc.models.recipe import Crop, Recipe
from pycc.random import Stream
from pycc.train.augment import augmented
from pycc.types import Sample

_CACHE = 1 << 31
"""Bytes of images and ground truths that a process keeps."""
_PIECE = 1 << 16
"""Values that are turned into 8 bits at once."""


@dataclass(frozen=True)
class Ablation:
    """What an image is reduced to: k random pixels or array entries, the rest one colour."""

    k: int
    unit: str
    fill: tuple[float, float, float]
    warmup: int
    """Epochs before it begins."""


@dataclass(frozen=True, eq=False)
class Item:
    """One crop."""

    name: str
    image: Tensor
    """[3,h,w] float32, RGB in [0,1] (some augmentations leave it)."""
    target: Tensor
    """[1,h//s,w//s] float32, people per cell."""
    points: Tensor
    """[M,2] float64 (x, y), pixels of the crop."""
    ablated: Tensor | None = None
    """The image as the ablation recipe shows it."""
    number: int = 0
    """Its number in its epoch."""


class Joined(Sequence[Sample]):
    """Data sets one after another, each of which keeps a ground truth of its own.

    ``parts`` are the data sets by name, as ``pycc.train.resolved`` understands names; a sample's
    own name is its part's and the one that it has there. ``rules`` are the parts' ground truths:
    recipes of ``pycc.data.density``, or ``"dots"``; they depend on what is trained, and
    ``pycc.train.plan.with_own_truths`` finds them. ValueError for no part, and for rules of others.
    """

    def __init__(
        self, parts: Mapping[str, Sequence[Sample]], rules: Mapping[str, str] | None = None
    ) -> None:
        if not parts:
            raise ValueError("train: joined data sets must be at least one, got none")
        if rules is not None and rules.keys() != parts.keys():
            raise ValueError(
                f"train: rules must be of the parts {', '.join(parts)}, got {', '.join(rules)}"
            )
        self.parts, self.rules = dict(parts), rules
        self.name = " + ".join(parts)
        self._ends = list(accumulate(map(len, self.parts.values())))

    def __len__(self) -> int:
        return self._ends[-1]

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        part, place = self._place(index)
        sample = self.parts[part][place]
        return replace(sample, name=f"{part}/{sample.name}")

    def points(self, index: int) -> Tensor:
        """Head annotations [N,2] of a sample; without its pixels where its data set can."""
        part, place = self._place(index)
        heads = getattr(self.parts[part], "points", None)
        found: Tensor = self.parts[part][place].points if heads is None else heads(place)
        return found

    def rule(self, index: int) -> str:
        """The ground truth of a sample's data set; ValueError where none was given."""
        if self.rules is None:
            raise ValueError(
                f"train: {self.name}: joined data sets need a ground truth each; take "
                "pycc.train.plan.with_own_truths"
            )
        return self.rules[self._place(index)[0]]

    def _place(self, index: int) -> tuple[str, int]:
        """The part that a sample is of, and its number there."""
        number = range(len(self))[index]
        start = 0
        for part, end in zip(self.parts, self._ends, strict=True):
            if number < end:
                return part, number - start
            start = end
        raise AssertionError  # the last part ends with the last number


class Items(torch.utils.data.Dataset[Item]):
    """Crops of chosen samples under a recipe.

    Item (epoch, n) is a function of the samples, the recipe and the seed: the same in whatever
    process, batch or order it is asked for. Ground truth is made for the whole image, at the map's
    resolution, and cut with it: crops begin and end at multiples of the stride. Images whose sides
    are no such multiples lose their last rows and columns; of crops that are larger than their
    image the rest is black and empty. Heads outside a region of interest have no density, and
    targets nothing outside it.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        indices: Sequence[int],
        recipe: Recipe,
        stride: int,
        *,
        seed: int,
        ablation: Ablation | None = None,
    ) -> None:
        self.samples, self.indices, self.recipe = samples, list(indices), recipe
        self.stride, self.seed, self.ablation = stride, seed, ablation
        self.step = math.lcm(stride, recipe.crop.multiple)
        self._kept: OrderedDict[int, tuple[str, Tensor, Tensor, Tensor]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        repeats = int(str(self.recipe.augmentation.get("repeats_per_epoch", 1)))
        return len(self.indices) * self.recipe.crop.number * repeats

    def order(self, epoch: int) -> list[int]:
        """Numbers of an epoch's items in the order they are trained in."""
        stream = Stream(self.seed, "train, order", step=epoch)
        keys = stream.words(len(self))
        return sorted(range(len(self)), key=lambda n: (int(keys[n]), n))

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, number = key
        index = self.indices[number % len(self.indices)]
        name, image, target, points = self._whole(index)
        stream = Stream(
            self.seed, "train, crop", image=index, step=epoch, draw=number // len(self.indices)
        )
        crop = self.recipe.crop
        if crop.kind == "scaled":
            image, target, points = self._scaled(image, points, crop, stream)
        else:
            image, target, points = self._cut(image, target, points, crop, stream)
        if float(stream.uniform(0.0, 1.0)) < self.recipe.flip:
            image, target = image.flip(2), target.flip(2)
            points = points.clone()
            points[:, 0] = image.shape[2] - 1e-9 - points[:, 0]
        image = augmented(image, self.recipe.augmentation, stream)
        ablated = self._ablated(image, key)
        return Item(name, image, target.contiguous(), points, ablated, number)

    def _ablated(self, image: Tensor, key: tuple[int, int]) -> Tensor | None:
        """Every sample is ablated anew in every epoch."""
        rule = self.ablation
        if rule is None or key[0] < rule.warmup:
            return None
        seed = int(Stream(self.seed, "train, ablation", step=key[0], draw=key[1]).words(1)[0])
        return ops.ablate(
            image[None].clamp(0.0, 1.0).contiguous(), rule.k, seed=seed,
            fill=torch.tensor(rule.fill), unit=rule.unit,
        )[0]  # fmt: skip

    def _whole(self, index: int) -> tuple[str, Tensor, Tensor, Tensor]:
        """Name, image, target and points of a sample; kept, as far as memory allows.

        The image in 8 bits where that loses nothing: it is what is cut out that becomes float.
        """
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        sample = self.samples[index]
        sides = [size // self.step * self.step for size in sample.image.shape[1:]]
        if min(sides) == 0:
            raise ValueError(
                f"{sample.name}: images must be at least {self.step}x{self.step} pixels, got "
                f"{sample.image.shape[1]}x{sample.image.shape[2]}"
            )
        image = sample.image[:, : sides[0], : sides[1]]
        whole = self._target(sample, self._rule(index))
        target = whole[:, : sides[0] // self.stride, : sides[1] // self.stride]
        kept = (sample.name, _stored(image), target.contiguous(), sample.points)
        self._kept[index] = kept
        self._bytes += _size(kept)
        while self._bytes > _CACHE and len(self._kept) > 1:
            self._bytes -= _size(self._kept.popitem(last=False)[1])
        return kept

    def _rule(self, index: int) -> str:
        """The ground truth of a sample: its own data set's, where several are joined."""
        samples = self.samples
        return samples.rule(index) if isinstance(samples, Joined) else self.recipe.density[""]

    def _target(self, sample: Sample, rule: str) -> Tensor:
        """[1,h,w] people per cell of a whole image."""
        shape, how = (sample.image.shape[1], sample.image.shape[2]), self.recipe.down_sampling
        if self.recipe.crop.kind == "scaled" or rule == "dots":
            cells = _dots(sample.points, shape, self.stride)
        else:
            full = density(sample.points, shape, recipe=rule)
            if sample.mask is not None:
                full = full * sample.mask
            if how in (None, "sum") or self.stride == 1:
                cells = _block_sums(full, self.stride)
            else:
                cells = downsample(full, str(how))
        return cells[None]

    def _cut(
        self, image: Tensor, target: Tensor, points: Tensor, crop: Crop, stream: Stream
    ) -> tuple[Tensor, Tensor, Tensor]:
        height, width = image.shape[1:]
        sides = _sides(crop, (height, width), self.step)
        room = [(n - side) // self.step + 1 for n, side in zip((height, width), sides, strict=True)]
        top, left = (int(stream.integers(max(1, free))) * self.step for free in room)
        if crop.kind == "quadrant":  # one of four corners
            top, left = (
                0 if stream.integers(2) == 0 else n - side
                for n, side in zip((height, width), sides, strict=True)
            )
        bottom, right = top + sides[0], left + sides[1]
        s = self.stride
        image = _as_float(image[:, top:bottom, left:right])
        target = target[:, top // s : bottom // s, left // s : right // s]
        beyond = (0, sides[1] - image.shape[2], 0, sides[0] - image.shape[1])
        if any(beyond):
            image = functional.pad(image, beyond)
            target = functional.pad(target, (0, beyond[1] // s, 0, beyond[3] // s))
        return image, target, _within(points, top, left, sides)

    def _scaled(
        self, image: Tensor, points: Tensor, crop: Crop, stream: Stream
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A crop of a random size, resized to the recipe's; its heads as dots."""
        assert crop.size is not None
        height, width = image.shape[1:]
        wanted = float(stream.uniform(*crop.scale))
        scale = min(wanted, height / crop.size[0], width / crop.size[1])
        sides = [max(1, int(side * scale)) for side in crop.size]
        top = int(stream.integers(height - sides[0] + 1))
        left = int(stream.integers(width - sides[1] + 1))
        part = _as_float(image[:, top : top + sides[0], left : left + sides[1]])
        resized = functional.interpolate(
            part[None], crop.size, mode="bicubic", antialias=True, align_corners=False
        )[0].clamp(0.0, 1.0)
        inside = _within(points, top, left, sides)
        ratio = [crop.size[1] / sides[1], crop.size[0] / sides[0]]
        inside = inside * torch.tensor(ratio, dtype=torch.float64)
        return resized, _dots(inside, crop.size, self.stride)[None], inside


def _sides(crop: Crop, shape: tuple[int, int], step: int) -> tuple[int, int]:
    """Height and width of a crop in an image of ``shape``, multiples of ``step``."""
    if crop.kind == "whole":
        return shape
    if crop.kind == "fixed":
        assert crop.size is not None
        return max(step, crop.size[0] // step * step), max(step, crop.size[1] // step * step)
    part = 4 if crop.kind == "quarter_sides" else 2
    return max(step, shape[0] // part // step * step), max(step, shape[1] // part // step * step)


def _within(points: Tensor, top: int, left: int, sides: Sequence[int]) -> Tensor:
    moved = points - torch.tensor([left, top], dtype=torch.float64)
    inside = (moved >= 0).all(1) & (moved[:, 0] < sides[1]) & (moved[:, 1] < sides[0])
    return moved[inside]


def _dots(points: Tensor, shape: tuple[int, int], stride: int) -> Tensor:
    """[h,w] heads per cell."""
    rows, columns = shape[0] // stride, shape[1] // stride
    cells = torch.zeros(rows * columns)
    x, y = (points[:, axis].div(stride).floor().long() for axis in (0, 1))
    inside = (x >= 0) & (y >= 0) & (x < columns) & (y < rows)
    return cells.index_add_(
        0, (y * columns + x)[inside], torch.ones(int(inside.sum()))
    ).reshape(rows, columns)  # fmt: skip


def _block_sums(full: Tensor, stride: int) -> Tensor:
    rows, columns = full.shape[0] // stride, full.shape[1] // stride
    whole = full[: rows * stride, : columns * stride]
    return whole.reshape(rows, stride, columns, stride).sum((1, 3))


def _stored(image: Tensor) -> Tensor:
    """An image in 8 bits, or a copy where that would lose something.

    Piece by piece: what fits into the cache is converted and compared there.
    """
    stored = torch.empty(image.shape, dtype=torch.uint8)
    pieces = (torch.split(one.reshape(-1), _PIECE) for one in (image.contiguous(), stored))
    for piece, into in zip(*pieces, strict=True):
        levels = (piece * 255.0).round_()
        into.copy_(levels)
        if not torch.equal(levels.div_(255.0), piece):
            return image.clone()
    return stored


def _as_float(stored: Tensor) -> Tensor:
    return stored.float() / 255.0 if stored.dtype == torch.uint8 else stored


def _size(kept: tuple[str, Tensor, Tensor, Tensor]) -> int:
    return sum(part.numel() * part.element_size() for part in kept[1:])
