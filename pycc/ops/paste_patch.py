"""Differentiable pasting of an adversarial patch into images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pycc.ops import _check, _native, _warp

_OP = "paste_patch"
SAMPLINGS = ("single", "nested")
_MAX_ZOOM, _MAX_ANGLE, _MAX_SHIFT = 1000.0, 1e6, 1e6
_MAX_OFFSET = 1 << 30
_MASK_DTYPES = (
    torch.bool,
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
)


@dataclass(frozen=True)
class _Paste:
    """Checked arguments; ``patch`` is [N or 1,C,p,q], ``transform`` [N,4]."""

    images: Tensor
    patch: Tensor
    patch_mask: Tensor | None  # [p,q] uint8
    top_left: Tensor  # [N,2] int64
    transform: Tensor  # [N,4] float64: cosine, sine, zoom, brightness
    nested: bool


def _checked(
    images: Tensor,
    patch: Tensor,
    top_left: Tensor,
    mask: Tensor | None,
    angle: float | Tensor,
    zoom: float | Tensor,
    brightness: float | Tensor,
    sampling: str,
    *dtypes: torch.dtype,
) -> _Paste:
    _check.shaped(_OP, "images", images, "[N,C,H,W]", (None,) * 4)
    _check.typed(_OP, "images", images, *dtypes)
    count, channels, device = images.shape[0], images.shape[1], images.device
    _check.is_tensor(_OP, "patch", patch, "[C,p,q] or [N,C,p,q]")
    batch = patch.unsqueeze(0) if patch.ndim == 3 else patch
    if (
        batch.ndim != 4
        or batch.shape[1] != channels
        or (patch.ndim == 4 and batch.shape[0] != count)
    ):
        raise ValueError(
            f"{_OP}: patch must be [{channels},p,q] or [{count},{channels},p,q] for images "
            f"{list(images.shape)}, got {list(patch.shape)}"
        )
    _check.typed(_OP, "patch", patch, images.dtype)
    _check.on_device(_OP, "patch", patch, device, "images")
    sides = list(batch.shape[2:])
    if mask is not None:
        _check.shaped(_OP, "mask", mask, f"{sides} like the patch", sides)
        _check.typed(_OP, "mask", mask, *_MASK_DTYPES)
        _check.on_device(_OP, "mask", mask, device, "images")
        _check.not_meta(_OP, "mask", mask)
        if mask.dtype != torch.bool and len(other := mask[(mask != 0) & (mask != 1)]):
            raise ValueError(f"{_OP}: mask must hold 0 and 1 only, got {other[0].item():g}")
        mask = mask.detach().to(torch.uint8).contiguous()
    _check.shaped(_OP, "top_left", top_left, f"[{count},2] (y, x)", (count, 2))
    _check.typed(_OP, "top_left", top_left, torch.int64, torch.int32)
    _check.not_meta(_OP, "top_left", top_left)
    if bool(((top_left < -_MAX_OFFSET) | (top_left > _MAX_OFFSET)).any()):
        least, most = _check.extremes(top_left)
        raise ValueError(f"{_OP}: top_left must be within ±{_MAX_OFFSET}, got {least} to {most}")
    _check.choice(_OP, "sampling", sampling, SAMPLINGS)
    # On the host, so that sine and cosine are the same to the bit on every device.
    host = torch.device("cpu")
    radians = _check.number_each(_OP, "angle", angle, count, -_MAX_ANGLE, _MAX_ANGLE, host)
    radians = radians * (math.pi / 180.0)
    columns = [
        radians.cos(),
        radians.sin(),
        _check.number_each(_OP, "zoom", zoom, count, 1 / _MAX_ZOOM, _MAX_ZOOM, host),
        _check.number_each(_OP, "brightness", brightness, count, -_MAX_SHIFT, _MAX_SHIFT, host),
    ]
    return _Paste(
        images,
        batch,
        mask,
        top_left.detach().to(device, torch.int64).contiguous(),
        torch.stack(columns, dim=1).to(device),
        sampling == "nested",
    )


def paste_patch(
    images: Tensor,
    patch: Tensor,
    *,
    top_left: Tensor,
    mask: Tensor | None = None,
    angle: float | Tensor = 0.0,
    zoom: float | Tensor = 1.0,
    brightness: float | Tensor = 0.0,
    sampling: str = "single",
    out: Tensor | None = None,
) -> Tensor:
    """Paste a patch, brightened, zoomed and rotated about its centre, into every image.

    Image pixels inside the warped mask are replaced by the warped patch; all others keep their
    bits. Parts outside the image are cut off. Differentiable in images and patch, but not in
    forward mode. The checks read the values of ``top_left``, of a mask that is not bool and of the
    transform: if these are on the CPU, nothing synchronises with a CUDA device. Draw them outside
    of ``torch.compile``.

    Args:
        images: [N,C,H,W] float32.
        patch: [C,p,q] for all images or [N,C,p,q], float32; brightened, then clipped to [0,1].
        top_left: [N,2] int64 or int32 (y, x), in pixels, of the patch before it is transformed
            (``single``) or of the zoomed patch's box (``nested``); may lie outside the image.
        mask: [p,q] of 0 and 1, the shape of the patch; None pastes the full rectangle.
        angle: degrees counter-clockwise, a number or [N].
        zoom: factor on the side, within [0.001, 1000], a number or [N].
        brightness: offset that is added to the patch, a number or [N].
        sampling: ``single`` is one affine bilinear pass, with nearest-neighbour sampling of the
            mask; ``nested`` zooms, then rotates, in two bilinear passes, with the mask zoomed but
            not rotated: the circle transform of the code published with APAM (Wu et al.,
            arXiv 2104.10868), where the patch's side becomes round(p * zoom).
        out: buffer for the result: [N,C,H,W] float32, contiguous. It may be ``images`` itself (then
            only the patch's pixels are written), but must not overlap images or patch otherwise.
            The returned tensor shares its memory and carries the gradient. Not for use inside
            ``torch.compile``.

    Returns:
        [N,C,H,W] float32. NaN in the patch affects the pixels that blend it with a weight above 0.

    Raises:
        ValueError, TypeError: a bad argument, before anything is written.

    Example:
        >>> import torch
        >>> from pycc import ops
        >>> images, patch = torch.zeros(1, 3, 4, 5), torch.ones(3, 2, 2)
        >>> ops.paste_patch(images, patch, top_left=torch.tensor([[1, 2]]))[0, 0]
        tensor([[0., 0., 0., 0., 0.],
                [0., 0., 1., 1., 0.],
                [0., 0., 1., 1., 0.],
                [0., 0., 0., 0., 0.]])
    """
    if _native.use_reference():
        return paste_patch_reference(
            images,
            patch,
            top_left=top_left,
            mask=mask,
            angle=angle,
            zoom=zoom,
            brightness=brightness,
            sampling=sampling,
            out=out,
        )
    paste = _checked(
        images, patch, top_left, mask, angle, zoom, brightness, sampling, torch.float32
    )
    _check.reverse_only(_OP, images, patch)
    arguments = (paste.patch_mask, paste.top_left, paste.transform, paste.nested)
    if out is None:
        pasted: Tensor = _paste_patch(paste.images, paste.patch, *arguments)
        return pasted
    _checked_out(out, paste)
    filled: Tensor = _PasteInto.apply(  # type: ignore[no-untyped-call]
        out.detach(), paste.images, paste.patch, *arguments
    )
    return filled


def _checked_out(out: Tensor, paste: _Paste) -> None:
    images = paste.images
    _check.output(_OP, out, images.shape, images.device)
    if _check.overlap(out, paste.patch):
        raise ValueError(f"{_OP}: out must not overlap the patch")
    if out.data_ptr() == images.data_ptr() and images.is_contiguous():
        if images.requires_grad:
            raise ValueError(f"{_OP}: out may be images only where images need no gradient")
    elif _check.overlap(out, images):
        raise ValueError(f"{_OP}: out must be images itself or not overlap it")


def _memory(
    image_shape: torch.Size,
    patch: Tensor,
    mask: Tensor | None,
    top_left: Tensor,
    transform: Tensor,
    device: torch.device,
    nested: bool,
) -> tuple[object, ...]:
    """Return the patch, mask, geometry, sizes and sampling as a kernel takes them."""
    count, channels = image_shape[:2]
    _check.shaped(_OP, "patch", patch, "[N or 1,C,p,q]", (None,) * 4)
    sides = list(patch.shape[2:])
    patches = 1 if len(patch) == 1 else count
    module = _native.module()
    sizes = module.PasteSizes(
        images=count,
        channels=channels,
        height=image_shape[2],
        width=image_shape[3],
        patch_height=sides[0],
        patch_width=sides[1],
        patches=patches,
    )
    return (
        _check.raw(_OP, "patch", patch, torch.float32, (patches, channels, None, None), device),
        None if mask is None else _check.raw(_OP, "mask", mask, torch.uint8, sides, device),
        _check.raw(_OP, "top_left", top_left, torch.int64, (count, 2), device),
        _check.raw(_OP, "transform", transform, torch.float64, (count, 4), device),
        sizes,
        module.Sampling["nested" if nested else "single"],
    )


def _fill(
    out: Tensor | None,
    images: Tensor,
    patch: Tensor,
    mask: Tensor | None,
    top_left: Tensor,
    transform: Tensor,
    nested: bool,
) -> Tensor:
    """Compute the images with the patch in ``out``, or in a new tensor if it is None."""
    device = images.device
    images = _check.raw(_OP, "images", images, torch.float32, (None,) * 4, device)
    reads = _memory(images.shape, patch, mask, top_left, transform, device, nested)
    if out is None:
        out = torch.empty_like(images, memory_format=torch.contiguous_format)
    _native.run(_OP, device, out, images, *reads)
    return out


@torch.library.custom_op("pycc::paste_patch", mutates_args=())
def _paste_patch(
    images: Tensor,
    patch: Tensor,
    mask: Tensor | None,
    top_left: Tensor,
    transform: Tensor,
    nested: bool,
) -> Tensor:
    return _fill(None, images, patch, mask, top_left, transform, nested)


@_paste_patch.register_fake
def _(images: Tensor, *others: Tensor | bool | None) -> Tensor:
    _check.same_device(_OP, images, *others)
    return torch.empty_like(images, memory_format=torch.contiguous_format)


@torch.library.custom_op("pycc::paste_patch_backward", mutates_args=())
def _paste_patch_backward(
    grad: Tensor,
    patch: Tensor,
    mask: Tensor | None,
    top_left: Tensor,
    transform: Tensor,
    nested: bool,
) -> Tensor:
    """Return the gradient [N or 1,C,p,q] of the patch, summed over the images that share it."""
    device = grad.device
    grad = _check.raw(_OP, "grad", grad, torch.float32, (None,) * 4, device)
    reads = _memory(grad.shape, patch, mask, top_left, transform, device, nested)
    # On the CPU, images that share a patch write to separate rows, which are summed into the first.
    rows = len(patch) if _native.kind_of(device) == "cuda" else max(len(grad), len(patch))
    grad_patch = torch.empty((rows, *patch.shape[1:]), dtype=torch.float32, device=device)
    _native.run(f"{_OP}_backward", device, grad_patch, grad, *reads)
    return grad_patch[: len(patch)]


@_paste_patch_backward.register_fake
def _(grad: Tensor, patch: Tensor, *others: Tensor | bool | None) -> Tensor:
    _check.same_device(_OP, grad, patch, *others)
    return grad.new_empty(patch.shape)


def _gradients(
    grad: Tensor, saved: tuple[Tensor, ...], nested: bool, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None]:
    patch, mask, top_left, transform = saved
    grad_images = grad_patch = None
    if wanted[0]:  # covered pixels do not affect the result: paste zeros into the gradient
        unlit = transform * transform.new_tensor([1.0, 1.0, 1.0, 0.0])
        zeros = patch.new_zeros((1, *patch.shape[1:]))
        grad_images = _paste_patch(grad, zeros, mask, top_left, unlit, nested)
    if wanted[1]:
        grad_patch = _paste_patch_backward(grad, patch, mask, top_left, transform, nested)
    return grad_images, grad_patch


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, patch, mask, top_left, transform, ctx.nested = inputs
    ctx.save_for_backward(patch, mask, top_left, transform)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    both = _gradients(grad, ctx.saved_tensors, ctx.nested, ctx.needs_input_grad[:2])
    return (*both, None, None, None, None)


_paste_patch.register_autograd(_backward, setup_context=_setup_context)


class _PasteInto(torch.autograd.Function):
    """``pycc::paste_patch`` that writes into a buffer of the caller."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, *inputs: Any) -> Tensor:
        _fill(out, *inputs)
        ctx.mark_dirty(out)
        _setup_context(ctx, inputs, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        both = _gradients(grad, ctx.saved_tensors, ctx.nested, ctx.needs_input_grad[1:3])
        return (None, *both, None, None, None, None)


def paste_patch_reference(
    images: Tensor,
    patch: Tensor,
    *,
    top_left: Tensor,
    mask: Tensor | None = None,
    angle: float | Tensor = 0.0,
    zoom: float | Tensor = 1.0,
    brightness: float | Tensor = 0.0,
    sampling: str = "single",
    out: Tensor | None = None,
) -> Tensor:
    """Compute :func:`paste_patch` in pure torch, with the same arguments; also for float64.

    Time O(N C H W), whatever the size of the patch.

    Example:
        >>> import torch
        >>> from pycc import ops
        >>> images, patch, corner = torch.rand(2, 3, 9, 9), torch.rand(3, 4, 4), torch.ones(2, 2)
        >>> where = {"top_left": corner.long(), "angle": 30.0, "zoom": 1.2}
        >>> pasted = ops.paste_patch_reference(images, patch, **where)
        >>> torch.allclose(pasted, ops.paste_patch(images, patch, **where), atol=1e-6)
        True
    """
    dtypes = (torch.float32, torch.float64)
    paste = _checked(images, patch, top_left, mask, angle, zoom, brightness, sampling, *dtypes)
    if out is not None:
        _checked_out(out, paste)
    warp = _warp.nested if paste.nested else _warp.single
    pasted = []
    for n, image in enumerate(paste.images):
        values = paste.patch[n if len(paste.patch) > 1 else 0]
        brightened = (values + paste.transform[n, 3].to(values.dtype)).clamp(0.0, 1.0)
        place = _warp.Place(paste.top_left[n], paste.transform[n], paste.patch_mask)
        inside, warped = warp(image, brightened, place)
        pasted.append(torch.where(inside, warped.to(image.dtype), image))
    # Without images the sum still connects the patch to the autograd graph.
    result = torch.stack(pasted) if pasted else images + 0.0 * paste.patch.sum()
    return result if out is None else out.detach().copy_(result)
