"""The base of all defenses against backdoors: their settings, their runs, their registry.

A defense takes a counter that may have a backdoor and clean annotated images, and returns a new
counter; the given one is not changed. Its fields are the flags of ``pycc backdoor defend``.
"""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from pycc import models, runs
from pycc.data.dataset import data_fingerprint
from pycc.models import CounterModel
from pycc.models.recipe import NoRecipeError
from pycc.ranks import Ranks
from pycc.registry import Registry
from pycc.runs import Run, fingerprint, open_or_resume, replicated
from pycc.settings import check_fields, flag, values_of
from pycc.train import TrainConfig, fit
from pycc.train.config import MACHINE, with_own_truths
from pycc.train.loop import WEIGHTS
from pycc.types import Progress, Sample


@dataclass(frozen=True)
class Published:
    """The published training of one counter; None for a value that the paper does not give."""

    lr: float | None = None
    """Learning rate of Adam; a variant whose recipe has another optimiser keeps its own rate."""
    epochs: int | None = None
    batch: int | None = None


def planned(name: str, *, default: Any = None, advanced: bool = False) -> Any:
    """A field of ``TrainConfig``, with its help, and its default unless another one is given.

    Attack and defense are thus trained by the same settings, which are described once.
    """
    (entry,) = (entry for entry in fields(TrainConfig) if entry.name == name)
    return field(
        default=entry.default if default is None else default,
        metadata={**entry.metadata, "advanced": advanced},
    )


@dataclass(frozen=True)
class CropSettings:
    """The crops of images that a counter learns from.

    None stands for the value of the counter's own recipe. ValueError for a field out of range.
    """

    batch: int | None = planned("batch")
    crop: str | None = planned("crop")
    crops: int | None = planned("crops")
    density: str | None = planned("density", advanced=True)
    down_sampling: str | None = planned("down_sampling", advanced=True)
    every_minutes: float = planned("every_minutes", advanced=True)

    def __post_init__(self) -> None:
        self.plan()

    def plan(self) -> TrainConfig:
        """The training configuration with these settings."""
        names = {entry.name for entry in fields(TrainConfig)}
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return TrainConfig(**{name: value for name, value in values.items() if name in names})

    def with_published(self, published: Mapping[str, Published], counter: CounterModel) -> Self:
        """These settings, with the published values for the counter in place of None."""
        values = vars(published.get(counter.name, Published()))
        names = {entry.name for entry in fields(self)} & values.keys()
        if not _adam(counter):
            names -= {"lr"}
        missing = {name: values[name] for name in names if getattr(self, name) is None}
        return replace(self, **missing)


def _adam(counter: CounterModel) -> bool:
    try:
        return counter.recipe().optimisers[0].kind != "sgd"
    except NoRecipeError:
        return True  # trained as MCNN is


@dataclass(frozen=True)
class TrainingSettings(CropSettings):
    """The settings of a training by the counter's own recipe; fields as of ``TrainConfig``."""

    epochs: int | None = planned("epochs")
    lr: float | None = planned("lr")
    accumulate: int = planned("accumulate", advanced=True)
    clip: float | None = planned("clip", advanced=True)
    ema: float | None = planned("ema", advanced=True)
    amp: bool = planned("amp", advanced=True)
    workers: int = planned("workers", advanced=True)
    cache: float = planned("cache", advanced=True)
    validate_every: int = planned("validate_every", advanced=True)
    patience: int | None = planned("patience", advanced=True)
    validation_share: float = planned("validation_share", default=0.0)


@dataclass(frozen=True)
class DefenseSummary:
    """The result of a defense; the fields of a subclass are the keys of ``summary.json``."""


@dataclass(frozen=True)
class DefenseJob:
    """The arguments of a call of a defense, apart from the counter.

    >>> job = DefenseJob([], seed=0, out=Path("run"), resume=False, ranks=Ranks(), progress=None)
    >>> job.out.name
    'run'
    """

    samples: Sequence[Sample]
    """Clean images."""
    seed: int
    out: Path
    """The run folder."""
    resume: bool
    ranks: Ranks
    progress: Progress | None


