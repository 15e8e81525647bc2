"""Training items: crops of images with their ground truth, each a function of its number alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import attrgetter
from typing import overload

import torch
from torch import Tensor
from torch.nn import functional

from pycc import ops
from pycc.data.cache import LastUsed
from pycc.data.scaled import resized_region
from pycc.grid import cell_weight
from pycc.models.heads import Heads
from pycc.models.recipe import Crop, Recipe
from pycc.random import Stream
from pycc.train import truth
from pycc.train.cache import CachedSample, as_float, stored
from pycc.types import Sample


@dataclass(frozen=True)
class Ablation:
    """Ablation of an image: k random pixels or array entries are kept, the rest is one colour."""

    k: int
    """Pixels or entries of the whole image that are kept; a crop has those that lie in it."""
    unit: str
    fill: tuple[float, float, float]
    warmup: int
    """Epochs before it begins."""

    @property
    def channels(self) -> int:
        """Entries of a pixel that are kept or dropped independently."""
        return 3 if self.unit == "element" else 1


@dataclass(frozen=True, eq=False)
class Item:
    """One crop."""

    name: str
    image: Tensor
    """[3,h,w] float32, RGB in [0,1] (some augmentations leave that range)."""
    target: Tensor
    """[1,h//s,w//s] float32, people per cell."""
    points: Tensor
    """[M,2] float64 (x, y), pixels of the crop."""
    ablated: Tensor | None = None
    """The ablated image [3,h,w], if the recipe ablates."""
    number: int = 0
    """Its number in its epoch."""
    region: Tensor | None = None
    """[1,h//s,w//s] float32, the share of each cell in the region of interest; None: all of it."""
    heads: Heads | None = None
    """The heads that it is counted for, if the recipe has boxes for them."""


@dataclass(frozen=True, eq=False)
class _Part:
    """A crop of an image, and its place in the image."""

    image: Tensor
    target: Tensor
    points: Tensor
    region: Tensor | None
    corner: tuple[int, int]
    """Row and column of its first pixel in the image."""
    shape: tuple[int, int]
    """Height and width of the image, at the part's scale."""
    heads: Heads | None = None


class Joined(Sequence[Sample]):
    """Several data sets as one; each keeps a ground truth of its own.

    ``parts`` are the data sets by name; a sample's name is that of its part, a slash, and its name
    there. ``rules`` are the parts' ground truths: recipes of ``pycc.data.density``, or ``"dots"``.
    They depend on the model: ``pycc.train.config.with_own_truths`` finds them. ValueError for no
    part, and for rules that are not those of the parts.
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
        """Head annotations [N,2] of a sample, without loading its pixels if the data set allows."""
        part, place = self._place(index)
        heads = getattr(self.parts[part], "points", None)
        points: Tensor = self.parts[part][place].points if heads is None else heads(place)
        return points

    def rule(self, index: int) -> str:
        """The ground truth of a sample's data set; ValueError if none was given."""
        if self.rules is None:
            raise ValueError(
                f"train: {self.name}: joined data sets need a ground truth each; take "
                "pycc.train.config.with_own_truths"
            )
        return self.rules[self._place(index)[0]]

    def _place(self, index: int) -> tuple[str, int]:
        """The part that a sample belongs to, and its number there."""
        number = range(len(self))[index]
        start = 0
        for part, end in zip(self.parts, self._ends, strict=True):
            if number < end:
                return part, number - start
            start = end
        raise AssertionError  # the last part ends with the last number


class Items(torch.utils.data.Dataset[Item]):
    """Crops of chosen samples under a recipe.

    Item (epoch, n) is a function of the samples, the recipe and the seed: the same in every
    process, batch and order. Ground truth is made for the whole image, at the map's resolution, and
    cut with it: crops begin and end at multiples of the stride. Images whose sides are not such
    multiples lose their last rows and columns; a crop that is larger than its image is black and
    empty beyond it. Heads and density outside a region of interest are dropped, and an item's
    ``region`` is the share of each cell that counts.

    ``cache`` is the number of gigabytes of images and truths that are kept. ValueError for crops
    whose sides are not such multiples.

    An ablation keeps k pixels of the whole image, as in tests: a crop shows those that lie in it. A
    crop of another scale is cut from the whole image at that scale.
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
        cache: float = 2.0,
    ) -> None:
        self.samples, self.indices, self.recipe = samples, list(indices), recipe
        self.stride, self.seed, self.ablation = stride, seed, ablation
        self.step = math.lcm(stride, recipe.crop.multiple)
        self._cache: LastUsed[int, CachedSample] = LastUsed(cache * 2**30, attrgetter("size"))
        size = recipe.crop.size
        if recipe.crop.kind == "fixed" and size is not None and any(n % self.step for n in size):
            raise ValueError(
                f"train: sides of crops must be multiples of {self.step} pixels, got "
                f"{size[0]}x{size[1]}"
            )

    def __len__(self) -> int:
        return len(self.indices) * self.recipe.crop.number * self.recipe.repeats

    def order(self, epoch: int) -> list[int]:
        """Numbers of an epoch's items, in training order."""
        stream = Stream(self.seed, "train, order", step=epoch)
        keys = stream.words(len(self))
        return sorted(range(len(self)), key=lambda n: (int(keys[n]), n))

    def sides(self, shape: Sequence[int]) -> tuple[int, int]:
        """Height and width of the crops of an image of ``shape`` (H, W)."""
        crop = self.recipe.crop
        if crop.kind == "scaled":
            assert crop.size is not None
            return crop.size
        return _sides(crop, self._cut_sides(shape), self.step)

    def smallest(self, shape: Sequence[int]) -> tuple[int, int]:
        """Height and width of an image of ``shape`` (H, W) at the smallest scale in training."""
        crop = self.recipe.crop
        scale = crop.scale[1] if crop.kind == "scaled" else 1.0
        return int(shape[0] / scale), int(shape[1] / scale)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, number = key
        index = self.indices[number % len(self.indices)]
        sample = self._cache.get(index, self._cached)
        stream = Stream(
            self.seed, "train, crop", image=index, step=epoch, draw=number // len(self.indices)
        )
        crop = self.recipe.crop
        part = (self._scaled if crop.kind == "scaled" else self._cut)(sample, crop, stream)
        image, target, region = part.image, part.target, part.region
        points, heads, kept = part.points, part.heads, self._kept(part, key)
        if float(stream.uniform(0.0, 1.0)) < self.recipe.flip:
            image, target = image.flip(2), target.flip(2)
            region, kept = (None if t is None else t.flip(2) for t in (region, kept))
            points = points.clone()
            points[:, 0] = image.shape[2] - 1e-9 - points[:, 0]
            heads = None if heads is None else heads.flipped(image.shape[2])
        for augmentation in self.recipe.augmentations:
            image = augmentation(image, stream)
        ablated = None
        if kept is not None and self.ablation is not None:
            fill = torch.tensor(self.ablation.fill)[:, None, None]
            ablated = torch.where(kept, image.clamp(0.0, 1.0), fill)
        return Item(sample.name, image, target.contiguous(), points, ablated, number, region, heads)

    def _kept(self, part: _Part, key: tuple[int, int]) -> Tensor | None:
        """Return the pixels, [1,h,w] or [3,h,w] bool, that an image's ablation keeps in a part.

        Every sample is ablated anew in every epoch.
        """
        rule = self.ablation
        if rule is None or key[0] < rule.warmup:
            return None
        seed = int(Stream(self.seed, "train, ablation", step=key[0], draw=key[1]).words(1)[0])
        height, width = part.shape
        entries = ops.ablation_indices(rule.channels * height * width, rule.k, seed=seed)
        plane, pixel = entries // (height * width), entries % (height * width)
        row, column = pixel // width - part.corner[0], pixel % width - part.corner[1]
        kept = torch.zeros(rule.channels, *part.image.shape[1:], dtype=torch.bool)
        inside = (row >= 0) & (column >= 0) & (row < kept.shape[1]) & (column < kept.shape[2])
        kept[plane[inside], row[inside], column[inside]] = True
        return kept

    def _cut_sides(self, shape: Sequence[int]) -> tuple[int, int]:
        return shape[0] // self.step * self.step, shape[1] // self.step * self.step

    def _cached(self, index: int) -> CachedSample:
        """A sample, cut to whole cells, with its truth; in 8 bits if that loses nothing."""
        sample = self.samples[index]
        shape = (sample.image.shape[1], sample.image.shape[2])
        sides = self._cut_sides(shape)
        if min(sides) == 0:
            raise ValueError(
                f"{sample.name}: images must be at least {self.step}x{self.step} pixels, got "
                f"{shape[0]}x{shape[1]}"
            )
        rule = "dots" if self.recipe.crop.kind == "scaled" else self._rule(index)
        target = truth.target(
            sample, sides, self.stride, rule=rule, down_sampling=self.recipe.down_sampling
        )
        points, rule_of_boxes = truth.heads(sample), self.recipe.boxes.get("")
        return CachedSample(
            sample.name,
            stored(sample.image[:, : sides[0], : sides[1]]),
            target.contiguous(),
            points,
            None if sample.roi is None else sample.roi[: sides[0], : sides[1]],
            shape,
            None if rule_of_boxes is None else truth.box_sides(points, rule_of_boxes),
        )

    def _rule(self, index: int) -> str:
        """The ground truth of a sample: that of its own data set if several are joined."""
        samples = self.samples
        return samples.rule(index) if isinstance(samples, Joined) else self.recipe.density[""]

    def _cut(self, sample: CachedSample, crop: Crop, stream: Stream) -> _Part:
        height, width = sample.image.shape[1:]
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
        image = as_float(sample.image[:, top:bottom, left:right])
        target = sample.target[:, top // s : bottom // s, left // s : right // s]
        region = None
        if sample.roi is not None:
            region = cell_weight(
                sample.roi[top:bottom, left:right], (target.shape[1], target.shape[2]), s
            )[None]
        beyond = (0, sides[1] - image.shape[2], 0, sides[0] - image.shape[1])
        if any(beyond):
            cells = (0, beyond[1] // s, 0, beyond[3] // s)
            image, target = functional.pad(image, beyond), functional.pad(target, cells)
            region = None if region is None else functional.pad(region, cells)
        points = _within(sample.points, top, left, sides)
        heads = None
        if sample.boxes is not None:
            rule = self.recipe.boxes[""]
            heads = truth.boxed(sample.points, sample.boxes, rule, (top, left), sides, sample.shape)
        return _Part(image, target, points, region, (top, left), sample.shape, heads)

    def _scaled(self, sample: CachedSample, crop: Crop, stream: Stream) -> _Part:
        """A crop of a random size, resized to the recipe's; its heads as dots."""
        assert crop.size is not None
        height, width = sample.image.shape[1:]
        wanted = float(stream.uniform(*crop.scale))
        scale = min(wanted, height / crop.size[0], width / crop.size[1])
        sides = [max(1, int(side * scale)) for side in crop.size]
        top = int(stream.integers(height - sides[0] + 1))
        left = int(stream.integers(width - sides[1] + 1))
        part = as_float(sample.image[:, top : top + sides[0], left : left + sides[1]])
        resized = functional.interpolate(
            part[None], crop.size, mode="bicubic", antialias=True, align_corners=False
        )[0].clamp(0.0, 1.0)
        down, across = crop.size[0] / sides[0], crop.size[1] / sides[1]
        points = _within(sample.points, top, left, sides)
        points = points * torch.tensor([across, down], dtype=torch.float64)
        target = truth.dots(points, crop.size, self.stride)[None]
        region = None
        if sample.roi is not None:
            roi = sample.roi[top : top + sides[0], left : left + sides[1]]
            roi = resized_region(roi, points, crop.size)
            region = cell_weight(roi, (target.shape[1], target.shape[2]), self.stride)[None]
        shape = (round(sample.shape[0] * down), round(sample.shape[1] * across))
        corner = (
            min(round(top * down), shape[0] - crop.size[0]),
            min(round(left * across), shape[1] - crop.size[1]),
        )
        return _Part(resized, target, points, region, corner, shape)


def _sides(crop: Crop, shape: tuple[int, int], step: int) -> tuple[int, int]:
    """Height and width of a crop in an image of ``shape``, multiples of ``step``."""
    if crop.kind == "whole":
        return shape
    if crop.kind == "fixed":
        assert crop.size is not None
        return crop.size
    part = 4 if crop.kind == "quarter_sides" else 2
    return max(step, shape[0] // part // step * step), max(step, shape[1] // part // step * step)


def _within(points: Tensor, top: int, left: int, sides: Sequence[int]) -> Tensor:
    moved = points - torch.tensor([left, top], dtype=torch.float64)
    inside = (moved >= 0).all(1) & (moved[:, 0] < sides[1]) & (moved[:, 1] < sides[0])
    return moved[inside]
