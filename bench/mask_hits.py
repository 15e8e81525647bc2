"""The most masks that one patch touches: the kernel against sums over rectangles and a budget."""

from __future__ import annotations

import numpy as np
import torch
from timer import Row, seconds
from torch import Tensor

from pycc.ops import mask_hits, mask_hits_reference
from pycc.random import Stream

SHAPE = (768, 1024)
FEW = 4  # number of masks on which the slow baselines are timed


def sets(count: int, size: int) -> Tensor:
    stream = Stream(0, "kept")
    return torch.from_numpy(stream.integers(SHAPE[0] * SHAPE[1], (count, size)))


def integral(kept: Tensor, patch: int) -> Tensor:
    """Find the largest sum, from an integral image per mask and differences at its corners."""
    touched = np.zeros((SHAPE[0] - patch + 1, SHAPE[1] - patch + 1), np.int64)
    sums = np.zeros((SHAPE[0] + 1, SHAPE[1] + 1), np.int32)
    for indices in kept.numpy():
        mask = np.zeros(SHAPE[0] * SHAPE[1], np.int32)
        mask[indices] = 1
        np.cumsum(mask.reshape(SHAPE), axis=0, out=sums[1:, 1:])
        np.cumsum(sums[1:, 1:], axis=1, out=sums[1:, 1:])
        upper, lower = sums[:-patch], sums[patch:]
        touched += (lower[:, patch:] - lower[:, :-patch] - upper[:, patch:] + upper[:, :-patch]) > 0
    at = int(touched.argmax())
    return torch.tensor([int(touched.max()), at // touched.shape[1], at % touched.shape[1]])


def case(count: int, size: int, patch: int, budget: float) -> list[Row]:
    kept = sets(count, size)
    few = kept[:FEW].contiguous()

    def kernel() -> Tensor:
        return mask_hits(kept, SHAPE, patch)

    many, expected = kept[:100].contiguous(), mask_hits(few, SHAPE, patch)
    if not torch.equal(expected, mask_hits_reference(few, SHAPE, patch)):
        raise SystemExit("mask_hits and its twin disagree")
    if not torch.equal(mask_hits(many, SHAPE, patch), integral(many, patch)):
        raise SystemExit("mask_hits and sums over rectangles disagree")

    subject = f"mask hits 768x1024, {count:,} masks of {size:,}, patch {patch}"
    name, time, read = "mask_hits", seconds(kernel), kept.nbytes
    note = f"{FEW} masks timed, scaled to {count:,}"
    scale = count / FEW
    sums = seconds(lambda: integral(few, patch)) * scale
    twin = seconds(lambda: mask_hits_reference(few, SHAPE, patch)) * scale
    bitmaps = torch.empty(count, SHAPE[0], SHAPE[1] // 32, dtype=torch.int32)
    fill = seconds(lambda: bitmaps.fill_(0))
    return [
        Row(subject, name, time, "fill of a bitmap a mask", fill, bytes=bitmaps.nbytes, limit=True),
        Row(subject, name, time, "integral images", sums, None, note, read),
        Row(subject, name, time, "twin", twin, None, note, read),
        Row(subject, name, time, f"budget of {budget:g} s", budget, 1.0, bytes=read),
    ]


def masks(count: int, size: int, patch: int, budget: float) -> list[Row]:
    kept = sets(count, size)
    dense = torch.zeros(count, SHAPE[0] * SHAPE[1], dtype=torch.bool).scatter_(1, kept, True)
    dense = dense.reshape(count, *SHAPE)
    if not torch.equal(mask_hits(dense, SHAPE, patch), mask_hits(kept, SHAPE, patch)):
        raise SystemExit("mask_hits counts masks and indices differently")
    time = seconds(lambda: mask_hits(dense, SHAPE, patch))
    subject = f"mask hits 768x1024, {count:,} bool masks of {size:,}, patch {patch}"
    read = seconds(lambda: dense.view(torch.int64).sum())
    return [
        Row(subject, "mask_hits", time, f"budget of {budget:g} s", budget, 1.0, bytes=dense.nbytes),
        Row(subject, "mask_hits", time, "one read", read, bytes=dense.nbytes, limit=True),
    ]


def rows() -> list[Row]:
    tenth = SHAPE[0] * SHAPE[1] // 10
    return [
        *case(1000, 45, 20, 1.0),
        *case(1000, 45, 81, 1.0),
        *case(1000, 45, 163, 1.0),
        *case(200, tenth, 163, 1.0),
        *masks(200, tenth, 163, 1.0),
    ]
