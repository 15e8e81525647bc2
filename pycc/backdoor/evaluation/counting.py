"""Counters and detectors on clean and triggered test images, image by image into a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from pycc.backdoor.defenses.detector import BlendConsistency, deviations, own_deviations
from pycc.backdoor.defenses.finetuning import Progress
from pycc.backdoor.defenses.pruning import some
from pycc.backdoor.evaluation import measures
from pycc.backdoor.evaluation.measures import BACKDOORED, CLEAN, CLEAN_MODEL, TRIGGERED, Images
from pycc.backdoor.poisoning.poison import Poisoned, Triggered
from pycc.backdoor.poisoning.strategies import Strategy
from pycc.backdoor.poisoning.triggers import Trigger
from pycc.counters import count_of
from pycc.data import quantize
from pycc.data.dataset import Dataset
from pycc.runs import Record, Run, open_or_resume
from pycc.types import Counter, Sample

SCORES = {"spread": "blend-consistency, spread", "shift": "blend-consistency, shift"}
"""Names in results of the detector's two scores."""
SETS: tuple[Images, ...] = (CLEAN, TRIGGERED)
"""Clean test images, and the same with the trigger."""
FALSE_ALARMS = 0.05
"""Share of clean images that a detector's threshold is to flag."""
_REFERENCES = "references"
_FAR = 1e300
"""In place of an infinite score, which JSON does not have."""


@dataclass(frozen=True)
class EvaluationSet:
    """The test images, clean and triggered, with what is known of them."""

    samples: Dataset
    trigger: Trigger
    seed: int
    _targets: dict[tuple[Strategy, int], int] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def triggered(self) -> Triggered:
        """The samples with the trigger and their true points."""
        return Triggered(self.samples, self.trigger, self.seed)

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
            name=self.samples.names[index],
            truth=truth,
            target=self.target(strategy, index) if wanted else None,
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
    progress: Progress | None = None,
) -> None:
    """The counts of all test images, clean and triggered, into ``log``.

    Without a strategy the counter is the clean one. What the log knows is left alone; the counter
    is asked for where something is missing.
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
    for number, (images, index) in enumerate(jobs):
        sample = tested.sample(images, index)
        count = count_of(asked, sample)
        log.append(tested.record(images, index, strategy, defense, count=count))
        if progress is not None:
            what = ", ".join(str(one) for one in (name, defense or model) if one is not None)
            progress(number + 1, len(jobs), f"{what}: counting {images} {sample.name}")


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
    progress: Progress | None = None,
) -> None:
    """The detector's scores of all test images, clean and triggered, into ``log``.

    A score is how far the spread, or the shift, lies from those of clean images, either way
    (``deviations``). These are as many of ``clean`` as ``references`` says, by seed and names; all
    of ``clean`` may be superimposed. The threshold is the 95 % quantile of the references' own
    scores, each against the others, so that no test image has a part in it. Raw scores are kept in
    ``folder``, a run. ValueError as of the detector.
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
    raw = open_or_resume(
        folder, kind="scores", settings={"detector": asdict(detector), "seed": seed},
        fingerprints={}, key=("images", "index"),
    )  # fmt: skip
    try:
        left = [job for job in jobs if not raw.has(images=job[0], index=job[1])]
        samples = (
            tested.sample(images, index) if images in SETS else clean[index]
            for images, index in left
        )
        found = detector(counter(), samples, clean, seed=seed) if left else iter(())
        for number, ((images, index), one) in enumerate(zip(left, found, strict=True)):
            raw.append({"images": images, "index": index, "count": one.count,
                        "spread": one.spread, "shift": one.shift})  # fmt: skip
            if progress is not None:
                progress(number + 1, len(left), f"{strategy.name}: blend-consistency")
    finally:
        raw.close()
    rows = {(row["images"], row["index"]): row for row in raw.records}
    for kind, name in SCORES.items():
        reference = [rows[_REFERENCES, index][kind] for index in known]
        # Where references do not differ a score may be infinite: beyond all that are finite.
        known_scores = np.minimum(own_deviations(reference), _FAR)
        scores = np.minimum(deviations([rows[job][kind] for job in wanted], reference), _FAR)
        threshold = float(np.quantile(known_scores, 1.0 - FALSE_ALARMS, method="higher"))
        for (images, index), score in zip(wanted, scores.tolist(), strict=True):
            log.append(
                tested.record(images, index, strategy, name, score=score, threshold=threshold)
            )
