"""Patches for the inside of a training loop: few steps, on the surroundings of the patch alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pycc.local import Box, Local
from pycc.random import Stream
from pycc.types import Counter


@dataclass(frozen=True)
class InnerAttack:
    """A square patch at a random place that raises the squared error of the density map.

    From uniform noise ``steps`` sign steps of ``step_size`` are taken; the gradient is that of the
    full image, computed around the patch (``pycc.local``). The side is ``size`` pixels, and never
    more than half of the image's smaller side. This is the inner loop of adversarial training
    (arXiv 2104.10868, eq. 18; Madry et al., ICLR 2018); attacks that measure a counter are
    ``pycc.attack.APAM`` and take far more steps. ValueError for a field out of range.
    """

    size: int = 81
    steps: int = 5
    step_size: float = 0.1

    def __post_init__(self) -> None:
        if self.size < 1 or self.steps < 0 or not 0 < self.step_size <= 1:
            raise ValueError(
                "attack: an inner attack needs a size of at least 1, steps of at least 0 and a "
                f"step_size in (0,1], got {self.size}, {self.steps} and {self.step_size}"
            )

    def __call__(self, counter: Counter, image: Tensor, target: Tensor, seed: int) -> Tensor:
        """The image [3,h,w] with its patch; ``target`` [1,h',w'] are people per cell.

        ``counter`` is in eval mode; no gradient is left in its parameters.
        """
        height, width = image.shape[1:]
        side = min(self.size, max(1, min(height, width) // 2))
        stream = Stream(seed, "attack, inner")
        top, left = (int(stream.integers(size - side + 1)) for size in (height, width))
        box = Box(top, left, top + side, left + side)
        noise = torch.from_numpy(stream.uniform(0.0, 1.0, (1, 3, side, side))).to(image)
        local = Local(counter, image[None], box)
        truth = target[None][..., *local.cells.slices].to(image)
        patch = noise
        for _ in range(self.steps):
            patch.requires_grad_()
            loss = (local(patch) - truth).square().sum()
            (gradient,) = torch.autograd.grad(loss, patch)
            patch = (patch.detach() + self.step_size * gradient.sign()).clamp(0.0, 1.0)
        attacked = image.clone()
        attacked[..., *box.slices] = patch.detach()[0]
        return attacked
