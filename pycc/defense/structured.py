"""Maps of images ablated to bands or blocks, computed as changes of the map of an empty image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from pycc import ops
from pycc.defense.retained import Bands, Batch, Blocks
from pycc.grid import window_field
from pycc.local import Box, Local, TracedGraph, aligned, influence
from pycc.local.box import reached
from pycc.types import Counter


@dataclass(frozen=True)
class _Piece:
    """A retained part of the image, and the window that it can affect."""

    shown: Box
    changed: Box  # ``shown``, extended to the counter's grid
    window: Box

    @property
    def kind(self) -> tuple[tuple[int, int], Box]:
        """The geometry of the piece; pieces of equal kinds are the same in an empty image."""
        return self.window.shape, self.changed.moved(-self.window.top, -self.window.left)


Alike = tuple[tuple[tuple[int, int], Box], ...]
"""The kinds (``_Piece.kind``) of the pieces of a draw."""


def structured(
    counter: Counter,
    image: Tensor,
    kind: Bands | Blocks,
    places: list[tuple[int, int]],
    colour: Tensor,
    budget: int,
) -> Iterator[Batch]:
    """Iterate over the batches that count windows of an image [3,H,W] at ``places`` (y, x).

    ``colour`` is float32 [3]. Draws whose windows are the same in an empty image are batched
    together. Arguments are not checked.
    """
    shape = image.shape[1], image.shape[2]
    window = kind.window(shape)
    pieces = [_pieces(counter, corner, window, shape) for corner in places]
    groups: dict[Alike, list[int]] = {}
    for number, parts in enumerate(pieces):
        groups.setdefault(tuple(part.kind for part in parts), []).append(number)

    def full(rows: list[int], image: Tensor) -> Tensor:
        top_left = torch.tensor([places[row] for row in rows], device=image.device)
        return counter(ops.keep_windows(image[None], top_left, window, fill=colour))

    empty = _EmptyImage(counter, image, colour) if any(groups) else None
    for kinds, numbers in groups.items():
        area = sum(sides[0] * sides[1] for sides, _ in kinds) or shape[0] * shape[1]
        size = max(1, budget // area)
        for begin in range(0, len(numbers), size):
            rows = numbers[begin : begin + size]
            if empty is None or not kinds:
                yield Batch(rows, partial(full, rows))
                continue
            empty.prepare(kinds)
            yield Batch(rows, partial(empty.shown, [pieces[row] for row in rows]))


def _pieces(
    counter: Counter, corner: tuple[int, int], window: tuple[int, int], shape: tuple[int, int]
) -> list[_Piece]:
    """Return the parts of a window that wraps around; none if they must be counted together."""
    field, stride = window_field(counter), counter.stride
    if field is None:
        return []
    rows, columns = (
        [(start, min(start + length, size)), (0, start + length - size)]
        for start, length, size in zip(corner, window, shape, strict=True)
    )
    boxes = [Box(top, left, bottom, right) for top, bottom in rows for left, right in columns]
    boxes = [box for box in boxes if not box.empty]
    windows = [influence(box, shape, stride=stride, receptive_field=field) for box in boxes]
    for number, later in enumerate(windows):
        # The change of a cell that depends on two parts is not the sum of two changes.
        if any(not later.intersection(earlier).empty for earlier in windows[:number]):
            return []
    changed = [aligned(box, shape, stride) for box in boxes]
    return [
        _Piece(box, grid, _steady(grid, shape, stride, field))
        for box, grid in zip(boxes, changed, strict=True)
    ]


def _steady(changed: Box, shape: tuple[int, int], stride: int, field: int) -> Box:
    """Return a window that contains that of ``influence``, of the same shape also near a border.

    A counter is traced once for each shape of window, so that few shapes save time.
    """
    ends = []
    for start, stop, size in zip(
        (changed.top, changed.left), (changed.bottom, changed.right), shape, strict=True
    ):
        first, length = reached(start, stop, stride, field - 1)
        low = min(max(0, first), max(0, (size - length) // stride * stride))
        ends.append((low, size if size - low - length < stride else low + length))
    return Box(ends[0][0], ends[1][0], ends[0][1], ends[1][1])


class _EmptyImage:
    """An image of one colour, and the maps of parts of another image inserted into it."""

    def __init__(self, counter: Counter, image: Tensor, colour: Tensor) -> None:
        self._counter, self._traced = counter, TracedGraph(counter)
        self._colour = colour.to(image)[:, None, None]
        with torch.no_grad():
            self._map = counter(self._colour.expand_as(image)[None].contiguous())
        self._kinds: Alike = ()
        self._locals: list[Local] = []

    def prepare(self, kinds: Alike) -> list[Local]:
        """Return a ``Local`` of an empty window for each kind; those of the last kinds are kept."""
        if kinds != self._kinds:
            self._locals = []
            for sides, box in kinds:
                empty = self._colour.expand(3, *sides)[None].contiguous()
                self._locals.append(Local(self._counter, empty, box, traced=self._traced))
            self._kinds = kinds
        return self._locals

    def shown(self, rows: list[list[_Piece]], image: Tensor) -> Tensor:
        """Compute the maps [n,1,h,w] of the image with each row's pieces, rows of equal kinds."""
        maps = self._map
        for number, local in enumerate(self.prepare(tuple(piece.kind for piece in rows[0]))):
            pieces = [row[number] for row in rows]
            changes = local(torch.stack([self._content(image, p) for p in pieces])) - local.clean
            placed = [
                self._placed(change, local.cells, piece)
                for change, piece in zip(changes, pieces, strict=True)
            ]
            maps = maps + torch.stack(placed)
        return maps

    def _content(self, image: Tensor, piece: _Piece) -> Tensor:
        """Return the pixels [3,h,w] of the changed box, which contains the retained part."""
        pixels = self._colour.expand(3, *piece.changed.shape).clone()
        inner = piece.shown.moved(-piece.changed.top, -piece.changed.left)
        pixels[:, *inner.slices] = image[:, *piece.shown.slices]
        return pixels

    def _placed(self, change: Tensor, cells: Box, piece: _Piece) -> Tensor:
        """Place the change of a window's cells into a map [1,h,w] that is 0 elsewhere."""
        height, width = self._map.shape[-2:]
        stride = self._counter.stride
        cells = cells.moved(piece.window.top // stride, piece.window.left // stride)
        if cells.clipped((height, width)) != cells:
            raise ValueError(
                f"ablated_counts: a counter of stride {stride} must give the same cells for a "
                f"window as for the image, got {cells} of {height}x{width}"
            )
        margins = cells.left, width - cells.right, cells.top, height - cells.bottom
        return functional.pad(change, margins)
