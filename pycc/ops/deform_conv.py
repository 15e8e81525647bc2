"""Deformable convolution with the border rule of DA-Net's published code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pycc.ops import _check, _native

_OP = "deform_conv"
_SIDE = 3
_TAPS = _SIDE * _SIDE


def _checked(x: Tensor, offset: Tensor, weight: Tensor, *dtypes: torch.dtype) -> None:
    _check.shaped(_OP, "x", x, "[N,C,H,W]", (None,) * 4)
    _check.typed(_OP, "x", x, *dtypes)
    count, channels, height, width = x.shape
    around = f"[{count},{2 * _TAPS},{height},{width}] (down, right) for each of the {_TAPS} taps"
    _check.shaped(_OP, "offset", offset, around, (count, 2 * _TAPS, height, width))
    kernels = f"[O,{channels},{_SIDE},{_SIDE}]"
    _check.shaped(_OP, "weight", weight, kernels, (None, channels, _SIDE, _SIDE))
    for name, tensor in (("offset", offset), ("weight", weight)):
        _check.typed(_OP, name, tensor, x.dtype)
        _check.on_device(_OP, name, tensor, x.device, "x")


def deform_conv(x: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    """Convolve with a 3x3 kernel whose nine taps are each moved by an offset of their own.

    Tap k = 3i + j of cell (r, c) reads at row r + i - 1 + offset[:, 2k] and column c + j - 1 +
    offset[:, 2k + 1]. On an axis of n places, a position p within [0, n - 1] is interpolated
    linearly; any other position is first rounded down, and places outside the map read 0. So p in
    (-1, 0) reads 0 and p in (n - 1, n) reads the last place with weight 1. This is the rule of the
    code published with DA-Net (Zou et al., "DA-Net: Learning the fine-grained density distribution
    with deformation aggregation network", IEEE Access 2018). It differs from other deformable
    convolutions (Dai et al., ICCV 2017) wherever a sample leaves the map. With zero offsets this is
    the ordinary convolution with zero padding. Stride 1, no bias.

    Differentiable once in all three arguments, but not in forward mode. A position that was rounded
    down has gradient 0; at a whole position the derivative is that of the interval after it. Sums
    are in float64 and in a fixed order: results depend neither on the number of threads nor on the
    device.

    Args:
        x: [N,C,H,W] float32. A value with weight 0 is ignored, even if it is NaN.
        offset: [N,18,H,W] float32, in cells. Infinite offsets are outside the map. With a NaN
            offset the tap reads NaN, and no gradient reaches x or the offset through it.
        weight: [O,C,3,3] float32.

    Returns:
        [N,O,H,W] float32, in channels-last memory format, like all gradients; inputs in this format
        are not copied.

    Raises:
        ValueError, TypeError: a bad argument.

    Example:
        >>> import torch
        >>> from pycc import ops
        >>> x, weight = torch.rand(1, 2, 6, 6), torch.rand(4, 2, 3, 3)
        >>> convolved = ops.deform_conv(x, torch.zeros(1, 18, 6, 6), weight)
        >>> torch.allclose(convolved, torch.nn.functional.conv2d(x, weight, padding=1))
        True
    """
    if _native.use_reference():
        return deform_conv_reference(x, offset, weight)
    _checked(x, offset, weight, torch.float32)
    _check.reverse_only(_OP, x, offset, weight)
    convolved: Tensor = _deform_conv(x, offset, weight)
    return convolved


def _sides(x: Tensor, offset: Tensor, weight: Tensor) -> tuple[int, int, int, int, int]:
    """Check that the shapes of the arguments agree and return N, C, H, W and O."""
    _check.shaped(_OP, "x", x, "[N,C,H,W]", (None,) * 4)
    count, channels, height, width = x.shape
    _check.shaped(_OP, "offset", offset, "[N,18,H,W]", (count, 2 * _TAPS, height, width))
    _check.shaped(_OP, "weight", weight, "[O,C,3,3]", (None, channels, _SIDE, _SIDE))
    return count, channels, height, width, weight.shape[0]


def _last(name: str, tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor [A,B,H,W] as contiguous memory [A,H,W,B]."""
    _check.shaped(_OP, name, tensor, "of 4 axes", (None,) * 4)
    return _check.raw(_OP, name, tensor.permute(0, 2, 3, 1), torch.float32, (None,) * 4, device)


def _empty_last(like: Tensor, *sides: int) -> Tensor:
    """Return an uninitialised tensor [A,B,H,W] in channels-last memory format."""
    count, channels, height, width = sides
    return like.new_empty((count, height, width, channels)).permute(0, 3, 1, 2)


def _run(op: str, result: Tensor, sides: tuple[int, int, int, int, int], **reads: Tensor) -> Tensor:
    """Run a kernel on the tensors ``reads``, passed in this order, and return ``result``."""
    device = result.device
    plain = [_last(name, tensor, device) for name, tensor in reads.items()]
    count, channels, height, width, outputs = sides
    sizes = _native.module().DeformSizes(
        images=count, channels=channels, height=height, width=width, outputs=outputs
    )
    _native.run(op, device, result.permute(0, 2, 3, 1), *plain, sizes)
    return result


@torch.library.custom_op("pycc::deform_conv", mutates_args=())
def _deform_conv(x: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    sides = _sides(x, offset, weight)
    count, _, height, width, outputs = sides
    out = _empty_last(x, count, outputs, height, width)
    return _run(_OP, out, sides, x=x, offset=offset, weight=weight)


@_deform_conv.register_fake
def _(x: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    _check.same_device(_OP, x, offset, weight)
    return _empty_last(x, x.shape[0], weight.shape[0], *x.shape[2:])


@torch.library.custom_op("pycc::deform_conv_grad_x", mutates_args=())
def _grad_x(grad: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient [N,C,H,W] of x, given that of the result [N,O,H,W]."""
    channels = _matching(grad, offset, weight)
    count, outputs, height, width = grad.shape
    result = _empty_last(grad, count, channels, height, width)
    sides = (count, channels, height, width, outputs)
    return _run(f"{_OP}_grad_x", result, sides, grad=grad, offset=offset, weight=weight)


@_grad_x.register_fake
def _(grad: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    _check.same_device(_OP, grad, offset, weight)
    return _empty_last(grad, grad.shape[0], weight.shape[1], *grad.shape[2:])


def _matching(grad: Tensor, offset: Tensor, weight: Tensor) -> int:
    """Check that the shapes agree and return C, the number of input channels."""
    _check.shaped(_OP, "grad", grad, "[N,O,H,W]", (None,) * 4)
    count, outputs, height, width = grad.shape
    _check.shaped(_OP, "offset", offset, "[N,18,H,W]", (count, 2 * _TAPS, height, width))
    _check.shaped(_OP, "weight", weight, "[O,C,3,3]", (outputs, None, _SIDE, _SIDE))
    return weight.shape[1]


@torch.library.custom_op("pycc::deform_conv_grad_offset", mutates_args=())
def _grad_offset(grad: Tensor, x: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient [N,18,H,W] of the offsets, given that of the result [N,O,H,W]."""
    _matching(grad, offset, weight)
    sides = _sides(x, offset, weight)
    result = _empty_last(grad, *offset.shape)
    reads = {"grad": grad, "x": x, "offset": offset, "weight": weight}
    return _run(f"{_OP}_grad_offset", result, sides, **reads)


@_grad_offset.register_fake
def _(grad: Tensor, x: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    _check.same_device(_OP, grad, x, offset, weight)
    return _empty_last(grad, *offset.shape)


@torch.library.custom_op("pycc::deform_conv_grad_weight", mutates_args=())
def _grad_weight(grad: Tensor, x: Tensor, offset: Tensor) -> Tensor:
    """Return the gradient [O,C,3,3] of the weight, given that of the result [N,O,H,W]."""
    _check.shaped(_OP, "grad", grad, "[N,O,H,W]", (None,) * 4)
    _check.shaped(_OP, "x", x, "[N,C,H,W]", (None,) * 4)
    result = _empty_last(grad, grad.shape[1], x.shape[1], _SIDE, _SIDE)
    _matching(grad, offset, result)
    sides = _sides(x, offset, result)
    return _run(f"{_OP}_grad_weight", result, sides, grad=grad, x=x, offset=offset)


@_grad_weight.register_fake
def _(grad: Tensor, x: Tensor, offset: Tensor) -> Tensor:
    _check.same_device(_OP, grad, x, offset)
    return _empty_last(grad, grad.shape[1], x.shape[1], _SIDE, _SIDE)


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, offset, weight = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    return (
        _grad_x(grad, offset, weight) if wanted[0] else None,
        _grad_offset(grad, x, offset, weight) if wanted[1] else None,
        _grad_weight(grad, x, offset) if wanted[2] else None,
    )


_deform_conv.register_autograd(_backward, setup_context=_setup_context)


def _axis(at: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return which place each position of an axis reads, the share of the next one, and if any."""
    inside = (at >= 0) & (at <= size - 1)
    beyond = (at > size - 1) & (at < size)
    share = torch.where(inside, at, 0.0)
    low = torch.where(beyond, float(size - 1), share.detach().floor())
    return low.long(), torch.where(inside, share - low, 0.0), inside | beyond


def deform_conv_reference(x: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    """Compute :func:`deform_conv` in pure torch, with the same arguments; also for float64.

    Example:
        >>> import torch
        >>> from pycc import ops
        >>> x, offset = torch.rand(1, 2, 6, 6), torch.randn(1, 18, 6, 6)
        >>> weight = torch.ones(4, 2, 3, 3)
        >>> result = ops.deform_conv_reference(x, offset, weight)
        >>> torch.allclose(result, ops.deform_conv(x, offset, weight))
        True
    """
    _checked(x, offset, weight, torch.float32, torch.float64)
    count, channels, height, width = x.shape
    # Positions are float64: near a border, float32 rounding would decide whether a place is read.
    moved = offset.double().view(count, _TAPS, 2, height, width)
    lost = moved.isnan().any(2)  # [N,9,H,W]
    moved = torch.where(lost[:, :, None], 0.0, moved)
    rows, cols = (torch.arange(size, device=x.device).double() for size in (height, width))
    tap = torch.arange(_TAPS, device=x.device)
    up, left = (part.double()[:, None, None] - 1 for part in (tap // _SIDE, tap % _SIDE))
    row, down, on_rows = _axis(rows[:, None] + up + moved[:, :, 0], height)
    col, right, on_cols = _axis(cols + left + moved[:, :, 1], width)
    read = on_rows & on_cols & ~lost
    flat = x.double().flatten(2)  # [N,C,H*W]
    blended = torch.where(lost, torch.nan, 0.0)[:, None]  # [N,C,9,H,W]
    for i, share in ((row, 1 - down), (row + 1, down)):
        for j, part in ((col, 1 - right), (col + 1, right)):
            there = read & (i < height) & (j < width)
            place = torch.where(there, i * width + j, 0).flatten(1)[:, None]
            value = flat.gather(2, place.expand(-1, channels, -1))
            value = value.view(count, channels, _TAPS, height, width)
            share_of_all = torch.where(there, share * part, 0.0)[:, None]
            # A finite value with weight 0 stays: the offset's gradient needs it.
            nothing = ~there[:, None] | ((share_of_all == 0) & ~value.isfinite())
            blended = blended + share_of_all * torch.where(nothing, 0.0, value)
    kernels = weight.double().flatten(2)
    return torch.einsum("nckhw,ock->nohw", blended, kernels).to(x.dtype)
