"""One step of training: what is shown, what is differentiated, and what is checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pycc.models import CounterModel
from pycc.random import Stream
from pycc.ranks import Ranks
from pycc.train import schedule
from pycc.train.items import Item
from pycc.train.plan import Plan
from pycc.types import Counter

Part = tuple[Tensor, Tensor, list[Tensor], float]
"""Images [n,3,h,w], target [n,1,h',w'], the heads of each, and their weight in the loss."""


class NotFiniteError(Exception):
    """A loss or gradient that is no number; the message names the batch and what was kept."""


class Adversary(Protocol):
    """Makes attacked images while a counter is trained (eq. 18)."""

    def __call__(self, counter: Counter, image: Tensor, target: Tensor, seed: int, /) -> Tensor:
        """The image [3,h,w] with a patch that raises the loss for ``target`` [1,h',w']."""


class Objective(nn.Module):
    """What is differentiated: the model's own loss, of clean and of other images together.

    A module, so that torch's DistributedDataParallel can average its gradients over processes.
    """

    def __init__(self, model: CounterModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, parts: Sequence[Part]) -> Tensor:
        """Sum of weight x loss over (images, target, points, weight)."""
        total = None
        for images, target, points, weight in parts:
            loss = weight * self.model.loss(images, target, points=points)
            total = loss if total is None else total + loss
        assert total is not None
        return total


class Stepper:
    """Takes the steps of a training on this process's share of every batch."""

    def __init__(
        self,
        model: CounterModel,
        plan: Plan,
        seed: int,
        ranks: Ranks,
        adversary: Adversary | None,
    ) -> None:
        self.model, self.plan, self.seed = model, plan, seed
        self.ranks, self.adversary = ranks, adversary
        self.device = next(model.parameters()).device
        self.objective: Any = Objective(model)
        if ranks.world > 1:
            numbers = [self.device.index] if self.device.type == "cuda" else None
            self.objective = nn.parallel.DistributedDataParallel(
                self.objective, device_ids=numbers, find_unused_parameters=True
            )

    def gradient(self, epoch: int, batch: int, size: int, items: Sequence[Item]) -> float:
        """Leave the gradient of a batch of ``size`` items in the parameters; the batch's loss.

        The loss is the mean over the batch of all processes together. NotFiniteError, with the
        batch's images, for a loss or gradient that is no number.
        """
        # Layers that draw (dropout) draw the same whether the run was resumed or not.
        key = Stream(self.seed, "train, layers", step=epoch, draw=batch)
        torch.manual_seed(int(key.words(1)[0]))
        self.model.train()
        chunks = [items[n :: self.plan.accumulate] for n in range(self.plan.accumulate)]
        chunks = [chunk for chunk in chunks if chunk]
        total = 0.0
        for chunk in chunks:
            last = chunk is chunks[-1]
            alone = nullcontext() if last or self.ranks.world == 1 else self.objective.no_sync()
            parts = self._parts(epoch, size, chunk)
            with alone:
                with self._precision():
                    loss = self.objective(parts)
                if not torch.isfinite(loss.detach()):
                    raise NotFiniteError(_where("loss", epoch, batch, items))
                loss.backward()
            total += float(loss.detach())
        # A finite loss may have a gradient that is none, and the weights would follow it.
        most = math.inf if self.plan.clip is None else self.plan.clip
        if not torch.isfinite(nn.utils.clip_grad_norm_(self.model.parameters(), most)):
            raise NotFiniteError(_where("gradient", epoch, batch, items))
        # DistributedDataParallel takes the mean over processes: losses are scaled up for that.
        return float(sum(self.ranks.gathered([total]))) / self.ranks.world

    def _precision(self) -> Any:
        if self.plan.amp and self.device.type == "cuda":
            return torch.autocast("cuda", torch.bfloat16)
        return nullcontext()

    def _parts(self, epoch: int, size: int, items: Sequence[Item]) -> list[Part]:
        """Images of one size together, with their weight in the loss: a mean over the batch."""
        clean = 1.0
        if self.plan.recipe == "adversarial":
            clean = schedule.clean_share(epoch, self.plan.warmup, self.plan.decline)
        grouped: dict[tuple[int, ...], list[Item]] = {}
        for item in items:
            grouped.setdefault(tuple(item.image.shape), []).append(item)
        parts = []
        for group in grouped.values():
            shown = [item.image if item.ablated is None else item.ablated for item in group]
            images = torch.stack(shown).to(self.device)
            target = torch.stack([item.target for item in group]).to(self.device)
            points = [item.points.to(self.device) for item in group]
            # A batch of fewer items than processes: the others take part without weight.
            weight = len(group) / size * self.ranks.world if self.ranks.rank < size else 0.0
            parts.append((images, target, points, weight * clean))
            if clean < 1.0:
                attacked = self._attacked(images, target, epoch, group)
                parts.append((attacked, target, points, weight * (1.0 - clean)))
        return parts

    def _attacked(
        self, images: Tensor, target: Tensor, epoch: int, group: Sequence[Item]
    ) -> Tensor:
        """The images with patches made against the model as it now is, in eval mode."""
        assert self.adversary is not None
        self.model.eval()
        found = []
        try:
            for image, truth, item in zip(images, target, group, strict=True):
                key = Stream(self.seed, f"train, patch, {item.name}", step=epoch, draw=item.number)
                found.append(self.adversary(self.model, image, truth, int(key.words(1)[0])))
        finally:
            self.model.train()
        return torch.stack(found)


def _where(what: str, epoch: int, batch: int, items: Sequence[Item]) -> str:
    names = ", ".join(dict.fromkeys(item.name for item in items))
    return f"{what} is not finite in epoch {epoch + 1}, batch {batch + 1} ({names})"
