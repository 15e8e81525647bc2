"""The trainer: one loop for every counter and recipe, on one process or many."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pycc import models, runs
from pycc.attack import InnerAttack
from pycc.checks import check_type, check_whole, lacks_memory
from pycc.counters import count_of
from pycc.data.dataset import data_fingerprint
from pycc.models import CounterModel
from pycc.models.recipe import Optimiser, Recipe
from pycc.ranks import Ranks, exact
from pycc.runs import Record, Run, fingerprint
from pycc.settings import values_of
from pycc.train import checkpoint, schedule
from pycc.train.average import KeptCounter
from pycc.train.certified import CertifiedError, MaskedRule
from pycc.train.checkpoint import Checkpoint, TrainState
from pycc.train.config import MACHINE, TrainConfig, origin_of, resolved
from pycc.train.held import fill_of, split
from pycc.train.items import Ablation, Item, Items
from pycc.train.metadata import described
from pycc.train.results import (
    BestErrors,
    CountErrors,
    EpochRow,
    Facts,
    TrainRun,
    TrainSummary,
    epoch_rows,
    validation_rows,
)
from pycc.train.step import NotFiniteError, Stepper, warn_of_parts
from pycc.train.validation import Validator, check_images
from pycc.train.workers import Loader
from pycc.types import Progress, Sample, check_sequence

KEY = ("kind", "epoch")
WEIGHTS = "weights.npz"
STATE = "weights.pt"
_ERRORS = ("mae", "ablated_mae", "patched_mae", "certified_mae")
Measure = Callable[[CounterModel, TrainSummary], Mapping[str, CountErrors]]
"""(the best counter, in eval mode; the summary so far) -> its errors on test images."""


def fit(
    counter: CounterModel,
    samples: Sequence[Sample],
    config: TrainConfig = TrainConfig(),
    *,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    ranks: Ranks = Ranks(),
    settings: object | None = None,
    facts: Facts | None = None,
    command: Sequence[str] = (),
    machine: Collection[str] = (),
    progress: Progress | None = None,
    measure: Measure | None = None,
    tested: Sequence[Sample] | None = None,
    held: Sequence[int] | None = None,
) -> TrainRun:
    """Train a counter on samples, in place, and leave it with its best weights.

    Training starts from the weights that ``counter`` has. The best weights are those of the best
    validation under the recipe (``pycc.train.validation``). Images that validate are whole, a share
    of ``samples`` that the seed chooses (or those at the indices ``held``), and are not trained on;
    test images have no influence. The data set's ``origin`` chooses the ground truth of some
    recipes. One process trains to the same bits each time on the same machine and threads.

    Args:
        counter: a model; its device is where the training computes.
        samples: annotated images [3,H,W], RGB in [0,1]; they may differ in size.
        config: the recipe, and what replaces the values of the model's own.
        seed: key of the split, the order, the crops and all other randomness.
        out: a new folder for ``manifest.json``, ``results.jsonl`` (one line per epoch and
            validation), ``summary.json``, ``checkpoint.pt``, and ``weights.npz`` with their
            metadata; for a network of your own (``models.wrap``) ``weights.pt``, its state dict.
            None trains in memory.
        resume: continue the training in ``out``, which was stopped anywhere; it ends with the bits
            of an uninterrupted one.
        ranks: the processes under torchrun: each calls this function, they share each batch, and
            the first one writes. Their number may change when a training is resumed.
        settings: a dataclass of flags (``pycc.settings``) that the manifest states as ``flags``.
        facts: further entries of the manifest's settings.
        command, machine: as of ``pycc.runs.open_or_resume``.
        progress: called with (batches done, batches in all, text).
        measure: returns errors of the best weights on test images, for summary and metadata;
            called once by all processes.
        tested: the images of ``measure``, so that a resumed training keeps them.
        held: indices of the samples that validate.

    Raises:
        TypeError: a counter that is not a model, or samples of another type.
        ValueError: samples without heads, too few samples or too small ones for the recipe's k or
            patch, a batch smaller than the number of processes, no epochs after the warm-up, a
            checkpoint of another training, ``resume`` without ``out``.
        NotFiniteError: a loss, gradient or count that is not finite; the last good checkpoint
            stays.
        OSError: a file that cannot be written (the one before stays); ChildProcessError if a
            process that loads images dies.

    >>> from pycc import data, models
    >>> counter = models.load("mcnn-synthetic")
    >>> scenes = data.open("synthetic", split="train", limit=3, shape=(64, 96))
    >>> run = fit(counter, scenes, TrainConfig(epochs=2, crop="64x64", crops=1))
    >>> len(run.epochs), run.summary.validation.images
    (2, 1)
    """
    model = "a model (pycc.models.create, load or wrap)"
    check_type("train", "counter", counter, CounterModel, model)
    check_type("train", "config", config, TrainConfig, "a TrainConfig")
    check_sequence("train", samples)
    check_whole("train", "seed", seed, 0)
    if resume and out is None:
        raise ValueError("train: resume needs the run folder as out")
    folder = None if out is None else Path(out)
    training = _Training(counter, samples, config, seed, folder, ranks, progress, held)
    stated: Record = {} if settings is None else {"flags": values_of(settings)}
    if facts is not None:
        stated |= facts.json()
    with exact():
        return training.run(
            resume, measure, tested, stated=stated, command=command,
            machine={*MACHINE, *machine},
        )  # fmt: skip


class _Training:
    def __init__(
        self,
        model: CounterModel,
        samples: Sequence[Sample],
        config: TrainConfig,
        seed: int,
        folder: Path | None,
        ranks: Ranks,
        progress: Progress | None,
        held: Sequence[int] | None,
    ) -> None:
        self.model, self.samples, self.seed = model, samples, seed
        self.folder, self.ranks, self.progress = folder, ranks, progress
        self.recipe: Recipe = resolved(config, model, origin_of(samples))
        self.config = config = replace(
            config, ema=config.ema or self.recipe.ema, clip=config.clip or self.recipe.clip
        )
        if ranks.world > self.recipe.batch:
            raise ValueError(
                f"train: a batch of {self.recipe.batch} cannot be shared by {ranks.world} "
                "processes; ask for a larger --batch"
            )
        if config.recipe == "certified" and model.receptive_field is None:
            raise ValueError(
                f"train: recipe certified needs a counter with a bounded receptive field, got none "
                f"({model.name})"
            )
        self.content = data_fingerprint(samples)  # before all other use: it checks the samples
        training, self.held = split(samples, config.validation_share, seed, held)
        self.ablation: Ablation | None = None
        if config.recipe == "ablation":
            fill = fill_of(config, samples, training)
            self.ablation = Ablation(config.k, config.unit, fill, config.phases[0])
        self.items = Items(
            samples, training, self.recipe, model.stride, seed=seed, ablation=self.ablation,
            cache=config.cache,
        )  # fmt: skip
        if config.patience is not None and not self.held:
            raise ValueError("train: patience counts validations, and no image validates")
        check_images(config, self.items, self.ablation)
        warn_of_parts(model, ranks.world, config.accumulate, self.recipe.batch)
        inner_attack: InnerAttack | None = None
        if config.recipe == "adversarial":
            inner_attack = InnerAttack(
                config.patch_size, config.patch_steps, config.patch_step_size
            )
        self.validator = Validator(config, self.items, self.held, self.ablation, inner_attack)
        everything = range(len(self.items))
        model.learns_from(lambda: [float(self.items[0, n].target.sum()) for n in everything])
        self.stepper = Stepper(model, config, seed, ranks, inner_attack)
        self.loader = Loader(self.items, config.workers)
        self.start = fingerprint(model.net.state_dict().items())
        self.state = TrainState()
        self.kept = KeptCounter(model, config.ema)
        self.number, first = schedule.optimiser_at(self.recipe, 0)
        self.optimiser = self._made(first)
        self.best: dict[str, Tensor] = {}
        self.made_with: Record = {}
        self.clock = 0.0
        """When ``TrainState.seconds`` was updated last."""

    # --- one run

    def run(
        self,
        resume: bool,
        measure: Measure | None,
        tested: Sequence[Sample] | None,
        *,
        stated: Record,
        command: Sequence[str],
        machine: Collection[str],
    ) -> TrainRun:
        config = {name: v for name, v in values_of(self.config).items() if name not in MACHINE}
        settings = {
            "config": config,
            "model": self.model.name,
            "options": self.model.options(),
            "seed": self.seed,
            "held": self.held,
        }
        fingerprints = {
            "weights": self.start,
            "data": self.content,
            "test": None if tested is None else data_fingerprint(tested),
        }
        self.made_with = {"settings": settings, "fingerprints": fingerprints}
        opened = partial(
            runs.open_or_resume, self.folder, kind="train", command=command,
            settings={**stated, **settings}, fingerprints=fingerprints, key=KEY, machine=machine,
            resume=resume,
        )  # fmt: skip
        with runs.replicated(opened, self.ranks, KEY) as log:
            if resume and self.folder is not None:
                self._restore(self.folder)
            saved = self.clock = time.monotonic()
            while self.state.epoch < self.recipe.epochs and not self._stale():
                saved = self._epoch(log, saved)
            return self._finish(log, measure)

    def _made(self, rule: Optimiser) -> torch.optim.Optimizer:
        return schedule.made(rule, self.model.parameters(), self.model.backbone_parameters())

    def _stale(self) -> bool:
        return self.config.patience is not None and self.state.stale >= self.config.patience

    # --- one epoch

    def _epoch(self, log: Run, saved: float) -> float:
        state, epoch = self.state, self.state.epoch
        number, rule = schedule.optimiser_at(self.recipe, epoch)
        if number != self.number:
            self.number, self.optimiser = number, self._made(rule)
        if self.config.recipe == "certified" and epoch >= self.validator.first_epoch:
            self._certify()
        rate = schedule.rate_at(rule.lr, self.recipe.schedule, epoch)
        schedule.set_rate(self.optimiser, rate)
        order = self.items.order(epoch)
        size = self.recipe.batch
        batches = [order[n : n + size] for n in range(0, len(order), size)]
        first = state.batch
        for batch, items in zip(batches[first:], self._loaded(batches[first:], epoch), strict=True):
            self._step(epoch, len(batch), items)
            if self.progress is not None and self.ranks.first:
                self.progress(
                    epoch * len(batches) + state.batch,
                    self.recipe.epochs * len(batches),
                    f"epoch {epoch + 1}, loss {state.loss / state.batch:.4g}",
                )
            self._tick()
            due = self.clock - saved >= 60 * self.config.every_minutes
            if due and state.batch < len(batches):
                self._check(f"epoch {epoch + 1}, batch {state.batch}")
                self._save()
                saved = self.clock
        spent = state.seconds - state.began
        row = EpochRow(
            epoch=epoch, loss=state.loss / max(1, len(batches)), lr=rate,
            gradient_norm=state.norm / max(1, len(batches)), seconds=spent,
            images_per_second=size * len(batches) / max(1e-9, spent),
        )  # fmt: skip
        log.append(row.json())
        if state.norm == 0.0 and self.ranks.first:
            warnings.warn(
                f"train: nothing was learnt in epoch {epoch + 1}: every gradient was exactly 0, as "
                "if a last ReLU is closed on all images",
                stacklevel=4,
            )
        # What is measured is kept: all processes take the first one's running statistics.
        self.ranks.same(self.kept.buffers())
        self._validate(epoch, log)
        self._tick()
        state.epoch, state.batch, state.loss, state.norm = epoch + 1, 0, 0.0, 0.0
        state.began = state.seconds
        self._save()
        self.ranks.wait()
        return time.monotonic()

    def _step(self, epoch: int, size: int, items: Sequence[Item]) -> None:
        state = self.state
        self.optimiser.zero_grad(set_to_none=True)
        try:
            state.loss += self.stepper.gradient(epoch, state.batch, size, items)
        except NotFiniteError as error:
            raise NotFiniteError(f"{error}; {self._last_checkpoint()}") from None
        state.norm += self.stepper.norm
        self.optimiser.step()
        self.kept.update()
        state.batch += 1

    def _certify(self) -> None:
        """Make the certified error of the masked count the loss and the score of validations."""
        if self.stepper.certified is not None:
            return
        patch_size = self.config.patch_size
        if self.state.allowance is None:
            rule = MaskedRule.fitted(
                self.kept.counter, self.samples, self.items.indices, patch_size
            )
            self.state.allowance = self.ranks.gathered([rule.allowance])[0]
            # The gradients that Adam has seen are of another size.
            self.optimiser = self._made(self.recipe.optimisers[self.number])
        error = CertifiedError(MaskedRule(self.state.allowance), patch_size)
        self.stepper.certified = self.validator.certified = error

    def _tick(self) -> None:
        now = time.monotonic()
        self.state.seconds, self.clock = self.state.seconds + now - self.clock, now

    def _loaded(self, batches: Sequence[Sequence[int]], epoch: int) -> Iterator[list[Item]]:
        """The items of this process, batch by batch."""
        shares = [[(epoch, n) for n in self.ranks.share(batch) or batch[:1]] for batch in batches]
        try:
            yield from self.loader(shares)
        except ChildProcessError as error:
            raise ChildProcessError(f"train: {error}; {self._last_checkpoint()}") from None

    # --- validation, checkpoints, the end

    def _check(self, when: str) -> None:
        """NotFiniteError if the last step has ruined the weights: no loss has shown that yet."""
        sample = self.samples[self.items.indices[0]]
        if not math.isfinite(count_of(self.kept.counter, sample)):
            raise NotFiniteError(
                f"the count of {sample.name} is not finite after {when}; {self._last_checkpoint()}"
            )

    def _validate(self, epoch: int, log: Run) -> None:
        """Validate if it is due, and keep the weights if they are the best; else keep the last."""
        state = self.state
        last = epoch + 1 == self.recipe.epochs
        if not self.held:
            self._check(f"epoch {epoch + 1}")
            self.best, state.best_epoch = self.kept.weights, epoch
            return
        if (epoch + 1) % self.config.validate_every and not last:
            return
        try:
            row = self.validator(self.kept.counter, epoch, self.ranks)
        except NotFiniteError as error:
            raise NotFiniteError(
                f"validation after epoch {epoch + 1}: {error}; {self._last_checkpoint()}"
            ) from None
        record = row.json()
        log.append(record)
        if row.score is None:
            return
        if row.score < state.best:
            state.best, state.best_epoch, state.stale = row.score, epoch, 0
            state.errors = {name: record[name] for name in _ERRORS if name in record}
            self.best = self.kept.weights
        else:
            state.stale += 1

    def _last_checkpoint(self) -> str:
        file = None if self.folder is None else self.folder / checkpoint.NAME
        if file is None or not file.exists():
            return "there is no checkpoint"
        return f"the last good checkpoint is {file}"

    def _save(self) -> None:
        if self.ranks.first and self.folder is not None:
            content = Checkpoint(
                made_with=self.made_with,
                state=self.state,
                model=self.model.state_dict(),
                optimiser=self.optimiser.state_dict(),
                number=self.number,
                average=self.kept.mean_state(),
                best=self.best,
            ).content()
            checkpoint.save(self.folder, content)

    def _restore(self, folder: Path) -> None:
        content = checkpoint.load(folder, self.made_with)
        if content is None:
            return  # stopped before the first checkpoint: from the beginning
        try:
            saved = Checkpoint.of(content)
            self.state, self.number, self.best = saved.state, saved.number, dict(saved.best)
            self.model.load_state_dict(saved.model)
            rule = self.recipe.optimisers[self.number]
            self.optimiser = self._made(rule)
            self.optimiser.load_state_dict(saved.optimiser)
            self.kept.restore_mean(saved.average)
        except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
            if lacks_memory(error):
                raise
            raise ValueError(f"{folder / checkpoint.NAME}: of another training: {error}") from None

    def _finish(self, log: Run, measure: Measure | None) -> TrainRun:
        if self.best:
            self.model.net.load_state_dict(self.best)
        self.model.eval()
        state = self.state
        summary = TrainSummary(
            epochs=state.epoch,
            best_epoch=state.best_epoch,
            validation=BestErrors(len(self.held), **state.errors) if self.held else None,
            stopped_early=state.epoch < self.recipe.epochs,
            fill=None if self.ablation is None else self.ablation.fill,
        )
        if measure is not None:
            summary = replace(summary, test=dict(measure(self.model, summary)))
        facts = {
            "seed": self.seed,
            "start": self.start,
            "training_images": len(self.items.indices),
            "hours": state.seconds / 3600.0,
            **summary.json(),
        }
        metadata = described(self.config, self.recipe, self.samples, facts)
        self.ranks.wait()
        if self.ranks.first and self.folder is not None:
            if self.model.name in models.names():
                models.save(self.model, self.folder / WEIGHTS, metadata=metadata)
            else:
                checkpoint.write(self.folder / STATE, self.model.net.state_dict())
        log.finish(summary.json())
        return TrainRun(
            counter=self.model,
            epochs=epoch_rows(log.records),
            validations=validation_rows(log.records),
            summary=summary,
            metadata=metadata,
            folder=self.folder,
        )
