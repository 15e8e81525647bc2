"""Any user network as a counter."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from pycc.models.base import CounterModel


class Wrapped(CounterModel):
    """A network from elsewhere as a counter; made by ``wrap``."""

    name = "wrap"

    def __init__(
        self,
        module: nn.Module,
        *,
        preprocess: Callable[[Tensor], Tensor] | None,
        scale: float,
        stride: int,
        receptive_field: int | None,
        period: int | None,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(f"wrap: module must be an nn.Module, got {type(module).__name__}")
        if preprocess is not None and not callable(preprocess):
            raise TypeError(f"wrap: preprocess must be callable, got {type(preprocess).__name__}")
        super().__init__(
            module, stride=stride, receptive_field=receptive_field, period=period, scale=scale
        )
        self._preprocess = preprocess
        self.train(module.training)

    def preprocess(self, images: Tensor) -> Tensor:
        """Compute the network's input from images [N,3,H,W] with the function given to ``wrap``."""
        return images if self._preprocess is None else self._preprocess(images)


def wrap(
    module: nn.Module,
    *,
    preprocess: Callable[[Tensor], Tensor] | None = None,
    scale: float = 1.0,
    stride: int,
    receptive_field: int | None = None,
    period: int | None = None,
) -> CounterModel:
    """Make a counter of a user's network.

    ``module`` maps the output of ``preprocess`` to a density map [N,1,h,w] or [N,h,w].
    ``preprocess`` maps images [N,3,H,W] (RGB in [0,1]) to the network's own convention and must be
    differentiable for white-box attacks (None: the network takes such images). ``scale`` converts
    the network's output to people per cell (1/100 for a network trained on density x100).
    ``stride`` is pixels per cell. ``receptive_field`` is the side in pixels of the square, centred
    on its cell, that a cell depends on; None if unknown or unbounded
    (``pycc.models.measure_receptive_field`` measures it). ``period`` is the number of pixels by
    which an image must move for its map to move with it: a multiple of the stride if the network
    enlarges a coarser grid, by default the stride. The module's mode (train or eval) is kept.

    TypeError for a module or function of the wrong type; ValueError for ``stride``,
    ``receptive_field``, ``period`` or ``scale`` out of range and, when the counter is called, for a
    network that returns a tuple, another shape, or a map that contradicts ``stride``.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 1, 3, padding=1), nn.AvgPool2d(8))
    >>> counter = wrap(net.eval(), scale=1 / 100, stride=8)
    >>> list(counter(torch.rand(1, 3, 64, 96)).shape)
    [1, 1, 8, 12]
    """
    return Wrapped(
        module,
        preprocess=preprocess,
        scale=scale,
        stride=stride,
        receptive_field=receptive_field,
        period=period,
    )
