"""Measuring what a counter declares: which pixels one cell depends on."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pycc.checks import unchecked
from pycc.counters import device_of
from pycc.models.base import CounterModel


@dataclass(frozen=True)
class ReceptiveField:
    """How far the square of pixels that a cell depends on sticks out of the cell."""

    before: int
    """Pixels above (and left of) the cell's first pixel."""
    after: int
    """Pixels below (and right of) the cell's last pixel."""
    side: int
    """Pixels in all: before + stride + after."""


@torch.no_grad()
def measure_receptive_field(
    counter: CounterModel, *, probe_side: int | None = None
) -> ReceptiveField | None:
    """The receptive field of a counter's architecture, found by perturbing rows and columns.

    Whole rows of a strip ``probe_side`` pixels high (then columns of one as wide) are changed one
    at a time, ``stride`` neighbouring ones so that every phase is met, and the cells that move
    are noted. The larger axis counts. Returns None where a cell at the strip's end still moves:
    the field is unbounded, or ``probe_side`` (by default 128 or three declared fields) is too
    small. Takes a few forward passes in float64 on the counter's device.

    Why the answer is neither too small nor too large: on trained weights a ReLU or a maximum may
    hide an influence, and so may a weight that happens to be 0. So a copy is measured whose
    weights are all positive (1 / fan-in; biases made non-negative, batch norms reset; a
    ``nn.Sigmoid``, which would saturate, made the identity), on a positive picture, with a large
    positive change. There every ReLU is the identity and every layer increases strictly with what
    it sees; the change is large enough to win every maximum.
    So exactly those cells move that the wiring allows to move, whatever the weights. Changing a
    whole row keeps the smallest effect (a path through the outermost tap of every layer) far
    above float64's rounding. This is exact for convolutions, pooling, PReLU and batch norm; for
    a network that is not monotone (products of features, gates) it is a lower bound.
    """
    stride = counter.stride
    probe = copy.deepcopy(counter).double().eval()
    _make_monotone(probe)
    if probe_side is None:
        probe_side = max(128, 3 * (counter.receptive_field or 0))
    side = -(-probe_side // (2 * stride)) * 2 * stride
    # Changing whole rows needs no width to speak of.
    narrow = -(-max(counter.minimum_side, 4 * stride) // stride) * stride
    device = device_of(probe)
    before = after = 0
    for axis, shape in ((2, (side, narrow)), (3, (narrow, side))):
        # Not one half: "(x - 127.5) / 128" and the like must stay positive.
        picture = torch.full((1, 3, *shape), 0.75, dtype=torch.float64, device=device)
        unchanged = probe(picture)
        for pixel in range(side // 2, side // 2 + stride):
            changed = picture.clone()
            changed.select(axis, pixel).add_(1000.0)
            # The tolerance only absorbs a different order of summation.
            with unchecked():
                moved = (probe(changed) - unchanged).abs() > 1e-12 * unchanged.abs()
            cells = moved.any(dim=5 - axis)[0, 0].nonzero().flatten()
            if len(cells) == 0:
                continue
            first, last = int(cells[0]), int(cells[-1])
            if first == 0 or last == moved.shape[axis] - 1:
                return None
            before = max(before, last * stride - pixel)
            after = max(after, pixel - (first * stride + stride - 1))
    return ReceptiveField(before=before, after=after, side=before + stride + after)


def _make_monotone(counter: CounterModel) -> None:
    for module in list(counter.modules()):
        for key, child in module.named_children():
            if isinstance(child, nn.Sigmoid):
                # Increasing, but flat in float64 above 37: no change would be seen through it.
                setattr(module, key, nn.Identity())
    for module in counter.modules():
        if isinstance(module, _BatchNorm):
            module.reset_running_stats()
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
    for parameter in counter.parameters():
        if parameter.ndim >= 2:
            parameter.fill_(1.0 / parameter[0].numel())
        else:
            parameter.abs_()
