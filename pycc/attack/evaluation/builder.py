"""Build the problems that attacks work on, from images and places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pycc.attack.evaluation.cells import cell_density
from pycc.attack.evaluation.checked import CheckedImage, SampleCache
from pycc.attack.patch import Place
from pycc.attack.problem import AttackedRegion, Problem
from pycc.checks import naming
from pycc.counters import like_of
from pycc.data import quantize
from pycc.data.cache import LastUsed
from pycc.defense.base import alarms_of
from pycc.grid import cell_weight, check_cells, window_field
from pycc.local import Box, Local, TracedGraph, aligned, influence
from pycc.types import Counter, Sample

if TYPE_CHECKING:
    from pycc.attack.base import PatchAttack

_KEPT = 128
"""The number of true densities that are kept, the last used ones."""


class Member:
    """A counter of a run: victim, surrogate, or both."""

    def __init__(self, counter: Counter, label: str | None = None) -> None:
        self.counter = counter
        self.label = label
        """Its name in a run of several counters."""
        self.traced = TracedGraph(counter)
        self.like = like_of(counter)
        """A tensor of the counter's device and type."""

    def map(self, image: Tensor, name: str) -> Tensor:
        """The map [1,1,h,w] of a full image [3,H,W], checked."""
        with torch.no_grad(), naming(name, image.shape):
            cells = self.counter(image.to(self.like)[None])
        if not torch.isfinite(cells).all():
            raise ValueError(f"{name}: the counter's map must be finite, got NaN or infinity")
        check_cells(name, cells.shape[2:], image.shape[1:], self.counter.stride)
        return cells

    def alarm(self, image: Tensor) -> bool | None:
        """Whether an image [3,H,W] raises an alarm of a defense; None for counters without one."""
        with torch.no_grad():
            raised = alarms_of(self.counter, image.to(self.like)[None])
        return None if raised is None else bool(raised[0])

    def count(self, cells: Tensor, sample: Sample) -> float:
        """The people of a map [1,1,h,w] that lie in a sample's region of interest."""
        weight = cell_weight(sample.roi, cells.shape[-2:], self.counter.stride)
        return float((cells.double().cpu() * weight.double()).sum())

    def boxes(self, extent: Box, shape: tuple[int, int]) -> tuple[Box, Box]:
        """The window of an image that an extent needs, and the box inside it that may change."""
        stride = self.counter.stride
        changed = aligned(extent, shape, stride)
        field = window_field(self.counter)
        window = influence(changed, shape, stride=stride, receptive_field=field)
        return window, changed.moved(-window.top, -window.left)


def cells_of(box: Box, stride: int, cells: Box) -> Box:
    """The cells that a box of pixels touches, numbered from the first one of ``cells``."""
    touched = Box(
        box.top // stride, box.left // stride, -(-box.bottom // stride), -(-box.right // stride)
    )
    return touched.intersection(cells).moved(-cells.top, -cells.left)


