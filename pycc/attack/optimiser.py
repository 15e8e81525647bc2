"""Optimisers of a patch, by name: the step that follows from its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from pycc.registry import Registry

decays: Registry[Callable[[float], float]] = Registry("decay")
"""Factor on the step size by name, from the share of the steps that is done."""


@decays.register("none")
def _constant(done: float) -> float:
    return 1.0


@decays.register("cosine")
def _cosine(done: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * done))


class Optimiser(Protocol):
    """A rule with a memory, started anew for each optimisation."""

    def __call__(self, gradient: Tensor, rate: float, /) -> Tensor:
        """Return what to subtract from patches [N,3,p,p] with this gradient and step size."""


optimisers: Registry[Callable[[float], Optimiser]] = Registry("optimiser")
"""Makers of optimisers, from the share of the earlier direction that a step keeps."""


def _direction(gradient: Tensor) -> Tensor:
    """The gradient with an L1 norm of 1 over each patch; a gradient of zero stays zero."""
    norm = gradient.abs().sum((1, 2, 3), keepdim=True)
    return gradient / norm.where(norm > 0, torch.ones_like(norm))


@optimisers.register("momentum")
class Momentum:
    """APAM's update: q <- momentum·q + g / |g|_1, then a step of rate·sign(q)."""

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self._direction: Tensor | float = 0.0

    def __call__(self, gradient: Tensor, rate: float) -> Tensor:
        """Return the step: what to subtract from the patches."""
        self._direction = self.momentum * self._direction + _direction(gradient)
        return rate * self._direction.sign()


@optimisers.register("sign")
class Sign:
    """Steps of rate·sign(g), without memory."""

    def __init__(self, momentum: float) -> None:
        pass

    def __call__(self, gradient: Tensor, rate: float) -> Tensor:
        """Return the step: what to subtract from the patches."""
        return rate * gradient.sign()


@optimisers.register("adam")
class Adam:
    """Adam (Kingma and Ba, arXiv 1412.6980), β1 the momentum, β2 0.999, on normalised gradients."""

    def __init__(self, momentum: float) -> None:
        self.betas = min(momentum, 0.9999), 0.999
        self._steps = 0
        self._moments: list[Tensor | float] = [0.0, 0.0]

    def __call__(self, gradient: Tensor, rate: float) -> Tensor:
        """Return the step: what to subtract from the patches."""
        unit = _direction(gradient) * gradient[0].numel()
        self._steps += 1
        means = []
        for place, (beta, value) in enumerate(zip(self.betas, (unit, unit.square()), strict=True)):
            moment = beta * self._moments[place] + (1 - beta) * value
            self._moments[place] = moment
            means.append(moment / (1 - beta**self._steps))
        return rate * means[0] / (means[1].sqrt() + 1e-8)
