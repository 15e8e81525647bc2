"""Top-K overlap of two maps: the kernel against two partial sorts and a lookup."""

from __future__ import annotations

import torch
from timer import Row, check, seconds
from torch import Tensor

from pycc.ops import topk_overlap, topk_overlap_reference
from pycc.random import Stream

ROWS, CELLS, K = 64, 49_152, 1000


def measured(kind: str, a: Tensor, b: Tensor, target: float | None) -> list[Row]:
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

    check(kernel(), twin(), 0.0)
    if kind != "sparse":  # torch.topk does not define the order of ties
        check(kernel(), looked_up(), 0.0)
    subject = f"top-K overlap {ROWS}x{CELLS:,}, K = {K:,}, {kind}"
    name, time, size = "topk_overlap", seconds(kernel), a.nbytes + b.nbytes
    return [
        Row(
            subject, name, time, "topk twice, mask, gather", seconds(looked_up), target, bytes=size
        ),
        Row(subject, name, time, "twin", seconds(twin), bytes=size),
        Row(subject, name, time, "read of both maps", seconds(read), bytes=size, limit=True),
    ]


def noise(seed: int) -> Tensor:
    return torch.from_numpy(Stream(seed, "bench").uniform(size=(ROWS, CELLS))).float()


def sparse(seed: int) -> Tensor:
    """Make maps with fewer cells above 0 than K, so that the rest are ties."""
    places = torch.from_numpy(Stream(seed, "places").integers(CELLS, (ROWS, K // 2)))
    return torch.zeros(ROWS, CELLS).scatter_(1, places, noise(seed))


def rows() -> list[Row]:
    return [
        *measured("noise", noise(0), noise(1), 5),
        *measured("sparse", sparse(0), sparse(1), None),
    ]
