"""The experiment: clean and backdoored counters are trained, defended and measured.

Each stage has a folder in the run folder: ``clean``, ``STRATEGY/backdoored``, ``STRATEGY/DEFENSE``,
``STRATEGY/blend-consistency``, ``STRATEGY/partitions/NN``. A stage that was stopped is continued;
one that is done is read from its folder. Results are appended to the run image by image. A run that
is killed anywhere and resumed therefore ends with the same summary.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch

from pycc import models, runs
from pycc.backdoor.defenses.base import Defense
from pycc.backdoor.defenses.detector import BlendConsistency
from pycc.backdoor.evaluation.counting import SETS, EvaluationSet, counted, detected
from pycc.backdoor.evaluation.summary import summarise
from pycc.backdoor.evaluation.training import held_out, train
from pycc.backdoor.evaluation.verdict import MEDIAN
from pycc.backdoor.poisoning.overlap import (
    PoisonedImage,
    all_pixels,
    check_unseen,
    contents,
    pixels,
)
from pycc.backdoor.poisoning.poison import PoisonedTraining, poison
from pycc.backdoor.poisoning.strategies import Strategy
from pycc.backdoor.poisoning.triggers import Trigger
from pycc.certify.poisoned import most_poisoned, partition_median, partitions
from pycc.counters import count_of
from pycc.data.dataset import Dataset
from pycc.data.subset import Subset
from pycc.metrics.backdoor import BACKDOORED, BackdoorSummary, Images
from pycc.models import CounterModel
from pycc.ranks import Ranks
from pycc.runs import Record, Run, open_or_resume, replicated
from pycc.train import NotFiniteError, TrainConfig
from pycc.train.held import split
from pycc.train.loop import WEIGHTS
from pycc.types import Progress, Sample

_VOTE_KEY = ("part", "images", "index")


@dataclass(frozen=True)
class Partitions:
    """A certified median of counters on disjoint parts of the poisoned training set.

    >>> Partitions(5, assumed=1)
    Partitions(parts=5, assumed=1)
    """

    parts: int
    assumed: int | None = None
    """Number of poisoned images that the certificate allows for; None for the actual number."""


@dataclass(eq=False)
class Stage:
    """A counter that is trained or defended once, and the folder that keeps it."""

    folder: Path
    make: Callable[[Path], object]
    """Makes the counter in the folder, or continues to do so."""
    device: torch.device
    ranks: Ranks = Ranks()
    _made: list[CounterModel] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether the folder holds the counter; each file is written as a whole."""
        return all((self.folder / name).exists() for name in (runs.SUMMARY, WEIGHTS))

    def made(self) -> CounterModel:
        """The counter of the folder, in eval mode; it is made first if the folder has none."""
        if not self._made:
            if not self.ranks.agreed(self.done):
                self.make(self.folder)
                self.ranks.wait()  # until the first process has written it
            # Read from the file even if it was just made: a resumed run has the same counter.
            self._made.append(models.load(self.folder / WEIGHTS).to(self.device).eval())
        return self._made[0]


