"""Checked samples: everything that can be wrong with the input, found before any work is done."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from pycc.data.cache import LastUsed
from pycc.data.dataset import Fingerprint
from pycc.grid import heads_in
from pycc.types import Sample, check_unique, each

if TYPE_CHECKING:
    from pycc.attack.base import PatchAttack


@dataclass(frozen=True)
class CheckedImage:
    """The facts of one checked image, without its pixels."""

    index: int
    """Its position in the data set."""
    name: str
    shape: tuple[int, int]
    """(height, width)."""
    truth: int | None
    """Annotated heads inside the image and its region of interest; None without annotation."""
    content: str = ""
    """A fingerprint of the image alone: the same in two data sets that share it."""
    group: str | None = None
    """The group that its data set puts it in; None if it has no groups."""

    @property
    def heads(self) -> float:
        """The truth as a number; NaN without annotation."""
        return math.nan if self.truth is None else float(self.truth)


@dataclass(frozen=True)
class CheckedSamples:
    """All images of a run, checked, and their ``pycc.data.dataset.data_fingerprint``."""

    items: tuple[CheckedImage, ...]
    fingerprint: dict[str, int | str]


def check_samples(
    samples: Sequence[Sample], attacks: Sequence[PatchAttack], stride: int, *, seed: int
) -> CheckedSamples:
    """Load every image once and check it, and that every patch fits.

    ValueError for an empty data set, a name that occurs twice, an image that is no RGB image of
    [0,1] or smaller than a cell of the counter's ``stride``, a patch that does not fit, images of
    which only some are annotated, or an objective that is about heads if none are.
    """
    groups = getattr(samples, "groups", None)
    items: list[CheckedImage] = []
    fine: set[tuple[int, int]] = set()
    content = Fingerprint()
    for index, sample in enumerate(each(samples)):
        pixels = content.add(sample)
        height, width = sample.image.shape[1:]
        if min(height, width) < stride:
            raise ValueError(
                f"{sample.name}: image must have at least one cell of {stride}x{stride} pixels, "
                f"got {height}x{width}"
            )
        try:
            for number, attack in enumerate(attacks):
                side = attack.place((height, width), seed=seed, image=index).side
                if (number, side) not in fine:
                    attack.check_side(side)
                    fine.add((number, side))
        except ValueError as error:
            raise ValueError(f"{sample.name}: {error}") from None
        truth = len(counted_points(sample)) if sample.annotated else None
        group = None if groups is None else groups[index]
        items.append(CheckedImage(index, sample.name, (height, width), truth, pixels, group))
    if not items:
        raise ValueError("attack: samples must be at least one, got none")
    check_unique("attack", (item.name for item in items))
    _check_annotation(items, attacks)
    return CheckedSamples(tuple(items), content.json())


def held_out(train: CheckedSamples, test: CheckedSamples) -> CheckedSamples:
    """The training images that are no test images; a warning names each that is left out."""
    tested = {item.content: item.name for item in test.items}
    kept = tuple(item for item in train.items if item.content not in tested)
    if not kept:
        raise ValueError("attack: expected training images, got none that is no test image")
    for item in train.items:
        if item.content in tested:
            warnings.warn(
                f"training image {item.name} is test image {tested[item.content]}: left out",
                stacklevel=2,
            )
    return CheckedSamples(kept, train.fingerprint)


def _check_annotation(items: Sequence[CheckedImage], attacks: Sequence[PatchAttack]) -> None:
    without = [item.name for item in items if item.truth is None]
    if without and len(without) < len(items):
        raise ValueError(
            f"{without[0]}: not annotated, but other images are; expected all to be, or none"
        )
    for attack in attacks:
        if without and attack.goal.needs_heads(attack.aim):
            raise ValueError(
                f"{without[0]}: not annotated, and objective {attack.objective} is about annotated "
                "heads; take over, under, or target with a target count"
            )


def counted_points(sample: Sample) -> Tensor:
    """The head annotations [M,2] (x, y) that count: inside the image and its region of interest.

    Points outside the image are dropped with a warning that counts them. ValueError for a sample
    that is not annotated.
    """
    height, width = sample.image.shape[1:]
    points = sample.points[heads_in(sample.points, (height, width))]
    if len(points) < len(sample.points):
        dropped = len(sample.points) - len(points)
        warnings.warn(f"{sample.name}: {dropped} points outside the image dropped", stacklevel=2)
    return points if sample.roi is None else points[heads_in(points, sample.roi)]


class SampleCache:
    """Samples by position; the last used are kept in memory, up to ``budget`` bytes."""

    def __init__(self, samples: Sequence[Sample], budget: int = 1 << 28) -> None:
        self._samples = samples
        self._kept: LastUsed[int, Sample] = LastUsed(budget, lambda sample: sample.image.nbytes)

    def __getitem__(self, index: int) -> Sample:
        return self._kept.get(index, self._samples.__getitem__)
