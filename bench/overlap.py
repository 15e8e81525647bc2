"""Top-K overlap of two maps: the kernel against two sorts in part and a lookup."""

from __future__ import annotations

import torch
from timer import Row, check, seconds
from torch import Tensor

from pycc.ops import topk_overlap, topk_overlap_reference
from pycc.random import Stream

ROWS, CELLS, K = 64, 49_152, 1000


def rows() -> list[Row]:
    a, b = (
        torch.from_numpy(Stream(seed, "bench").uniform(size=(ROWS, CELLS))).float()
        for seed in range(2)
    )

    def kernel() -> Tensor:
        return topk_overlap(a, b, K)

    def looked_up() -> Tensor:
        among_a = torch.zeros(a.shape, dtype=torch.bool)
        among_a.scatter_(1, a.topk(K, dim=1, sorted=False).indices, True)
        return among_a.gather(1, b.topk(K, dim=1, sorted=False).indices).sum(1)

    def twin() -> Tensor:
        return topk_overlap_reference(a, b, K)

    def read() -> None:
        for maps in (a, b):
            maps.amax(1)

    for other in (looked_up, twin):
        check(kernel(), other(), 0.0)
    subject = f"top-K overlap {ROWS}x{CELLS:,}, K = {K:,}"
    name, time, size = "topk_overlap", seconds(kernel), a.nbytes + b.nbytes
    return [
        Row(subject, name, time, "topk twice, mask, gather", seconds(looked_up), 5, bytes=size),
        Row(subject, name, time, "twin", seconds(twin), bytes=size),
        Row(subject, name, time, "read of both maps", seconds(read), bytes=size, limit=True),
    ]
