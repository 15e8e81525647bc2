"""The trainer: one loop for every counter and recipe, on one process or many."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pycc import models
from pycc import run as runs
from pycc.models import CounterModel
from pycc.models.recipe import Recipe
from pycc.ranks import Ranks
from pycc.run import Run, fingerprint
from pycc.train import checkpoint, schedule
from pycc.train.held import fill_of, measured, split
from pycc.train.items import Ablation, Item, Items, Joined
from pycc.train.plan import Plan, resolved
from pycc.train.step import Adversary, NotFiniteError, Stepper
from pycc.train.workers import loaded
from pycc.types import Sample

KEY = ("kind", "epoch")
WEIGHTS = "weights.npz"
Progress = Callable[[int, int, str], None]


@dataclass
class State:
    """Where a training stands; with the weights all that a checkpoint needs."""

    epoch: int = 0
    batch: int = 0
    """Batches of this epoch that are done."""
    loss: float = 0.0
    """Sum of this epoch's losses so far."""
    best: float = math.inf
    """Least validation MAE; of the last epoch where nothing validates."""
    best_epoch: int = -1
    stale: int = 0
    """Validations since then."""


def fit(
    model: CounterModel,
    samples: Sequence[Sample],
    plan: Plan = Plan(),  # noqa: B008  (frozen)
    *,
    name: str = "",
    seed: int = 0,
    out: str | os.PathLike[str],
    resume: bool = False,
    adversary: Adversary | None = None,
    ranks: Ranks = Ranks(),  # noqa: B008  (frozen)
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Run:
    """Train a counter on samples and keep its best weights in the folder ``out``.

    The weights that ``model`` has are where it starts; it is trained in place and left with the
    best of its validations. These are of whole images, a share of ``samples`` that the seed
    chooses and no step sees; test images have no part in it. ``name`` is the data set's, which
    chooses the ground truth of some recipes. ``adversary`` is what the plan's recipe "adversarial"
    needs. ``out`` holds ``manifest.json``, ``results.jsonl`` (a line an epoch and validation),
    ``summary.json``, ``weights.npz`` with their passport, and ``checkpoint.pt``. With ``resume`` a
    training that was stopped anywhere goes on: with one process to the same bits.

    Under torchrun every process calls this with its ``ranks`` and shares each batch; the first one
    writes. Their number may change when a training is resumed.

    Raises:
        ValueError: samples without heads, too few samples, a batch smaller than the number of
            processes, a checkpoint of another training, an adversary that is missing.
        NotFiniteError: a loss that is no number; the last good checkpoint is left.
        OSError: a file that cannot be written, what was there before stays; ChildProcessError where
            a process that loads images dies.
    """
    return _Fit(model, samples, plan, name, seed, Path(out), adversary, ranks, progress).run(
        resume, settings or {}
    )


class _Fit:
    def __init__(
        self,
        model: CounterModel,
        samples: Sequence[Sample],
        plan: Plan,
        name: str,
        seed: int,
        out: Path,
        adversary: Adversary | None,
        ranks: Ranks,
        progress: Progress | None,
    ) -> None:
        if plan.recipe == "adversarial" and adversary is None:
            raise ValueError("train: the adversarial recipe needs an adversary")
        self.model, self.samples, self.plan, self.seed = model, samples, plan, seed
        self.out, self.adversary, self.ranks, self.progress = out, adversary, ranks, progress
        self.recipe: Recipe = resolved(plan, model, name)
        if ranks.world > self.recipe.batch:
            raise ValueError(
                f"train: a batch of {self.recipe.batch} cannot be shared by {ranks.world} "
                "processes; ask for a larger --batch"
            )
        training, self.held = split(samples, plan.validation_share, seed)
        ablation = None
        if plan.recipe == "ablation":
            fill = fill_of(plan, samples, training)
            ablation = Ablation(plan.k, plan.unit, fill, plan.warmup)
        self.items = Items(
            samples, training, self.recipe, model.stride, seed=seed, ablation=ablation
        )
        self.device = next(model.parameters()).device
        self.state = State()
        self.average: AveragedModel | None = None
        if plan.ema is not None:
            mean = get_ema_multi_avg_fn(plan.ema)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(model, multi_avg_fn=mean)
        self.number, first = schedule.optimiser_at(self.recipe, 0)
        self.optimiser = schedule.made(first, model.parameters())
        self.best: dict[str, Tensor] = {}

    # --- one run

    def run(self, resume: bool, settings: Mapping[str, Any]) -> Run:
        made_with = {
            "plan": asdict(self.plan),
            "model": self.model.name,
            "options": self.model.options(),
            "seed": self.seed,
            "data": self._data(),
        }
        log = self._open(resume, {**made_with, "settings": dict(settings)})
        try:
            if resume:
                self._restore(checkpoint.load(self.out, made_with))
            stepper = Stepper(self.model, self.plan, self.seed, self.ranks, self.adversary)
            saved = time.monotonic()
            while self.state.epoch < self.recipe.epochs and not self._stale():
                saved = self._epoch(stepper, made_with, log, saved)
            return self._finish(log)
        finally:
            if log is not None:
                log.close()

    def _data(self) -> str:
        """Every image that it learns from, in order: name, pixels and heads."""
        chosen = (self.samples[i] for i in self.items.indices)
        parts = ((s.name, part) for s in chosen for part in (s.image, s.points))
        return fingerprint(chain([("number", str(len(self.samples)))], parts))

    def _open(self, resume: bool, manifest: Mapping[str, Any]) -> Run | None:
        if not self.ranks.first:
            return None
        if resume:
            return Run.resume(self.out, key=KEY)
        return Run.create(
            self.out,
            {"kind": "train", **manifest, "environment": runs.environment()},
            key=KEY,
        )

    def _stale(self) -> bool:
        return self.plan.patience is not None and self.state.stale >= self.plan.patience

    # --- one epoch

    def _epoch(
        self, stepper: Stepper, made_with: Mapping[str, Any], log: Run | None, saved: float
    ) -> float:
        state, epoch = self.state, self.state.epoch
        number, rule = schedule.optimiser_at(self.recipe, epoch)
        if number != self.number:
            self.number, self.optimiser = number, schedule.made(rule, self.model.parameters())
        rate = schedule.rate_at(rule.lr, self.recipe.schedule, epoch)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        order = self.items.order(epoch)
        size = self.recipe.batch
        batches = [order[n : n + size] for n in range(0, len(order), size)]
        start = time.monotonic()
        first = state.batch
        for batch, items in zip(batches[first:], self._loaded(batches[first:], epoch), strict=True):
            self.optimiser.zero_grad(set_to_none=True)
            try:
                state.loss += stepper.gradient(epoch, state.batch, len(batch), items)
            except NotFiniteError as error:
                raise NotFiniteError(f"{error}; {self._kept()}") from None
            self.optimiser.step()
            if self.average is not None:
                self.average.update_parameters(self.model)
            state.batch += 1
            if self.progress is not None and self.ranks.first:
                self.progress(
                    epoch * len(batches) + state.batch,
                    self.recipe.epochs * len(batches),
                    f"epoch {epoch + 1}, loss {state.loss / state.batch:.4g}",
                )
            due = time.monotonic() - saved >= 60 * self.plan.every_minutes
            if due and state.batch < len(batches):
                self._save(made_with)
                saved = time.monotonic()
        record = {
            "kind": "train", "epoch": epoch, "loss": state.loss / max(1, len(batches)), "lr": rate,
            "seconds": time.monotonic() - start,
            "images_per_second": size * (len(batches) - first)
            / max(1e-9, time.monotonic() - start),
        }  # fmt: skip
        if log is not None:
            log.append(record)
        self._validated(epoch, log)
        state.epoch, state.batch, state.loss = epoch + 1, 0, 0.0
        self._save(made_with)
        self.ranks.wait()
        return time.monotonic()

    def _loaded(self, batches: Sequence[Sequence[int]], epoch: int) -> Iterator[list[Item]]:
        """The items of this process, batch by batch."""
        mine = [[(epoch, n) for n in self.ranks.share(batch) or batch[:1]] for batch in batches]
        try:
            yield from loaded(self.items, mine, self.plan.workers)
        except ChildProcessError as error:
            raise ChildProcessError(f"train: {error}; {self._kept()}") from None

    # --- validation, checkpoints, the end

    def _validated(self, epoch: int, log: Run | None) -> None:
        """Validate where it is time, and keep the weights that are best; else those of now."""
        state = self.state
        last = epoch + 1 == self.recipe.epochs
        if not self.held:
            self.best, state.best_epoch = self._now(), epoch
            return
        if (epoch + 1) % self.plan.validate_every and not last:
            return
        found = measured(self._judged(), self.samples, self.held, self.ranks)
        record = {"kind": "validation", "epoch": epoch, **found}
        if log is not None:
            log.append(record)
        if not all(math.isfinite(value) for value in found.values()):
            raise NotFiniteError(
                f"validation after epoch {epoch + 1}: counts are not finite; {self._kept()}"
            )
        if found["mae"] < state.best:
            state.best, state.best_epoch, state.stale = found["mae"], epoch, 0
            self.best = self._now()
        else:
            state.stale += 1

    def _judged(self) -> CounterModel:
        counter = self.model if self.average is None else self.average.module
        assert isinstance(counter, CounterModel)
        return counter.eval()

    def _now(self) -> dict[str, Tensor]:
        return {k: v.detach().cpu().clone() for k, v in self._judged().net.state_dict().items()}

    def _kept(self) -> str:
        file = self.out / checkpoint.NAME
        return f"the last good checkpoint is {file}" if file.exists() else "there is no checkpoint"

    def _save(self, made_with: Mapping[str, Any]) -> None:
        if self.ranks.first:
            checkpoint.save(
                self.out,
                {
                    "made_with": made_with,
                    "state": asdict(self.state),
                    "model": self.model.state_dict(),
                    "optimiser": self.optimiser.state_dict(),
                    "number": self.number,
                    "average": None if self.average is None else self.average.state_dict(),
                    "best": self.best,
                },
            )

    def _restore(self, content: Mapping[str, Any] | None) -> None:
        if content is None:
            return  # stopped before the first checkpoint: from the beginning
        try:
            self.state = State(**content["state"])
            self.model.load_state_dict(content["model"])
            self.number = content["number"]
            rule = self.recipe.optimisers[self.number]
            self.optimiser = schedule.made(rule, self.model.parameters())
            self.optimiser.load_state_dict(content["optimiser"])
            if self.average is not None:
                self.average.load_state_dict(content["average"])
            self.best = content["best"]
        except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
            raise ValueError(
                f"{self.out / checkpoint.NAME}: of another training: {error}"
            ) from None

    def _own_truths(self) -> dict[str, Any]:
        """The ground truth of each of joined data sets; the recipe names but one."""
        return (
            {"density": dict(self.samples.rules or {})} if isinstance(self.samples, Joined) else {}
        )

    def _finish(self, log: Run | None) -> Run:
        if self.best:
            self.model.net.load_state_dict(self.best)
        self.model.eval()
        self.ranks.wait()
        if log is None:
            return Run(None, {})
        state = self.state
        summary = {
            "epochs": state.epoch,
            "best_epoch": state.best_epoch,
            "validation": None if not self.held else {"mae": state.best, "images": len(self.held)},
            "stopped_early": state.epoch < self.recipe.epochs,
        }
        passport = {
            "recipe": {**asdict(self.recipe), "kind": self.plan.recipe},
            **self._own_truths(),
            "plan": asdict(self.plan),
            "seed": self.seed,
            "training_images": len(self.items.indices),
            **summary,
        }
        if self.model.name in models.names():
            models.save(self.model, self.out / WEIGHTS, passport=_plain(passport))
        log.finish(summary)
        return log


def _plain(value: Any) -> Any:
    """Dataclasses' tuples and mappings as JSON has them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value
