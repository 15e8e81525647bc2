"""Fit a completion network to the density maps of calibration images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pycc.defense.completion_net import CompletionNetwork
from pycc.defense.min_max import Plan, WindowGrid, plan_of
from pycc.defense.surroundings import FEATURES, SPANS, UNIT, summed, whole_units
from pycc.random import Stream
from pycc.types import Progress

HIDDEN = (128, 64)
"""Units of the hidden layers."""
_EPOCHS, _STEPS = 6, 400
"""Epochs, and the least number of steps in all: few maps have more epochs."""
_WINDOWS = 256
"""Most windows of a map, at random."""
_BATCH = 8, 64
"""Maps per step, and windows of each."""
_RATE, _DECAY = 2e-3, 0.3
"""Of AdamW; the decay keeps the network's slope small, by which rounding widens intervals."""
_POWER = 4.0
"""The loss of a map is the mean of |error|^4 over its windows, to the power 1/4: an interval's
width follows the largest errors of a map rather than their mean."""
_ALONE = 0.3
"""Share of the windows that no second window is blanked for."""
_HELD = 5
"""Every fifth map chooses the epoch; all of them if there are fewer."""
_LOOKS = 4
"""Draws of second windows with which an epoch is judged."""


def fit_completion(
    maps: Sequence[Tensor], grid: WindowGrid, *, seed: int = 0, progress: Progress | None = None
) -> CompletionNetwork:
    """Fit a network that predicts the people in the windows of maps [h,w], people per cell.

    Targets are the maps' own sums, so that no annotation is needed. The features are those of
    ``pycc.defense.surroundings``, with the blocks of a random second window blanked. AdamW runs
    six epochs over maps and their mirror images; of the epochs, that with the least mean width of
    errors on every fifth map, which takes no part in the fit, is kept. The same maps, seed and
    number of threads give the same network. ValueError without maps.

    >>> import torch
    >>> maps = [torch.full((12, 16), 0.1)] * 2
    >>> network = fit_completion(maps, WindowGrid(reach=4, step=1))
    >>> network.first.shape
    torch.Size([36, 8, 128])
    """
    if not maps:
        raise ValueError("completion: a network needs calibration maps, got none")
    order = Stream(seed, "completion order").permutation(len(maps))
    held = order[::_HELD] if len(maps) >= _HELD else order
    rest = np.setdiff1d(order, held) if len(maps) >= _HELD else order
    most = max(_families(plan_of(grid, _shape(cells))) for cells in maps)
    number = min(most, _WINDOWS)
    train = _Examples.of(_mirrored([maps[i] for i in rest]), grid, number, seed, "fit")
    judged = _Examples.of([maps[i] for i in held], grid, number, seed, "held")
    scale = max(float(train.people.mean()), 1e-3)
    weights = _initial(seed)
    with torch.enable_grad():
        _optimise(weights, train, judged, scale, seed, progress)
    first, first_bias, second, second_bias, third, third_bias = weights
    return CompletionNetwork(
        first.reshape(SPANS * SPANS, FEATURES, -1), first_bias, second, second_bias,
        third * scale, third_bias * scale,
    )  # fmt: skip


def _shape(cells: Tensor) -> tuple[int, int]:
    return cells.shape[0], cells.shape[1]


def _families(plan: Plan) -> int:
    return len(plan.rows.starts) * len(plan.columns.starts)


def _mirrored(maps: Sequence[Tensor]) -> list[Tensor]:
    """Return the maps and their mirror images, one after the other."""
    return [image for cells in maps for image in (cells, cells.flip(1))]


