"""The largest sum of two windows of a map, the second reduced by an allowance.

It is the worst case of masking: if the fullest window of a map is reduced to an allowance, a patch
lowers the remaining count by no more than this sum, whatever it does to the map.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pycc.ops import _check, _native

_OP = "max_pair_sum"
_AT_ONCE = 1 << 20
"""Pairs of windows that the twin evaluates at once: 100 MB of temporary tensors."""


def _checked(
    maps: Tensor, window: tuple[int, int], allowance: float | Tensor
) -> tuple[Tensor, int, int, Tensor]:
    """Return the contiguous maps, the window's height and width, and an allowance per map."""
    plain, high, wide = _check.maps_and_window(_OP, maps, window)
    least, most = _check.extremes(plain)
    if not (least >= 0 and most < math.inf):
        raise ValueError(f"{_OP}: maps must be finite and at least 0, got {least:g} to {most:g}")
    each = _check.number_each(
        _OP, "allowance", allowance, len(plain), 0.0, math.inf, plain.device
    ).contiguous()
    return plain, high, wide, each


def max_pair_sum(
    maps: Tensor, window: tuple[int, int], allowance: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Find the largest sum of a window W* plus the excess of a second one, W, over the allowance.

    omega = max_{W*} [S_{W*} + max(0, max_W S_{W without W*} - allowance)]
          = max(max_W S_W, max_{W*,W} S_{W* and W united} - allowance)

    over all windows of one size inside the map; W* and W may overlap. S_A is the sum over a set A
    of cells, each counted once. With S the map's sum, S - omega is the smallest masked count after
    an attack on one window (``pycc.certify.masked``).

    Args:
        maps: [N,h,w] float32, finite and at least 0; if they are in people per cell, sums are
            counts.
        window: (height, width) in cells, 1 to the map's size each.
        allowance: the sum that masking leaves in the fullest window, a number or [N] float32 or
            float64, at least 0; with infinity, omega is the largest sum of one window.

    Returns:
        omega [N] float64 and places [N,2,2] int64, the top left cells (y, x) of W* and W. W is
        (-1, -1) if no W exceeds the allowance; W* is then the first of the fullest windows in
        row-major order. Else W* comes before W, and of pairs with equal sums of their union the one
        with the first W* wins, then the one with the first W.

        Sums are rectangles of an integral image in float64, rows first. The rounding error of omega
        is less than 12 (h + w) 2^-53 S for h + w up to 2^23: h + w - 2 additions for each entry,
        twelve entries, and the additions between them. To bound omega from above, add that. Value
        and places are the same bits on every device, in any batch and for any number of threads.
        Synchronises with the device, to check the maps. Not differentiable.

    Raises:
        ValueError: maps of another dtype (cast them) or shape, or with a cell that is negative or
            not finite; a window that does not fit; an allowance that is negative or NaN.
        TypeError: maps that are not a tensor, a window that is not a pair of integers, an allowance
            that is not a number.

    Example:
        >>> import torch
        >>> from pycc import ops
        >>> omega, places = ops.max_pair_sum(torch.tensor([[[5.0, 0.0, 4.0]]]), (1, 1), 1.0)
        >>> omega, places  # 5 + (4 - 1), of cells 0 and 2
        (tensor([8.], dtype=torch.float64), tensor([[[0, 0],
                 [0, 2]]]))
    """
    if _native.use_reference():
        return max_pair_sum_reference(maps, window, allowance)
    plain, high, wide, each = _checked(maps, window, allowance)
    count, height, width = plain.shape
    values = torch.empty(count, dtype=torch.float64, device=plain.device)
    places = torch.empty((count, 2, 2), dtype=torch.int64, device=plain.device)
    scratch: list[Tensor] = []
    if _native.kind_of(plain.device) == "cuda":
        scratch = _scratch(plain, height - high + 1, width - wide + 1)
    sizes = _native.module().SumSizes(
        maps=count, height=height, width=width, window_height=high, window_width=wide
    )
    _native.run(_OP, plain.device, values, places, *scratch, plain, each, sizes)
    return values, places


def _scratch(maps: Tensor, rows: int, cols: int) -> list[Tensor]:
    """Allocate the buffers that the CUDA kernels share.

    Integral images, sums of windows, the best partner of each window, the fullest window, and the
    sum of a good pair, which is a lower bound.
    """
    count, height, width = maps.shape
    module = _native.module()
    return [
        maps.new_empty((count, height + 1, width + 1), dtype=torch.float64),
        maps.new_empty((count, rows, cols), dtype=torch.float64),
        maps.new_empty(count * rows * cols * module.window_pair_bytes, dtype=torch.uint8),
        maps.new_empty(count * module.best_window_bytes, dtype=torch.uint8),
        maps.new_empty(count, dtype=torch.float64),
    ]


def max_pair_sum_reference(
    maps: Tensor, window: tuple[int, int], allowance: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Compute :func:`max_pair_sum` in pure torch over all pairs of windows.

    Gives the same bits on the CPU; on CUDA, torch sums in another order. Time is quadratic in the
    number of windows, memory linear.

    Example:
        >>> import torch
        >>> from pycc import ops
        >>> omega, _ = ops.max_pair_sum_reference(torch.tensor([[[5.0, 0.0, 4.0]]]), (1, 1), 4.0)
        >>> float(omega)
        5.0
    """
    plain, high, wide, each = _checked(maps, window, allowance)
    count, height, width = plain.shape
    cols = width - wide + 1
    corners = torch.arange((height - high + 1) * cols, device=plain.device)
    tops, lefts = corners // cols, corners % cols
    table = F.pad(plain.double().cumsum(2).cumsum(1), (1, 0, 1, 0))

    def sums(top: Tensor, bottom: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Sums [N,...] over rows [top, bottom) and columns [left, right); 0 if there are none."""
        bottom, right = torch.maximum(bottom, top), torch.maximum(right, left)
        by_right = table[:, bottom, right] - table[:, top, right]
        by_left = table[:, bottom, left] - table[:, top, left]
        return (by_right - by_left).clamp(min=0.0)

    alone = sums(tops, tops + high, lefts, lefts + wide)  # [N,P]
    fullest, single = alone.max(1)
    united, pair = torch.full_like(fullest, -1.0), torch.zeros_like(single)
    step = max(1, _AT_ONCE // max(1, count * len(corners)))
    for start in range(0, len(corners), step):
        some = slice(start, start + step)
        top, left = tops[some, None], lefts[some, None]
        both = sums(
            torch.maximum(top, tops),
            torch.minimum(top, tops) + high,
            torch.maximum(left, lefts),
            torch.minimum(left, lefts) + wide,
        )
        unions = alone[:, some, None] + alone[:, None, :] - both  # [N,step,P]
        most, index = unions.flatten(1).max(1)
        larger = most > united
        united = torch.where(larger, most, united)
        pair = torch.where(larger, index + start * len(corners), pair)
    two = united - each > fullest
    first = torch.where(two, pair // len(corners), single)
    second = pair % len(corners)
    places = torch.stack((first // cols, first % cols, second // cols, second % cols), 1)
    places = places.reshape(count, 2, 2)
    places[:, 1] = torch.where(two[:, None], places[:, 1], -1)
    return torch.where(two, united - each, fullest), places
