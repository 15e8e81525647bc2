"""Measure the receptive field of a counter."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pycc.checks import unchecked
from pycc.counters import device_of
from pycc.models.base import CounterModel

_CHANGE = 1e60
"""Of a row's values: through the outermost taps of dozens of layers it must still be seen."""


@dataclass(frozen=True)
class ReceptiveField:
    """The extent, beyond a cell, of the square of pixels on which the cell depends.

    >>> ReceptiveField(before=34, after=34, side=72)
    ReceptiveField(before=34, after=34, side=72)
    """

    before: int
    """Pixels above (and left of) the cell's first pixel."""
    after: int
    """Pixels below (and right of) the cell's last pixel."""
    side: int
    """Pixels in total: before + stride + after."""


@torch.no_grad()
def measure_receptive_field(
    counter: CounterModel, *, probe_side: int | None = None
) -> ReceptiveField | None:
    """Measure the receptive field of a counter's architecture by perturbing rows and columns.

    Single rows of a strip ``probe_side`` pixels high (then columns of one as wide) are changed:
    ``counter.period`` neighbouring ones in turn, so that every phase is tested, and the cells that
    change are recorded. The larger axis counts. Returns None if a cell at the strip's end still
    changes: the field is unbounded, or ``probe_side`` (by default 128 or three declared fields) is
    too small. It takes a few forward passes in float64 on the counter's device.

    Why the result is neither too small nor too large: with trained weights a ReLU or a maximum may
    hide an influence, and so may a weight that happens to be 0. So a copy is measured whose weights
    are all positive (1 / fan-in; biases made non-negative, batch norms reset; an ``nn.Sigmoid``,
    which would saturate, and an ``nn.Softmax``, in which equal channels cancel, replaced by the
    identity), on a positive image, with a large positive change. Then every ReLU is the identity
    and every layer increases strictly with its input; the change is large enough to win every
    maximum. So exactly those cells change that the architecture connects to the row, whatever the
    weights. Changing a whole row keeps the smallest effect (a path through the outermost tap of
    every layer) far above the rounding of float64. This is exact for convolutions, pooling, PReLU
    and batch norm; for a network that is not monotone (products of features, gates) it is a lower
    bound.

    >>> from pycc import models
    >>> measure_receptive_field(models.create("mcnn"))
    ReceptiveField(before=34, after=34, side=72)
    """
    stride, period = counter.stride, counter.period
    probe = copy.deepcopy(counter).double().eval()
    _make_monotone(probe)
    if probe_side is None:
        probe_side = max(128, 3 * (counter.receptive_field or 0))
    side = -(-probe_side // (2 * period)) * 2 * period
    # Changing whole rows needs little width.
    narrow = -(-max(counter.minimum_side, 4 * stride) // stride) * stride
    device = device_of(probe)
    before = after = 0
    for axis, shape in ((2, (side, narrow)), (3, (narrow, side))):
        # Not one half: "(x - 127.5) / 128" and the like must stay positive.
        image = torch.full((1, 3, *shape), 0.75, dtype=torch.float64, device=device)
        unchanged = _increasing(probe, image)
        for pixel in range(side // 2, side // 2 + period):
            changed = image.clone()
            changed.select(axis, pixel).add_(_CHANGE)
            # The tolerance only absorbs a different order of summation.
            with unchecked():
                moved = (_increasing(probe, changed) - unchanged).abs() > 1e-12 * unchanged.abs()
            cells = moved.any(dim=5 - axis)[0, 0].nonzero().flatten()
            if len(cells) == 0:
                continue
            first, last = int(cells[0]), int(cells[-1])
            if first == 0 or last == moved.shape[axis] - 1:
                return None
            before = max(before, last * stride - pixel)
            after = max(after, pixel - (first * stride + stride - 1))
    return ReceptiveField(before=before, after=after, side=before + stride + after)


def _increasing(counter: CounterModel, images: Tensor) -> Tensor:
    return counter.increasing(counter.run(counter.preprocess(images)))


def _make_monotone(counter: CounterModel) -> None:
    for module in list(counter.modules()):
        for key, child in module.named_children():
            if isinstance(child, (nn.Sigmoid, nn.Softmax)):
                # One is flat in float64 above 37, the other constant where all channels are equal:
                # both would hide every change.
                setattr(module, key, nn.Identity())
    for module in counter.modules():
        if isinstance(module, _BatchNorm):
            module.reset_parameters()  # small factors would hide the smallest effects
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
    for parameter in counter.parameters():
        if parameter.ndim >= 2:
            parameter.fill_(1.0 / parameter[0].numel())
        else:
            parameter.abs_()
