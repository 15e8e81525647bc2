"""The geometry of pasting in pure torch, for the twin of ``paste_patch``: one image at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Place:
    """The place and transform of a patch in one image."""

    top_left: Tensor  # [2] int64 (y, x)
    transform: Tensor  # [4] float64: cosine, sine, zoom, brightness
    patch_mask: Tensor | None  # [p,q] uint8


def _rotated(
    image: Tensor, place: Place, sides: tuple[int, int], zoom: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Return the rows and columns [H,W] of the (zoomed) patch that the image's pixels sample."""
    cosine, sine = place.transform[0], place.transform[1]
    centre = [0.5 * (side - 1) for side in sides]
    axes = []
    for axis, size in enumerate(image.shape[1:]):
        index = torch.arange(size, dtype=torch.float64, device=image.device)
        axes.append(index - place.top_left[axis] - centre[axis])
    dy, dx = axes[0][:, None], axes[1][None, :]
    return (
        centre[0] + (cosine * dy + sine * dx) / zoom,
        centre[1] + (cosine * dx - sine * dy) / zoom,
    )


def _bilinear(
    value: Callable[[Tensor, Tensor], Tensor], sides: tuple[int, int], row: Tensor, col: Tensor
) -> Tensor:
    """Interpolate values [C,...] at (row, col), clamped to ``sides``, bilinearly in float64.

    ``value`` returns the values at whole rows and columns. A value of weight 0 is ignored, even if
    it is NaN.
    """
    height, width = sides
    row, col = row.clamp(0, height - 1), col.clamp(0, width - 1)
    top, left = row.floor().long(), col.floor().long()
    down, across = row - top, col - left
    total = torch.zeros((), dtype=torch.float64, device=row.device)
    for i, share in ((top, 1 - down), ((top + 1).clamp_max(height - 1), down)):
        for j, part in ((left, 1 - across), ((left + 1).clamp_max(width - 1), across)):
            weight = share * part
            total = total + weight * torch.where(weight == 0, 0.0, value(i, j))
    return total


def _under_mask(
    row: Tensor, col: Tensor, height: int, width: int, patch_mask: Tensor | None
) -> Tensor:
    """Whether the patch pixels nearest to (row, col) exist and are in the mask."""
    v, u = (row + 0.5).floor().long(), (col + 0.5).floor().long()
    inside = (v >= 0) & (v < height) & (u >= 0) & (u < width)
    if patch_mask is None:
        return inside
    return inside & patch_mask.bool()[v.clamp(0, height - 1), u.clamp(0, width - 1)]


def _nowhere(image: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Cover no pixel, but keep the patch in the autograd graph."""
    inside = torch.zeros(image.shape[1:], dtype=torch.bool, device=image.device)
    return inside, 0.0 * values.sum()


def single(image: Tensor, values: Tensor, place: Place) -> tuple[Tensor, Tensor]:
    """Warp a patch ``values`` [C,p,q] in one affine pass; return the covered pixels and values."""
    height, width = values.shape[1:]
    if height == 0 or width == 0:
        return _nowhere(image, values)
    row, col = _rotated(image, place, (height, width), place.transform[2])
    values = values.double()
    warped = _bilinear(lambda i, j: values[:, i, j], (height, width), row, col)
    return _under_mask(row, col, height, width, place.patch_mask), warped


def _around(at: Tensor, side: int) -> Tensor:
    """Return the samples, of an axis of ``side`` samples, between which positions ``at`` lie."""
    least, most = (int(extreme) for extreme in torch.aminmax(at.clamp(0, side - 1)))
    return torch.arange(least, min(most + 2, side), device=at.device)


def nested(image: Tensor, values: Tensor, place: Place) -> tuple[Tensor, Tensor]:
    """Warp a patch ``values`` [C,p,q] by a zoom, then a rotation; return as ``single`` does."""
    height, width = values.shape[1:]
    zoom = float(place.transform[2])
    sides = (round(height * zoom), round(width * zoom))
    if min(sides) == 0 or min(height, width) == 0 or image.numel() == 0:
        return _nowhere(image, values)
    values = values.double()
    if place.patch_mask is not None:
        values = torch.where(place.patch_mask.bool(), values, 0.0)

    def source(index: Tensor, axis: int) -> Tensor:
        return index.double() * (values.shape[1 + axis] - 1) / max(sides[axis] - 1, 1)

    row, col = _rotated(image, place, sides, 1.0)
    rows, cols = (_around(at, side) for at, side in zip((row, col), sides, strict=True))
    at = source(rows, 0)[:, None], source(cols, 1)[None, :]
    zoomed = _bilinear(lambda v, u: values[:, v, u], (height, width), *at)
    within = (row >= 0) & (row <= sides[0] - 1) & (col >= 0) & (col <= sides[1] - 1)
    warped = _bilinear(lambda i, j: zoomed[:, i - rows[0], j - cols[0]], sides, row, col)
    warped = torch.where(within, warped, 0.0)

    i, j = (
        torch.arange(size, device=image.device) - place.top_left[axis]
        for axis, size in enumerate(image.shape[1:])
    )
    boxed = ((i >= 0) & (i < sides[0]))[:, None] & ((j >= 0) & (j < sides[1]))[None, :]
    v = (source(i.clamp(0, sides[0] - 1), 0) + 0.5).floor().long().clamp_max(height - 1)
    u = (source(j.clamp(0, sides[1] - 1), 1) + 0.5).floor().long().clamp_max(width - 1)
    covered = (
        boxed
        if place.patch_mask is None
        else boxed & place.patch_mask.bool()[v[:, None], u[None, :]]
    )
    return covered, warped
