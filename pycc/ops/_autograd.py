"""Autograd for kernels that write into a buffer of the caller (``out=``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _Into(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        out: Tensor,
        images: Tensor,
        write: Callable[..., None],
        backward: Callable[..., Tensor],
        *others: Tensor,
    ) -> Tensor:
        write(out, images, *others)
        ctx.mark_dirty(out)
        ctx.save_for_backward(*others)
        ctx.pull_back = backward
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        others = ctx.saved_tensors
        return None, ctx.pull_back(grad, *others), None, None, *(None for _ in others)


def into(
    out: Tensor,
    images: Tensor,
    *others: Tensor,
    write: Callable[..., None],
    backward: Callable[..., Tensor],
) -> Tensor:
    """Fill ``out`` by ``write(out, images, *others)`` and return it with its gradient attached.

    ``backward(grad, *others)`` returns the gradient of ``images``. ``others`` are the tensors that
    the gradient depends on: autograd raises an error if one is modified before the backward pass.
    """
    filled: Tensor = _Into.apply(out.detach(), images, write, backward, *others)  # type: ignore[no-untyped-call]
    return filled
