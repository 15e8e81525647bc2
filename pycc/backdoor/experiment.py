"""The whole experiment: counters clean and backdoored, defended, measured; resumable anywhere.

Each stage has a folder of its own in the run's: ``clean``, ``STRATEGY/backdoored``,
``STRATEGY/DEFENSE``, ``STRATEGY/blend-consistency``, ``STRATEGY/partitions/NN``. A stage that was
stopped goes on where it stood; one that is done is read from its folder. What is measured is
appended to the run's results image by image. So a run that is killed anywhere and resumed ends with
the same summary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch

from pycc import models
from pycc import run as runs
from pycc.backdoor import measures
from pycc.backdoor.detector import BlendConsistency
from pycc.backdoor.evaluation import SETS, EvaluationSet, contents, counted, detected, opened
from pycc.backdoor.finetuning import Defense, Progress, clean_mixture
from pycc.backdoor.measures import BACKDOORED
from pycc.backdoor.poison import PoisonedTraining, poisoned_training
from pycc.backdoor.strategies import Strategy
from pycc.backdoor.triggers import Trigger
from pycc.data.dataset import Dataset
from pycc.data.subset import Subset
from pycc.models import CounterModel
from pycc.run import Run
from pycc.train import Plan, fit
from pycc.train.held import count_of, split
from pycc.train.loop import WEIGHTS
from pycc.types import Interval, Sample

MEDIAN = "partition-median"
"""The certified defense's name in results."""
WORKS, REMOVED = 0.8, 0.2
"""By how much attack success exceeds the larger chance level: at least where a backdoor works, at
most where it is removed."""


class Median(Protocol):
    """What certifies a median of partitions (``pycc.certify.poisoned.partition_median``)."""

    def __call__(self, counts: Sequence[float], /, *, poisoned: int) -> Interval:
        """The interval of one image's [S] counts, whatever so many training images were."""


class Cut(Protocol):
    """What cuts a training set into parts (``pycc.certify.poisoned.partitions``)."""

    def __call__(self, samples: Sequence[Sample], parts: int, /, *, seed: int) -> list[list[int]]:
        """Indices of the images of each part."""


@dataclass(frozen=True)
class Partitions:
    """A certified median of counters on disjoint parts of the poisoned training set."""

    parts: int
    assumed: int | None
    """Poisoned images that are allowed for; None: as many as there are."""
    cut: Cut
    median: Median


