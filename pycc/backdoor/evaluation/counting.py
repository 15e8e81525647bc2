"""Counters and detectors on clean and triggered test images, image by image into a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path

import numpy as np

from pycc.backdoor.defenses.detector import BlendConsistency, deviations, own_deviations
from pycc.backdoor.defenses.pruning import some
from pycc.backdoor.evaluation import measures
from pycc.backdoor.evaluation.measures import BACKDOORED, CLEAN, CLEAN_MODEL, TRIGGERED, Images
from pycc.backdoor.evaluation.summary import BackdoorMetrics, metrics_of, summarise
from pycc.backdoor.poisoning.poison import Poisoned, Triggered
from pycc.backdoor.poisoning.strategies import Strategy
from pycc.backdoor.poisoning.triggers import Trigger
from pycc.counters import count_of, frozen, identity
from pycc.data import quantize
from pycc.data.dataset import data_fingerprint
from pycc.ranks import Ranks
from pycc.runs import Record, Run, open_or_resume, replicated
from pycc.types import Counter, Progress, Sample

SCORES = {"spread": "blend-consistency, spread", "shift": "blend-consistency, shift"}
"""Names in results of the detector's two scores."""
SETS: tuple[Images, ...] = (CLEAN, TRIGGERED)
"""Clean test images, and the same with the trigger."""
FALSE_ALARMS = 0.05
"""Share of clean images that a detector's threshold is to flag."""
_REFERENCES = "references"
_SCORE_KEY = ("images", "index")
_FAR = 1e300
"""In place of an infinite score, which JSON does not have."""


@dataclass(frozen=True)
class EvaluationSet:
    """The test images, clean and triggered, with what is known of them.

    >>> from pycc import backdoor, data, models
    >>> samples = data.open("synthetic", limit=1, shape=(64, 96))
    >>> tested = EvaluationSet(samples, backdoor.Noise(), seed=0)
    >>> tested.target(backdoor.Add(20), 0) - tested.triggered.true_count(0)
    20
    >>> tested.sample("clean", 0).image.equal(tested.sample("triggered", 0).image)
    False
    """

    samples: Sequence[Sample]
    trigger: Trigger
    seed: int
    _targets: dict[tuple[Strategy, int], int] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def triggered(self) -> Triggered:
        """The samples with the trigger and their true points."""
        return Triggered(self.samples, self.trigger, self.seed)

    @property
    def names(self) -> list[str]:
        """Names of the test images."""
        return self.triggered.names

    def sample(self, images: str, index: int) -> Sample:
        """Test image ``index``, in 8 bits, without or with the trigger."""
        if images == TRIGGERED:
            return self.triggered[index]
        sample = self.samples[index]
        return Sample(sample.name, quantize(sample.image), sample.points, sample.roi)

    def target(self, strategy: Strategy | None, index: int) -> int | None:
        """Heads that the strategy leaves in test image ``index``; None without a strategy."""
        if strategy is None:
            return None
        if (strategy, index) not in self._targets:
            altered = Poisoned(self.samples, self.trigger, strategy, seed=self.seed).points(index)
            self._targets[strategy, index] = len(altered)
        return self._targets[strategy, index]

    def record(
        self,
        images: Images,
        index: int,
        strategy: Strategy | None,
        defense: str | None,
        *,
        count: float | None = None,
        score: float | None = None,
        threshold: float | None = None,
        low: float | None = None,
        high: float | None = None,
    ) -> Record:
        """The result of an image, as ``measures.record`` has it: a count or a score.

        Without a strategy it is the clean model's.
        """
        truth = None if count is None else self.triggered.true_count(index)
        wanted = count is not None and images == TRIGGERED
        return measures.record(
            strategy=None if strategy is None else strategy.name,
            raises=None if strategy is None else strategy.raises,
            model=CLEAN_MODEL if strategy is None else BACKDOORED,
            defense=defense,
            images=images,
            index=index,
            name=self.names[index],
            truth=truth,
            target=self.target(strategy, index) if wanted else None,
            count=count,
            score=score,
            threshold=threshold,
            low=low,
            high=high,
        )


