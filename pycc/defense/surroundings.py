"""The surroundings of a window: sums of blocks of cells around it, some of them blanked.

A completion network predicts the people in a window of a density map from 12 x 12 blocks: the
window is the middle 4 x 4 of them. Blocks that meet the window, or a second window, are blanked.
Counts are whole numbers of ``UNIT``, so that sums are exact in any order: a sum over visible cells
cannot depend on hidden ones, not even by rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCKS = 12
"""Blocks around a window, per axis."""
SPANS = BLOCKS // 2
"""Blocks are blanked in pairs: this many per axis. Fewer blanked shapes cost fewer evaluations."""
INSIDE = slice(SPANS // 3, 2 * SPANS // 3)
"""The pairs of blocks that are the window itself."""
FEATURES = 8
"""Numbers per pair of blocks by pair of blocks: the roots of 4 sums, and what share of each block
lies inside the map."""
UNIT = 2.0**-32
"""People; every cell is rounded to a whole multiple."""
MOST_PEOPLE = 2.0**29
"""The most people in a map, so that sums of a few maps fit into 64 bits."""
SOFTENING = 0.25
"""People; the root of a sum s is sqrt(s + SOFTENING) - sqrt(SOFTENING), of slope 1 at most."""
STEEPEST = 0.5 / SOFTENING**0.5
"""The largest slope of the root."""


def whole_units(cells: Tensor) -> Tensor:
    """Round the cells [h,w] of a map, people, to whole multiples of ``UNIT``: int64.

    A cell is first clamped to [0, MOST_PEOPLE / (h w)], so that no sum overflows.

    >>> import torch
    >>> (whole_units(torch.tensor([[0.5, -1.0]])) * UNIT).tolist()
    [[0.5, 0.0]]
    """
    most = MOST_PEOPLE / max(1, cells.shape[-2] * cells.shape[-1])
    return (cells.detach().double().clamp(0.0, most) / UNIT).round().to(torch.int64)


def summed(units: Tensor) -> Tensor:
    """Compute the table [h+1,w+1] of sums over all rows above and columns to the left.

    ``units`` is [h,w], int64 (exact) or floating point (differentiable).
    """
    table = units.cumsum(0).cumsum(1)
    return torch.nn.functional.pad(table, (1, 0, 1, 0))


def block_edges(side: int) -> list[int]:
    """Return the first cells of the blocks, and the end of the last, from a window's first cell.

    The window's ``side`` cells are the middle four blocks; sides that four does not divide give
    blocks that differ by a cell.

    >>> block_edges(8)
    [-8, -6, -4, -2, 0, 2, 4, 6, 8, 10, 12, 14, 16]
    """
    first = BLOCKS // 3
    return [(number - first) * side // first for number in range(BLOCKS + 1)]


def blanked_span(offset: int, side: int) -> tuple[int, int] | None:
    """Return the pairs of blocks [first, end) that a second window meets along an axis.

    Its first cell lies ``offset`` cells after that of the window. None if it meets no block.

    >>> blanked_span(0, 8), blanked_span(3, 8), blanked_span(-16, 8)
    ((2, 4), (2, 5), None)
    """
    edges = block_edges(side)
    met = [
        number
        for number in range(BLOCKS)
        if edges[number] < edges[number + 1]
        and edges[number] < offset + side
        and edges[number + 1] > offset
    ]
    return (met[0] // 2, met[-1] // 2 + 1) if met else None


@dataclass(frozen=True, eq=False)
class BlockLimits:
    """The blocks around windows along one axis, clipped by the map."""

    limits: Tensor
    """[n,13] int64: first cells of the blocks of each window, and the end of the last."""
    shares: Tensor
    """[n,12] float64: what share of a block lies inside the map; 0 for an empty block."""

    @classmethod
    def of(cls, starts: Sequence[int], side: int, cells: int) -> BlockLimits:
        """Make those of windows that begin at ``starts``, of a map of ``cells`` cells."""
        edges = torch.tensor(starts)[:, None] + torch.tensor(block_edges(side))
        limits = edges.clamp(0, cells)
        lengths = edges.diff(dim=1).clamp(min=1)
        return cls(limits, limits.diff(dim=1).double() / lengths.double())

    def at(self, places: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the limits and the shares of some windows, on a device."""
        return self.limits[places].to(device), self.shares[places].to(device)


def surroundings(
    table: Tensor, rows: Tensor, columns: Tensor, row_shares: Tensor, column_shares: Tensor
) -> Tensor:
    """Compute the features of n windows, without their own blocks.

    Args:
        table: [h+1,w+1] of ``summed``, int64 units, or people in floating point (differentiable).
        rows, columns: [n,13] limits of the blocks along both axes (``BlockLimits``).
        row_shares, column_shares: [n,12] shares of the blocks inside the map.

    Returns:
        [SPANS * SPANS, n, FEATURES] float32.
    """
    number = len(rows)
    sums = table[rows[:, :, None], columns[:, None, :]].diff(dim=1).diff(dim=2)  # [n,12,12]
    people = sums.double() * UNIT if sums.dtype == torch.int64 else sums
    roots = (people + SOFTENING).sqrt() - SOFTENING**0.5
    shares = row_shares[:, :, None] * column_shares[:, None, :]
    stacked = torch.stack((roots, shares.to(roots)))  # [2,n,12,12]
    paired = stacked.reshape(2, number, SPANS, 2, SPANS, 2).permute(2, 4, 1, 0, 3, 5)
    outside = torch.ones(SPANS, SPANS, 1, 1, 1, 1, dtype=torch.bool, device=table.device)
    outside[INSIDE, INSIDE] = False
    visible = torch.where(outside, paired, torch.zeros((), dtype=roots.dtype, device=table.device))
    return visible.reshape(SPANS * SPANS, number, FEATURES).float()
