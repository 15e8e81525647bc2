"""Density maps and adaptive widths: the kernels against windowed NumPy and the published code."""

from __future__ import annotations

import baselines
import numpy as np
import torch
from timer import Row, check, seconds
from torch import Tensor

from pycc.ops import (
    adaptive_sigma,
    adaptive_sigma_reference,
    density_map,
    density_map_reference,
)
from pycc.random import Stream

SHAPE = (768, 1024)


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
    alone = np.sum([baselines.published_head(array[i], widths[i], SHAPE) for i in sample], axis=0)
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
            "fill of the map",
            seconds(lambda: buffer.fill_(0.5)),
            bytes=size,
            limit=True,
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
        Row(subject, name, time, "fill of the map", limit, bytes=size, limit=True),
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
    read = seconds(lambda: points.sum())
    rows = [
        Row(subject, name, time, "cKDTree", tree, bytes=size),
        Row(subject, name, time, "budget of 0.2 s", 0.2, 1.0, bytes=size),
        Row(subject, name, time, "read of the points", read, bytes=size, limit=True),
    ]
    if count <= 3000:  # the twin compares all pairs
        twin = seconds(lambda: adaptive_sigma_reference(points))
        rows.append(Row(subject, name, time, "twin", twin, bytes=size))
    return rows


def rows() -> list[Row]:
    return [
        *adaptive(500, 12),
        *adaptive(3000, 20),
        *fixed(500, 12),
        *fixed(3000, 12),
        *neighbours(3000),
        *neighbours(50_000),
    ]