@dataclass(frozen=True, eq=False)
class _Examples:
    """As many windows of each of M maps: what surrounds them, and how many people are inside."""

    features: Tensor
    """[M,n,36,8]"""
    people: Tensor
    """[M,n] float32"""
    plans: tuple[Plan, ...]
    rows: Tensor
    """[M,n] int64: the row of the window in its family."""
    columns: Tensor

    @classmethod
    def of(
        cls, maps: Sequence[Tensor], grid: WindowGrid, number: int, seed: int, purpose: str
    ) -> _Examples:
        """Choose windows of each map at random, all of them before any comes twice."""
        plans = tuple(plan_of(grid, _shape(cells)) for cells in maps)
        features, people, rows, columns = [], [], [], []
        for index, (cells, plan) in enumerate(zip(maps, plans, strict=True)):
            order = Stream(seed, f"completion {purpose}", image=index).permutation(_families(plan))
            chosen = torch.from_numpy(np.resize(order, number))
            row, column = chosen // len(plan.columns.starts), chosen % len(plan.columns.starts)
            table = summed(whole_units(cells.cpu()))
            features.append(plan.surroundings(table, row, column).transpose(0, 1))
            people.append((plan.sums(table)[row, column].double() * UNIT).float())
            rows.append(row)
            columns.append(column)
        return cls(
            torch.stack(features), torch.stack(people), plans, torch.stack(rows),
            torch.stack(columns),
        )  # fmt: skip

    def visible(self, seed: int, step: int) -> Tensor:
        """Draw a second window, or none, for each window: [M,n,36] bool, False where it blanks."""
        count, number = self.people.shape
        draw = Stream(seed, "completion second windows", step=step).uniform(size=(3, count, number))
        alone, down, right = torch.from_numpy(draw)
        numbers = torch.arange(SPANS)
        hidden = torch.ones(count, number, SPANS, SPANS, dtype=torch.bool)
        for index, plan in enumerate(self.plans):
            for axis, places, part, shape in (
                (plan.rows, self.rows, down, (number, SPANS, 1)),
                (plan.columns, self.columns, right, (number, 1, SPANS)),
            ):
                own = places[index]
                first, end = axis.near[own].unbind(1)
                other = first + ((end - first) * part[index]).long()
                limits = torch.tensor(axis.spans)[axis.span_of[own, other]]
                met = (numbers >= limits[:, :1]) & (numbers < limits[:, 1:])
                hidden[index] &= met.reshape(shape)
        hidden &= (alone >= _ALONE)[:, :, None, None]
        return ~hidden.flatten(2)


def _initial(seed: int) -> list[Tensor]:
    """Draw initial weights (He et al., ICCV 2015); the first prediction is the mean of all."""
    stream = Stream(seed, "completion weights")
    a, b = HIDDEN
    inputs = SPANS * SPANS * FEATURES

    def layer(outputs: int, fan: int) -> Tensor:
        return torch.from_numpy(stream.normal((outputs, fan)) * math.sqrt(2.0 / fan)).float()

    first, second = layer(a, inputs).T.contiguous(), layer(b, a)
    third = 0.1 * layer(1, b)[0]
    return [first, torch.zeros(a), second, torch.zeros(b), third, torch.ones(1)]


def _errors(
    weights: Sequence[Tensor],
    examples: _Examples,
    maps: Tensor,
    windows: slice,
    visible: Tensor,
    scale: float,
) -> Tensor:
    """Compute the errors [m,n], in units of ``scale`` people, of some windows of some maps."""
    first, first_bias, second, second_bias, third, third_bias = weights
    shown = examples.features[maps, windows] * visible[maps, windows, :, None]
    hidden = nn.functional.relu(shown.flatten(2) @ first + first_bias)
    hidden = nn.functional.relu(hidden @ second.T + second_bias)
    return hidden @ third + third_bias - examples.people[maps, windows] / scale


def _optimise(
    weights: list[Tensor],
    train: _Examples,
    held: _Examples,
    scale: float,
    seed: int,
    progress: Progress | None,
) -> None:
    """Change the weights to those of the best epoch."""
    parameters = [weight.requires_grad_() for weight in weights]
    optimiser = torch.optim.AdamW(parameters, _RATE, weight_decay=_DECAY)
    count, number = train.people.shape
    size, part = min(_BATCH[0], count), min(_BATCH[1], number)
    steps = -(-count // size) * -(-number // part)
    epochs = max(_EPOCHS, -(-_STEPS // steps))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * steps)
    best, kept = math.inf, [weight.detach().clone() for weight in weights]
    looks = [held.visible(seed + 1, look) for look in range(_LOOKS)]
    for epoch in range(epochs):
        if progress is not None:
            progress(epoch, epochs, "epochs of the completion network")
        visible = train.visible(seed, epoch)
        order = Stream(seed, "completion epoch", step=epoch).permutation(count)
        for begin in range(0, count, size):
            maps = torch.from_numpy(order[begin : begin + size])
            for first in range(0, number, part):
                windows = slice(first, first + part)
                errors = _errors(parameters, train, maps, windows, visible, scale)
                loss = (errors.abs().pow(_POWER).mean(1) + 1e-12).pow(1.0 / _POWER).mean()
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                optimiser.step()
                schedule.step()
        width = _width(parameters, held, looks, scale)
        if width < best:
            best, kept = width, [weight.detach().clone() for weight in weights]
    weights[:] = kept


@torch.no_grad()
def _width(
    weights: Sequence[Tensor], held: _Examples, looks: Sequence[Tensor], scale: float
) -> float:
    """Compute the mean over maps of the distance between the largest and the least error."""
    maps = torch.arange(len(held.people))
    every = slice(None)
    errors = torch.stack([_errors(weights, held, maps, every, visible, scale) for visible in looks])
    return float((errors.amax((0, 2)) - errors.amin((0, 2))).mean())
