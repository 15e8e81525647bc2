"""Ground-truth density maps, bit for bit as the published training codes make them.

They differ in the pixel of a head, in the kernel's width, in the treatment of the border and in
whether heads in one pixel merge. So the sum of a map need not be the number of heads.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn import functional

from pycc.ops import adaptive_sigma, density_map
from pycc.registry import Registry

Points = NDArray[np.float64]
Recipe = Callable[[Points, tuple[int, int]], Tensor]

recipes: Registry[Recipe] = Registry("density recipe")
"""Points [N,2] (x, y), finite, N > 0, and (H, W) -> map [H,W] float32."""


def density(
    points: Tensor, shape: tuple[int, int], *, recipe: str, published_single_head: bool = False
) -> Tensor:
    """Make the density map [H,W] (float32, people per pixel) of heads [N,2] (x, y) in pixels.

    The recipes, with the public code that each follows:

    - ``csrnet_adaptive`` (CSRNet by leeyeehoo): heads in one pixel merge; σ = 0.1 × the sum of the
      distances to the three nearest other pixels; mass beyond the border is lost.
    - ``csrnet_raw`` (CSRNet and CAN by CommissarMa): the same without merging, with distances
      between the annotated coordinates; three coincident neighbours make a dot.
    - ``fixed15_reflect`` (CSRNet by leeyeehoo, part B; CAN by weizheliu): heads in one pixel merge;
      σ = 15; mass is reflected at the border.
    - ``fixed5_reflect`` (SFANet by pxq0312): the same with σ = 5.
    - ``shhb15`` (CommissarMa, part B): rounded pixels, clamped into the image; σ = 15; the map is
      scaled to sum to the number of heads.
    - ``svishwa_window`` (MCNN and CMTL by svishwa): a window of 15 × 15 pixels, σ = 4, at the floor
      of the coordinates minus one; a clipped window holds a Gaussian of its own size and mass 1.
      Heads outside the image are moved to its edge.
    - ``danet_geometry`` (DA-Net): a window of k × k pixels, where k is the mean distance to the
      seven nearest heads, clipped to 7…25; mass beyond the border is folded back.

    The original adaptive recipes fail for 2 or 3 heads; here the existing neighbours are used. A
    single head has σ = (H + W) / 8. No heads give zeros. For a single head the code behind
    ``svishwa_window`` writes 255 into one pixel; here it is treated like any other head, unless
    ``published_single_head`` is True. Recipes that drop heads outside the image warn with their
    number.

    ValueError for points that are not finite or not [N,2], an empty shape or an unknown recipe;
    TypeError for points that are not a tensor.

    >>> heads = torch.tensor([[20.0, 10.0], [30.0, 24.5]])
    >>> full = density(heads, (48, 64), recipe="svishwa_window")
    >>> list(full.shape), round(float(full.sum()), 4)
    ([48, 64], 2.0)
    """
    make = recipes[recipe]
    if not isinstance(points, Tensor):
        raise TypeError(f"density: points must be a tensor [N,2], got {type(points).__name__}")
    if len(shape) != 2:
        raise ValueError(f"density: shape must be (H, W), got {tuple(shape)}")
    height, width = shape
    if height < 1 or width < 1:
        raise ValueError(f"density: shape must be positive, got {height} x {width}")
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"density: points must be [N,2] (x, y), got {list(points.shape)}")
    heads = points.detach().to("cpu", torch.float64).numpy()
    if not np.isfinite(heads).all():
        raise ValueError("density: points must be finite, got NaN or infinity")
    if published_single_head:
        if recipe != "svishwa_window":
            raise ValueError(
                f"density: published_single_head belongs to svishwa_window, got {recipe}"
            )
        if len(heads) == 1:
            return _published_single_head(heads, shape)
    if len(heads) == 0:
        return torch.zeros(height, width)
    return make(heads, shape)


def downsample(full: Tensor, rule: str) -> Tensor:
    """Resize a full density map [H,W] to a network's resolution [H//s,W//s], as published.

    The rules ``cubic8`` (CSRNet by leeyeehoo, CAN by weizheliu) and ``linear8`` (CAN by
    CommissarMa) multiply by 64; ``linear4`` (MCNN, CMTL by svishwa) and ``linear16`` (DA-Net) by
    the whole part of H·W / (h·w). All of them sample points instead of averaging areas, so the sum
    changes by a few per cent and is not a count. ValueError for an unknown rule or a map smaller
    than one cell.

    >>> downsample(torch.full((8, 16), 0.25), "cubic8").tolist()
    [[16.0, 16.0]]
    """
    stride, mode = rules[rule]
    if full.ndim != 2 or min(full.shape) < stride:
        raise ValueError(
            f"downsample: full must be [H,W] of at least {stride} x {stride}, "
            f"got {list(full.shape)}"
        )
    height, width = full.shape[0] // stride, full.shape[1] // stride
    # PyTorch's bicubic has a = -0.75, as OpenCV's; both sample at (j + 1/2) n/m - 1/2.
    small = functional.interpolate(
        full[None, None], (height, width), mode=mode, align_corners=False
    )[0, 0]
    published_integer_ratio = full.numel() // (height * width)
    return small * (64 if stride == 8 else published_integer_ratio)


rules: Registry[tuple[int, str]] = Registry("down-sampling rule")
"""Stride and interpolation by name."""
rules.register("cubic8")((8, "bicubic"))
rules.register("linear8")((8, "bilinear"))
rules.register("linear4")((4, "bilinear"))
rules.register("linear16")((16, "bilinear"))


def _pixels(points: Points, shape: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Truncate points to pixels [N,2] (x, y); also return which of them lie in the image [N]."""
    pixels = np.trunc(points)
    inside = _warned(((pixels >= 0) & (pixels < (shape[1], shape[0]))).all(1))
    return np.where(inside[:, None], pixels, 0).astype(np.int64), inside