def evaluate(
    counter: Counter,
    samples: Sequence[Sample],
    trigger: Trigger,
    strategy: Strategy,
    *,
    clean_counter: Counter | None = None,
    defense: str | None = None,
    seed: int = 0,
    out: str | PathLike[str] | None = None,
    ranks: Ranks = Ranks(),
    progress: Progress | None = None,
) -> BackdoorMetrics:
    """Count test images with a backdoored counter, without and with the trigger.

    Args:
        counter: the counter with the backdoor, or after a ``defense`` of that name.
        samples: annotated test images with unique names; they are counted in 8 bits.
        trigger, strategy, seed: those of the poisoned training set.
        clean_counter: a counter trained in the same way on clean images. Its attack success on
            triggered images is one chance level; without it ``excess`` and ``left`` are None.
        out: a run folder, new or one of the same evaluation, which is continued; None keeps the
            results in memory.
        ranks: the processes of torchrun, which share the images.

    Raises:
        ValueError: samples whose names are not unique, an image that is too small for the trigger
            or the counter, a run folder of something else.

    >>> from pycc import backdoor, data, models
    >>> samples = data.open("synthetic", limit=1, shape=(64, 96))
    >>> counter = models.load("mcnn-synthetic")
    >>> metrics = evaluate(counter, samples, backdoor.Noise(), backdoor.Minus())
    >>> metrics.clean.images, metrics.triggered.images, metrics.excess
    (1, 1, None)
    """
    tested = EvaluationSet(samples, trigger, seed)

    def opened() -> Run:
        clean = None if clean_counter is None else identity(clean_counter)
        return open_or_resume(
            out, kind="backdoor evaluation", key=measures.KEY,
            settings={"strategy": strategy.settings(), "defense": defense, "seed": seed},
            fingerprints={
                "weights": identity(counter), "clean_weights": clean,
                "test": data_fingerprint(samples[index] for index in range(len(samples))),
                "trigger": trigger.settings(),
            },
        )  # fmt: skip

    log = replicated(opened, ranks, measures.KEY)
    try:
        if clean_counter is not None:
            with frozen(clean_counter):
                counted(
                    log, lambda: clean_counter, tested, strategy=None, defense=None, ranks=ranks,
                    progress=progress,
                )  # fmt: skip
        with frozen(counter):
            counted(
                log, lambda: counter, tested, strategy=strategy, defense=defense, ranks=ranks,
                progress=progress,
            )  # fmt: skip
        log.finish(summarise(log.records))
    finally:
        log.close()
    (metrics,) = (one for one in metrics_of(log.records) if one.model == BACKDOORED)
    return metrics


def counted(
    log: Run,
    counter: Callable[[], Counter],
    tested: EvaluationSet,
    *,
    strategy: Strategy | None,
    defense: str | None,
    ranks: Ranks = Ranks(),
    progress: Progress | None = None,
) -> None:
    """Append the counts of all test images, clean and triggered, to ``log``.

    Without a strategy the counter is the clean one. Results that the log has are left alone; the
    counter is requested only if something is missing. Processes share the images, and each appends
    every result to its own ``log`` (``pycc.runs.replicated``).

    >>> from pycc import backdoor, data, models
    >>> samples = data.open("synthetic", limit=1, shape=(64, 96))
    >>> tested = EvaluationSet(samples, backdoor.Noise(), seed=0)
    >>> counter = models.load("mcnn-synthetic")
    >>> log = open_or_resume(None, kind="example", settings={}, fingerprints={}, key=measures.KEY)
    >>> counted(log, lambda: counter, tested, strategy=backdoor.Add(20), defense=None)
    >>> [result["images"] for result in log.records]
    ['clean', 'triggered']
    """
    name, model = (None, CLEAN_MODEL) if strategy is None else (strategy.name, BACKDOORED)
    jobs = [
        (images, index)
        for images in SETS
        for index in range(len(tested))
        if not log.has(strategy=name, model=model, defense=defense, images=images, index=index)
    ]
    if not jobs:
        return
    asked = counter()

    def count(job: tuple[Images, int]) -> Record:
        images, index = job
        people = count_of(asked, tested.sample(images, index))
        return tested.record(images, index, strategy, defense, count=people)

    what = ", ".join(text for text in (name, defense or model) if text is not None)
    for number, result in enumerate(ranks.mapped(count, jobs), start=1):
        log.append(result)
        if progress is not None:
            text = f"{what}: counting {result['images']} {result['name']}"
            progress(number, len(jobs), text)


