"""Count an image window by window, as published evaluations of some counters do."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def slide(
    maps_of: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor, *, window: int, stride: int
) -> tuple[Tensor, ...]:
    """Compute maps [N,·,H//stride,W//stride] of x [N,3,H,W] from windows of ``window`` pixels.

    Windows follow one another; the last one of a side is moved back so that it ends at the border,
    to a place that is rounded down to a whole cell. A cell is the mean over the windows that hold
    it. A side of no more than ``window`` pixels is one window, and an image of one window is given
    to ``maps_of`` unchanged.

    >>> import torch
    >>> slide(lambda x: (x.sum((2, 3), keepdim=True),), torch.ones(1, 1, 2, 5), window=2, stride=2)
    (tensor([[[[4., 4.]]]]),)
    """
    height, width = x.shape[2:]
    rows, columns = _starts(height, window), _starts(width, window)
    if len(rows) == len(columns) == 1:
        return maps_of(x)
    sums: tuple[Tensor, ...] = ()
    windows = x.new_zeros(height // stride, width // stride)
    for top in rows:
        for left in columns:
            maps = maps_of(x[..., top : top + window, left : left + window])
            down, across = maps[0].shape[2:]
            place = (
                ...,
                slice(top // stride, top // stride + down),
                slice(left // stride, left // stride + across),
            )
            sums = sums or tuple(m.new_zeros(*m.shape[:2], *windows.shape) for m in maps)
            for total, part in zip(sums, maps, strict=True):
                total[place] += part
            windows[place] += 1.0
    return tuple(total / windows.clamp(min=1.0) for total in sums)


def _starts(size: int, window: int) -> list[int]:
    number = max(1, -(-size // window))
    return [max(0, min(index * window, size - window)) for index in range(number)]
