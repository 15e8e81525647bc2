"""The trainer: one loop for every counter and recipe, on one process or many."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pycc import models, runs
from pycc.checks import lacks_memory
from pycc.counters import count_of
from pycc.data.dataset import data_fingerprint
from pycc.models import CounterModel
from pycc.models.recipe import Recipe
from pycc.ranks import Ranks, exact
from pycc.runs import Run, fingerprint
from pycc.train import checkpoint, schedule
from pycc.train.held import fill_of, split
from pycc.train.items import Ablation, Item, Items
from pycc.train.judge import Judge, check_images
from pycc.train.metadata import described
from pycc.train.plan import MACHINE, Plan, origin_of, resolved
from pycc.train.step import Adversary, NotFiniteError, Stepper, warn_of_parts
from pycc.train.workers import Loader
from pycc.types import Sample

KEY = ("kind", "epoch")
WEIGHTS = "weights.npz"
STATE = "weights.pt"
_ERRORS = ("mae", "ablated_mae", "patched_mae")
Progress = Callable[[int, int, str], None]
Measure = Callable[[CounterModel, Mapping[str, Any]], Mapping[str, Any]]
"""(the best counter, in eval mode; the summary so far) -> its errors on test images."""


@dataclass
class State:
    """Where a training stands; with the weights all that a checkpoint needs."""

    epoch: int = 0
    batch: int = 0
    """Batches of this epoch that are done."""
    loss: float = 0.0
    """Sum of this epoch's losses so far."""
    norm: float = 0.0
    """Sum of the norms of its gradients."""
    seconds: float = 0.0
    """Spent on this training so far, by all that went on with it."""
    began: float = 0.0
    """Those at this epoch's first batch."""
    best: float = math.inf
    """Least score of a validation under the recipe."""
    best_epoch: int = -1
    """The last one where nothing validates."""
    found: dict[str, float] = field(default_factory=dict)
    """Errors of that validation."""
    stale: int = 0
    """Validations since then."""


def fit(
    model: CounterModel,
    samples: Sequence[Sample],
    plan: Plan = Plan(),  # noqa: B008  (frozen)
    *,
    seed: int = 0,
    out: str | os.PathLike[str],
    resume: bool = False,
    adversary: Adversary | None = None,
    ranks: Ranks = Ranks(),
    settings: Mapping[str, Any] | None = None,
    command: Sequence[str] = (),
    machine: Collection[str] = (),
    progress: Progress | None = None,
    measure: Measure | None = None,
    tested: Sequence[Sample] | None = None,
    held: Sequence[int] | None = None,
) -> Run:
    """Train a counter on samples and keep its best weights in the folder ``out``.

    The weights that ``model`` has are where it starts; it is trained in place and left with the
    best of its validations under the recipe (``pycc.train.judge``). These are of whole images, a
    share of ``samples`` that the seed chooses (or those at the indices ``held``) and no step sees;
    test images have no part in it.
    The data set's ``origin`` chooses the ground truth of some recipes. ``adversary`` is what the
    plan's recipe "adversarial" needs. ``measure`` is asked once, by all processes, what the best
    weights make of test images; its answer is the summary's and the metadata's "test". ``tested``
    are these images: a resumed training keeps them, as it keeps its own.
    ``out`` holds ``manifest.json``, ``results.jsonl`` (a line an epoch and validation),
    ``summary.json``, ``checkpoint.pt``, and ``weights.npz`` with their metadata: of a network of
    your own (``models.wrap``) ``weights.pt``, its state dict. With ``resume`` a training that was
    stopped anywhere goes on: with one process to the same bits.

    Under torchrun every process calls this with its ``ranks`` and shares each batch; the first one
    writes. Their number may change when a training is resumed.

    Raises:
        ValueError: samples without heads, too few samples, too small for the recipe's k or patch,
            a batch smaller than the number of processes, no epochs after the warm-up, a checkpoint
            of another training, an adversary that is missing.
        NotFiniteError: a loss, gradient or count that is no number; the last good checkpoint is
            left.
        OSError: a file that cannot be written, what was there before stays; ChildProcessError where
            a process that loads images dies.
    """
    fitting = _Fit(model, samples, plan, seed, Path(out), adversary, ranks, progress, held)
    with exact():
        return fitting.run(
            resume, measure, tested, settings=settings or {}, command=command,
            machine={*MACHINE, *machine},
        )  # fmt: skip


