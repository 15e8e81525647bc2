"""Autograd for kernels that fill a buffer which the caller gives."""

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
        write: Callable[[Tensor, Tensor], None],
        backward: Callable[[Tensor], Tensor],
    ) -> Tensor:
        write(out, images)
        ctx.mark_dirty(out)
        ctx.pull_back = backward
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, ctx.pull_back(grad), None, None


def into(
    out: Tensor,
    images: Tensor,
    write: Callable[[Tensor, Tensor], None],
    backward: Callable[[Tensor], Tensor],
) -> Tensor:
    """``out`` filled by ``write(out, images)``, with ``backward`` as the gradient of images."""
    filled: Tensor = _Into.apply(out.detach(), images, write, backward)  # type: ignore[no-untyped-call]
    return filled
