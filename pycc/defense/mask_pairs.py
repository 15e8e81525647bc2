"""Counts of an image under one or two masks, for every pair of masks.

A set of masks of which at least one hides the patch, wherever it lies, is the method of
PatchCleanser (Xiang, Mahloujifar and Mittal, USENIX Security 2022) for classifiers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pycc.checks import check_image, check_whole
from pycc.counters import check_eval
from pycc.defense.retained import BUDGET, check_fill
from pycc.defense.windows import check_patch
from pycc.grid import field_margin, window_field
from pycc.local import Box, influence
from pycc.ranks import exact
from pycc.types import Counter, Progress

_OP = "two_mask"


def check_masks(masks: int | tuple[int, int]) -> tuple[int, int]:
    """Return the rows and columns of masks; raise unless given a square number or a pair."""
    if isinstance(masks, tuple) and len(masks) == 2:
        rows, columns = (check_whole(_OP, "masks", number, 1) for number in masks)
        return rows, columns
    number = check_whole(_OP, "masks", masks, 1)
    side = math.isqrt(number)
    if side * side != number:
        raise ValueError(f"{_OP}: masks must be a square number or (rows, columns), got {number}")
    return side, side


def mask_boxes(
    shape: tuple[int, int], *, patch_size: int, masks: int | tuple[int, int] = 36
) -> list[Box]:
    """Compute boxes of masks such that one hides the patch completely, wherever it lies.

    With m masks along an axis of n pixels and a patch of p pixels, masks begin every
    t = ceil((n - p + 1) / m) pixels and are p + t - 1 long, clipped by the image: the mask that
    begins at j t hides the patches that begin at j t to j t + t - 1. Masks that would begin after
    the last place of a patch are left out, so that there may be fewer than requested.

    Args:
        shape: (H, W) of the image, in pixels.
        patch_size: side of the patch, in pixels.
        masks: number of masks, a square number, or (rows, columns).

    Raises:
        ValueError: a patch that is larger than the image, or another number of masks.

    Example:
        >>> from pycc.defense.mask_pairs import mask_boxes
        >>> [box.slices[1] for box in mask_boxes((8, 16), patch_size=8, masks=(1, 3))]
        [slice(0, 10, None), slice(3, 13, None), slice(6, 16, None)]
    """
    check_patch(_OP, patch_size, shape)
    rows, columns = (
        _spans(size, patch_size, number)
        for size, number in zip(shape, check_masks(masks), strict=True)
    )
    return [Box(top, left, bottom, right) for top, bottom in rows for left, right in columns]


def _spans(size: int, patch_size: int, masks: int) -> list[tuple[int, int]]:
    """Return the first pixel and the one after the last of each mask along one axis."""
    places = size - patch_size + 1
    step = -(-places // masks)
    return [(start, min(start + patch_size + step - 1, size)) for start in range(0, places, step)]


def hidden(image: Tensor, boxes: Sequence[Box], colour: Tensor) -> Tensor:
    """Return the image [3,H,W] with boxes of one colour [3]; differentiable in the image."""
    occlusion = torch.zeros(image.shape[1:], dtype=torch.bool, device=image.device)
    for box in boxes:
        occlusion[box.slices] = True
    return torch.where(occlusion, colour.to(image)[:, None, None], image)


@exact()
def two_mask_table(
    counter: Counter,
    image: Tensor,
    *,
    patch_size: int,
    masks: int | tuple[int, int] = 36,
    fill: float | Sequence[float],
    budget: int = BUDGET,
    progress: Progress | None = None,
) -> Tensor:
    """Count an image under masks m and m' together, for all pairs of masks; without gradient.

    A counter with a bounded receptive field is evaluated only in windows around the masks: all
    other cells keep their values of the clean image, and if no cell depends on both masks, the
    change by both is the sum of the changes by each. The results are the same up to the rounding of
    sums. Other counters are evaluated on full images.

    Args:
        counter: in eval mode, on the device of the image.
        image: [3,H,W], RGB in [0,1].
        patch_size: side of the patch in pixels, at most the image's.
        masks: number of masks, see :func:`mask_boxes`.
        fill: the masks' colour, one number or three (RGB) in [0,1].
        budget: number of pixels that are counted at once, which bounds the memory.
        progress: called with the number of finished pairs and the total.

    Returns:
        [M,M] float64, people, symmetric, on the device of the image; the diagonal has the counts
        with one mask. M is the number of :func:`mask_boxes`.

    Raises:
        ValueError, TypeError: a bad argument, or a counter in train mode.

    Example:
        >>> import torch
        >>> from pycc import models
        >>> from pycc.defense.mask_pairs import two_mask_table
        >>> pool = torch.nn.AvgPool2d(8).eval()  # one person per white cell
        >>> counter = models.wrap(pool, preprocess=lambda x: x[:, :1], stride=8, receptive_field=8)
        >>> image = torch.ones(3, 8, 24)
        >>> two_mask_table(counter, image, patch_size=8, masks=(1, 3), fill=0.0).tolist()
        [[1.375, 0.625, 0.0], [0.625, 1.375, 0.75], [0.0, 0.75, 1.5]]
    """
    check_image(_OP, image)
    check_eval(_OP, counter)
    check_whole(_OP, "budget", budget, 1)
    colour = torch.tensor(check_fill(_OP, fill), device=image.device)
    boxes = mask_boxes((image.shape[1], image.shape[2]), patch_size=patch_size, masks=masks)
    with torch.no_grad():
        table = _Table(counter, image, boxes, colour, budget)
        return table.filled(progress)


@dataclass(frozen=True)
class _Task:
    """A pair of masks whose count must be computed."""

    pair: tuple[int, int]
    window: Box
    cells: Box
    """The cells of the full map that depend on the masks; the window contains their fields."""


class _Table:
    """One image, its masks, and the map of the image without masks."""

    def __init__(
        self, counter: Counter, image: Tensor, boxes: list[Box], colour: Tensor, budget: int
    ) -> None:
        self._counter, self._image, self._boxes = counter, image, boxes
        self._colour, self._budget = colour, budget
        self._clean = counter(image[None])[0, 0].double()

    def filled(self, progress: Progress | None) -> Tensor:
        """Compute all counts [M,M]."""
        number = len(self._boxes)
        tasks = [self._task(i, j) for i in range(number) for j in range(i, number)]
        needed = [task for task in tasks if task is not None]
        change = self._clean.new_zeros(number, number)
        known = len(tasks) - len(needed)
        for batch in self._batches(needed):
            values = self._changes(batch)
            for task, value in zip(batch, values, strict=True):
                change[task.pair] = value
            known += len(batch)
            if progress is not None:
                progress(known, len(tasks), "pairs of masks")
        single = change.diagonal()
        apart = torch.ones_like(change, dtype=torch.bool)
        for task in needed:
            apart[task.pair] = False
        upper = torch.where(apart, single[:, None] + single, change).triu()
        return self._clean.sum() + upper + upper.triu(1).T

    def _task(self, i: int, j: int) -> _Task | None:
        """Return the task of a pair; None if its change is the sum of the changes by each mask."""
        shape = self._image.shape[1], self._image.shape[2]
        cells = Box(0, 0, *self._clean.shape)
        field, stride = self._counter.receptive_field, self._counter.stride
        if field is None:
            return _Task((i, j), Box(0, 0, *shape), cells)
        affected = [self._affected(self._boxes[number], field) for number in (i, j)]
        if affected[0].intersection(affected[1]).empty:
            return None
        both = self._boxes[i].union(self._boxes[j])
        whole = window_field(self._counter)
        window = influence(both, shape, stride=stride, receptive_field=whole)
        return _Task((i, j), window, self._affected(both, field))

    def _affected(self, box: Box, field: int) -> Box:
        """Return the cells whose field, centred on its cell, meets a box of pixels."""
        stride = self._counter.stride
        margin = field_margin(stride, field)
        affected = Box(
            (box.top - margin - stride) // stride + 1,
            (box.left - margin - stride) // stride + 1,
            -(-(box.bottom + margin) // stride),
            -(-(box.right + margin) // stride),
        )
        return affected.clipped((self._clean.shape[0], self._clean.shape[1]))

    def _batches(self, tasks: list[_Task]) -> Iterator[list[_Task]]:
        """Group tasks with windows of equal shape into batches that fit into the budget."""
        groups: dict[tuple[int, int], list[_Task]] = {}
        for task in tasks:
            groups.setdefault(task.window.shape, []).append(task)
        for (height, width), group in groups.items():
            size = max(1, self._budget // (height * width))
            for begin in range(0, len(group), size):
                yield group[begin : begin + size]

    def _changes(self, tasks: list[_Task]) -> list[Tensor]:
        """Compute by how much each pair of masks changes the count."""
        windows = []
        for task in tasks:
            top, left = task.window.top, task.window.left
            boxes = [self._boxes[number].moved(-top, -left) for number in task.pair]
            windows.append(hidden(self._image[:, *task.window.slices], boxes, self._colour))
        changes = []
        for cells, task in zip(self._counter(torch.stack(windows))[:, 0], tasks, strict=True):
            stride = self._counter.stride
            part = task.cells.moved(-(task.window.top // stride), -(task.window.left // stride))
            if part.clipped((cells.shape[0], cells.shape[1])) != part:
                raise ValueError(
                    f"{_OP}: a counter of stride {stride} must give the same cells for a window "
                    f"as for the image, got {list(cells.shape)} of window {task.window}"
                )
            after = cells[part.slices].double()
            changes.append(after.sum() - self._clean[task.cells.slices].sum())
        return changes
