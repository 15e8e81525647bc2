"""From images and places to the problems that attacks work on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from pycc.attack.base import PatchAttack
from pycc.attack.cells import cell_density
from pycc.attack.objective import DENSITY
from pycc.attack.patch import Place
from pycc.attack.scenes import Problem, Scenes
from pycc.attack.survey import Item, Shelf
from pycc.checks import naming
from pycc.counters import like_of
from pycc.data import quantize
from pycc.grid import cell_weight
from pycc.local import Box, Local, Wirings, aligned, influence
from pycc.types import Counter

_KEPT = 128
"""Densities that are kept, those last used."""


class Member:
    """A counter of a run: attacked, attacking, or both."""

    def __init__(self, counter: Counter, label: str | None = None) -> None:
        self.counter = counter
        self.label = label
        """Its name in a run of several counters."""
        self.wirings = Wirings(counter)
        self.like = like_of(counter)
        """Of the counter's device and type; what holds no tensors works with what it is given."""

    def map(self, image: Tensor, name: str) -> Tensor:
        """The map [1,1,h,w] of a full image [3,H,W], checked."""
        with torch.no_grad(), naming(name, image.shape):
            cells = self.counter(image.to(self.like)[None])
        if not torch.isfinite(cells).all():
            raise ValueError(f"{name}: the counter's map must be finite, got NaN or infinity")
        stride = self.counter.stride
        for pixels, found in zip(image.shape[1:], cells.shape[2:], strict=True):
            if not pixels // stride <= found <= -(-pixels // stride):
                raise ValueError(
                    f"{name}: a map of stride {stride} must have {pixels // stride} cells "
                    f"for {pixels} pixels, got {list(cells.shape)}"
                )
        return cells

    def boxes(self, extent: Box, shape: tuple[int, int]) -> tuple[Box, Box]:
        """The window of an image that an extent asks for, and the box inside it that may change."""
        stride = self.counter.stride
        changed = aligned(extent, shape, stride)
        field = self.counter.receptive_field
        window = influence(changed, shape, stride=stride, receptive_field=field)
        return window, changed.moved(-window.top, -window.left)


class Clean:
    """What counters say of clean images; remembered."""

    def __init__(self) -> None:
        self._known: dict[tuple[str | None, str], tuple[float, tuple[int, int]]] = {}

    def tell(self, label: str | None, name: str, count: float, cells: tuple[int, int]) -> None:
        """Remember what is known from elsewhere."""
        self._known[label, name] = count, cells

    def __call__(self, member: Member, item: Item, samples: Shelf) -> tuple[float, tuple[int, int]]:
        """The count of the full image and its number of cells (h, w)."""
        key = member.label, item.name
        if key not in self._known:
            sample = samples[item.index]
            cells = member.map(quantize(sample.image), item.name)
            weight = cell_weight(sample.roi, cells.shape[-2:], member.counter.stride)
            count = float((cells.double().cpu() * weight.double()).sum())
            self.tell(member.label, item.name, count, (cells.shape[-2], cells.shape[-1]))
        return self._known[key]


