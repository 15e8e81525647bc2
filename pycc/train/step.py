"""One step of training: its images, its loss, the gradient, and the checks on these."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from pycc.attack import InnerAttack
from pycc.checks import naming
from pycc.counters import device_of
from pycc.models import CounterModel
from pycc.models.heads import Heads
from pycc.random import Stream
from pycc.ranks import Ranks
from pycc.train import schedule
from pycc.train.certified import CertifiedError
from pycc.train.config import TrainConfig
from pycc.train.items import Item


class Part(NamedTuple):
    """Images of one size, their ground truth, and their weight in the loss."""

    images: Tensor
    """[n,3,h,w], RGB in [0,1]."""
    target: Tensor
    """[n,1,h',w'], people per cell."""
    points: list[Tensor]
    """The heads of each image."""
    weight: float
    region: Tensor | None = None
    """[n,1,h',w'], the share of each cell that counts; None: all of it."""
    heads: list[Heads] | None = None
    """The heads that each image is counted for, for models whose recipe has boxes."""


class NotFiniteError(Exception):
    """A loss, gradient or count that is not finite; the message names the images.

    >>> from pycc import data, models, train
    >>> samples = data.open("synthetic", split="train", limit=2, shape=(64, 96))
    >>> config = train.TrainConfig(epochs=1, lr=1e30, crop="64x64", crops=2)
    >>> try:
    ...     train.fit(models.load("mcnn-synthetic"), samples, config)
    ... except NotFiniteError as error:
    ...     print(str(error).split(";")[-1].strip())
    there is no checkpoint
    """

    one_line = True
    """A command reports its message alone."""


class Objective(nn.Module):
    """The model's own loss of clean and of attacked images together, or their certified error.

    A module, so that torch's DistributedDataParallel can average its gradients over processes.
    """

    def __init__(self, model: CounterModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, parts: Sequence[Part], certified: CertifiedError | None = None) -> Tensor:
        """Sum of weight x loss over the parts; the loss is the certified error if one is given."""
        total = None
        for part in parts:
            if certified is None:
                loss = self._own_loss(part)
            else:
                heads = [len(points) for points in part.points]
                loss = certified.loss(self.model, part.images, heads, region=part.region)
            total = part.weight * loss if total is None else total + part.weight * loss
        assert total is not None
        return total

    def _own_loss(self, part: Part) -> Tensor:
        more = {"region": part.region, "heads": part.heads}
        given = {name: value for name, value in more.items() if value is not None}
        loss_of = cast("Callable[..., Tensor]", self.model.loss)
        return loss_of(part.images, part.target, points=part.points, **given)


class Stepper:
    """Computes gradients on this process's share of every batch."""

    def __init__(
        self,
        model: CounterModel,
        config: TrainConfig,
        seed: int,
        ranks: Ranks,
        inner_attack: InnerAttack | None,
    ) -> None:
        self.model, self.config, self.seed = model, config, seed
        self.ranks, self.inner_attack = ranks, inner_attack
        self.device = device_of(model)
        self.norm = 0.0
        """Norm of the last gradient, over all parameters, before clipping."""
        self.certified: CertifiedError | None = None
        """The loss in place of the model's own."""
        self.objective: nn.Module = Objective(model)
        if ranks.world > 1:
            numbers = [self.device.index] if self.device.type == "cuda" else None
            self.objective = nn.parallel.DistributedDataParallel(
                self.objective, device_ids=numbers, find_unused_parameters=True
            )

    def gradient(self, epoch: int, batch: int, size: int, items: Sequence[Item]) -> float:
        """Leave the gradient of a batch of ``size`` items in the parameters; the batch's loss.

        The loss is the mean over the batch of all processes together. NotFiniteError, with the
        batch's images, for a loss or gradient that is not finite.
        """
        # Random layers (dropout) draw the same numbers in a resumed run, and other ones in each
        # process.
        key = Stream(self.seed, "train, layers", image=self.ranks.rank, step=epoch, draw=batch)
        torch.manual_seed(int(key.words(1)[0]))
        self.model.train()
        chunks = [items[n :: self.config.accumulate] for n in range(self.config.accumulate)]
        chunks = [chunk for chunk in chunks if chunk]
        total = 0.0
        for chunk in chunks:
            last = chunk is chunks[-1]
            alone: AbstractContextManager[object] = nullcontext()
            if not last and isinstance(self.objective, nn.parallel.DistributedDataParallel):
                alone = self.objective.no_sync()
            named = naming(", ".join(item.name for item in chunk), chunk[0].image.shape)
            with named, alone:
                parts = self._parts(epoch, size, chunk)
                with self._precision():
                    loss = self.objective(parts, self.certified)
                if not torch.isfinite(loss.detach()):
                    raise NotFiniteError(_where("loss", epoch, batch, items))
                loss.backward()
            total += float(loss.detach())
        # A finite loss may have a gradient that is not, and the weights would follow it.
        most = math.inf if self.config.clip is None else self.config.clip
        self.norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), most))
        if not math.isfinite(self.norm):
            raise NotFiniteError(_where("gradient", epoch, batch, items))
        # DistributedDataParallel takes the mean over processes: losses are scaled up for that.
        return float(sum(self.ranks.gathered([total]))) / self.ranks.world

    def _precision(self) -> AbstractContextManager[object]:
        if self.config.amp:
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def _parts(self, epoch: int, size: int, items: Sequence[Item]) -> list[Part]:
        """Images of one size together, with their weight in the loss: a mean over the batch."""
        clean = 1.0
        if self.config.recipe == "adversarial":
            clean = schedule.clean_share(epoch, *self.config.phases)
        grouped: dict[tuple[int, ...], list[Item]] = {}
        for item in items:
            grouped.setdefault(tuple(item.image.shape), []).append(item)
        parts = []
        for group in grouped.values():
            # A batch of fewer items than processes: the others take part without weight.
            weight = len(group) / size * self.ranks.world if self.ranks.rank < size else 0.0
            part = together(group, weight * clean, self.device)
            parts.append(part)
            if clean < 1.0:
                attacked = self._attacked(part, epoch, group)
                parts.append(part._replace(images=attacked, weight=weight * (1.0 - clean)))
        return parts

    def _attacked(self, part: Part, epoch: int, group: Sequence[Item]) -> Tensor:
        """The images with patches made against the present model, in eval mode."""
        assert self.inner_attack is not None
        self.model.eval()
        attacked = []
        try:
            for n, item in enumerate(group):
                key = Stream(self.seed, f"train, patch, {item.name}", step=epoch, draw=item.number)
                region = None if part.region is None else part.region[n]
                attacked.append(
                    self.inner_attack(
                        self.model,
                        part.images[n],
                        part.target[n],
                        int(key.words(1)[0]),
                        region=region,
                    )
                )
        finally:
            self.model.train()
        return torch.stack(attacked)


