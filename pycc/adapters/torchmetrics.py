"""Counting errors with intervals as metrics of torchmetrics (extra ``torchmetrics``).

Each metric keeps one value per image, so that its interval is the bootstrap of ``pycc.metrics``
over images, and so that several processes give the same result as one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pycc import metrics

try:
    from torchmetrics import Metric
    from torchmetrics.utilities import dim_zero_cat
except ImportError:
    raise ImportError(
        "pycc.adapters.torchmetrics needs torchmetrics: pip install 'pycc[torchmetrics]'"
    ) from None

__all__ = ["GAME", "MAE", "RMSE"]


class _PerImage(Metric):
    """A mean over images with a bootstrap interval; ``compute`` returns people, float64."""

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    def __init__(self, confidence: float, options: dict[str, Any]) -> None:
        super().__init__(**options)
        if not 0 < confidence < 1:
            raise ValueError(
                f"{type(self).__name__}: confidence must be in (0,1), got {confidence}"
            )
        self.confidence = confidence

    def _interval(self, name: str, value: float, low: float, high: float) -> dict[str, Tensor]:
        named = {name: value, f"{name}_low": low, f"{name}_high": high}
        return {key: torch.tensor(number, dtype=torch.float64) for key, number in named.items()}


class _OfCounts(_PerImage):
    """An error of counts."""

    def __init__(self, *, confidence: float = metrics.LEVEL, **options: Any) -> None:
        super().__init__(confidence, options)
        self.add_state("predicted", default=[], dist_reduce_fx="cat")
        self.add_state("truth", default=[], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor | Sequence[Tensor]) -> None:
        """Add images.

        Args:
            preds: [N] counts, or density maps [N,1,h,w] in people per cell.
            target: [N] true counts, or N head annotations [M,2].

        Raises:
            ValueError: another shape, or different numbers of images.
        """
        predicted, truth = _counts(type(self).__name__, preds, target)
        self.predicted.append(predicted)
        self.truth.append(truth)

    def _pair(self) -> tuple[np.ndarray, np.ndarray]:
        truth, predicted = (
            dim_zero_cat(each).cpu().numpy() for each in (self.truth, self.predicted)
        )
        return truth, predicted


class MAE(_OfCounts):
    """The mean absolute error of counts: ``mae``, ``mae_low`` and ``mae_high``, in people.

    Args:
        confidence: nominal probability of the interval, within (0, 1).
        options: those of ``torchmetrics.Metric``.

    >>> metric = MAE()
    >>> metric.update(torch.tensor([110.0, 48.0]), torch.tensor([100, 50]))
    >>> {name: float(value) for name, value in metric.compute().items()}
    {'mae': 6.0, 'mae_low': 2.0, 'mae_high': 10.0}
    """

    def compute(self) -> dict[str, Tensor]:
        """The error and its interval over the images so far; ValueError if there are none."""
        truth, predicted = self._pair()
        value = metrics.mae(truth, predicted)
        bounds = metrics.bootstrap(np.abs(predicted - truth), level=self.confidence)
        return self._interval("mae", value, *bounds)


class RMSE(_OfCounts):
    """The root mean squared error of counts: ``rmse``, ``rmse_low`` and ``rmse_high``, in people.

    The ends of the interval are the roots of those of the mean squared error. Arguments are those
    of :class:`MAE`.

    >>> metric = RMSE()
    >>> metric.update(torch.tensor([107.0, 51.0]), torch.tensor([100, 50]))
    >>> float(metric.compute()["rmse"])
    5.0
    """

    def compute(self) -> dict[str, Tensor]:
        """The error and its interval over the images so far; ValueError if there are none."""
        truth, predicted = self._pair()
        value = metrics.rmse(truth, predicted)
        low, high = metrics.bootstrap(np.square(predicted - truth), level=self.confidence)
        return self._interval("rmse", value, math.sqrt(low), math.sqrt(high))


class GAME(_PerImage):
    """The grid average mean error at one level: ``gameL``, ``gameL_low`` and ``gameL_high``.

    Args:
        stride: pixels per cell of the density maps.
        level: L; the image is cut into 2^L x 2^L regions.
        confidence: nominal probability of the interval, within (0, 1).
        options: those of ``torchmetrics.Metric``.

    >>> metric = GAME(stride=4, level=1)
    >>> metric.update(torch.tensor([[[[0.0, 1.0], [0.0, 0.0]]]]), [torch.tensor([[1.0, 1.0]])])
    >>> float(metric.compute()["game1"])
    2.0
    """

    def __init__(
        self, *, stride: int, level: int = 2, confidence: float = metrics.LEVEL, **options: Any
    ) -> None:
        super().__init__(confidence, options)
        self.stride, self.level = stride, level
        self.add_state("errors", default=[], dist_reduce_fx="cat")

    def update(
        self, preds: Tensor, target: Sequence[Tensor], shape: tuple[int, int] | None = None
    ) -> None:
        """Add images of one size.

        Args:
            preds: density maps [N,1,h,w], people per cell.
            target: N head annotations [M,2] (x, y), in pixels.
            shape: (H, W) of the images in pixels, if it is not (h, w) times the stride.

        Raises:
            ValueError: as ``pycc.metrics.game``, or different numbers of images.
        """
        if preds.ndim != 4 or preds.shape[1] != 1 or len(preds) != len(target):
            raise ValueError(
                "GAME: preds must be maps [N,1,h,w] and target N head annotations, "
                f"got {list(preds.shape)} and {len(target)}"
            )
        size = shape or (preds.shape[2] * self.stride, preds.shape[3] * self.stride)
        errors = [
            metrics.game(
                points.detach().cpu().numpy(), density[0].detach().cpu().double().numpy(), size,
                level=self.level, stride=self.stride,
            )
            for points, density in zip(target, preds, strict=True)
        ]  # fmt: skip
        self.errors.append(torch.tensor(errors, dtype=torch.float64, device=preds.device))

    def compute(self) -> dict[str, Tensor]:
        """The error and its interval over the images so far; ValueError if there are none."""
        errors = dim_zero_cat(self.errors).cpu().numpy()
        bounds = metrics.bootstrap(errors, level=self.confidence)
        return self._interval(f"game{self.level}", metrics.mean_count(errors), *bounds)


def _counts(name: str, preds: Tensor, target: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Predicted and true counts [N], float64 on the device of the predictions."""
    predicted = preds.detach().double()
    if preds.ndim == 4:
        predicted = predicted.sum((1, 2, 3))
    if not isinstance(target, Tensor):
        target = torch.tensor([len(points) for points in target])
    truth = target.detach().to(predicted)
    if predicted.ndim != 1 or predicted.shape != truth.shape:
        raise ValueError(
            f"{name}: preds must be counts [N] or maps [N,1,h,w] and target as many counts or head "
            f"annotations, got {list(preds.shape)} and {list(target.shape)}"
        )
    return predicted, truth
