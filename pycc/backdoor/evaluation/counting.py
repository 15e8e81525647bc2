"""Counters and detectors on clean and triggered test images; each result is appended to a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from pycc.backdoor.defenses.detector import (
    BlendConsistency,
    deviations,
    leave_one_out_deviations,
)
from pycc.backdoor.evaluation import measures
from pycc.backdoor.poisoning.keys import drawn_indices
from pycc.backdoor.poisoning.poison import Poisoned, Triggered
from pycc.backdoor.poisoning.strategies import Strategy
from pycc.backdoor.poisoning.triggers import Trigger
from pycc.counters import count_of
from pycc.data import quantize
from pycc.metrics.backdoor import (
    BACKDOORED,
    CLEAN,
    CLEAN_MODEL,
    TRIGGERED,
    Images,
)
from pycc.ranks import Ranks
from pycc.runs import Record, Run, open_or_resume, replicated
from pycc.settings import values_of
from pycc.types import Counter, Progress, Sample

SCORES = {"spread": "blend-consistency, spread", "shift": "blend-consistency, shift"}
"""Names of the detector's two scores in results."""
SETS: tuple[Images, ...] = (CLEAN, TRIGGERED)
"""Clean test images, and the same with the trigger."""
FALSE_ALARMS = 0.05
"""Share of clean images above the threshold of a detector."""
_REFERENCES = "references"
_SCORE_KEY = ("images", "index")
_FAR = 1e300
"""Replaces an infinite score, which JSON does not have."""


@dataclass(frozen=True)
class EvaluationSet:
    """The test images, clean and triggered, with their true counts and targets.

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
        """The result of an image, a count or a score, as of ``measures.record``.

        Without a strategy it is a result of the clean model.
        """
        truth = None if count is None else self.triggered.true_count(index)
        has_target = count is not None and images == TRIGGERED
        return measures.record(
            strategy=None if strategy is None else strategy.name,
            raises=None if strategy is None else strategy.raises,
            model=CLEAN_MODEL if strategy is None else BACKDOORED,
            defense=defense,
            images=images,
            index=index,
            name=self.names[index],
            truth=truth,
            target=self.target(strategy, index) if has_target else None,
            count=count,
            score=score,
            threshold=threshold,
            low=low,
            high=high,
        )


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

    Without a strategy the counter is the clean one. Existing results are kept; ``counter`` is
    called only if a result is missing. Processes share the images, and each appends every result to
    its own ``log`` (``pycc.runs.replicated``).

    >>> from pycc import backdoor, data, models, runs
    >>> samples = data.open("synthetic", limit=1, shape=(64, 96))
    >>> tested = EvaluationSet(samples, backdoor.Noise(), seed=0)
    >>> counter = models.load("mcnn-synthetic")
    >>> log = runs.open_or_resume(
    ...     None, kind="example", settings={}, fingerprints={}, key=backdoor.KEY
    ... )
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
    made = counter()

    def count(job: tuple[Images, int]) -> Record:
        images, index = job
        people = count_of(made, tested.sample(images, index))
        return tested.record(images, index, strategy, defense, count=people)

    label = ", ".join(text for text in (name, defense or model) if text is not None)
    for number, result in enumerate(ranks.mapped(count, jobs), start=1):
        log.append(result)
        if progress is not None:
            text = f"{label}: counting {result['images']} {result['name']}"
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

    A score is the distance of the spread, or of the shift, from those of clean reference images
    (``deviations``). The references are at most ``references`` of ``clean``, drawn by seed and
    names; all of ``clean`` may be superimposed. The threshold is the 95 % quantile of the scores of
    the references, each compared with the others, so test images have no influence on it. Raw
    scores are kept in ``folder``, a run. Processes share the images as in ``counted``. ValueError
    as of the detector.

    >>> import tempfile
    >>> from pycc import backdoor, data, models, runs
    >>> samples = data.open("synthetic", limit=1, shape=(64, 96))
    >>> tested = EvaluationSet(samples, backdoor.Noise(), seed=0)
    >>> counter = models.load("mcnn-synthetic")
    >>> log = runs.open_or_resume(
    ...     None, kind="example", settings={}, fingerprints={}, key=backdoor.KEY
    ... )
    >>> clean = data.open("synthetic", split="train", limit=3, shape=(64, 96))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     detected(
    ...         BlendConsistency(blends=2), lambda: counter, tested, backdoor.Add(20), log,
    ...         Path(folder) / "scores", clean=clean, references=3, seed=0,
    ...     )  # fmt: skip
    >>> sorted({result["defense"] for result in log.records}), len(log.records)
    (['blend-consistency, shift', 'blend-consistency, spread'], 4)
    """
    test_jobs = [(images, index) for images in SETS for index in range(len(tested))]
    if all(
        log.has(strategy=strategy.name, model=BACKDOORED, defense=name, images=images, index=index)
        for name in SCORES.values()
        for images, index in test_jobs
    ):
        return
    drawn = drawn_indices(clean, references, seed)
    jobs: list[tuple[str, int]] = [*((_REFERENCES, index) for index in drawn), *test_jobs]
    raw = replicated(
        lambda: open_or_resume(
            folder, kind="scores", settings={"detector": values_of(detector), "seed": seed},
            fingerprints={}, key=_SCORE_KEY,
        ),
        ranks, _SCORE_KEY,
    )  # fmt: skip
    with raw:
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
    rows = {(row["images"], row["index"]): row for row in raw.records}
    for kind, name in SCORES.items():
        reference = [rows[_REFERENCES, index][kind] for index in drawn]
        # If all references are equal, a score may be infinite, beyond all finite ones.
        reference_scores = np.minimum(leave_one_out_deviations(reference), _FAR)
        scored = deviations([rows[job][kind] for job in test_jobs], reference)
        threshold = float(np.quantile(reference_scores, 1.0 - FALSE_ALARMS, method="higher"))
        for (images, index), value in zip(
            test_jobs, np.minimum(scored, _FAR).tolist(), strict=True
        ):
            log.append(
                tested.record(images, index, strategy, name, score=value, threshold=threshold)
            )
