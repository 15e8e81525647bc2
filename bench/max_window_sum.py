"""The largest window sum: the kernel against pooling, integral images and one read of the maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timer import Row, check, seconds
from torch import Tensor

from pycc.ops import density_map, max_window_sum, max_window_sum_reference
from pycc.random import Stream


def crowds(count: int, shape: tuple[int, int], heads: int, sigma: float) -> Tensor:
    """Make density maps: few windows are near the maximum."""
    size = [shape[1], shape[0]]
    places = (Stream(n, "bench").uniform(size=(heads, 2)) * size for n in range(count))
    return torch.stack([density_map(torch.from_numpy(p), sigma, shape) for p in places])


def noise(count: int, shape: tuple[int, int]) -> Tensor:
    """Make noise: all windows have similar sums, so that the bounds of tiles skip none."""
    return torch.from_numpy(Stream(0, "bench").uniform(size=(count, *shape))).float()


def pooled(maps: Tensor, window: int) -> Tensor:
    return F.avg_pool2d(maps.double(), window, 1, divisor_override=1).flatten(1).max(1).values


def integral(maps: Tensor, window: int) -> Tensor:
    sums = F.pad(maps.double().cumsum(1).cumsum(2), (1, 0, 1, 0))
    below, above = sums[:, window:], sums[:, :-window]
    across = below - above
    return (across[..., window:] - across[..., :-window]).flatten(1).max(1).values


def measured(kind: str, maps: Tensor, window: int, target: float) -> list[Row]:
    def kernel() -> Tensor:
        return max_window_sum(maps, (window, window))[0]

    def twin() -> Tensor:
        return max_window_sum_reference(maps, (window, window))[0]

    check(kernel(), twin(), 0.0)
    check(kernel(), integral(maps, window), 1e-9)
    shape = "x".join(str(size) for size in maps.shape)
    subject = f"window sums {shape}, {window}x{window}, {kind}"
    name, time, size = "max_window_sum", seconds(kernel), maps.nbytes
    by_integral, read = seconds(lambda: integral(maps, window)), seconds(lambda: maps.sum())
    rows = [
        Row(subject, name, time, "integral image", by_integral, bytes=size),
        Row(subject, name, time, "twin", seconds(twin), bytes=size),
        Row(subject, name, time, "read of the maps", read, target, bytes=size, limit=True),
    ]
    if len(maps) > 16:  # takes window^2 additions per cell
        few = maps[:4]
        check(kernel()[:4], pooled(few, window), 1e-9)
        pooling = seconds(lambda: pooled(few, window)) / len(few) * len(maps)
        note = f"{len(few)} maps timed, scaled to {len(maps)}"
        rows.insert(0, Row(subject, name, time, "avg_pool2d", pooling, None, note, size))
    return rows


def rows() -> list[Row]:
    cells, pixels = (64, (192, 256)), (16, (768, 1024))
    return [
        *measured("density maps", crowds(*cells, 200, 4.0), 28, 2),
        *measured("noise", noise(*cells), 28, 2),
        *measured("density maps", crowds(*pixels, 200, 15.0), 81, 2),
        *measured("noise", noise(*pixels), 81, 2),
    ]
