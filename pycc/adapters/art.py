"""Counters and attacks in the Adversarial Robustness Toolbox (extra ``art``).

The toolbox knows regressors, and its gradient attacks run on them, but it has no attack that is
made for a regression. With this adapter a counter is one of its regressors, and each patch attack
of ``pycc.attack`` is one of its evasion attacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pycc.attack import AttackResult, PatchAttack
from pycc.counters import device_of, like_of
from pycc.types import Counter

try:
    from art.attacks import EvasionAttack
    from art.estimators.regression.pytorch import PyTorchRegressor
except ImportError:
    raise ImportError(
        "pycc.adapters.art needs the Adversarial Robustness Toolbox: pip install 'pycc[art]'"
    ) from None

__all__ = ["CounterRegressor", "PatchEvasion"]


class _Counting(nn.Module):
    """Images [N,3,H,W] of any floating-point type to counts [N,1]."""

    def __init__(self, counter: Counter) -> None:
        super().__init__()
        self.counter = counter

    def forward(self, images: Tensor) -> Tensor:
        return self.counter(images.to(like_of(self.counter))).sum((1, 2, 3))[:, None]


class _SquaredError(nn.Module):
    """The mean squared error of counts, whether the truth is [N] or [N,1]."""

    def forward(self, predicted: Tensor, truth: Tensor) -> Tensor:
        return nn.functional.mse_loss(predicted.flatten(), truth.flatten().to(predicted))


class CounterRegressor(PyTorchRegressor):
    """A counter as a regressor of the toolbox: images [N,3,H,W] in [0,1] to counts [N,1].

    Its loss is the squared error of the count, so that attacks of the toolbox which follow the
    gradient need the true counts ``y`` [N].

    Args:
        counter: the counter; a module stays on its device.
        shape: (H, W) of the images, which the toolbox wants to know.
        optimizer: for ``fit``.

    >>> from pycc import data, models
    >>> scene = data.open("synthetic", split="test", shape=(64, 96), heads=9)[0]
    >>> regressor = CounterRegressor(models.load("mcnn-synthetic"), (64, 96))
    >>> regressor.predict(scene.image[None].numpy()).shape
    (1, 1)
    """

    def __init__(
        self,
        counter: Counter,
        shape: tuple[int, int],
        *,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        self.counter = counter
        on_cpu = device_of(counter).type == "cpu"
        super().__init__(
            model=_Counting(counter),
            loss=_SquaredError(),
            input_shape=(3, *shape),
            optimizer=optimizer,
            clip_values=(0.0, 1.0),
            device_type="cpu" if on_cpu else "gpu",
        )


class PatchEvasion(EvasionAttack):
    """A patch attack of pycc as an evasion attack of the toolbox.

    ``generate`` returns the attacked images, multiples of 1/255; ``result`` then holds patches,
    places, counts and losses.

    Args:
        estimator: the counter.
        attack: any attack of ``pycc.attack``.
        seed: key of all randomness.

    Raises:
        TypeError: an ``attack`` that is none; ``EstimatorError`` for another estimator.

    >>> from pycc import models
    >>> from pycc.attack import APAM
    >>> regressor = CounterRegressor(models.load("mcnn-synthetic"), (64, 64))
    >>> evasion = PatchEvasion(regressor, APAM(patch_size=16, steps=2, objective="over"))
    >>> evasion.generate(np.full((1, 3, 64, 64), 0.5, np.float32)).shape
    (1, 3, 64, 64)
    """

    attack_params: ClassVar = [*EvasionAttack.attack_params, "attack", "seed"]
    _estimator_requirements = (CounterRegressor,)

    def __init__(self, estimator: CounterRegressor, attack: PatchAttack, *, seed: int = 0) -> None:
        super().__init__(estimator=estimator)
        self.attack, self.seed = attack, seed
        self.result: AttackResult | None = None
        self._check_params()

    def generate(
        self,
        x: NDArray[np.floating],
        y: NDArray[np.floating] | None = None,
        *,
        points: Sequence[Tensor] | None = None,
    ) -> NDArray[np.float32]:
        """Attack images [N,3,H,W] in [0,1] and return them with their patches.

        Args:
            x: the images.
            y: not used, since a patch attack starts from the counter's own prediction.
            points: N head annotations [M,2] (x, y), for the objectives that are about heads.

        Raises:
            ValueError: as ``pycc.attack.PatchAttack.__call__``.
        """
        images = torch.from_numpy(np.asarray(x, np.float32))
        self.result = self.attack(self.estimator.counter, images, points=points, seed=self.seed)
        attacked: NDArray[np.float32] = torch.stack(list(self.result.images)).numpy()
        return attacked

    def _check_params(self) -> None:
        if not isinstance(self.attack, PatchAttack):
            raise TypeError(
                "PatchEvasion: attack must be a PatchAttack such as pycc.attack.APAM(), got "
                f"{type(self.attack).__name__}"
            )