@dataclass(frozen=True)
class Defense(CropSettings, ABC):
    """A defense: a callable that takes a counter and clean images and returns a new counter.

    A new defense implements ``apply``, which changes a copy of the counter in place:

    >>> class Shrinkage(Defense):
    ...     name = "shrinkage"
    ...
    ...     def apply(self, counter, job):
    ...         for parameter in counter.parameters():
    ...             parameter.data *= 0.99
    >>> defended = Shrinkage()(models.create("mcnn"), [], out="unused")
    >>> defended.name, defended.training
    ('mcnn', False)
    """

    name: ClassVar[str]

    def __post_init__(self) -> None:
        check_fields(type(self).__name__, self)
        super().__post_init__()

    def __call__(
        self,
        model: CounterModel,
        samples: Sequence[Sample],
        *,
        seed: int = 0,
        out: str | os.PathLike[str],
        resume: bool = False,
        ranks: Ranks = Ranks(),
        progress: Progress | None = None,
    ) -> CounterModel:
        """Return a new counter, in eval mode, without the backdoor, as far as the defense works.

        Args:
            model: the counter; its weights, mode and gradients are not changed.
            samples: clean images; ``Joined`` ones keep the ground truths of their data sets.
            seed: key of all randomness.
            out: the run folder: ``manifest.json``, ``results.jsonl``, ``summary.json`` and, of a
                published counter, ``weights.npz``.
            resume: continue a defense that was stopped in ``out``, or start it if there is none.
            ranks: the processes under torchrun: each calls this, and the first one writes.
            progress: called with (steps done, steps in all, text).

        Raises:
            ValueError: samples that a counter cannot learn from, or a folder of another run.
            NotFiniteError: a loss that is not finite.
        """
        counter = twin(model, self.name)
        self.apply(counter, DefenseJob(samples, seed, Path(out), resume, ranks, progress))
        return counter.eval()

    @abstractmethod
    def apply(self, counter: CounterModel, job: DefenseJob) -> None:
        """Remove a backdoor from ``counter``, in place; ``job.out`` becomes the run folder."""

    def check(self, name: str, valid: bool, expected: str) -> None:
        """ValueError, naming the field, unless its value is valid."""
        if not valid:
            raise ValueError(f"{self.name}: {name} must be {expected}, got {getattr(self, name)}")

    @contextmanager
    def run(self, counter: CounterModel, job: DefenseJob, key: Sequence[str]) -> Iterator[Run]:
        """Open the run of this defense in ``job.out``; close it at the end of the block.

        ``counter`` still has the weights that the defense starts from. Every process appends all
        results, and those of the first one are written. ValueError if the folder holds a run of
        another counter, other images or other settings.
        """
        settings = {name: v for name, v in values_of(self).items() if name not in MACHINE}
        resume = job.resume and begun(job.out, job.ranks)

        def opened() -> Run:
            return open_or_resume(
                job.out,
                kind="defense",
                settings={
                    "defense": {"name": self.name, **settings},
                    "model": counter.name,
                    "options": counter.options(),
                    "seed": job.seed,
                },
                fingerprints={
                    "weights": fingerprint(counter.net.state_dict().items()),
                    "data": data_fingerprint(job.samples),
                },
                key=key,
                resume=resume,
            )

        with replicated(opened, job.ranks, key) as log:
            yield log


def finish(log: Run, counter: CounterModel, summary: DefenseSummary) -> None:
    """Finish the run of a defense: write its summary and, of a published counter, its weights."""
    values = asdict(summary)
    log.finish(values)
    file = log.file(WEIGHTS)
    if file is not None and counter.name in models.names():
        settings = log.manifest["settings"]
        facts = {"defense": settings["defense"], "seed": settings["seed"], **values}
        models.save(counter, file, metadata=facts)


defenses: Registry[type[Defense]] = Registry("defense against backdoors")
"""Every defense by its public name."""


@dataclass(frozen=True)
class Retraining(Defense, TrainingSettings):
    """A defense that trains on the clean images, last or as one of its steps.

    Its fields are those of a training, with the values of the attack as defaults in a command.

    >>> from pycc.backdoor import FineTuning
    >>> issubclass(FineTuning, Retraining), FineTuning(epochs=8, lr=1e-4).plan().lr
    (True, 0.0001)
    """

    epochs: int = flag(
        100,
        "times through the clean images; a warm-up of the rate is shortened in proportion, and one "
        "cosine cycle replaces restarts",
    )
    validation_share: float = flag(
        0.0,
        "share of the clean images that choose among the epochs; 0 keeps the last: the clean error "
        "does not show a backdoor, and the best epoch may be one that still has it",
    )

    def retrain(self, counter: CounterModel, job: DefenseJob, folder: Path) -> None:
        """Train ``counter`` in place with these settings, as a run in ``folder``."""
        plan = self.plan()
        fit(
            counter, with_own_truths(job.samples, plan, counter), plan, seed=job.seed, out=folder,
            resume=job.resume and begun(folder, job.ranks), ranks=job.ranks, progress=job.progress,
        )  # fmt: skip


def begun(folder: Path, ranks: Ranks) -> bool:
    """Whether a folder holds a run, as the first process sees it."""
    return ranks.agreed((folder / runs.MANIFEST).exists())


def twin(model: CounterModel, origin: str) -> CounterModel:
    """A copy of a counter, in eval mode, without metadata, which describes the old weights."""
    other = copy.deepcopy(model).eval()
    other.zero_grad(set_to_none=True)
    other.metadata = {}
    other.origin = f"{origin} of: {model.origin}"
    return other