class CleanCounts:
    """The counts of clean images by each counter, each computed once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str | None, str], tuple[float, tuple[int, int]]] = {}

    def remember(self, label: str | None, name: str, count: float, cells: tuple[int, int]) -> None:
        """Keep a count that is known already."""
        self._known[label, name] = count, cells

    def __call__(
        self, member: Member, item: CheckedImage, samples: SampleCache
    ) -> tuple[float, tuple[int, int]]:
        """The count of the full image and its number of cells (h, w)."""
        key = member.label, item.name
        if key not in self._known:
            sample = samples[item.index]
            cells = member.map(quantize(sample.image), item.name)
            count = member.count(cells, sample)
            self.remember(member.label, item.name, count, (cells.shape[-2], cells.shape[-1]))
        return self._known[key]


class ProblemBuilder:
    """Build the problems of attacks on the samples of one data set, for a set of counters."""

    def __init__(
        self,
        members: Sequence[Member],
        samples: SampleCache,
        clean: CleanCounts,
        *,
        combine: str = "mean",
    ) -> None:
        self.members, self.samples, self.combine = tuple(members), samples, combine
        self._clean = clean
        self._densities: LastUsed[tuple[int, int], Tensor] = LastUsed(_KEPT, lambda _: 1)

    def kind(self, attack: PatchAttack, item: CheckedImage, place: Place) -> tuple[object, ...]:
        """Return the properties that images of one problem must share."""
        boxes = [member.boxes(attack.extent(place), item.shape) for member in self.members]
        return place.side, *((window.shape, inner) for window, inner in boxes)

    def pixels(self, attack: PatchAttack, item: CheckedImage, place: Place) -> int:
        """Pixels of the windows that a step computes."""
        windows = (m.boxes(attack.extent(place), item.shape)[0].shape for m in self.members)
        return sum(height * width for height, width in windows)

    def problem(
        self, attack: PatchAttack, items: Sequence[CheckedImage], places: Sequence[Place]
    ) -> Problem:
        """The problem of images that are of one kind."""
        extents = [attack.extent(place) for place in places]
        regions = [self._region(attack, m, items, places, extents) for m in self.members]
        return Problem(
            regions,
            tuple(item.index for item in items),
            places[0].side,
            combine=self.combine,
            moved=partial(self.moved, attack, items),
            shapes=[item.shape for item in items],
        )

    def moved(
        self, attack: PatchAttack, items: Sequence[CheckedImage], places: Sequence[Place]
    ) -> list[Problem]:
        """The problems of images at places of any kind: one, or one each if kinds differ."""
        kinds = {self.kind(attack, i, p) for i, p in zip(items, places, strict=True)}
        if len(kinds) == 1:
            return [self.problem(attack, items, places)]
        return [self.problem(attack, [i], [p]) for i, p in zip(items, places, strict=True)]

    def full_image(self, attack: PatchAttack, item: CheckedImage) -> Problem:
        """The problem in which all pixels of an image may change."""
        height, width = item.shape
        everything, place = Box(0, 0, height, width), Place(1, (0, 0))
        regions = [self._region(attack, m, [item], [place], [everything]) for m in self.members]
        regions = [replace(region, own=None) for region in regions]  # there are no others
        return Problem(regions, (item.index,), 1, combine=self.combine)

    def _region(
        self,
        attack: PatchAttack,
        member: Member,
        items: Sequence[CheckedImage],
        places: Sequence[Place],
        extents: Sequence[Box],
    ) -> AttackedRegion:
        boxes = [member.boxes(e, i.shape) for e, i in zip(extents, items, strict=True)]
        inner = boxes[0][1]
        samples = [self.samples[item.index] for item in items]
        windows = torch.stack(
            [
                quantize(sample.image[:, *window.slices]).to(member.like)
                for sample, (window, _) in zip(samples, boxes, strict=True)
            ]
        )
        local = Local(member.counter, windows, inner, traced=member.traced)
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
            if attack.goal.needs_density:
                density.append(self._density(item, shape, stride)[None, *part.slices])
            # An image whose region of interest is empty has no loss, rather than one of 0 / 0.
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

        return AttackedRegion(
            local=local,
            pixels=windows[..., *inner.slices].contiguous(),
            top_left=torch.tensor(corners).to(member.like.device),
            density=put(torch.stack(density) if density else torch.zeros_like(weights)),
            weight=put(weights),
            cells=put(torch.stack(cells)),
            count=put(torch.tensor([count for count, _ in known], dtype=torch.float64)),
            truth=put(truth),
            own=cells_of(inner, stride, local.cells),
        )

    def _density(self, item: CheckedImage, cells: tuple[int, int], stride: int) -> Tensor:
        """The true density of a full image, kept because several attacks and steps need it."""
        return self._densities.get(
            (item.index, stride), lambda _: cell_density(self.samples[item.index], cells, stride)
        )
