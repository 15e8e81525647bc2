"""Speed of the kernels against their twins, the usual Python ways and the machine's limit.

    python bench/ops.py [--no-store]

Ratios are of one run on one machine. Both sides are first checked to compute the same thing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))

import baselines
from timer import Row, seconds, store, table

from pycc.ops import (
    adaptive_sigma,
    adaptive_sigma_reference,
    density_map,
    density_map_reference,
    info,
    paste_patch,
    paste_patch_reference,
)
from pycc.random import Stream

SHAPE = (768, 1024)


def check(got: Tensor, expected: Tensor | np.ndarray, bound: float) -> None:
    wanted = torch.as_tensor(expected)
    error = float((got - wanted).abs().max() / wanted.abs().max())
    if error > bound:
        raise SystemExit(f"the two sides differ by {error:.1e} of the maximum, bound {bound:.0e}")


def heads(count: int) -> Tensor:
    size = [SHAPE[1], SHAPE[0]]
    return torch.from_numpy(Stream(0, "bench").uniform(size=(count, 2)) * size)


def adaptive(count: int, target: float) -> list[Row]:
    points = heads(count)
    array = points.numpy()
    buffer = torch.empty(SHAPE)

    def kernel() -> Tensor:
        return density_map(points, adaptive_sigma(points), SHAPE)

    def windowed() -> np.ndarray:
        return baselines.windowed(array, baselines.neighbour_widths(array), SHAPE)

    def twin() -> Tensor:
        return density_map_reference(points, adaptive_sigma_reference(points), SHAPE)

    check(kernel(), windowed(), 1e-5)
    check(kernel(), twin(), 1e-6)
    sample = np.linspace(0, count - 1, 12).astype(int)
    widths = baselines.neighbour_widths(array)
    alone = sum(baselines.published_head(array[i], widths[i], SHAPE) for i in sample)
    check(density_map(points[sample], torch.from_numpy(widths[sample]), SHAPE), alone, 1e-5)

    def published() -> None:
        for i in sample:
            baselines.published_head(array[i], widths[i], SHAPE)

    subject = f"density 768x1024, adaptive, {count:,} heads"
    name, time, size = "density_map", seconds(kernel), buffer.nbytes
    published_time = seconds(published, budget=2.0) / len(sample) * count
    note = f"{len(sample)} heads timed, scaled to {count:,}"
    return [
        Row(subject, name, time, "windowed numpy", seconds(windowed), target, bytes=size),
        Row(subject, name, time, "gaussian_filter a head", published_time, 10_000, note, size),
        Row(subject, name, time, "twin", seconds(twin), bytes=size),
        Row(
            subject,
            name,
            time,
            "limit: fill of the map",
            seconds(lambda: buffer.fill_(0.5)),
            bytes=size,
        ),
    ]


def fixed(count: int, target: float) -> list[Row]:
    points, sigma = heads(count), 15.0
    array, widths = points.numpy(), np.full(count, sigma)
    buffer = torch.empty(SHAPE)

    def kernel() -> Tensor:
        return density_map(points, sigma, SHAPE)

    def windowed() -> np.ndarray:
        return baselines.windowed(array, widths, SHAPE)

    def twin() -> Tensor:
        return density_map_reference(points, sigma, SHAPE)

    check(kernel(), windowed(), 1e-5)
    check(kernel(), twin(), 1e-5)
    subject = f"density 768x1024, sigma 15, {count:,} heads"
    name, time, size = "density_map", seconds(kernel), buffer.nbytes
    limit = seconds(lambda: buffer.fill_(0.5))
    return [
        Row(subject, name, time, "windowed numpy", seconds(windowed), target, bytes=size),
        Row(subject, name, time, "twin", seconds(twin), bytes=size),
        Row(subject, name, time, "limit: fill of the map", limit, bytes=size),
    ]


def neighbours(count: int) -> list[Row]:
    points = heads(count)
    array = points.numpy()

    def kernel() -> Tensor:
        return adaptive_sigma(points)

    check(kernel(), baselines.neighbour_widths(array), 1e-6)
    name, time, size = "adaptive_sigma", seconds(kernel), points.nbytes + 4 * count
    subject = f"adaptive sigma, {count:,} heads"
    tree = seconds(lambda: baselines.neighbour_widths(array))
    rows = [
        Row(subject, name, time, "cKDTree", tree, bytes=size),
        Row(subject, name, time, "budget of 0.2 s", 0.2, 1.0, bytes=size),
    ]
    if count <= 3000:  # the twin compares all pairs
        twin = seconds(lambda: adaptive_sigma_reference(points))
        rows.append(Row(subject, name, time, "twin", twin, bytes=size))
    return rows


def paste() -> list[Row]:
    images = torch.from_numpy(Stream(0, "images").uniform(size=(8, 3, *SHAPE))).float()
    upstream = images.flip(0).contiguous()
    patch = torch.from_numpy(Stream(0, "patch").uniform(size=(3, 81, 81))).float()
    places = torch.tensor([[40 + 70 * n, 60 + 90 * n] for n in range(8)])
    transform = {"angle": 4.0, "zoom": 1.02, "brightness": 0.03}
    buffer = torch.empty_like(images)

    def run(paste: object, **options: object) -> tuple[Tensor, Tensor]:
        leaf = patch.detach().requires_grad_()
        pasted = paste(images, leaf, **options)  # type: ignore[operator]
        pasted.backward(upstream)
        assert leaf.grad is not None
        return pasted.detach(), leaf.grad

    def fresh() -> tuple[Tensor, Tensor]:
        return run(paste_patch, top_left=places, **transform)

    def into() -> tuple[Tensor, Tensor]:
        return run(paste_patch, top_left=places, out=buffer, **transform)

    def composite() -> tuple[Tensor, Tensor]:
        return run(baselines.composite, top_left=places, **transform)

    def twin() -> tuple[Tensor, Tensor]:
        return run(paste_patch_reference, top_left=places, **transform)

    kernel_side, other_side = fresh(), composite()
    # float32 grids are off by about 1e-4 pixels: values move a little, rim pixels may flip.
    moved = (kernel_side[0] - other_side[0]).abs()
    if float((moved > 2e-3).float().mean()) > 1e-5:
        raise SystemExit("paste_patch and the composite disagree")
    check(kernel_side[1], other_side[1], 2e-2)
    check(kernel_side[0], twin()[0], 1e-6)
    check(kernel_side[1], twin()[1], 1e-5)
    if not all(torch.equal(a, b) for a, b in zip(fresh(), into(), strict=True)):
        raise SystemExit("out= changes the result")

    subject = "paste 81x81 into 8x3x768x1024, forward + backward"
    whole, box = 2 * images.nbytes, 4 * 8 * patch.nbytes  # copied; read and written both ways
    other, usual = seconds(composite, budget=4.0), "affine_grid + grid_sample"
    new, name = seconds(fresh), "paste_patch"
    filled = seconds(into)
    placed = seconds(lambda: run(paste_patch, top_left=places, out=images, **transform))
    return [
        Row(subject, name, new, usual, other, 10, bytes=whole + box),
        Row(subject, f"{name} out=", filled, usual, other, 50, bytes=whole + box),
        Row(subject, f"{name} out=images", placed, usual, other, bytes=box),
        Row(subject, name, new, "twin", seconds(twin, budget=4.0), bytes=whole + box),
        Row(subject, name, new, "limit: clone of the images", seconds(images.clone), bytes=whole),
        Row(
            subject,
            f"{name} out=",
            filled,
            "limit: copy of the images",
            seconds(lambda: buffer.copy_(images)),
            bytes=whole,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-store", action="store_true", help="print only")
    arguments = parser.parse_args()
    print(info())
    rows = [
        *adaptive(500, 12),
        *adaptive(3000, 20),
        *fixed(500, 12),
        *fixed(3000, 12),
        *neighbours(3000),
        *neighbours(50_000),
        *paste(),
    ]
    print(table(rows))
    missed = [row for row in rows if row.target is not None and row.ratio < row.target]
    for row in missed:
        print(
            f"missed: {row.subject}, {row.kernel} against {row.baseline}: "
            f"{row.ratio:,.2f} of {row.target:,g}"
        )
    if not arguments.no_store:
        print(f"stored in {store('ops-cpu', rows)}")


if __name__ == "__main__":
    main()
