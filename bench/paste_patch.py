"""Pasting a patch, forward and backward: the kernel against affine_grid and grid_sample."""

from __future__ import annotations

import baselines
import torch
from timer import Row, check, seconds
from torch import Tensor

from pycc.ops import paste_patch, paste_patch_reference
from pycc.random import Stream

SHAPE = (768, 1024)


def rows() -> list[Row]:
    images = torch.from_numpy(Stream(0, "images").uniform(size=(8, 3, *SHAPE))).float()
    upstream = images.flip(0).contiguous()
    patch = torch.from_numpy(Stream(0, "patch").uniform(size=(3, 81, 81))).float()
    places = torch.tensor([[40 + 70 * n, 60 + 90 * n] for n in range(8)])
    transform = {"angle": 4.0, "zoom": 1.02, "brightness": 0.03}
    buffer = torch.empty_like(images)

    def run(paste: object, **options: object) -> tuple[Tensor, Tensor]:
        leaf = patch.detach().requires_grad_()
        pasted = paste(images, leaf, **options)  # type: ignore[operator]
        pasted.backward(upstream)
        assert leaf.grad is not None
        return pasted.detach(), leaf.grad

    def fresh() -> tuple[Tensor, Tensor]:
        return run(paste_patch, top_left=places, **transform)

    def into() -> tuple[Tensor, Tensor]:
        return run(paste_patch, top_left=places, out=buffer, **transform)

    def composite() -> tuple[Tensor, Tensor]:
        return run(baselines.composite, top_left=places, **transform)

    def twin() -> tuple[Tensor, Tensor]:
        return run(paste_patch_reference, top_left=places, **transform)

    kernel_side, other_side = fresh(), composite()
    # float32 grids err by about 1e-4 pixels: values change slightly, border pixels may flip.
    moved = (kernel_side[0] - other_side[0]).abs()
    if float((moved > 2e-3).float().mean()) > 1e-5:
        raise SystemExit("paste_patch and the composite disagree")
    check(kernel_side[1], other_side[1], 2e-2)
    check(kernel_side[0], twin()[0], 1e-6)
    check(kernel_side[1], twin()[1], 1e-5)
    if not all(torch.equal(a, b) for a, b in zip(fresh(), into(), strict=True)):
        raise SystemExit("out= changes the result")

    subject = "paste 81x81 into 8x3x768x1024, forward + backward"
    whole, box = 2 * images.nbytes, 4 * 8 * patch.nbytes  # copied; read and written both ways
    other, usual = seconds(composite, budget=4.0), "affine_grid + grid_sample"
    new, name = seconds(fresh), "paste_patch"
    filled = seconds(into)
    placed = seconds(lambda: run(paste_patch, top_left=places, out=images, **transform))
    return [
        Row(subject, name, new, usual, other, 10, bytes=whole + box),
        Row(subject, f"{name} out=", filled, usual, other, 50, bytes=whole + box),
        Row(subject, f"{name} out=images", placed, usual, other, bytes=box),
        Row(subject, name, new, "twin", seconds(twin, budget=4.0), bytes=whole + box),
        Row(
            subject,
            name,
            new,
            "clone of the images",
            seconds(images.clone),
            bytes=whole,
            limit=True,
        ),
        Row(
            subject,
            f"{name} out=",
            filled,
            "copy of the images",
            seconds(lambda: buffer.copy_(images)),
            bytes=whole,
            limit=True,
        ),
    ]