class Stage:
    """Makes the problems of one attack on the samples of one data set."""

    def __init__(
        self,
        members: Sequence[Member],
        samples: Shelf,
        clean: Clean,
        *,
        combine: str = "mean",
    ) -> None:
        self.members, self.samples, self.combine = tuple(members), samples, combine
        self._clean = clean
        self._densities: dict[tuple[int, int], Tensor] = {}

    def kind(self, attack: PatchAttack, item: Item, place: Place) -> tuple[object, ...]:
        """What items must have in common to be one problem."""
        boxes = [member.boxes(attack.extent(place), item.shape) for member in self.members]
        return place.side, *((window.shape, inner) for window, inner in boxes)

    def pixels(self, attack: PatchAttack, item: Item, place: Place) -> int:
        """Pixels of the windows that a step looks at."""
        windows = (m.boxes(attack.extent(place), item.shape)[0].shape for m in self.members)
        return sum(height * width for height, width in windows)

    def problem(
        self, attack: PatchAttack, items: Sequence[Item], places: Sequence[Place]
    ) -> Problem:
        """The problem of items that are of one kind."""
        extents = [attack.extent(place) for place in places]
        scenes = [self._scenes(attack, m, items, places, extents) for m in self.members]
        return Problem(
            scenes,
            tuple(item.index for item in items),
            places[0].side,
            combine=self.combine,
            moved=partial(self.moved, attack, items),
            shapes=[item.shape for item in items],
        )

    def moved(
        self, attack: PatchAttack, items: Sequence[Item], places: Sequence[Place]
    ) -> list[Problem]:
        """The problems of items at places of any kind: one if they are of one kind, or one each."""
        kinds = {self.kind(attack, i, p) for i, p in zip(items, places, strict=True)}
        if len(kinds) == 1:
            return [self.problem(attack, items, places)]
        return [self.problem(attack, [i], [p]) for i, p in zip(items, places, strict=True)]

    def whole(self, attack: PatchAttack, item: Item) -> Problem:
        """The problem in which all pixels of an image may change."""
        height, width = item.shape
        everything, place = Box(0, 0, height, width), Place(1, (0, 0))
        scenes = [self._scenes(attack, m, [item], [place], [everything]) for m in self.members]
        return Problem(scenes, (item.index,), 1, combine=self.combine)

    def _scenes(
        self,
        attack: PatchAttack,
        member: Member,
        items: Sequence[Item],
        places: Sequence[Place],
        extents: Sequence[Box],
    ) -> Scenes:
        boxes = [member.boxes(e, i.shape) for e, i in zip(extents, items, strict=True)]
        inner = boxes[0][1]
        samples = [self.samples[item.index] for item in items]
        windows = torch.stack(
            [
                quantize(sample.image[:, *window.slices]).to(member.like)
                for sample, (window, _) in zip(samples, boxes, strict=True)
            ]
        )
        local = Local(member.counter, windows, inner, wirings=member.wirings)
        stride = member.counter.stride
        known = [self._clean(member, item, self.samples) for item in items]
        density, weight, cells = [], [], []
        for item, sample, (window, _), (_, shape) in zip(items, samples, boxes, known, strict=True):
            part = local.cells.moved(window.top // stride, window.left // stride)
            if part.clipped(shape) != part:
                raise ValueError(
                    f"attack: a counter of stride {stride} must give the same cells for a window "
                    f"as for the image, got {part} of {shape[0]}x{shape[1]}"
                )
            full = cell_weight(sample.roi, shape, stride)
            weight.append(full[None, *part.slices])
            if attack.objective in DENSITY:
                density.append(self._density(item, shape, stride)[None, *part.slices])
            # An image without a region to count in has no loss, rather than one of 0 / 0.
            cells.append(full.sum().clamp(min=1.0))
        weights = torch.stack(weight)
        truth = torch.tensor([item.heads for item in items], dtype=torch.float64)
        corners = [
            (
                place.top_left[0] - window.top - inner.top,
                place.top_left[1] - window.left - inner.left,
            )
            for place, (window, _) in zip(places, boxes, strict=True)
        ]

        def put(tensor: Tensor) -> Tensor:
            return tensor.to(member.like)

        return Scenes(
            local=local,
            pixels=windows[..., *inner.slices].contiguous(),
            top_left=torch.tensor(corners).to(member.like.device),
            density=put(torch.stack(density) if density else torch.zeros_like(weights)),
            weight=put(weights),
            cells=put(torch.stack(cells)),
            count=put(torch.tensor([count for count, _ in known], dtype=torch.float64)),
            truth=put(truth),
        )

    def _density(self, item: Item, cells: tuple[int, int], stride: int) -> Tensor:
        """The true density of a full image, kept: several attacks and steps ask for it."""
        key = item.index, stride
        density = self._densities.pop(key, None)
        if density is None:
            density = cell_density(self.samples[item.index], cells, stride)
        self._densities[key] = density
        if len(self._densities) > _KEPT:
            del self._densities[next(iter(self._densities))]
        return density
