"""What all defenses against backdoors share: their settings, their runs, their registry.

A defense takes a counter that may hold a backdoor and annotated images that hold none, and returns
a new counter; the given one is left unchanged. Its fields are flags of ``pycc backdoor defend``.
"""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
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
from pycc.train import TrainConfig, fit
from pycc.train.config import MACHINE, with_own_truths
from pycc.train.loop import WEIGHTS
from pycc.types import Progress, Sample


@dataclass(frozen=True)
class Published:
    """What a paper says of the training of one counter; None: nothing."""

    lr: float | None = None
    """Adam's: a variant whose recipe has another optimiser keeps the recipe's own."""
    epochs: int | None = None
    batch: int | None = None


def planned(name: str, *, default: Any = None, advanced: bool = False) -> Any:
    """A field of a training's plan, with its help and its default unless another one is given.

    So nothing is stated twice, and a defense trains by what the attack was trained by.
    """
    (entry,) = (entry for entry in fields(TrainConfig) if entry.name == name)
    return field(
        default=entry.default if default is None else default,
        metadata={**entry.metadata, "advanced": advanced},
    )


@dataclass(frozen=True)
class CropSettings:
    """The crops of images that are learnt from.

    None takes what the counter's own recipe has. ValueError for a field out of range.
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
        """The plan of a training with these settings."""
        names = {entry.name for entry in fields(TrainConfig)}
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return TrainConfig(**{name: value for name, value in values.items() if name in names})

    def with_published(self, published: Mapping[str, Published], counter: CounterModel) -> Self:
        """These settings, with what is published for the counter where they are None."""
        values = vars(published.get(counter.name, Published()))
        names = {entry.name for entry in fields(self)} & values.keys()
        if not _adam(counter):
            names -= {"lr"}
        missing = {name: values[name] for name in names if getattr(self, name) is None}
        return replace(self, **missing)


def _adam(counter: CounterModel) -> bool:
    try:
        return counter.recipe().optimisers[0].kind == "adam"
    except NoRecipeError:
        return True  # trained as MCNN is


@dataclass(frozen=True)
class TrainingSettings(CropSettings):
    """How a counter is trained by its own recipe; fields as of ``pycc.train.TrainConfig``."""

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
class Defense(CropSettings, ABC):
    """A defense: a callable that takes a counter and clean images and returns a new counter.

    A defense of one's own returns the new counter from ``__call__``:

    >>> class Unchanged(Defense):
    ...     name = "unchanged"
    ...
    ...     def __call__(self, model, samples, *, seed=0, out, resume=False, ranks=Ranks(),
    ...                  progress=None):
    ...         return twin(model, self.name)
    >>> defended = Unchanged()(models.create("mcnn"), [], out="unused")
    >>> defended.name, defended.training
    ('mcnn', False)
    """

    name: ClassVar[str]

    @abstractmethod
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
        """A counter in eval mode without what was hidden in ``model``, as far as this defense goes.

        ``samples`` are clean; ``Joined`` ones keep their data sets' own ground truths. The folder
        ``out`` becomes a run: ``manifest.json``, ``results.jsonl``, ``summary.json`` and, of
        published counters, ``weights.npz``. With ``resume`` a defense that was stopped goes on, or
        begins where there is nothing yet. ``model`` keeps its weights, mode and gradients. Under
        torchrun every process calls this with its ``ranks``, and the first one writes.

        Raises:
            ValueError: samples that cannot be learnt from, or a folder of something else.
            NotFiniteError: a loss that is no number.
        """

    def check(self, name: str, fine: bool, expected: str) -> None:
        """ValueError, naming the field, unless it is as expected."""
        if not fine:
            raise ValueError(f"{self.name}: {name} must be {expected}, got {getattr(self, name)}")


defenses: Registry[type[Defense]] = Registry("defense against backdoors")
"""Every defense by its public name."""


@dataclass(frozen=True)
class Retraining(Defense, TrainingSettings):
    """A defense that trains on the clean images, last or on the way.

    It has all that a plan of the counter's own recipe has, and the attack's values of it.

    >>> from pycc.backdoor import FineTuning
    >>> issubclass(FineTuning, Retraining), FineTuning(epochs=8, lr=1e-4).plan().lr
    (True, 0.0001)
    """

    epochs: int = field(
        default=100,
        metadata={
            "help": "times through the clean images; a warm-up of the rate is shortened in "
            "proportion, and one cosine follows in place of restarts"
        },
    )
    validation_share: float = field(
        default=0.0,
        metadata={
            "help": "share of the clean images that choose among the epochs; 0 takes the last: the "
            "clean error does not see a backdoor, and the best epoch may be one that still has it"
        },
    )

    def trained(
        self,
        model: CounterModel,
        samples: Sequence[Sample],
        *,
        seed: int,
        out: Path,
        resume: bool,
        ranks: Ranks,
        progress: Progress | None,
    ) -> None:
        """Train ``model`` in place by this defense's plan, in a folder of its own."""
        plan = self.plan()
        fit(
            model, with_own_truths(samples, plan, model), plan, seed=seed, out=out,
            resume=resume and begun(out, ranks), ranks=ranks, progress=progress,
        )  # fmt: skip


def begun(folder: Path, ranks: Ranks) -> bool:
    """Whether a folder holds a run, as the first process sees it."""
    return ranks.agreed((folder / runs.MANIFEST).exists())


def twin(model: CounterModel, origin: str) -> CounterModel:
    """A counter of the same weights in memory of its own, in eval mode, without metadata."""
    other = copy.deepcopy(model).eval()
    other.zero_grad(set_to_none=True)
    other.metadata = {}  # what was known of the weights holds no longer
    other.origin = f"{origin} of: {model.origin}"
    return other


def opened(
    defense: Defense,
    model: CounterModel,
    samples: Sequence[Sample],
    *,
    seed: int,
    out: Path,
    resume: bool,
    key: Sequence[str],
    ranks: Ranks,
) -> Run:
    """The run of a defense: a new one, or with ``resume`` the one that is there.

    Every process appends all results; the first one's are written. ValueError where what is there
    was made of another counter, other images or other settings.
    """
    settings = {name: value for name, value in asdict(defense).items() if name not in MACHINE}
    resume = resume and begun(out, ranks)

    def opened_first() -> Run:
        return open_or_resume(
            out,
            kind="defense",
            settings={
                "defense": {"name": defense.name, **settings},
                "model": model.name,
                "options": model.options(),
                "seed": seed,
            },
            fingerprints={
                "weights": fingerprint(model.net.state_dict().items()),
                "data": data_fingerprint(samples[index] for index in range(len(samples))),
            },
            key=key,
            resume=resume,
        )

    return replicated(opened_first, ranks, key)


def finished(run: Run, model: CounterModel, summary: Mapping[str, Any]) -> None:
    """Close the run of a defense with its summary and, of a published counter, its weights."""
    run.finish(summary)
    file = run.file(WEIGHTS)
    if file is not None and model.name in models.names():
        settings = run.manifest["settings"]
        facts = {"defense": settings["defense"], "seed": settings["seed"], **summary}
        models.save(model, file, metadata=facts)
    run.close()
