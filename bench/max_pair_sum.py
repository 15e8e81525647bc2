"""The best pair of windows: the kernel against brute force in torch and one read of the maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from max_window_sum import crowds, noise
from timer import Row, check, seconds
from torch import Tensor

from pycc.ops import max_pair_sum, max_pair_sum_reference

CELLS, WINDOW = (192, 256), 38  # of an image of 768x1024 at stride 4, under a patch of 81 pixels
SOME = 64
"""Number of windows on which brute force is timed."""


def brute_force(maps: Tensor, window: int, places: Tensor) -> Tensor:
    """Find the largest union of each window at these flat places with any window."""
    table = F.pad(maps[0].double().cumsum(1).cumsum(0), (1, 0, 1, 0))
    rows, cols = (size - window + 1 for size in maps.shape[1:])
    tops, lefts = torch.arange(rows), torch.arange(cols)
    across = table[window:] - table[:-window]
    alone = across[:, window:] - across[:, :-window]
    unions = []
    for place in places.tolist():
        y, x = place // cols, place % cols
        top, left = tops.clamp(min=y), lefts.clamp(min=x)
        bottom = torch.maximum(tops.clamp(max=y) + window, top)
        right = torch.maximum(lefts.clamp(max=x) + window, left)
        shared = table[bottom] - table[top]
        both = shared[:, right] - shared[:, left]
        unions.append((alone[y, x] + alone - both).max())
    return torch.stack(unions)


def measured(kind: str, maps: Tensor, target: float | None) -> list[Row]:
    window = (WINDOW, WINDOW)

    def kernel() -> Tensor:
        return max_pair_sum(maps, window, 0.0)[0]

    few, small = F.avg_pool2d(maps, 4), (WINDOW // 4, WINDOW // 4)
    check(max_pair_sum(few, small, 0.0)[0], max_pair_sum_reference(few, small, 0.0)[0], 0.0)
    rows, cols = (size - WINDOW + 1 for size in CELLS)
    places = max_pair_sum(maps, window, 0.0)[1][0]
    best = places[:, 0] * cols + places[:, 1]
    check(kernel(), brute_force(maps, WINDOW, best).max(), 1e-12)

    some = torch.linspace(0, rows * cols - 1, SOME).long()
    if not (brute_force(maps, WINDOW, some) <= kernel() * (1 + 1e-12)).all():
        raise SystemExit("brute force finds a better pair of windows")
    forced = seconds(lambda: brute_force(maps, WINDOW, some)) / SOME * rows * cols
    subject = f"pairs of windows {'x'.join(map(str, maps.shape))}, {WINDOW}x{WINDOW}, {kind}"
    name, time, size = "max_pair_sum", seconds(kernel), maps.nbytes
    note = f"{SOME} windows timed, scaled to {rows * cols}"
    read = seconds(lambda: maps.sum())
    return [
        Row(subject, name, time, "brute force in torch", forced, target, note, size),
        Row(subject, name, time, "read of the maps", read, None, bytes=size, limit=True),
    ]


def blob() -> Tensor:
    """Make maps with a crowd around one place: all windows with large sums overlap."""
    y, x = torch.arange(float(CELLS[0]))[:, None], torch.arange(float(CELLS[1]))
    return torch.exp(-((y - 90) ** 2 + (x - 120) ** 2) / (2 * 20.0**2))[None]


def rows() -> list[Row]:
    return [
        *measured("density maps", crowds(1, CELLS, 200, 4.0), 1000),
        *measured("noise", noise(1, CELLS), 1000),
        *measured("one crowd", blob(), None),
    ]
