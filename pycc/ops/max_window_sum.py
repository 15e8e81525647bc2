"""The window of a map with the largest sum, which bounds the count that one patch can cover."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pycc.ops import _check, _native

_OP = "max_window_sum"


def max_window_sum(maps: Tensor, window: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Find the largest sum of a window inside each map, and its place.

    Args:
        maps: [N,h,w] float32, of any sign; if they are in people per cell, a sum is a count.
        window: (height, width) in cells, 1 to the map's size each.

    Returns:
        The sums [N] float64 and the windows' top left cells [N,2] int64 (y, x). Sums are computed
        in float64 in an order that depends on the sizes alone, without subtraction: sums and places
        are the same bits on every device and for any number of threads. Of equal sums the first
        place in row-major order wins. A window with a NaN, or with both infinities, has the sum
        NaN, which counts as the largest and does not affect other windows. Not differentiable.

    Raises:
        ValueError: maps of another dtype (cast them) or shape, or a window that does not fit.
        TypeError: maps that are not a tensor, or a window that is not a pair of integers.

    Example:
        >>> import torch
        >>> from pycc import ops
        >>> sums, places = ops.max_window_sum(torch.tensor([[[1.0, 2.0, 4.0, 3.0]]]), (1, 2))
        >>> sums.tolist(), places.tolist()
        ([7.0], [[0, 2]])
    """
    if _native.use_reference():
        return max_window_sum_reference(maps, window)
    plain, high, wide = _check.maps_and_window(_OP, maps, window)
    count, height, width = plain.shape
    sums = torch.empty(count, dtype=torch.float64, device=plain.device)
    places = torch.empty((count, 2), dtype=torch.int64, device=plain.device)
    scratch: list[Tensor | None] = []
    if _native.kind_of(plain.device) == "cuda":
        scratch = _scratch(plain, height - high + 1)
    sizes = _native.module().SumSizes(
        maps=count, height=height, width=width, window_height=high, window_width=wide
    )
    _native.run(_OP, plain.device, sums, places, *scratch, plain, sizes)
    return sums, places


def _scratch(maps: Tensor, rows: int) -> list[Tensor | None]:
    """Allocate the buffers of the CUDA kernels: column sums, partial row sums and row maxima."""
    count, _, width = maps.shape
    columns = maps.new_empty((count, rows, width), dtype=torch.float64)
    too_wide = width > _native.module().max_shared_width
    tails = torch.empty_like(columns) if too_wide else None
    row_best = count * rows * _native.module().best_window_bytes
    return [columns, tails, maps.new_empty(row_best, dtype=torch.uint8)]


def max_window_sum_reference(maps: Tensor, window: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Compute :func:`max_window_sum` in pure torch, with the same additions, to the same bits.

    Example:
        >>> import torch
        >>> from pycc import ops
        >>> sums, places = ops.max_window_sum_reference(torch.eye(3)[None], (2, 2))
        >>> sums.tolist(), places.tolist()
        ([2.0], [[0, 0]])
    """
    plain, high, wide = _check.maps_and_window(_OP, maps, window)
    sums = _row_sums(_column_sums(plain.double(), high), wide)
    most, index = sums.flatten(1).max(1)
    cols = sums.shape[2]
    return most, torch.stack((index // cols, index % cols), 1)


def _column_sums(maps: Tensor, window: int) -> Tensor:
    """Sum windows of rows, [N,h,w] -> [N,h-window+1,w]: the end of one block and what follows."""
    count, height, width = maps.shape
    places = height - window + 1
    blocks = -(-places // window)
    padded = F.pad(maps, (0, 0, 0, (blocks + 1) * window - height))  # the padding is not used
    values = padded.reshape(count, blocks + 1, window, width).unbind(2)
    down, up = [values[0]], [values[-1]]
    for row in range(1, window):
        down.append(values[row] + down[-1])
        up.append(values[-1 - row] + up[-1])
    lower, upper = torch.stack(down, 2)[:, 1:, :-1], torch.stack(up[::-1], 2)[:, :-1]
    joined = torch.cat((upper[:, :, :1], upper[:, :, 1:] + lower), 2)
    return joined.reshape(count, blocks * window, width)[:, :places]


def _row_sums(sums: Tensor, window: int) -> Tensor:
    """Sum windows of columns, [N,r,w] -> [N,r,w-window+1], from sums of 1, 2, 4, … columns."""
    places = sums.shape[2] - window + 1
    tail, length = None, 1
    while True:
        if window & length:
            done = window & (length - 1)  # columns in the tail so far
            kept = sums.shape[2] - done
            tail = sums if tail is None else sums[..., :kept] + tail[..., length:]
        if 2 * length > window:
            assert tail is not None
            return tail[..., :places]
        sums = sums[..., :-length] + sums[..., length:]
        length *= 2
