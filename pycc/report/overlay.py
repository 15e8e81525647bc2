"""A picture of one count: the image under its density map, with the heads that the map shows."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage
from torch import Tensor

from pycc.runs import write_atomic

LEAST_PEOPLE = 0.1
"""People in the 3x3 cells around a maximum, at least, for it to be drawn as a head."""
_STOPS = np.array([[48, 18, 120], [208, 32, 96], [255, 150, 32], [255, 245, 160]], np.float64)
"""Colours of the density map from few to many people per cell."""
_OPAQUE = 0.75
"""Opacity of the density map where it is largest."""


def peaks(density: Tensor, stride: int, *, least: float = LEAST_PEOPLE) -> Tensor:
    """Locate the heads that a density map shows: its local maxima, in pixels of the image.

    A maximum is a cell, or a connected plateau of equal cells, with no higher neighbour among the
    eight around it. Its place is the centre of mass of the 3x3 cells around it. Maxima with fewer
    than ``least`` people in these cells are noise and are left out. In dense crowds, where heads
    share cells, there are fewer maxima than people: the count is the sum of the map, not their
    number.

    Args:
        density: [h,w], people per cell.
        stride: pixels per cell.

    Returns:
        [M,2] float64, (x, y) in pixels, from the largest maximum to the smallest.

    >>> density = torch.zeros(5, 6)
    >>> density[1, 2], density[3, 4] = 1.0, 0.8
    >>> peaks(density, 4).tolist()
    [[10.0, 6.0], [18.0, 14.0]]
    """
    cells = density.double().cpu().numpy()
    sums = 9.0 * ndimage.uniform_filter(cells, 3, mode="constant")
    places = []
    for rows, columns in _maxima(cells):
        if sums[rows, columns].max() >= least:
            y, x = _centre(cells, rows, columns)
            places.append((cells[rows[0], columns[0]], (x + 0.5) * stride, (y + 0.5) * stride))
    places.sort(key=lambda place: -place[0])
    return torch.tensor([place[1:] for place in places], dtype=torch.float64).reshape(-1, 2)


def _maxima(cells: NDArray[np.float64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The rows and columns of each plateau of equal cells without a higher neighbour."""
    highest = ndimage.maximum_filter(cells, 3, mode="constant", cval=0.0)
    candidate = (cells >= highest) & (cells > 0)
    # Connected candidates are equally high. A plateau that climbs somewhere has cells that are no
    # candidates: one of these beside a candidate of the same height makes it a slope.
    labels, _ = ndimage.label(candidate, structure=np.ones((3, 3)))
    lower = np.where(candidate, 0.0, cells)
    beside = ndimage.maximum_filter(lower, 3, mode="constant", cval=0.0)
    slopes = {int(label) for label in labels[candidate & (beside == cells)]}
    for label, inside in enumerate(ndimage.find_objects(labels), start=1):
        if label not in slopes:
            rows, columns = np.nonzero(labels[inside] == label)
            yield rows + inside[0].start, columns + inside[1].start


def _centre(
    cells: NDArray[np.float64], rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> tuple[float, float]:
    """The centre of mass (row, column) of a plateau and the cells around it."""
    top, left = max(0, rows.min() - 1), max(0, columns.min() - 1)
    around = np.clip(cells[top : rows.max() + 2, left : columns.max() + 2], 0.0, None)
    down, across = np.indices(around.shape)
    total = around.sum()
    return top + float((down * around).sum() / total), left + float((across * around).sum() / total)


def coloured(share: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The colours of a density map: [..., 3] in 0…255 and the opacity [...] in [0,1].

    ``share`` [...] in [0,1] is the root of a cell's people, as a share of the largest root.

    >>> coloured(np.array([0.0, 1.0]))[1].tolist()
    [0.0, 0.75]
    """
    steps = np.linspace(0.0, 1.0, len(_STOPS))
    colour = np.stack([np.interp(share, steps, _STOPS[:, channel]) for channel in range(3)], -1)
    return colour, _OPAQUE * share


def draw_overlay(
    path: Path, image: Tensor, density: Tensor, stride: int, *, heads: Tensor | None = None
) -> None:
    """Write a PNG of an image with its density map over it and a circle around each head.

    Args:
        path: the file to write; its folder exists.
        image: [3,H,W], RGB in [0,1].
        density: [h,w], people per cell; the colours are those of the square root of the people,
            from none to the largest cell.
        stride: pixels per cell.
        heads: [M,2] (x, y) in pixels; by default ``peaks`` the map.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     draw_overlay(Path(folder) / "a.png", torch.rand(3, 20, 28), torch.rand(5, 7), 4)
    ...     with Image.open(Path(folder) / "a.png") as picture:
    ...         picture.size
    (28, 20)
    """
    heads = peaks(density, stride) if heads is None else heads
    height, width = image.shape[1:]
    pixels = (255.0 * image.cpu().clamp(0.0, 1.0)).round().permute(1, 2, 0).numpy()
    cells = density.double().cpu().clamp(min=0.0).numpy()
    share = np.sqrt(cells / max(float(cells.max()), 1e-12))
    shown = np.kron(share, np.ones((stride, stride)))[:height, :width]
    full = np.zeros((height, width))
    full[: shown.shape[0], : shown.shape[1]] = shown
    colour, opacity = coloured(full)
    opacity = opacity[..., None]
    picture = Image.fromarray(((1 - opacity) * pixels + opacity * colour).round().astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    radius = max(2.0, min(height, width) / 200)
    for x, y in heads.tolist():
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=(64, 255, 96))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    write_atomic(path, stream.getvalue())
