"""Convolutions of few input channels with a fast gradient by their input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

MOST_CHANNELS = 4


def convolution(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Return the function x [N,C,h,w] -> conv2d(x, weight, bias), stride 1, without padding.

    ``weight`` [O,C,k,l] and ``bias`` [O] are constants and get no gradient. The gradient by x is
    itself a convolution, of O channels to C. With C = 1, torch computes it seven times slower than
    the forward pass, because few output channels leave its inner loops little to share. Here it is
    a convolution along the rows alone, of O channels to k·C, whose k parts are added, each shifted
    by one row more.
    """
    weight = weight.detach()
    bias = None if bias is None else bias.detach()
    height, width = weight.shape[2:]
    rows = weight.flip(3).permute(2, 1, 0, 3).reshape(-1, weight.shape[0], 1, width)
    rows = rows.contiguous(memory_format=torch.channels_last)

    def reverse(grad: Tensor) -> Tensor:
        parts = functional.conv2d(grad, rows, padding=(0, width - 1)).chunk(height, 1)
        shifted = [
            functional.pad(part, (0, 0, row, height - 1 - row)) for row, part in enumerate(parts)
        ]
        return torch.stack(shifted).sum(0)

    class Thin(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return functional.conv2d(x, weight, bias)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return reverse(grad)

    def apply(x: Tensor) -> Tensor:
        result: Tensor = Thin.apply(x)  # type: ignore[no-untyped-call]
        return result

    return apply
