"""Defenses against backdoors, what they share, and the first of them: fine-tuning on clean images.

A defense takes a counter that may hold a backdoor and annotated images that hold none, and gives a
new counter; the given one is left as it was. Its fields are the command's flags.
"""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from pycc import models, runs
from pycc.backdoor.poisoning.keys import shuffled
from pycc.data.dataset import Dataset, data_fingerprint
from pycc.data.subset import Subset
from pycc.models import CounterModel
from pycc.registry import Registry
from pycc.runs import Run, fingerprint, open_or_resume
from pycc.train import Plan, fit
from pycc.train.items import Joined
from pycc.train.loop import WEIGHTS
from pycc.train.plan import MACHINE, flag, with_own_truths
from pycc.types import Sample

Progress = Callable[[int, int, str], None]
"""(steps done, steps in all, what goes on)."""


def planned(name: str) -> Any:
    """A defense's field that is one of a training's plan: with its help and its default.

    So nothing is said twice, and a defense trains by what the attack was trained by.
    """
    (one,) = (entry for entry in fields(Plan) if entry.name == name)
    return field(default=one.default, metadata=one.metadata)


@dataclass(frozen=True)
class Defense(ABC):
    """What all defenses have in common: the crops of clean images that they learn from.

    None takes what the counter's own recipe says. ValueError for a field out of range.
    """

    name: ClassVar[str]

    batch: int | None = planned("batch")
    crop: str | None = planned("crop")
    crops: int | None = planned("crops")
    density: str | None = planned("density")
    down_sampling: str | None = planned("down_sampling")
    every_minutes: float = planned("every_minutes")

    def __post_init__(self) -> None:
        self.plan()

    @abstractmethod
    def __call__(
        self,
        model: CounterModel,
        samples: Sequence[Sample],
        *,
        seed: int = 0,
        out: str | os.PathLike[str],
        resume: bool = False,
        progress: Progress | None = None,
    ) -> CounterModel:
        """A counter in eval mode without what was hidden in ``model``, as far as this defense goes.

        ``samples`` are clean; ``Joined`` ones keep their data sets' own ground truths. The folder
        ``out`` becomes a run: ``manifest.json``, ``results.jsonl``, ``summary.json`` and, of
        published counters, ``weights.npz``. With ``resume`` a defense that was stopped goes on, or
        begins where there is nothing yet. ``model`` keeps its weights, mode and gradients.

        Raises:
            ValueError: samples that cannot be learnt from, or a folder of something else.
            NotFiniteError: a loss that is no number.
        """

    def plan(self) -> Plan:
        """How its crops are made; ValueError for a field out of range."""
        names = {entry.name for entry in fields(Plan)} - {"recipe"}
        return Plan(**{name: value for name, value in vars(self).items() if name in names})

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """The defense among a command's settings."""
        return cls(**{entry.name: settings[entry.name] for entry in fields(cls)})

    def check(self, name: str, fine: bool, expected: str) -> None:
        """ValueError, naming the field, unless it is as expected."""
        if not fine:
            raise ValueError(f"{self.name}: {name} must be {expected}, got {getattr(self, name)}")


defenses: Registry[type[Defense]] = Registry("defense against backdoors")
"""Every defense by its public name."""


@dataclass(frozen=True)
class Retraining(Defense):
    """A defense that trains on the clean images, last or on the way.

    It has all that a plan of the counter's own recipe has, and the attack's values of it.
    """

    epochs: int = flag(
        100,
        "times through the clean images; a warm-up of the rate is shortened in proportion, and one "
        "cosine follows in place of restarts",
    )
    lr: float | None = planned("lr")
    accumulate: int = planned("accumulate")
    clip: float | None = planned("clip")
    ema: float | None = planned("ema")
    amp: bool = planned("amp")
    workers: int = planned("workers")
    cache: float = planned("cache")
    validate_every: int = planned("validate_every")
    patience: int | None = planned("patience")
    validation_share: float = flag(
        0.0,
        "share of the clean images that choose among the epochs; 0 takes the last: the clean "
        "error does not see a backdoor, and the best epoch may be one that still has it",
    )

    def trained(
        self,
        model: CounterModel,
        samples: Sequence[Sample],
        *,
        seed: int,
        out: Path,
        resume: bool,
        progress: Progress | None,
    ) -> None:
        """Train ``model`` in place by this defense's plan, in a folder of its own."""
        plan = self.plan()
        fit(
            model, with_own_truths(samples, plan, model), plan, seed=seed,
            out=out, resume=resume and (out / runs.MANIFEST).exists(), progress=progress,
        )  # fmt: skip


@defenses.register("fine-tuning")
@dataclass(frozen=True)
class FineTuning(Retraining):
    """The counter trained on, with its own settings, on clean images alone.

    Source: Luo, "Vulnerability and Defense: Mitigating Backdoor Attacks in Deep Learning-Based
    Crowd Counting Models", section 3.3: 100 epochs on the clean images of ShanghaiTech B and a
    tenth as many of A (``clean_mixture``), CLIP-EBC at a learning rate of 1e-4.
    """

    name = "fine-tuning"

    def __call__(
        self,
        model: CounterModel,
        samples: Sequence[Sample],
        *,
        seed: int = 0,
        out: str | os.PathLike[str],
        resume: bool = False,
        progress: Progress | None = None,
    ) -> CounterModel:
        """The fine-tuned counter; ``out`` is the run of its training (``pycc.train.fit``)."""
        tuned = twin(model, self.name)
        self.trained(tuned, samples, seed=seed, out=Path(out), resume=resume, progress=progress)
        return tuned


def clean_mixture(own: Dataset, other: Dataset, *, share: float = 0.1, seed: int = 0) -> Joined:
    """All images of a data set, and of another ``share`` times as many, which the seed chooses.

    The published mixture is that of ShanghaiTech B's 400 training images and 40 of A, each with the
    ground truth of its own data set. ValueError for a share outside (0,1], and for more images than
    the other data set has.
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(f"clean_mixture: share must lie in (0,1], got {share}")
    number = max(1, round(share * len(own)))
    if number > len(other):
        raise ValueError(
            f"clean_mixture: {share:g} of {len(own)} images are {number}, but {other.name} has "
            f"{len(other)}"
        )
    chosen = shuffled(other.names, "backdoor, clean mixture", seed=seed)[:number]
    second = other.name if other.name != own.name else f"{other.name}, another"
    return Joined({own.name: own, second: Subset(other, sorted(chosen))})


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
) -> Run:
    """The run of a defense: a new one, or with ``resume`` the one that is there.

    ValueError where what is there was made of another counter, other images or other settings.
    """
    return open_or_resume(
        out,
        kind="defense",
        settings={
            "defense": {
                "name": defense.name,
                **{name: value for name, value in asdict(defense).items() if name not in MACHINE},
            },
            "model": model.name,
            "options": model.options(),
            "seed": seed,
        },
        fingerprints={
            "weights": fingerprint(model.net.state_dict().items()),
            "data": data_fingerprint(samples[index] for index in range(len(samples))),
        },
        key=key,
        resume=resume and (out / runs.MANIFEST).exists(),
    )


def finished(run: Run, model: CounterModel, summary: Mapping[str, Any]) -> None:
    """Close the run of a defense with its summary and, of a published counter, its weights."""
    run.finish(summary)
    file = run.file(WEIGHTS)
    if file is not None and model.name in models.names():
        chosen = run.manifest["settings"]
        facts = {"defense": chosen["defense"], "seed": chosen["seed"], **summary}
        models.save(model, file, metadata=facts)
    run.close()
