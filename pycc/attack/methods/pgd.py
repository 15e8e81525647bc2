"""PGD on all pixels of an image: the norm-bounded reference beside patches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pycc.attack.base import PatchAttack
from pycc.attack.evaluation.builder import ProblemBuilder
from pycc.attack.evaluation.checked import CheckedImage
from pycc.attack.optimiser import decays
from pycc.attack.problem import replaced
from pycc.data import quantize
from pycc.settings import check_fields


@dataclass(frozen=True)
class PGD:
    """Projected gradient descent within a box around the image (Madry et al., arXiv 1706.06083).

    x <- clip(x − rate·sign(gradient)) to |x − clean|∞ ≤ ε and [0,1], from the clean image, with a
    rate that falls from 5·ε/steps to nothing along a cosine (2.5·ε in all), and
    with the objective of the patch attack beside which it stands. The best iterate is kept, and
    rounded to 8 bits towards the clean image, which stays if that undoes the gain. With ε = 1 the
    image is free: a patch as large as the image.

    >>> reference = PGD(epsilon=8 / 255, steps=5)
    >>> round(255 * reference.rate(0), 6), reference.rate(5)
    (8.0, 0.0)
    """

    epsilon: float = 4 / 255
    """Largest change of a channel of a pixel, of [0,1]."""
    steps: int = 10

    def __post_init__(self) -> None:
        check_fields("PGD", self)
        if not 0 < self.epsilon <= 1:
            raise ValueError(f"PGD: epsilon must be in (0,1], got {self.epsilon!r}")
        if self.steps < 0:
            raise ValueError(f"PGD: steps must be at least 0, got {self.steps!r}")

    def rate(self, step: int) -> float:
        """Change of a pixel in one step."""
        return 5 * self.epsilon / self.steps * decays["cosine"](step / self.steps)

    def attack(self, builder: ProblemBuilder, item: CheckedImage, wanted: PatchAttack) -> Tensor:
        """The attacked image [3,H,W], multiples of 1/255."""
        problem = builder.full_image(wanted, item)
        clean = problem.like
        low = (clean - self.epsilon).clamp(0.0, 1.0)
        high = (clean + self.epsilon).clamp(0.0, 1.0)
        image, best, least = clean, clean, float("inf")
        for step in range(self.steps + 1):
            image = image.detach().requires_grad_(step < self.steps)
            loss = problem.loss(partial(replaced, image), wanted.objective, wanted.aim).sum()
            if float(loss.detach()) < least:
                best, least = image.detach(), float(loss.detach())
            if step < self.steps:
                (gradient,) = torch.autograd.grad(loss, image)
                image = torch.minimum(
                    torch.maximum(image - self.rate(step) * gradient.sign(), low), high
                )
        # Towards the clean image, whose pixels are multiples of 1/255, so that ε still holds.
        levels = ((best - clean) * 255.0 * (1 + 1e-6)).trunc()
        rounded = quantize(clean + levels / 255.0)
        with torch.no_grad():
            losses = [
                float(problem.loss(partial(replaced, pixels), wanted.objective, wanted.aim).sum())
                for pixels in (clean, rounded.to(clean))
            ]
        # Rounding may have undone what was gained.
        return (rounded if losses[1] < losses[0] else quantize(clean))[0].cpu()
