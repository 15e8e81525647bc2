"""DA-Net's deformable convolution: the kernel and its gradients against the twin."""

from __future__ import annotations

from functools import partial

import torch
from timer import Row, check, seconds

from pycc.ops import deform_conv, deform_conv_reference
from pycc.random import Stream

SHAPE = (1, 512, 48, 64)  # after DA-Net's fifth block, of a 768x1024 image


def rows() -> list[Row]:
    count, channels, height, width = SHAPE
    stream = Stream(0, "bench")
    sizes = (SHAPE, (count, 18, height, width), (1, channels, 3, 3), (count, 1, height, width))
    x, offset, weight, upstream = (
        torch.from_numpy(stream.uniform(-1.5, 1.5, size)).float() for size in sizes
    )
    leaves = [tensor.requires_grad_() for tensor in (x, offset, weight)]
    forward, backward, results = [], [], []
    for op in (deform_conv, deform_conv_reference):
        with torch.no_grad():
            forward.append(seconds(partial(op, *leaves)))
        out = op(*leaves)

        def pull(out: torch.Tensor = out) -> tuple[torch.Tensor, ...]:
            return torch.autograd.grad(out, leaves, upstream, retain_graph=True)

        results.append([out.detach(), *pull()])
        backward.append(seconds(pull))
    for got, expected in zip(*results, strict=True):
        check(got, expected, 1e-6)
    subject = "deformable convolution " + "x".join(str(size) for size in SHAPE)
    once = sum(tensor.nbytes for tensor in leaves)
    return [
        Row(subject, "deform_conv", forward[0], "twin", forward[1], bytes=once + upstream.nbytes),
        Row(
            subject,
            "deform_conv backward",
            backward[0],
            "twin",
            backward[1],
            bytes=2 * once + upstream.nbytes,
        ),
    ]
