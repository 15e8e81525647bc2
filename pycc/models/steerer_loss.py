"""STEERER's loss: each patch of an image is learnt at the resolution that counts it best."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

PATCH = 256
"""Side, in pixels of the image, of the patches that are given to resolutions."""
SIDE, SIGMA = 11, 4.0
"""Side and deviation of the kernel that smooths heads, in cells of every resolution."""
_NEVER_ZERO = 1e-10


def smoothed(dots: Tensor) -> Tensor:
    """Smooth heads [N,1,h,w] by a Gaussian of 11x11 cells; beyond the border, its mass is lost.

    >>> dots = torch.zeros(1, 1, 20, 20)
    >>> dots[..., 9, 9] = 1.0
    >>> round(float(smoothed(dots).sum()), 5), round(float(smoothed(dots).max()), 4)
    (1.0, 0.0144)
    """
    offset = torch.arange(SIDE, dtype=dots.dtype, device=dots.device) - SIDE // 2
    line = torch.exp(-offset.square() / (2 * SIGMA**2))
    line = line / line.sum()
    kernel = line[:, None] * line
    return functional.conv2d(dots, kernel[None, None], padding=SIDE // 2)


def steerer_loss(
    maps: Sequence[Tensor], dots: Tensor, *, factor: float, region: Tensor | None = None
) -> Tensor:
    """Compute the published loss [N] of each image.

    ``maps`` are [N,1,⌈H/s⌉,⌈W/s⌉] for s = 1, 2, 4, …, people times ``factor``; ``dots`` [N,1,H,W]
    are heads per pixel. The target of each map are the heads of its cells, smoothed over its own
    cells, times the factor. A patch of 256x256 pixels belongs to the map whose mean squared error
    in it, plus the summed one divided by the summed target, is least. A map's loss is the sum of
    the squared errors in those patches that no finer map has, divided by all its cells; it weighs
    1, 1/2, 1/4, …. ``region`` [N,1,H,W] is the share of each pixel that counts (None: all of it).

    A patch at the border may be smaller. In the published training, all are whole.
    """
    errors, scores = [], []
    for level, prediction in enumerate(maps):
        step, side = 2**level, PATCH // 2**level
        target = factor * smoothed(_sums(dots, step))
        error = torch.square(prediction - target)
        if region is not None:
            share = functional.avg_pool2d(region, step, ceil_mode=True)
            error, target = error * share, target * share
        errors.append(error)
        mean = functional.avg_pool2d(error.detach(), side, ceil_mode=True)
        relative = _sums(error.detach(), side) / (_sums(target, side) + _NEVER_ZERO)
        scores.append(mean + relative)
    best = torch.cat(scores, 1).argmin(1, keepdim=True)  # [N,1,p,q]
    loss = dots.new_zeros(len(dots))
    for level, error in enumerate(errors):
        left = _spread((best >= level).to(error), PATCH // 2**level, error)
        loss = loss + (error * left).mean((1, 2, 3)) / 2**level
    return loss


def _sums(maps: Tensor, side: int) -> Tensor:
    """Sum squares of so many cells; those at the lower and right border may be cut."""
    return functional.avg_pool2d(maps, side, ceil_mode=True, divisor_override=1)


def _spread(patches: Tensor, side: int, like: Tensor) -> Tensor:
    """Repeat each patch's value in its cells."""
    cells = patches.repeat_interleave(side, 2).repeat_interleave(side, 3)
    return cells[..., : like.shape[2], : like.shape[3]]