def _warned(kept: NDArray[np.bool_] | np.bool_) -> NDArray[np.bool_]:
    """Return which heads are kept, after a warning with the number of the others."""
    inside = np.asarray(kept)
    if not inside.all():
        dropped = np.count_nonzero(~inside)
        warnings.warn(
            f"density: dropped {dropped} of {len(inside)} heads outside the image", stacklevel=5
        )
    return inside


def _tensor(values: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float64))


@recipes.register("csrnet_adaptive")
def _csrnet_adaptive(points: Points, shape: tuple[int, int]) -> Tensor:
    pixels, inside = _pixels(points, shape)
    distinct = _tensor(np.unique(pixels[inside], axis=0))
    return density_map(distinct, adaptive_sigma(distinct, single=sum(shape) / 8), shape)


@recipes.register("csrnet_raw")
def _csrnet_raw(points: Points, shape: tuple[int, int]) -> Tensor:
    pixels, inside = _pixels(points, shape)
    # Heads outside are not drawn, but they are neighbours of those inside.
    sigma = adaptive_sigma(_tensor(points), single=sum(shape) / 8)
    return density_map(_tensor(pixels[inside]), sigma[torch.from_numpy(inside)], shape)


@recipes.register("fixed15_reflect")
def _fixed15_reflect(points: Points, shape: tuple[int, int]) -> Tensor:
    pixels, inside = _pixels(points, shape)
    distinct = _tensor(np.unique(pixels[inside], axis=0))
    return density_map(distinct, 15.0, shape, boundary="reflect")


@recipes.register("fixed5_reflect")
def _fixed5_reflect(points: Points, shape: tuple[int, int]) -> Tensor:
    pixels, inside = _pixels(points, shape)
    distinct = _tensor(np.unique(pixels[inside], axis=0))
    return density_map(distinct, 5.0, shape, boundary="reflect")


