"""Band and block ablation: keep one window of an image (Levine and Feizi, arXiv 2002.10733)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pycc.ops import _autograd, _check, _native

_OP = "keep_windows"


@dataclass(frozen=True)
class _Windows:
    """Checked arguments."""

    images: Tensor
    top_left: Tensor  # [M,2] int64
    fill: Tensor  # [C] float32
    height: int
    width: int


def _checked(
    images: Tensor,
    top_left: Tensor,
    window: tuple[int, int],
    fill: float | Tensor,
    *dtypes: torch.dtype,
) -> _Windows:
    _check.shaped(_OP, "images", images, "[N,C,H,W]", (None,) * 4)
    _check.typed(_OP, "images", images, *dtypes)
    _check.shaped(_OP, "top_left", top_left, "[M,2] (y, x)", (None, 2))
    _check.typed(_OP, "top_left", top_left, torch.int64, torch.int32)
    _check.on_device(_OP, "top_left", top_left, images.device, "images")
    sides = _sides(window, images.shape[2], images.shape[3])
    colour = _check.fill(_OP, fill, images.shape[1], images.device)
    return _Windows(images, top_left.to(torch.int64), colour, *sides)


def _sides(window: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """Return the window's sides if it fits into the image; else raise ValueError."""
    sides = _check.pair(_OP, "window", window, "(h, w)", max(height, width))
    if sides[0] > height or sides[1] > width:
        raise ValueError(
            f"{_OP}: window must be (h, w) within ({height}, {width}), got {list(sides)}"
        )
    return sides


def _checked_out(out: Tensor, top_left: Tensor, fill: Tensor, images: Tensor) -> None:
    shape = (len(images) * len(top_left), *images.shape[1:])
    _check.output_apart(_OP, out, shape, images.device, images=images, top_left=top_left, fill=fill)


def keep_windows(
    images: Tensor,
    top_left: Tensor,
    window: tuple[int, int],
    *,
    fill: float | Tensor,
    out: Tensor | None = None,
) -> Tensor:
    """Keep one window of every image, wrapping around its borders, and fill the rest.

    A band is a window as high or as wide as the image, a block any other (Levine and Feizi,
    "(De)Randomized Smoothing for Certifiable Defense against Patch Attacks", NeurIPS 2020).
    Differentiable in images, also twice. The checks do not read the values of ``top_left``: nothing
    synchronises with a CUDA device, and it may be drawn inside of ``torch.compile``.

    Args:
        images: [N,C,H,W] float32.
        top_left: [M,2] int64 or int32 (y, x) of the windows; any values, taken modulo (H, W).
        window: sides (h, w) of the windows in pixels, 0 <= h <= H and 0 <= w <= W.
        fill: value of the other pixels, a finite number or [C] float32; the values of a tensor are
            not checked.
        out: buffer for the result: [N*M,C,H,W] float32, contiguous, overlapping neither images,
            top_left nor fill. The returned tensor shares its memory and carries the gradient. Not
            for use inside ``torch.compile``.

    Returns:
        [N*M,C,H,W] float32; row n*M+m is image n with window m. Kept pixels keep their bits. The
        gradient of an image sums that of its rows in the order of m.

    Raises:
        ValueError, TypeError: a bad argument, before anything is written.

    Example:
        >>> import torch
        >>> from pycc import ops
        >>> corner = torch.tensor([[0, 3]])
        >>> ops.keep_windows(torch.ones(1, 1, 2, 4), corner, (2, 2), fill=0.0)[0, 0]
        tensor([[1., 0., 0., 1.],
                [1., 0., 0., 1.]])
    """
    if _native.use_reference():
        return keep_windows_reference(images, top_left, window, fill=fill, out=out)
    _check.reverse_only(_OP, images)
    checked = _checked(images, top_left, window, fill, torch.float32)
    places, sides = checked.top_left, (checked.height, checked.width)
    if out is None:
        kept: Tensor = _keep_windows(images, places, checked.fill, *sides)
        return kept
    _checked_out(out, top_left, checked.fill, images)
    count = len(images)
    return _autograd.into(
        out,
        images,
        places,
        write=lambda buffer, read, places: _fill(buffer, read, places, checked.fill, *sides),
        backward=lambda grad, places: _keep_windows_backward(grad, places, count, *sides),
    )


def keep_windows_reference(
    images: Tensor,
    top_left: Tensor,
    window: tuple[int, int],
    *,
    fill: float | Tensor,
    out: Tensor | None = None,
) -> Tensor:
    """Compute :func:`keep_windows` in pure torch, with the same arguments; also for float64.

    Example:
        >>> import torch
        >>> from pycc import ops
        >>> images, corners = torch.rand(2, 3, 6, 8), torch.tensor([[0, 3], [5, 7]])
        >>> kept = ops.keep_windows_reference(images, corners, (6, 2), fill=0.5)
        >>> torch.equal(kept, ops.keep_windows(images, corners, (6, 2), fill=0.5))
        True
    """
    checked = _checked(images, top_left, window, fill, torch.float32, torch.float64)
    if out is not None:
        _checked_out(out, top_left, checked.fill, images)
    count, channels, height, width = images.shape
    rows = _inside(checked.top_left[:, 0], checked.height, height)  # [M,H]
    cols = _inside(checked.top_left[:, 1], checked.width, width)  # [M,W]
    colour = checked.fill.to(images.dtype)[:, None, None]
    # Autograd visits the rows in reverse: created last to first, gradients add in the order of m.
    kept = [
        torch.where(rows[m, :, None] & cols[m], images, colour)
        for m in reversed(range(len(top_left)))
    ]
    result = torch.stack(kept[::-1], dim=1) if kept else images.unsqueeze(1)[:, :0]
    result = result.reshape(count * len(top_left), channels, height, width)
    return result if out is None else out.detach().copy_(result)