@dataclass(frozen=True)
class Experiment:
    """The settings of an experiment.

    >>> import tempfile
    >>> from pycc import backdoor, data, runs
    >>> samples = data.open("synthetic", split="train", limit=2, shape=(64, 96))
    >>> experiment = Experiment(
    ...     start=lambda: models.load("mcnn-synthetic"),
    ...     plan=TrainConfig(epochs=1, crop="64x64", crops=1, validation_share=0.0),
    ...     training=samples, test=data.open("synthetic", split="test", limit=1, shape=(64, 96)),
    ...     trigger=backdoor.Noise(), strategies=[backdoor.Add(20)], fraction=0.5, seed=0,
    ...     clean=samples,
    ... )  # fmt: skip
    >>> log = runs.open_or_resume(
    ...     None, kind="example", settings={}, fingerprints={}, key=backdoor.KEY
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     summary = experiment.run(log, Path(folder))
    >>> [(row.strategy, row.model) for row in summary.rows]
    [(None, 'clean'), ('add', 'backdoored')]
    """

    start: Callable[[], CounterModel]
    """Returns a new counter of a registered model, on its device, with the weights that every
    training starts from."""
    plan: TrainConfig
    """How counters are trained; no image validates in the training of partitions."""
    training: Dataset
    """Clean images that are trained on, and poisoned."""
    test: Dataset
    trigger: Trigger
    strategies: Sequence[Strategy]
    fraction: float
    seed: int
    clean: Sequence[Sample]
    """Clean images that defenses learn from: ``clean_images``."""
    defenses: Sequence[Defense] = ()
    detector: BlendConsistency | None = None
    references: int = 32
    """Largest number of clean images that the detector compares scores with."""
    defend_clean: bool = False
    partitions: Partitions | None = None
    device: torch.device | None = None
    """The device of the counters of ``start``; None for the CPU."""
    ranks: Ranks = Ranks()
    """The processes that share every training and the images of every measurement."""
    progress: Progress | None = None

    def run(self, log: Run, folder: Path) -> BackdoorSummary:
        """Do all stages that are not done yet; returns the summary of the results.

        ``log`` has ``measures.KEY`` as its key; the stages are in ``folder``. Each of several
        processes has its own ``log`` (``pycc.runs.replicated``). ValueError for images that cannot
        be trained on, poisoned or counted; NotFiniteError for a loss that is not finite.
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
                    references=self.references, seed=self.seed, ranks=self.ranks,
                    progress=self.progress,
                )  # fmt: skip
            if self.partitions is not None:
                self._certified(
                    self.partitions, folder / strategy.name / "partitions", strategy, tested, log
                )
        return summarise(log.records)

    def check(self, *, resumed: bool = False) -> None:
        """Raise ValueError for errors that would stop ``run`` late or make its results meaningless.

        Every image is read: the training images, one of which needs heads, their poisoned
        duplicates, and the trigger on every test image. ValueError if all test images are trained
        on (a warning if some are, or if the run is ``resumed``), if the detector has too few clean
        images, and if the certified intervals cannot be bounded.
        """
        split(self.training, 0.0, self.seed)
        held_out(self.training, self.plan.validation_share, self.fraction, seed=self.seed)
        _ = self.contents
        for strategy in self.strategies:
            poisoned = self.poisoned(strategy)
            for index in range(len(self.training), len(poisoned)):
                poisoned.points(index)
        triggered, tested = EvaluationSet(self.test, self.trigger, self.seed).triggered, {}
        for index in range(len(self.test)):
            sample = self.test[index]
            tested[sample.name] = pixels(sample)
            triggered.marked(index, sample)
        learnt = self.clean_pixels if self.defenses or self.detector else ()
        check_unseen(tested, [*self.training_pixels, *learnt], refuse=not resumed)
        if self.partitions is not None:
            assumed = self._assumed(self.partitions)
            if assumed > most_poisoned(self.partitions.parts):
                least = 2 * assumed + 1
                raise ValueError(
                    f"--partitions {self.partitions.parts}: at least {least} parts are needed for "
                    f"a bounded interval where {assumed} images may be poisoned; see --assumed"
                )
        if self.detector is not None and len(self.clean) <= self.detector.blends:
            raise ValueError(
                f"blend-consistency: clean must be more than {self.detector.blends} images, got "
                f"{len(self.clean)}"
            )

    @cached_property
    def contents(self) -> list[PoisonedImage]:
        """The poisoned images and their originals, the same for all strategies."""
        if not self.strategies:
            return []
        return contents(self.poisoned(self.strategies[0]), self.training_pixels)

    @cached_property
    def training_pixels(self) -> list[str]:
        """Fingerprints of the clean training images: ``overlap.pixels``."""
        return [pixels(sample) for sample in self.training]

    @cached_property
    def clean_pixels(self) -> list[str]:
        """Fingerprints of the images that defenses learn from."""
        return all_pixels(self.clean, self.training, self.training_pixels)

    def poisoned(self, strategy: Strategy) -> PoisonedTraining:
        """The training set with its poisoned duplicates."""
        return poison(self.training, self.trigger, strategy, fraction=self.fraction, seed=self.seed)

    def clean_counter(self, folder: Path) -> Stage:
        """The counter trained by the same plan, from the same start, on the clean images."""
        return self._trained(folder / "clean", lambda: self.training, "clean")

    def backdoored(self, folder: Path, strategy: Strategy) -> Stage:
        """The counter trained on the poisoned set."""
        return self._trained(
            folder / strategy.name / "backdoored", lambda: self.poisoned(strategy),
            f"{strategy.name}, backdoored", poisoned=self.contents,
        )  # fmt: skip

    def defended(
        self, folder: Path, strategy: Strategy | None, defense: Defense, before: Stage
    ) -> Stage:
        """The backdoored counter, or the clean one, after a defense."""
        name = "clean-defended" if strategy is None else strategy.name
        shown = self._progress_of(f"{name}, {defense.name}")
        return Stage(
            folder / name / defense.name,
            lambda out: defense(
                before.made(),
                self.clean,
                seed=self.seed,
                out=out,
                resume=True,
                ranks=self.ranks,
                progress=shown,
            ),
            self.device or torch.device("cpu"),
            self.ranks,
        )

    def _trained(
        self, folder: Path, samples: Callable[[], Sequence[Sample]], label: str, *,
        plan: TrainConfig | None = None, poisoned: Sequence[PoisonedImage] | None = None,
    ) -> Stage:  # fmt: skip
        return Stage(
            folder,
            lambda out: train(
                self.start(), samples(), plan or self.plan, seed=self.seed,
                out=out, fraction=self.fraction, poisoned=poisoned, ranks=self.ranks,
                progress=self._progress_of(label),
            ),
            self.device or torch.device("cpu"),
            self.ranks,
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
            defense=None if defense is None else defense.name, ranks=self.ranks,
            progress=self.progress,
        )  # fmt: skip

    def _certified(
        self, rule: Partitions, folder: Path, strategy: Strategy, tested: EvaluationSet, log: Run
    ) -> None:
        """Train a counter on each part, and append their median and its interval per image."""
        jobs = [(images, index) for images in SETS for index in range(len(tested))]
        key = {"strategy": strategy.name, "model": BACKDOORED, "defense": MEDIAN}
        if all(log.has(**key, images=images, index=index) for images, index in jobs):
            return
        poisoned, assumed = self.poisoned(strategy), self._assumed(rule)
        counts = replicated(
            lambda: open_or_resume(
                folder, kind="partitions", settings={"parts": rule.parts, "seed": self.seed},
                fingerprints={}, key=_VOTE_KEY,
            ),
            self.ranks, _VOTE_KEY,
        )  # fmt: skip
        with counts:
            for part, indices in enumerate(partitions(poisoned, rule.parts, seed=self.seed)):
                left = [
                    (images, index)
                    for images, index in jobs
                    if not counts.has(part=part, images=images, index=index)
                ]
                if not left:
                    continue
                vote = self._vote(folder / f"{part:02}", poisoned, indices, part, tested)
                for record in self.ranks.mapped(vote, left):
                    counts.append(record)
        votes = {(r["images"], r["index"], r["part"]): r["count"] for r in counts.records}
        for images, index in jobs:
            interval = partition_median(
                [votes[images, index, part] for part in range(rule.parts)], poisoned=assumed
            )
            log.append(tested.record(
                images, index, strategy, MEDIAN, count=interval.count, low=interval.low,
                high=interval.high if math.isfinite(interval.high) else None,
            ))  # fmt: skip

    def _vote(
        self, folder: Path, poisoned: PoisonedTraining, indices: Sequence[int], part: int,
        tested: EvaluationSet,
    ) -> Callable[[tuple[Images, int]], Record]:  # fmt: skip
        """A function that counts a test image with the counter of a part; not finite is 0."""
        counter, reason = self._part(folder, poisoned, indices, part)

        def vote(job: tuple[Images, int]) -> Record:
            images, index = job
            people = count_of(counter, tested.sample(images, index))
            people = max(0.0, people) if math.isfinite(people) else 0.0
            return {"part": part, "images": images, "index": index, "count": people,
                    "untrained": reason}  # fmt: skip

        return vote

    def _part(
        self, folder: Path, poisoned: PoisonedTraining, indices: Sequence[int], part: int
    ) -> tuple[CounterModel, str | None]:
        """The counter of a part; also the reason, if it is the one that all trainings start from.

        That is the case for a part without heads, and for one whose training diverges: poisoned
        images must not stop the counters of other parts, and the part alone determines its counter.
        """
        if not any(len(poisoned.points(index)) for index in indices):
            return self.start().eval(), "no heads"
        # A part may have a single image, so none validates.
        stage = self._trained(
            folder, lambda: Subset(poisoned, indices), f"part {part + 1}",
            plan=replace(self.plan, validation_share=0.0),
        )  # fmt: skip
        try:
            return stage.made(), None
        except NotFiniteError as error:
            if self.ranks.world > 1:  # the others may be in the middle of a step
                raise
            warnings.warn(
                f"part {part + 1} cannot be trained, the counter that all trainings start from is "
                f"used instead: {error}",
                stacklevel=2,
            )
            return self.start().eval(), str(error)

    def _assumed(self, rule: Partitions) -> int:
        """Number of poisoned images that the certificate allows for."""
        return len(self.contents) if rule.assumed is None else rule.assumed

    def _progress_of(self, label: str) -> Progress | None:
        """Progress with the label of a stage before its text."""
        progress = self.progress
        if progress is None:
            return None
        return lambda done, total, text: progress(done, total, f"{label}: {text}")
