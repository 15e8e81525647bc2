"""Density maps: the sum of one truncated Gaussian per head."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pycc.ops import _check, _native

_OP = "density_map"
BOUNDARIES = ("clip", "renormalize", "reflect")
_MAX_RADIUS = 1 << 20
_TRUNCATE = (1e-9, float(_MAX_RADIUS))
_MAX_SIDE = 1 << 30


@dataclass(frozen=True)
class _Heads:
    """The heads inside the image, as a kernel takes them."""

    pixels: Tensor  # [K,2] int64 (y, x)
    sigma: Tensor  # [K] float64
    height: int
    width: int
    boundary: int


def _checked(
    points: Tensor,
    sigma: float | Tensor,
    shape: Sequence[int],
    truncate: float,
    boundary: str,
    stride: int,
) -> _Heads:
    places = _check.points(_OP, points).detach().to(torch.float64)
    height, width = _check.pair(_OP, "shape", shape, "(H, W)", _MAX_SIDE)
    _check.integer(_OP, "stride", stride, 1, _MAX_SIDE)
    code = _check.choice(_OP, "boundary", boundary, BOUNDARIES)
    _check.number(_OP, "truncate", truncate, *_TRUNCATE)
    if isinstance(sigma, Tensor):
        _check.on_device(_OP, "sigma", sigma, points.device, "points")
    widths = _check.number_each(_OP, "sigma", sigma, len(points), 0.0, 1e300, points.device)
    if _outside(places, (width, height)):
        inside = ((places >= 0) & (places < places.new_tensor([width, height]))).all(1)
        warnings.warn(
            f"{_OP}: {len(points) - int(inside.sum())} of {len(points)} points lie outside the "
            f"{height}x{width} image and are dropped",
            stacklevel=4 if _native.use_reference() else 3,
        )
        places, widths = places[inside], widths[inside]
    _check_reach(widths, truncate)
    pixels = places.flip(1).to(torch.int64)
    return _Heads(pixels.contiguous(), widths.contiguous(), height, width, code)


def _outside(places: Tensor, sizes: tuple[int, int]) -> str:
    """Describe the range of [n,2] places if one is outside [0, sizes); else return ""."""
    if len(places) == 0:
        return ""
    low, high = (extreme.tolist() for extreme in torch.aminmax(places, dim=0))
    if min(low) >= 0 and high[0] < sizes[0] and high[1] < sizes[1]:
        return ""
    return f"{low} to {high}"


def _check_reach(sigma: Tensor, truncate: float) -> None:
    least, most = _check.extremes(sigma)
    if not (least >= 0 and truncate * most < _MAX_RADIUS):
        raise ValueError(
            f"{_OP}: sigma must be at least 0 and truncate * sigma below {_MAX_RADIUS} pixels, got "
            f"sigma {least:g} to {most:g}, truncate {truncate:g}"
        )


def _checked_out(out: Tensor, heads: _Heads, stride: int) -> None:
    cells = (heads.height // stride, heads.width // stride)
    _check.output_apart(_OP, out, cells, heads.pixels.device, sigma=heads.sigma)


def density_map(
    points: Tensor,
    sigma: float | Tensor,
    shape: Sequence[int],
    *,
    truncate: float = 4.0,
    boundary: str = "clip",
    stride: int = 1,
    out: Tensor | None = None,
) -> Tensor:
    """Sum one Gaussian per head, each centred on the pixel that contains the head.

    Args:
        points: [N,2] head annotations (x, y), float32 or float64, in pixels. Points outside the
            image are dropped and counted in a warning.
        sigma: width in pixels, one number for all or [N]; 0 is a dot.
        shape: (H, W) of the image, in pixels.
        truncate: a kernel extends int(truncate * sigma + 0.5) pixels from its centre; its taps are
            normalised to a sum of 1 (as in scipy.ndimage.gaussian_filter).
        boundary: treatment of the mass beyond the image: ``clip`` loses it (the published
            geometry-adaptive maps), ``renormalize`` spreads it over the part of the kernel inside,
            so that every head keeps mass 1, ``reflect`` mirrors it back (half-sample symmetric).
        stride: sums blocks of stride x stride pixels; the remaining rows and columns are dropped.
        out: buffer for the map: [H // stride, W // stride] float32, contiguous, overwritten, not
            overlapping sigma. Not for use inside ``torch.compile``.

    Returns:
        [H // stride, W // stride] float32, people per cell. Not differentiable: gradients and
        tangents of points and sigma are dropped. Sums are float32: a cell under thousands of
        kernels is exact to about 3e-5 of the map's maximum.

    Raises:
        ValueError, TypeError: a bad argument, before anything is written.

    Source:
        Zhang et al., "Single-image crowd counting via multi-column convolutional neural network",
        CVPR 2016, section 2.2.

    Example:
        >>> import torch
        >>> from pycc import ops
        >>> points = torch.tensor([[20.0, 12.0], [33.5, 21.0]])
        >>> density = ops.density_map(points, 2.0, (40, 48), stride=8)
        >>> density.shape, round(float(density.sum()), 4)
        (torch.Size([5, 6]), 2.0)
    """
    if _native.use_reference():
        return density_map_reference(
            points, sigma, shape, truncate=truncate, boundary=boundary, stride=stride, out=out
        )
    heads = _checked(points, sigma, shape, truncate, boundary, stride)
    sizes = (heads.height, heads.width, int(stride), float(truncate), heads.boundary)
    if out is not None:
        _checked_out(out, heads, stride)
        torch.autograd.graph.increment_version(out)
        _fill(out, heads.pixels, heads.sigma, *sizes)
        return out
    density: Tensor = _density_map(heads.pixels, heads.sigma, *sizes)
    return density


def density_map_reference(
    points: Tensor,
    sigma: float | Tensor,
    shape: Sequence[int],
    *,
    truncate: float = 4.0,
    boundary: str = "clip",
    stride: int = 1,
    out: Tensor | None = None,
) -> Tensor:
    """Compute :func:`density_map` in pure torch, as a product of two matrices of axis weights.

    Time O(N (H // stride) (W // stride)).

    Example:
        >>> import torch
        >>> from pycc import ops
        >>> density = ops.density_map_reference(torch.tensor([[1.0, 2.0]]), 0.0, (3, 4))
        >>> density.nonzero().tolist()
        [[2, 1]]
    """
    heads = _checked(points, sigma, shape, truncate, boundary, stride)
    cells = (heads.height // stride, heads.width // stride)
    if out is not None:
        _checked_out(out, heads, stride)
    density = torch.zeros(cells, dtype=torch.float64, device=points.device)
    block = 256
    for first in range(0, len(heads.pixels), block):
        pixels, widths = heads.pixels[first : first + block], heads.sigma[first : first + block]
        rows, cols = (
            _axis_weights(pixels[:, axis], widths, size, truncate, boundary, stride)
            for axis, size in enumerate((heads.height, heads.width))
        )
        density += rows.T @ cols
    result = density.to(torch.float32)
    return result if out is None else out.copy_(result)


def _axis_weights(
    centre: Tensor, sigma: Tensor, size: int, truncate: float, boundary: str, stride: int
) -> Tensor:
    """Return the weights [n, size // stride] of one axis of n heads, float64."""
    radius = (truncate * sigma + 0.5).to(torch.int64)
    reach = int(radius.max())
    offset = torch.arange(-reach, reach + 1, device=centre.device)
    taps = torch.exp(-0.5 * (offset / sigma.clamp_min(1e-300)[:, None]).square())
    taps = torch.where(offset == 0, 1.0, taps)
    taps = torch.where(offset.abs() <= radius[:, None], taps, 0.0)
    at = centre[:, None] + offset
    inside = (at >= 0) & (at < size)
    counted = torch.where(inside, taps, 0.0) if boundary == "renormalize" else taps
    taps = taps / counted.sum(1, keepdim=True)
    if boundary == "reflect":
        turned = at.remainder(2 * size)
        at = torch.minimum(turned, 2 * size - 1 - turned)
    else:
        taps, at = torch.where(inside, taps, 0.0), at.clamp(0, size - 1)
    pixels = torch.zeros(len(centre), size, dtype=torch.float64, device=centre.device)
    pixels.scatter_add_(1, at, taps)
    cells = size // stride
    return pixels[:, : cells * stride].reshape(len(centre), cells, stride).sum(2)


def _fill(
    out: Tensor | None,
    pixels: Tensor,
    sigma: Tensor,
    height: int,
    width: int,
    stride: int,
    truncate: float,
    boundary: int,
) -> Tensor:
    """Compute the map in ``out``, or in a new tensor; the kernels rely on these checks."""
    pixels = _check.raw(_OP, "pixels", pixels, torch.int64, (None, 2), pixels.device)
    device, count = pixels.device, len(pixels)
    sigma = _check.raw(_OP, "sigma", sigma, torch.float64, (count,), device)
    _check.integer(_OP, "height", height, 0, _MAX_SIDE)
    _check.integer(_OP, "width", width, 0, _MAX_SIDE)
    _check.integer(_OP, "stride", stride, 1, _MAX_SIDE)
    _check.number(_OP, "truncate", truncate, *_TRUNCATE)
    _check.integer(_OP, "boundary", boundary, 0, len(BOUNDARIES) - 1)
    if outside := _outside(pixels, (height, width)):
        raise ValueError(
            f"{_OP}: pixels must be (y, x) inside the {height}x{width} image, got {outside}"
        )
    _check_reach(sigma, truncate)
    if out is None:
        out = torch.empty((height // stride, width // stride), dtype=torch.float32, device=device)
    module = _native.module()
    scratch: tuple[Tensor, ...] = ()
    if _native.kind_of(device) == "cuda":
        size = count * module.head_axes_bytes
        scratch = (torch.empty(size, dtype=torch.uint8, device=device),)
    sizes = (count, height, width, stride, truncate, module.Boundary[BOUNDARIES[boundary]])
    _native.run(_OP, device, out, *scratch, pixels, sigma, *sizes)
    return out


@torch.library.custom_op("pycc::density_map", mutates_args=())
def _density_map(
    pixels: Tensor,
    sigma: Tensor,
    height: int,
    width: int,
    stride: int,
    truncate: float,
    boundary: int,
) -> Tensor:
    return _fill(None, pixels, sigma, height, width, stride, truncate, boundary)


@_density_map.register_fake
def _(
    pixels: Tensor, sigma: Tensor, height: int, width: int, stride: int, *_shape: float
) -> Tensor:
    _check.same_device(_OP, pixels, sigma)
    return pixels.new_empty((height // stride, width // stride), dtype=torch.float32)