@recipes.register("shhb15")
def _shhb15(points: Points, shape: tuple[int, int]) -> Tensor:
    # np.round rounds halves to even, as Python does. Below 0 the original indices wrap around.
    pixels = np.clip(np.round(points), 0, (shape[1] - 1, shape[0] - 1))
    spread = density_map(_tensor(np.unique(pixels, axis=0)), 15.0, shape)
    return (spread.double() * (len(points) / spread.double().sum())).float()


@recipes.register("svishwa_window")
def _svishwa_window(points: Points, shape: tuple[int, int]) -> Tensor:
    size, reach = np.array([shape[1], shape[0]]), 7
    centres = np.clip(np.abs(np.floor(points)), 1, size).astype(np.int64) - 1
    lows, highs = np.maximum(centres - reach, 0), np.minimum(centres + reach + 1, size)
    spread = np.zeros(shape)
    for (left, top), (right, bottom) in zip(lows.tolist(), highs.tolist(), strict=True):
        rows, columns = _gaussian(bottom - top, 4.0), _gaussian(right - left, 4.0)
        spread[top:bottom, left:right] += rows[:, None] * columns
    return _tensor(spread).float()


def _published_single_head(points: Points, shape: tuple[int, int]) -> Tensor:
    """Write 255 into the pixel of the rounded coordinates, counted from 1.

    Halves are rounded away from 0.
    """
    x, y = (math.floor(abs(value) + 0.5) * (1 if value > 0 else -1) for value in points[0])
    spread = torch.zeros(shape)
    spread[min(max(y, 1), shape[0]) - 1, min(max(x, 1), shape[1]) - 1] = 255.0
    return spread


@recipes.register("danet_geometry")
def _danet_geometry(points: Points, shape: tuple[int, int]) -> Tensor:
    inside = _warned((points < (shape[1], shape[0])).all(1))
    sides = _danet_sides(points)[inside]
    centres = np.maximum(np.floor(points[inside]), 1).astype(np.int64) - 1
    spread = np.zeros(shape)
    for side, (x, y) in zip(sides.tolist(), centres.tolist(), strict=True):
        first = 1 - math.ceil(side / 2)
        left, columns = _folded(x + first, side, shape[1])
        top, rows = _folded(y + first, side, shape[0])
        window = spread[top : top + len(rows), left : left + len(columns)]
        window += rows[:, None] * columns
    return _tensor(spread).float()


def _danet_sides(points: Points) -> NDArray[np.int64]:
    """Return the side [N] of each head's window.

    It is the mean distance to the seven nearest others, clipped to 7…25.
    """
    others = min(7, len(points) - 1)
    if others == 0:
        return np.full(len(points), 7)
    # The nearest head is the head itself or one at the same place; the distance is 0 either way.
    distances = cKDTree(points).query(points, k=others + 1)[0][:, 1:]
    return np.asarray(np.clip(np.floor(distances.mean(1) + 0.5), 7, 25), np.int64)


def _folded(start: int, side: int, size: int) -> tuple[int, Points]:
    """Return where a window starts on an axis inside the image, and its folded weights.

    Weight outside the image is added at its mirror image about the window's centre. In an image
    narrower than the window that may be outside too; then the nearest pixel inside takes it.
    """
    weights = _gaussian(side, 0.3 * side)
    places = np.arange(start, start + side)
    outside = (places < 0) | (places >= size)
    target = np.clip(np.where(outside, places[::-1], places), 0, size - 1)
    low = int(target.min())
    return low, np.bincount(target - low, weights=weights).astype(np.float64)


def _gaussian(side: int, sigma: float) -> Points:
    """Return the taps of a Gaussian centred on a window of ``side`` pixels, with sum 1.

    Matlab's fspecial is the outer product of two; these sizes never reach its cut at eps.
    """
    offset = np.arange(side) - (side - 1) / 2
    taps = np.exp(-(offset**2) / (2 * sigma**2))
    return np.asarray(taps / taps.sum())
