"""Maps with upper limits on cells and blocks of cells, and bounds on what a patch can change."""

from __future__ import annotations

import math
from dataclasses import dataclass
from hashlib import sha256
from numbers import Real

import torch
from torch import Tensor

from pycc.checks import check_type, check_whole
from pycc.defense.masking import Bounds
from pycc.defense.windows import window_sums

BLOCK = 8
"""Default side of a block, in cells."""


@dataclass(frozen=True, eq=False)
class Caps:
    """Upper limits, in people, on the cells of a map and on blocks of cells.

    Args:
        cell: one number for all cells, a tensor [h,w] with one for each, or None.
        block: the limit of every block of ``side`` x ``side`` cells, or None. Blocks begin at the
            map's top left corner; those at the right and bottom edges may be smaller.
        side: side of a block, in cells.

    Raises:
        ValueError: limits that are not above 0 and finite, or a side below 1.
        TypeError: limits that are not numbers, a side that is not a whole number.
    """

    cell: float | Tensor | None = None
    block: float | None = None
    side: int = BLOCK

    def __post_init__(self) -> None:
        people = "a number of people above 0, or None"
        check_type("caps", "cap of a cell", self.cell, Real | Tensor | None, people)
        check_type("caps", "cap of a block", self.block, Real | None, people)
        if isinstance(self.cell, Tensor):
            if self.cell.ndim != 2 or not self.cell.is_floating_point():
                raise ValueError(
                    "caps: a cap for each cell must be floating-point numbers [h,w], got "
                    f"{self.cell.dtype} {list(self.cell.shape)}"
                )
            if not bool((torch.isfinite(self.cell) & (self.cell > 0)).all()):
                raise ValueError("caps: must be numbers of people above 0, finite, in every cell")
        elif self.cell is not None and not (math.isfinite(self.cell) and self.cell > 0):
            raise ValueError(f"caps: must be a number of people above 0, or None, got {self.cell}")
        if self.block is not None and not (math.isfinite(self.block) and self.block > 0):
            raise ValueError(
                "caps: that of a block must be a number of people above 0, or None, "
                f"got {self.block}"
            )
        check_whole("caps", "side of a block", self.side, 1)

    def __repr__(self) -> str:
        """Describe the caps; different caps have different texts, through a hash of the cells."""
        cell = self.cell
        if isinstance(cell, Tensor):
            plain = cell.detach().cpu().double().contiguous().numpy()
            cell_text = f"{list(cell.shape)} {sha256(plain.tobytes()).hexdigest()[:16]}"
        else:
            cell_text = repr(cell)
        blocks = "" if self.block is None else f", block={self.block!r}, side={self.side}"
        return f"Caps({cell_text}{blocks})"

    @property
    def anywhere(self) -> bool:
        """Whether only cells have caps, the same at every place of a map."""
        return self.block is None and not isinstance(self.cell, Tensor)

    def cells_like(self, maps: Tensor) -> Tensor | None:
        """Return the caps of cells in the dtype of maps [N,h,w], rounded towards 0, or None.

        Raises:
            ValueError: a cap for each cell of maps of another size.
        """
        if self.cell is None:
            return None
        exact = torch.as_tensor(self.cell, dtype=torch.float64, device=maps.device)
        if exact.ndim == 2 and exact.shape != maps.shape[1:]:
            raise ValueError(
                f"caps: expected maps of {exact.shape[0]}x{exact.shape[1]} cells, got "
                f"{maps.shape[1]}x{maps.shape[2]}"
            )
        near = exact.to(maps.dtype)
        below = torch.nextafter(near, torch.zeros_like(near))
        return torch.where(near.double() <= exact, near, below)

    def total(self, maps: Tensor) -> float:
        """Return the largest sum of a map of the size of maps [N,h,w]; infinite without caps."""
        most = math.inf
        cells = self.cells_like(maps)
        if cells is not None:
            most = float((torch.zeros_like(maps[0]) + cells).double().sum())
        if self.block is not None:
            rows, columns = (-(-size // self.side) for size in maps.shape[1:])
            most = min(most, self.block * rows * columns)
        return most


def capped_maps(maps: Tensor, caps: Caps) -> Tensor:
    """Clamp the cells of maps [N,h,w] to [0, cap] and scale down the cells of fuller blocks.

    Differentiable; the dtype of the maps is kept.
    """
    limits = caps.cells_like(maps)
    kept = maps.clamp(min=0.0)
    if limits is not None:
        kept = torch.minimum(kept, limits)
    if caps.block is None:
        return kept
    sums = block_sums(kept, caps.side)
    factor = torch.where(sums > caps.block, caps.block / sums.clamp(min=1e-300), 1.0)
    spread = factor.repeat_interleave(caps.side, 1).repeat_interleave(caps.side, 2)
    return kept * spread[:, : maps.shape[1], : maps.shape[2]].to(maps.dtype)


def block_sums(maps: Tensor, side: int) -> Tensor:
    """Sum maps [N,h,w] over blocks from the top left: [N,ceil(h/side),ceil(w/side)] float64."""
    down, right = (-size % side for size in maps.shape[1:])
    padded = torch.nn.functional.pad(maps.double(), (0, right, 0, down))
    rows, columns = padded.shape[1] // side, padded.shape[2] // side
    return padded.reshape(-1, rows, side, columns, side).sum((2, 4))


def additive_bounds(
    maps: Tensor, window: tuple[int, int], caps: Caps, *, patches: int = 1
) -> Bounds:
    """Bound the sums [N] of capped maps that change in ``patches`` windows (certificate C2).

    For J patches, the lower bound is the sum minus J times the largest loss of a window, at least
    0, and the upper bound the sum plus J times the largest gain (see :func:`additive_moves`).
    """
    total, lost, gained = additive_moves(maps, window, caps)
    low = total - patches * lost.flatten(1).max(1).values
    return Bounds(low.clamp(min=0.0), total + patches * gained.flatten(1).max(1).values)


def additive_moves(
    maps: Tensor, window: tuple[int, int], caps: Caps
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sums [N] of capped maps, and the largest loss and gain of each window [N,h',w'].

    ``maps`` [N,h,w] are not negative. Let D be their capped cells before blocks are scaled, and b
    the sums of blocks after it. A window W loses at most min(sum of D over W, sum of b over the
    blocks that W meets) and gains at most min(sum of cap - D over W, sum of (block cap - b) over
    the blocks that W meets). The reason: a block loses at most its sum and the sum of its changed
    cells, and gains at most the room below its own cap and below the caps of its changed cells.
    """
    cells = Caps(caps.cell)
    kept = capped_maps(maps, cells)
    limits = cells.cells_like(maps)
    lost = window_sums(kept, window)
    gained = None if limits is None else window_sums(limits.double() - kept.double(), window)
    total = kept.double().sum((1, 2))
    if caps.block is not None:
        counted = block_sums(kept, caps.side).clamp(max=caps.block)
        total = counted.sum((1, 2))
        lost = torch.minimum(lost, _met(counted, maps, window, caps.side))
        below = _met(caps.block - counted, maps, window, caps.side)
        gained = below if gained is None else torch.minimum(gained, below)
    if gained is None:
        raise ValueError("caps: an additive certificate needs caps of cells or of blocks")
    return total, lost, gained


def _met(blocks: Tensor, maps: Tensor, window: tuple[int, int], side: int) -> Tensor:
    """Sum, for each window inside the maps, the values of the blocks that it meets."""
    table = torch.nn.functional.pad(blocks.cumsum(1).cumsum(2), (1, 0, 1, 0))

    def ends(axis: int) -> tuple[Tensor, Tensor]:
        first = torch.arange(maps.shape[axis + 1] - window[axis] + 1, device=maps.device)
        return first // side, (first + window[axis] - 1) // side + 1

    (top, bottom), (left, right) = ends(0), ends(1)
    rows = table[:, bottom] - table[:, top]
    return rows[:, :, right] - rows[:, :, left]
