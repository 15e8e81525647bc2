"""What a run is made of, by fingerprints; what defenses' images share with the poisoned ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pycc import run as runs
from pycc.backdoor.poison import PoisonedTraining
from pycc.data import quantize
from pycc.data.dataset import Dataset, content
from pycc.models import CounterModel
from pycc.run import fingerprint
from pycc.types import Sample


def content_of(one: CounterModel | Dataset | Sequence[Sample] | None) -> str | None:
    """A fingerprint of what a run depends on: weights, a data set, or samples."""
    if one is None:
        return None
    if isinstance(one, CounterModel):
        return fingerprint(one.state_dict().items())
    if isinstance(one, Dataset):
        return one.fingerprint()
    samples = (one[index] for index in range(len(one)))
    return fingerprint(content(samples))


def contents(poisoned: PoisonedTraining) -> list[dict[str, str]]:
    """Of each poisoned image: its name, its original's, and a fingerprint of the pixels of both."""
    found = []
    for place, name in enumerate(poisoned.sources):
        index = len(poisoned.samples) + place
        original = poisoned.samples[poisoned.poisoned.names.index(name)]
        found.append({
            "name": poisoned.names[index], "original": name,
            "pixels": pixels(poisoned[index]), "original_pixels": pixels(original),
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


def pixels(sample: Sample) -> str:
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
    there = {pixels(clean[index]) for index in range(len(clean))}
    return Overlap(
        len(poisoned),
        tuple(one["original"] for one in poisoned if one["original_pixels"] in there),
        tuple(one["name"] for one in poisoned if one["pixels"] in there),
    )
