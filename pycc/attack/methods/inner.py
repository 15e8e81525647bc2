"""Patches for the inside of a training loop: few steps, on the surroundings of the patch alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pycc.grid import window_field
from pycc.local import Box, influence
from pycc.random import Stream
from pycc.settings import check_fields
from pycc.types import Counter


@dataclass(frozen=True)
class InnerAttack:
    """A square patch at a random place that raises the squared error of the density map.

    From uniform noise ``steps`` sign steps of ``step_size`` are taken; the gradient is that of the
    full image, computed in the window that the patch can reach. The side is ``patch_size``
    pixels. This is the inner loop of adversarial training (arXiv 2104.10868, eq. 18; Madry et al.,
    ICLR 2018); attacks that measure a counter are ``pycc.attack.APAM`` and take far more steps.
    ValueError for a field out of range.

    >>> from pycc import models
    >>> counter = models.load("mcnn-synthetic")
    >>> image, target = torch.rand(3, 64, 64), torch.zeros(1, 16, 16)
    >>> attacked = InnerAttack(patch_size=16, steps=1)(counter, image, target, 0)
    >>> int((attacked != image).any(0).sum()) <= 16 * 16
    True
    """

    patch_size: int = 81
    steps: int = 5
    step_size: float = 0.1

    def __post_init__(self) -> None:
        check_fields("InnerAttack", self)
        if self.patch_size < 1 or self.steps < 0 or not 0 < self.step_size <= 1:
            raise ValueError(
                "attack: an inner attack needs a patch_size of at least 1, steps of at least 0 and "
                f"a step_size in (0,1], got {self.patch_size}, {self.steps} and {self.step_size}"
            )

    def __call__(
        self,
        counter: Counter,
        image: Tensor,
        target: Tensor,
        seed: int,
        *,
        region: Tensor | None = None,
    ) -> Tensor:
        """The image [3,h,w] with its patch; ``target`` [1,h',w'] are people per cell.

        ``region`` [1,h',w'] is the share of each cell in the region of interest: errors elsewhere
        are none (None: all count). ``counter`` is in eval mode; no gradient is left in its
        parameters. ValueError for an image that the patch does not fit into.
        """
        height, width = image.shape[1:]
        side = self.patch_size
        if side > min(height, width):
            raise ValueError(
                f"attack: a patch of {side} pixels needs an image of {side}x{side}, got "
                f"{height}x{width}"
            )
        stream = Stream(seed, "attack, inner")
        top, left = (int(stream.integers(size - side + 1)) for size in (height, width))
        box = Box(top, left, top + side, left + side)
        patch = torch.from_numpy(stream.uniform(0.0, 1.0, (1, 3, side, side))).to(image)
        # The window is counted whole: weights differ at every call, and following the layers anew
        # (pycc.local) costs more than it saves. Cells at the window's border lack a part of their
        # field, but none of the patch's.
        seen = influence(
            box, (height, width), stride=counter.stride, receptive_field=window_field(counter)
        )
        window, inner = image[None][..., *seen.slices], box.moved(-seen.top, -seen.left)
        first = (seen.top // counter.stride, seen.left // counter.stride)
        for _ in range(self.steps):
            patch.requires_grad_()
            shown = window.clone()
            shown[..., *inner.slices] = patch
            density = counter(shown)
            cells = Box(0, 0, density.shape[2], density.shape[3]).moved(*first)
            truth = target[None][..., *cells.slices].to(density)
            if region is not None:
                density = density * region[None][..., *cells.slices].to(density)
            (gradient,) = torch.autograd.grad((density - truth).square().sum(), patch)
            patch = (patch.detach() + self.step_size * gradient.sign()).clamp(0.0, 1.0)
        attacked = image.clone()
        attacked[..., *box.slices] = patch.detach()[0]
        return attacked