def detected(
    detector: BlendConsistency,
    counter: Callable[[], Counter],
    tested: EvaluationSet,
    strategy: Strategy,
    log: Run,
    folder: Path,
    *,
    clean: Sequence[Sample],
    references: int,
    seed: int,
    ranks: Ranks = Ranks(),
    progress: Progress | None = None,
) -> None:
    """Append the detector's scores of all test images, clean and triggered, to ``log``.

    A score is how far the spread, or the shift, lies from those of clean images, either way
    (``deviations``). These are as many of ``clean`` as ``references`` says, by seed and names; all
    of ``clean`` may be superimposed. The threshold is the 95 % quantile of the references' own
    scores, each against the others, so that no test image has a part in it. Raw scores are kept in
    ``folder``, a run. Processes share the images as in ``counted``. ValueError as of the detector.

    >>> import tempfile
    >>> from pycc import backdoor, data, models
    >>> samples = data.open("synthetic", limit=1, shape=(64, 96))
    >>> tested = EvaluationSet(samples, backdoor.Noise(), seed=0)
    >>> counter = models.load("mcnn-synthetic")
    >>> log = open_or_resume(None, kind="example", settings={}, fingerprints={}, key=measures.KEY)
    >>> clean = data.open("synthetic", split="train", limit=3, shape=(64, 96))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     detected(
    ...         BlendConsistency(blends=2), lambda: counter, tested, backdoor.Add(20), log,
    ...         Path(folder) / "scores", clean=clean, references=3, seed=0,
    ...     )  # fmt: skip
    >>> sorted({result["defense"] for result in log.records}), len(log.records)
    (['blend-consistency, shift', 'blend-consistency, spread'], 4)
    """
    wanted = [(images, index) for images in SETS for index in range(len(tested))]
    if all(
        log.has(strategy=strategy.name, model=BACKDOORED, defense=name, images=images, index=index)
        for name in SCORES.values()
        for images, index in wanted
    ):
        return
    known = some(clean, references, seed)
    jobs: list[tuple[str, int]] = [*((_REFERENCES, index) for index in known), *wanted]
    raw = replicated(
        lambda: open_or_resume(
            folder, kind="scores", settings={"detector": asdict(detector), "seed": seed},
            fingerprints={}, key=_SCORE_KEY,
        ),
        ranks, _SCORE_KEY,
    )  # fmt: skip
    try:
        left = [job for job in jobs if not raw.has(images=job[0], index=job[1])]
        samples = (
            tested.sample(images, index) if images in SETS else clean[index]
            for images, index in ranks.share(left)
        )
        scores = detector(counter(), samples, clean, seed=seed) if left else iter(())

        def score(job: tuple[str, int]) -> Record:
            blended = next(scores)
            return {"images": job[0], "index": job[1], "count": blended.count,
                    "spread": blended.spread, "shift": blended.shift}  # fmt: skip

        for number, result in enumerate(ranks.mapped(score, left), start=1):
            raw.append(result)
            if progress is not None:
                progress(number, len(left), f"{strategy.name}: blend-consistency")
    finally:
        raw.close()
    rows = {(row["images"], row["index"]): row for row in raw.records}
    for kind, name in SCORES.items():
        reference = [rows[_REFERENCES, index][kind] for index in known]
        # Where references do not differ a score may be infinite: beyond all that are finite.
        known_scores = np.minimum(own_deviations(reference), _FAR)
        test_scores = np.minimum(deviations([rows[job][kind] for job in wanted], reference), _FAR)
        threshold = float(np.quantile(known_scores, 1.0 - FALSE_ALARMS, method="higher"))
        for (images, index), value in zip(wanted, test_scores.tolist(), strict=True):
            log.append(
                tested.record(images, index, strategy, name, score=value, threshold=threshold)
            )