def _inside(first: Tensor, extent: int, size: int) -> Tensor:
    """Mark the ``extent`` places from ``first`` [M] on, wrapping: [M,size] bool."""
    index = torch.arange(size, device=first.device)
    begin = first[:, None].remainder(max(size, 1))
    return (index - begin).remainder(max(size, 1)) < extent


def _memory(
    shape: torch.Size, top_left: Tensor, height: int, width: int, device: torch.device
) -> tuple[Tensor, object]:
    """Return ``top_left`` as a kernel reads it and the sizes, for images [N,C,H,W] of ``shape``."""
    top_left = _check.raw(_OP, "top_left", top_left, torch.int64, (None, 2), device)
    _sides((height, width), shape[2], shape[3])
    count, channels = shape[:2]
    return top_left, _native.module().WindowSizes(
        images=count,
        windows=len(top_left),
        channels=channels,
        height=shape[2],
        width=shape[3],
        window_height=height,
        window_width=width,
    )


def _fill(
    out: Tensor, images: Tensor, top_left: Tensor, fill: Tensor, height: int, width: int
) -> None:
    device = images.device
    images = _check.raw(_OP, "images", images, torch.float32, (None,) * 4, device)
    top_left, sizes = _memory(images.shape, top_left, height, width, device)
    fill = _check.raw(_OP, "fill", fill, torch.float32, (images.shape[1],), device)
    _native.run(_OP, device, out, images, top_left, fill, sizes)


@torch.library.custom_op("pycc::keep_windows", mutates_args=())
def _keep_windows(
    images: Tensor, top_left: Tensor, fill: Tensor, height: int, width: int
) -> Tensor:
    _check.shaped(_OP, "images", images, "[N,C,H,W]", (None,) * 4)
    _check.shaped(_OP, "top_left", top_left, "[M,2] (y, x)", (None, 2))
    shape = (images.shape[0] * top_left.shape[0], *images.shape[1:])
    out = torch.empty(shape, dtype=images.dtype, device=images.device)
    _fill(out, images, top_left, fill, height, width)
    return out


@_keep_windows.register_fake
def _(images: Tensor, top_left: Tensor, fill: Tensor, height: int, width: int) -> Tensor:
    _check.same_device(_OP, images, top_left, fill)
    return images.new_empty((images.shape[0] * top_left.shape[0], *images.shape[1:]))


@torch.library.custom_op("pycc::keep_windows_backward", mutates_args=())
def _keep_windows_backward(
    grad: Tensor, top_left: Tensor, images: int, height: int, width: int
) -> Tensor:
    """Return the gradient [N,C,H,W] of N images, given that of their rows [N*M,C,H,W]."""
    device = grad.device
    grad = _check.raw(_OP, "grad", grad, torch.float32, (None,) * 4, device)
    _check.integer(_OP, "images", images, 0, 1 << 62)
    shape = torch.Size((images, *grad.shape[1:]))
    top_left, sizes = _memory(shape, top_left, height, width, device)
    if len(grad) != images * len(top_left):
        raise ValueError(
            f"{_OP}: grad must have {images} x {len(top_left)} rows, got {list(grad.shape)}"
        )
    grad_images = torch.empty(shape, dtype=torch.float32, device=device)
    _native.run(f"{_OP}_backward", device, grad_images, grad, top_left, sizes)
    return grad_images


@_keep_windows_backward.register_fake
def _(grad: Tensor, top_left: Tensor, images: int, height: int, width: int) -> Tensor:
    _check.same_device(_OP, grad, top_left)
    return grad.new_empty((images, *grad.shape[1:]))


def _setup_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    images, top_left, _, ctx.height, ctx.width = inputs
    ctx.images = images.shape[0]
    ctx.save_for_backward(top_left)


def _pull_back(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (top_left,) = ctx.saved_tensors
    pulled = _keep_windows_backward(grad, top_left, ctx.images, ctx.height, ctx.width)
    return pulled, None, None, None, None


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, top_left, _, ctx.height, ctx.width = inputs
    ctx.save_for_backward(top_left)


def _push_forward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate the backward pass: it is linear, its adjoint the forward pass with fill 0."""
    (top_left,) = ctx.saved_tensors
    nothing = grad.new_zeros(grad.shape[1])
    pushed = _keep_windows(grad, top_left, nothing, ctx.height, ctx.width)
    return pushed, None, None, None, None


_keep_windows.register_autograd(_pull_back, setup_context=_setup_forward)
_keep_windows_backward.register_autograd(_push_forward, setup_context=_setup_backward)