def warn_of_parts(model: nn.Module, processes: int, accumulate: int, batch: int) -> None:
    """Warn if batch normalisation sees parts of a batch instead of all of it."""
    learns = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    parts = processes * accumulate
    if learns and min(parts, batch) > 1:
        warnings.warn(
            f"train: the counter normalises by batches, and a batch of {batch} is computed in "
            f"{parts} parts ({processes} processes, --accumulate {accumulate}): each is normalised "
            "by itself, and the result is not that of one part",
            stacklevel=5,
        )


def together(items: Sequence[Item], weight: float, device: torch.device) -> Part:
    """Items of one size, ablated or not, as a part of the loss with a weight."""
    region = None
    if any(item.region is not None for item in items):
        regions = [torch.ones_like(i.target) if i.region is None else i.region for i in items]
        region = torch.stack(regions).to(device)
    shown = [item.image if item.ablated is None else item.ablated for item in items]
    return Part(
        torch.stack(shown).to(device),
        torch.stack([item.target for item in items]).to(device),
        [item.points.to(device) for item in items],
        weight,
        region,
        [item.heads.to(device) for item in items if item.heads is not None] or None,
    )


def _where(what: str, epoch: int, batch: int, items: Sequence[Item]) -> str:
    names = ", ".join(dict.fromkeys(item.name for item in items))
    return f"{what} is not finite in epoch {epoch + 1}, batch {batch + 1} ({names})"