class _Fit:
    def __init__(
        self,
        model: CounterModel,
        samples: Sequence[Sample],
        plan: Plan,
        seed: int,
        out: Path,
        adversary: Adversary | None,
        ranks: Ranks,
        progress: Progress | None,
        held: Sequence[int] | None,
    ) -> None:
        if plan.recipe == "adversarial" and adversary is None:
            raise ValueError("train: the adversarial recipe needs an adversary")
        self.model, self.samples, self.plan, self.seed = model, samples, plan, seed
        self.out, self.ranks, self.progress = out, ranks, progress
        self.recipe: Recipe = resolved(plan, model, origin_of(samples))
        self.plan = plan = replace(
            plan, ema=plan.ema or self.recipe.ema, clip=plan.clip or self.recipe.clip
        )
        if ranks.world > self.recipe.batch:
            raise ValueError(
                f"train: a batch of {self.recipe.batch} cannot be shared by {ranks.world} "
                "processes; ask for a larger --batch"
            )
        self.content = _content(samples)  # before anything else is made of them: it checks them
        training, self.held = split(samples, plan.validation_share, seed, held)
        self.ablation: Ablation | None = None
        if plan.recipe == "ablation":
            fill = fill_of(plan, samples, training)
            self.ablation = Ablation(plan.k, plan.unit, fill, plan.phases[0])
        self.items = Items(
            samples, training, self.recipe, model.stride, seed=seed, ablation=self.ablation,
            cache=plan.cache,
        )  # fmt: skip
        if plan.patience is not None and not self.held:
            raise ValueError("train: patience counts validations, and no image validates")
        check_images(plan, self.items, self.ablation)
        warn_of_parts(model, ranks.world, plan.accumulate, self.recipe.batch)
        self.judge = Judge(plan, self.items, self.held, self.ablation, adversary)
        everything = range(len(self.items))
        model.learns_from(lambda: [float(self.items[0, n].target.sum()) for n in everything])
        self.stepper = Stepper(model, plan, seed, ranks, adversary)
        self.loader = Loader(self.items, plan.workers)
        self.start = fingerprint(model.net.state_dict().items())
        self.state = State()
        self.average: AveragedModel | None = None
        if plan.ema is not None:
            mean = get_ema_multi_avg_fn(plan.ema)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(model, multi_avg_fn=mean)
        self.number, first = schedule.optimiser_at(self.recipe, 0)
        self.optimiser = schedule.made(first, model.parameters())
        self.best: dict[str, Tensor] = {}
        self.clock = 0.0
        """When ``State.seconds`` was counted last."""

    # --- one run

    def run(
        self,
        resume: bool,
        measure: Measure | None,
        tested: Sequence[Sample] | None,
        *,
        settings: Mapping[str, Any],
        command: Sequence[str],
        machine: Collection[str],
    ) -> Run:
        plan = {name: value for name, value in asdict(self.plan).items() if name not in MACHINE}
        made_with: dict[str, dict[str, Any]] = {
            "settings": {
                "plan": plan,
                "model": self.model.name,
                "options": self.model.options(),
                "seed": self.seed,
                "held": self.held,
            },
            "fingerprints": {
                "weights": self.start,
                "data": self.content,
                "test": None if tested is None else _content(tested),
            },
        }
        whole = {**settings, **made_with["settings"]}
        prints = made_with["fingerprints"]
        log = None
        if resume:  # every process says what is wrong
            runs.check_resumed(
                self.out, kind="train", settings=whole, fingerprints=prints, machine=machine
            )
        if self.ranks.first:
            log = runs.open_or_resume(
                self.out, kind="train", command=command, settings=whole, fingerprints=prints,
                key=KEY, machine=machine, resume=resume,
            )  # fmt: skip
        try:
            if resume:
                self._restore(checkpoint.load(self.out, made_with))
            saved = self.clock = time.monotonic()
            while self.state.epoch < self.recipe.epochs and not self._stale():
                saved = self._epoch(made_with, log, saved)
            return self._finish(log, measure)
        finally:
            if log is not None:
                log.close()

    def _stale(self) -> bool:
        return self.plan.patience is not None and self.state.stale >= self.plan.patience

    # --- one epoch

    def _epoch(self, made_with: Mapping[str, Any], log: Run | None, saved: float) -> float:
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
        first = state.batch
        for batch, items in zip(batches[first:], self._loaded(batches[first:], epoch), strict=True):
            self.optimiser.zero_grad(set_to_none=True)
            try:
                state.loss += self.stepper.gradient(epoch, state.batch, len(batch), items)
            except NotFiniteError as error:
                raise NotFiniteError(f"{error}; {self._kept()}") from None
            state.norm += self.stepper.norm
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
            self._tick()
            due = self.clock - saved >= 60 * self.plan.every_minutes
            if due and state.batch < len(batches):
                self._check(f"epoch {epoch + 1}, batch {state.batch}")
                self._save(made_with)
                saved = self.clock
        spent = state.seconds - state.began
        record = {
            "kind": "train", "epoch": epoch, "loss": state.loss / max(1, len(batches)), "lr": rate,
            "gradient_norm": state.norm / max(1, len(batches)), "seconds": spent,
            "images_per_second": size * len(batches) / max(1e-9, spent),
        }  # fmt: skip
        if log is not None:
            log.append(record)
        if state.norm == 0.0 and self.ranks.first:
            warnings.warn(
                f"train: nothing was learnt in epoch {epoch + 1}: every gradient was exactly 0, as "
                "where a last ReLU is shut on all that the counter is shown",
                stacklevel=4,
            )
        self._agree()
        self._validated(epoch, log)
        self._tick()
        state.epoch, state.batch, state.loss, state.norm = epoch + 1, 0, 0.0, 0.0
        state.began = state.seconds
        self._save(made_with)
        self.ranks.wait()
        return time.monotonic()

    def _tick(self) -> None:
        now = time.monotonic()
        self.state.seconds, self.clock = self.state.seconds + now - self.clock, now

    def _loaded(self, batches: Sequence[Sequence[int]], epoch: int) -> Iterator[list[Item]]:
        """The items of this process, batch by batch."""
        mine = [[(epoch, n) for n in self.ranks.share(batch) or batch[:1]] for batch in batches]
        try:
            yield from self.loader(mine)
        except ChildProcessError as error:
            raise ChildProcessError(f"train: {error}; {self._kept()}") from None

    # --- validation, checkpoints, the end

    def _agree(self) -> None:
        """Running statistics of the first process for all: what is measured is what is kept."""
        self.ranks.same(self.model.buffers())
        if self.average is not None:
            self.ranks.same(self.average.module.buffers())

    def _check(self, when: str) -> None:
        """NotFiniteError where the last step has left the numbers: no loss has told that yet."""
        sample = self.samples[self.items.indices[0]]
        if not math.isfinite(count_of(self._judged(), sample)):
            raise NotFiniteError(
                f"the count of {sample.name} is not finite after {when}; {self._kept()}"
            )

    def _validated(self, epoch: int, log: Run | None) -> None:
        """Validate where it is time, and keep the weights that are best; else those of now."""
        state = self.state
        last = epoch + 1 == self.recipe.epochs
        if not self.held:
            self._check(f"epoch {epoch + 1}")
            self.best, state.best_epoch = self._now(), epoch
            return
        if (epoch + 1) % self.plan.validate_every and not last:
            return
        try:
            found = self.judge(self._judged(), epoch, self.ranks)
        except NotFiniteError as error:
            raise NotFiniteError(
                f"validation after epoch {epoch + 1}: {error}; {self._kept()}"
            ) from None
        if log is not None:
            log.append({"kind": "validation", "epoch": epoch, **found})
        if "score" not in found:
            return
        if found["score"] < state.best:
            state.best, state.best_epoch, state.stale = found["score"], epoch, 0
            state.found = {name: found[name] for name in _ERRORS if name in found}
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
            if lacks_memory(error):
                raise
            raise ValueError(
                f"{self.out / checkpoint.NAME}: of another training: {error}"
            ) from None

    def _finish(self, log: Run | None, measure: Measure | None) -> Run:
        if self.best:
            self.model.net.load_state_dict(self.best)
        self.model.eval()
        state = self.state
        summary: dict[str, Any] = {
            "epochs": state.epoch,
            "best_epoch": state.best_epoch,
            "validation": {**state.found, "images": len(self.held)} if self.held else None,
            "stopped_early": state.epoch < self.recipe.epochs,
        }
        if self.ablation is not None:
            summary["fill"] = list(self.ablation.fill)
        if measure is not None:
            summary["test"] = dict(measure(self.model, summary))
        self.ranks.wait()
        if log is None:
            return Run(None, {})
        if self.model.name in models.names():
            facts = {
                "seed": self.seed,
                "start": self.start,
                "training_images": len(self.items.indices),
                "hours": state.seconds / 3600.0,
                **summary,
            }
            made = described(self.plan, self.recipe, self.samples, facts)
            models.save(self.model, self.out / WEIGHTS, metadata=made)
        else:
            checkpoint.write(self.out / STATE, self.model.net.state_dict())
        log.finish(summary)
        return log


def _content(samples: Sequence[Sample]) -> dict[str, int | str]:
    return data_fingerprint(samples[index] for index in range(len(samples)))
