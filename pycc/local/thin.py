"""Convolutions of few input channels, whose gradient the usual libraries compute slowly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

MOST_CHANNELS = 4


def convolution(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """x [N,C,h,w] -> conv2d(x, weight, bias), stride 1, without padding; fast in reverse.

    Constants: no gradient reaches ``weight`` [O,C,k,l] and ``bias``. The gradient by x is itself a
    convolution, of O channels to C, and with C = 1 its inner loops have nothing to share among:
    seven times slower than the forward pass. Here it is a convolution along the rows alone, of O
    channels to k·C, whose k parts are then added, each shifted by a row.
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
