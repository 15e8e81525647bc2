"""Counters and detectors on clean and triggered test images, image by image into a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pycc import run as runs
from pycc.attack.survey import counted_points
from pycc.backdoor import measures
from pycc.backdoor.detector import BlendConsistency, deviations
from pycc.backdoor.finetuning import Progress
from pycc.backdoor.measures import BACKDOORED, TRIGGERED
from pycc.backdoor.poison import Poisoned, PoisonedTraining, Triggered
from pycc.backdoor.pruning import some
from pycc.backdoor.strategies import Strategy
from pycc.backdoor.triggers import Trigger
from pycc.data import quantize
from pycc.data.dataset import Dataset
from pycc.run import Record, Run, fingerprint
from pycc.train.held import count_of
from pycc.types import Counter, Sample

SCORES = {"spread": "blend-consistency, spread", "shift": "blend-consistency, shift"}
"""Names in results of the detector's two scores."""
SETS: tuple[Literal["clean", "triggered"], ...] = ("clean", "triggered")
"""Clean test images, and the same with the trigger."""
_CHUNK = 8
"""Images that the detector scores between two writes."""
_REFERENCES = "references"
_FAR = 1e300
"""In place of an infinite score, which JSON does not have."""

Images = Literal["clean", "triggered"]


@dataclass(frozen=True)
class EvaluationSet:
    """The test images, clean and triggered, with what is known of them."""

    samples: Dataset
    trigger: Trigger
    seed: int

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
        return Sample(sample.name, quantize(sample.image), sample.points, sample.mask)

    def target(self, strategy: Strategy | None, index: int) -> int | None:
        """Heads that the strategy leaves in test image ``index``; None without a strategy."""
        if strategy is None:
            return None
        return len(Poisoned(self.samples, self.trigger, strategy, seed=self.seed).points(index))

    def record(
        self,
        images: Images,
        index: int,
        strategy: Strategy | None,
        model: Literal["clean", "backdoored"],
        defense: str | None,
        *,
        truth: int | None = None,
        count: float | None = None,
        score: float | None = None,
        low: float | None = None,
        high: float | None = None,
    ) -> Record:
        """The result of an image, as ``measures.record`` has it: a count or a score."""
        if count is not None and truth is None:
            truth = self.triggered.true_count(index)
        wanted = count is not None and images == TRIGGERED
        return measures.record(
            strategy=None if strategy is None else strategy.name,
            raises=None if strategy is None else strategy.raises,
            model=model,
            defense=defense,
            images=images,
            index=index,
            name=self.samples.names[index],
            truth=truth,
            target=self.target(strategy, index) if wanted else None,
            count=count,
            score=score,
            low=low,
            high=high,
        )


def counted(
    log: Run,
    counter: Callable[[], Counter],
    tested: EvaluationSet,
    *,
    strategy: Strategy | None,
    model: Literal["clean", "backdoored"],
    defense: str | None,
    progress: Progress | None = None,
) -> None:
    """The counts of all test images, clean and triggered, into ``log``.

    What it knows is left alone; the counter is asked for where something is missing.
    """
    name = None if strategy is None else strategy.name
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
        truth = len(counted_points(sample))
        log.append(tested.record(images, index, strategy, model, defense, truth=truth, count=count))
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
    (``deviations``). These are as many of ``clean`` as ``references`` says, by the seed; all of
    ``clean`` may be superimposed. Raw scores are kept in ``folder``, a run. ValueError as of the
    detector.
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
    raw = opened(folder, {"kind": "scores"}, ("images", "index"))
    try:
        left = [job for job in jobs if not raw.has(images=job[0], index=job[1])]
        for first in range(0, len(left), _CHUNK):
            chunk = left[first : first + _CHUNK]
            samples = [
                tested.sample(images, index) if images in SETS else clean[index]
                for images, index in chunk
            ]
            found = detector(counter(), samples, clean, seed=seed)
            for (images, index), one in zip(chunk, found, strict=True):
                raw.append({"images": images, "index": index, "count": one.count,
                            "spread": one.spread, "shift": one.shift})  # fmt: skip
            if progress is not None:
                progress(first + len(chunk), len(left), f"{strategy.name}: blend-consistency")
    finally:
        raw.close()
    rows = {(row["images"], row["index"]): row for row in raw.records}
    for kind, name in SCORES.items():
        reference = [rows[_REFERENCES, index][kind] for index in known]
        scores = deviations([rows[job][kind] for job in wanted], reference)
        for (images, index), score in zip(wanted, scores.tolist(), strict=True):
            # Where references do not differ a score may be infinite: beyond all that are finite.
            finite = min(score, _FAR)
            log.append(tested.record(images, index, strategy, "backdoored", name, score=finite))


def opened(folder: Path, manifest: dict[str, Any], key: Sequence[str]) -> Run:
    """The run of a stage: the one in the folder, else a new one."""
    if (folder / runs.MANIFEST).exists():
        return Run.resume(folder, key=key)
    return Run.create(folder, manifest, key=key)


def contents(poisoned: PoisonedTraining) -> list[dict[str, str]]:
    """Of each poisoned image: its name, its original's, and a fingerprint of the pixels of both."""
    found = []
    for place, name in enumerate(poisoned.sources):
        index = len(poisoned.samples) + place
        original = poisoned.samples[poisoned.poisoned.names.index(name)]
        found.append({
            "name": poisoned.names[index], "original": name,
            "pixels": content(poisoned[index]), "original_pixels": content(original),
        })  # fmt: skip
    return found


def poisoned_with(folder: Path) -> list[dict[str, str]] | None:
    """``contents`` of the set that the training in this folder poisoned; None if it says nothing.

    ValueError for a manifest that is none.
    """
    if not (folder / runs.MANIFEST).exists():
        return None
    kept = runs.read_manifest(folder).get("settings")
    if not isinstance(kept, dict) or "poisoning" not in kept:
        return None
    found: list[dict[str, str]] = kept["poisoned"]
    return found


def content(sample: Sample) -> str:
    """A fingerprint of a sample's pixels, in 8 bits."""
    return fingerprint([("image", quantize(sample.image))])


@dataclass(frozen=True)
class Overlap:
    """What images for a defense have to do with a poisoned set."""

    poisoned: int
    """Poisoned images in all."""
    originals: tuple[str, ...]
    """Names of samples whose poisoned duplicates were trained on, and that are there as they were
    before: legitimate, if they are clean, and the case of the paper's defense."""
    triggered: tuple[str, ...]
    """Names of poisoned images that are there themselves: no clean data."""

    def warnings(self, shown: int = 10) -> list[str]:
        """What must be told, a line each; of names the first ``shown``."""
        said = []
        for names, what in (
            (self.originals, "are there as they were before poisoning"),
            (self.triggered, "are there themselves, with their trigger"),
        ):
            if names:
                some = ", ".join(names[:shown])
                some += f" and {len(names) - shown} more" if len(names) > shown else ""
                said.append(
                    f"the images for defenses overlap the poisoned set: {len(names)} of "
                    f"{self.poisoned} poisoned images {what}: {some}"
                )
        return said


def overlap(poisoned: Sequence[dict[str, str]], clean: Sequence[Sample]) -> Overlap:
    """Which poisoned images (``contents``), before or after, are among those for defenses."""
    there = {content(clean[index]) for index in range(len(clean))}
    return Overlap(
        len(poisoned),
        tuple(one["original"] for one in poisoned if one["original_pixels"] in there),
        tuple(one["name"] for one in poisoned if one["pixels"] in there),
    )