@dataclass(eq=False)
class Stage:
    """A counter that takes a while to come by, and the folder that keeps it."""

    folder: Path
    make: Callable[[Path], object]
    """Makes it in the folder, or goes on with it there."""
    device: torch.device
    _made: list[CounterModel] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether the folder has it; both files appear whole or not at all."""
        return all((self.folder / name).exists() for name in (runs.SUMMARY, WEIGHTS))

    def made(self) -> CounterModel:
        """The counter, in eval mode, as the folder has it; made now if it does not."""
        if not self._made:
            if not self.done:
                self.make(self.folder)
            # From the file even if it was made now: the same, however often a run is resumed.
            self._made.append(models.load(self.folder / WEIGHTS).to(self.device).eval())
        return self._made[0]


@dataclass(frozen=True)
class Experiment:
    """What is run; where its results go is said when it runs."""

    start: Callable[[], CounterModel]
    """A new counter of a registered model, on its device, with the weights that every training
    starts from."""
    plan: Plan
    """How counters are trained, but for those of partitions, of which no image validates."""
    own: Dataset
    """Clean images that are trained on, and poisoned."""
    test: Dataset
    trigger: Trigger
    strategies: Sequence[Strategy]
    portion: float
    seed: int
    clean: Sequence[Sample]
    """Clean images that defenses learn from: ``clean_images``."""
    defenses: Sequence[Defense] = ()
    detector: BlendConsistency | None = None
    references: int = 32
    """Clean images, at most, that the detector compares scores with."""
    defend_clean: bool = False
    partitions: Partitions | None = None
    device: torch.device | None = None
    """Where ``start`` puts its counters; None: on the CPU."""
    progress: Progress | None = None

    def run(self, log: Run, folder: Path) -> dict[str, Any]:
        """All stages that are not done yet; returns the summary of the results.

        ``log`` has ``measures.KEY`` as its key; the stages lie in ``folder``. ValueError for images
        that cannot be trained on, poisoned or counted; NotFiniteError for a loss that is no number.
        """
        tested = EvaluationSet(self.test, self.trigger, self.seed)
        plain = self.clean_counter(folder)
        self._measured(log, plain, tested, None, None)
        for defense in self.defenses if self.defend_clean else ():
            self._measured(log, self.defended(folder, None, defense, plain), tested, None, defense)
        for strategy in self.strategies:
            before = self.backdoored(folder, strategy)
            self._measured(log, before, tested, strategy, None)
            for defense in self.defenses:
                after = self.defended(folder, strategy, defense, before)
                self._measured(log, after, tested, strategy, defense)
            if self.detector is not None:
                detected(
                    self.detector, before.made, tested, strategy, log,
                    folder / strategy.name / "blend-consistency", clean=self.clean,
                    references=self.references, seed=self.seed, progress=self.progress,
                )  # fmt: skip
            if self.partitions is not None:
                self._certified(
                    self.partitions, folder / strategy.name / "partitions", strategy, tested, log
                )
        return measures.summarise(log.records)

    def check(self) -> None:
        """ValueError for what would stop ``run`` after a while.

        Every image is read: the training images with heads to learn from, the trigger on every test
        image, and for the detector enough clean images.
        """
        split(self.own, self.plan.validation_share, self.seed)
        tested = EvaluationSet(self.test, self.trigger, self.seed)
        for index in range(len(tested)):
            tested.sample("triggered", index)
        if self.detector is not None and len(self.clean) <= self.detector.blends:
            raise ValueError(
                f"blend-consistency: clean must be more than {self.detector.blends} images, got "
                f"{len(self.clean)}"
            )

    def poisoned(self, strategy: Strategy) -> PoisonedTraining:
        """The training set with its poisoned duplicates."""
        return poisoned_training(
            self.own, self.trigger, strategy, portion=self.portion, seed=self.seed
        )

    def clean_counter(self, folder: Path) -> Stage:
        """The counter trained by the same plan, from the same start, on the clean images."""
        return self._trained(folder / "clean", lambda: self.own, "clean")

    def backdoored(self, folder: Path, strategy: Strategy) -> Stage:
        """The counter trained on the poisoned set."""
        where = folder / strategy.name / "backdoored"
        return self._trained(where, lambda: self.poisoned(strategy), f"{strategy.name}, backdoored")

    def defended(
        self, folder: Path, strategy: Strategy | None, defense: Defense, before: Stage
    ) -> Stage:
        """The backdoored counter, or the clean one, after a defense."""
        name = "clean-defended" if strategy is None else strategy.name
        told = self._told(f"{name}, {defense.name}")
        return Stage(
            folder / name / defense.name,
            lambda out: defense(
                before.made(), self.clean, seed=self.seed, out=out, resume=True, progress=told
            ),
            self.device or torch.device("cpu"),
        )

    def _trained(
        self, folder: Path, samples: Callable[[], Sequence[Sample]], what: str,
        plan: Plan | None = None,
    ) -> Stage:  # fmt: skip
        return Stage(
            folder,
            lambda out: train(
                self.start(), samples(), plan or self.plan, name=self.own.name, seed=self.seed,
                out=out, progress=self._told(what),
            ),
            self.device or torch.device("cpu"),
        )  # fmt: skip

    def _measured(
        self,
        log: Run,
        stage: Stage,
        tested: EvaluationSet,
        strategy: Strategy | None,
        defense: Defense | None,
    ) -> None:
        counted(
            log, stage.made, tested, strategy=strategy,
            model="clean" if strategy is None else "backdoored",
            defense=None if defense is None else defense.name, progress=self.progress,
        )  # fmt: skip

    def _certified(
        self, rule: Partitions, folder: Path, strategy: Strategy, tested: EvaluationSet, log: Run
    ) -> None:
        """Counters on the parts, and of each image their median with its interval."""
        jobs = [(images, index) for images in SETS for index in range(len(tested))]
        key = {"strategy": strategy.name, "model": BACKDOORED, "defense": MEDIAN}
        if all(log.has(**key, images=images, index=index) for images, index in jobs):
            return
        poisoned = self.poisoned(strategy)
        assumed = len(poisoned.sources) if rule.assumed is None else rule.assumed
        counts = opened(folder, {"kind": "partitions"}, ("part", "images", "index"))
        try:
            for part, indices in enumerate(rule.cut(poisoned, rule.parts, seed=self.seed)):
                counter = self._part(folder / f"{part:02}", poisoned, indices, part)
                for images, index in jobs:
                    if not counts.has(part=part, images=images, index=index):
                        people = max(0.0, count_of(counter(), tested.sample(images, index)))
                        counts.append(
                            {"part": part, "images": images, "index": index, "count": people}
                        )
        finally:
            counts.close()
        votes = {(r["images"], r["index"], r["part"]): r["count"] for r in counts.records}
        for images, index in jobs:
            found = rule.median(
                [votes[images, index, part] for part in range(rule.parts)], poisoned=assumed
            )
            log.append(tested.record(
                images, index, strategy, "backdoored", MEDIAN, count=found.count, low=found.low,
                high=found.high if math.isfinite(found.high) else None,
            ))  # fmt: skip

    def _part(
        self, folder: Path, poisoned: PoisonedTraining, indices: Sequence[int], part: int
    ) -> Callable[[], CounterModel]:
        """The counter of a part; without a head to learn from it is the one that all start from."""
        if not any(len(poisoned.points(index)) for index in indices):
            return lru_cache(1)(lambda: self.start().eval())
        # Parts may be of one image: none validates.
        stage = self._trained(
            folder, lambda: Subset(poisoned, indices), f"part {part + 1}",
            replace(self.plan, validation_share=0.0),
        )  # fmt: skip
        return stage.made

    def _told(self, what: str) -> Progress | None:
        tell = self.progress
        if tell is None:
            return None
        return lambda done, total, said: tell(done, total, f"{what}: {said}")


def train(
    model: CounterModel,
    samples: Sequence[Sample],
    plan: Plan,
    *,
    name: str,
    seed: int,
    out: Path,
    progress: Progress | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Run:
    """Train a counter in the folder ``out``, from its beginning or from where it was stopped there.

    Of a poisoned set the run's settings say under ``poisoned`` what its images were made of
    (``evaluation.contents``). Else as ``pycc.train.fit``.
    """
    told = dict(settings or {})
    resume = (out / runs.MANIFEST).exists()
    if isinstance(samples, PoisonedTraining) and not resume:
        told |= {"poisoning": samples.settings(), "poisoned": contents(samples)}
    return fit(
        model, samples, plan, name=name, seed=seed, out=out, resume=resume, settings=told,
        progress=progress,
    )  # fmt: skip


def clean_images(
    own: Dataset, other: Dataset | None, *, share: float = 0.1, seed: int
) -> Sequence[Sample]:
    """What defenses learn from: the own images and, if there is another data set, some of it.

    ValueError as of ``clean_mixture``.
    """
    return own if other is None else clean_mixture(own, other, share=share, seed=seed)


def content_of(one: CounterModel | Dataset | Sequence[Sample] | None) -> str | None:
    """A fingerprint of what a run depends on: weights, a data set, or samples."""
    if one is None:
        return None
    if isinstance(one, CounterModel):
        return runs.fingerprint(one.state_dict().items())
    if isinstance(one, Dataset):
        return one.fingerprint()
    samples = (one[index] for index in range(len(one)))
    return runs.fingerprint((s.name, part) for s in samples for part in (s.image, s.points))


def verdict(summary: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether a run shows a backdoor that works and its removal, and what says so.

    For one strategy attack success exceeds the larger chance level by at least ``WORKS`` before,
    and by at most ``REMOVED`` after one defense.
    """
    before: dict[str, float] = {}
    after: dict[str, dict[str, float]] = {}
    for row in summary["rows"]:
        if row["model"] != BACKDOORED or row["excess"] is None:
            continue
        if row["defense"] is None:
            before[row["strategy"]] = row["excess"]["value"]
        elif row["defense"] != MEDIAN:
            after.setdefault(row["strategy"], {})[row["defense"]] = row["excess"]["value"]
    close = 1e-9  # values are quotients of whole numbers, rounded
    said = []
    for strategy, excess in before.items():
        defended = after.get(strategy, {})
        for name, left in defended.items():
            if excess >= WORKS - close and left <= REMOVED + close:
                return True, (
                    f"shown: a backdoor that works (rho_Asr of {strategy} {excess:+.2f} above "
                    f"chance, at least {WORKS:+.2f}) and its removal ({left:+.2f} after {name}, at "
                    f"most {REMOVED:+.2f})"
                )
        told = "".join(f", {left:+.2f} after {name}" for name, left in defended.items())
        said.append(f"{strategy} {excess:+.2f}{told}")
    return False, (
        f"not shown: a backdoor that works (rho_Asr at least {WORKS:+.2f} above chance) and its "
        f"removal (at most {REMOVED:+.2f} after a defense): {'; '.join(said) or 'no excess known'}"
    )
