"""Learning rates, optimisers and the share of clean loss, as functions of the epoch alone."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from pycc.models.recipe import Optimiser, Recipe, Schedule


def optimiser_at(recipe: Recipe, epoch: int) -> tuple[int, Optimiser]:
    """The number of the optimiser that an epoch (from 0 on) uses, and the optimiser."""
    number = max(i for i, rule in enumerate(recipe.optimisers) if rule.from_epoch <= epoch)
    return number, recipe.optimisers[number]


def made(
    optimiser: Optimiser,
    parameters: Iterable[nn.Parameter],
    backbone: Iterable[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """Create torch's optimiser of that kind, for the parameters that require gradients.

    Those of the ``backbone``, which are among them, have a rate of their own if the recipe does.
    """
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    groups: list[dict[str, object]] = [{"params": learning}]
    if optimiser.backbone != 1.0:
        slow = {id(parameter) for parameter in backbone}
        groups = [
            {"params": [p for p in learning if id(p) not in slow]},
            {"params": [p for p in learning if id(p) in slow], "factor": optimiser.backbone},
        ]
    if optimiser.kind == "adamw":
        return torch.optim.AdamW(groups, optimiser.lr, weight_decay=optimiser.weight_decay)
    if optimiser.kind == "adam":
        return torch.optim.Adam(groups, optimiser.lr, weight_decay=optimiser.weight_decay)
    return torch.optim.SGD(
        groups, optimiser.lr, momentum=optimiser.momentum, weight_decay=optimiser.weight_decay
    )


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate, times the factor of each group of parameters that has one."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)


def rate_at(lr: float, schedule: Schedule, epoch: int) -> float:
    """The learning rate of an epoch, from 0 on, for the nominal ``lr``."""
    if epoch < schedule.warmup:
        share = epoch / schedule.warmup
        if schedule.geometric:
            return float(schedule.warmup_lr * (lr / schedule.warmup_lr) ** share)
        return schedule.warmup_lr + (lr - schedule.warmup_lr) * share
    epoch -= schedule.warmup
    if schedule.kind == "step":
        return float(lr * schedule.factor ** (epoch // schedule.period))
    if schedule.kind == "cosine_restarts":
        cycle = float(schedule.period)
        while epoch >= cycle:
            epoch -= int(cycle)
            cycle = max(1.0, cycle * schedule.factor)
        half = 0.5 * (1.0 + math.cos(math.pi * epoch / cycle))
        return schedule.floor + (lr - schedule.floor) * half
    return lr


def clean_share(epoch: int, warmup: int, decline: int) -> float:
    """lambda of an epoch, from 0 on: 1 for ``warmup`` epochs, then down to 0.5 in ``decline``.

    Source: arXiv 2104.10868, eq. 18 and the steps under it.
    """
    if epoch < warmup:
        return 1.0
    if epoch >= warmup + decline:
        return 0.5
    return 1.0 - 0.5 * (epoch - warmup) / decline
