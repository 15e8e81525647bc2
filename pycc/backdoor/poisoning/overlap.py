"""What a run is made of, by fingerprints; what images share that should have nothing in common."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pycc import runs
from pycc.backdoor.poisoning.poison import RECORD, PoisonedTraining
from pycc.data import quantize
from pycc.data.dataset import Dataset, PairedFiles, data_fingerprint
from pycc.data.export import targets
from pycc.data.scaled import Scaled
from pycc.data.subset import Subset
from pycc.models import CounterModel
from pycc.runs import fingerprint
from pycc.train.items import Joined
from pycc.types import Sample

_SHOWN = 10
"""Names in a message, at most."""
_DEPTH = 3
"""Folders above an image, at most, that an export of it may be: SPLIT_data/images in its layout."""


def content_of(
    one: CounterModel | Sequence[Sample] | None,
) -> str | dict[str, int | str] | None:
    """A fingerprint of what a run depends on: weights, or samples."""
    if one is None:
        return None
    if isinstance(one, CounterModel):
        return fingerprint(one.state_dict().items())
    return data_fingerprint(one[index] for index in range(len(one)))


def contents(
    poisoned: PoisonedTraining, originals: Sequence[str] | None = None
) -> list[dict[str, str]]:
    """Of each poisoned image: its name, its original's, and a fingerprint of the pixels of both.

    ``originals`` are the ``pixels`` of the samples, where they are known.

    >>> from pycc import backdoor, data
    >>> samples = data.open("synthetic", split="train", limit=2, shape=(64, 96))
    >>> poisoned = backdoor.poison(samples, backdoor.Noise(), backdoor.Add(20), fraction=0.5)
    >>> (content,) = contents(poisoned)
    >>> content["name"] == content["original"] + "_poisoned"
    True
    """
    found = []
    for place, name in enumerate(poisoned.sources):
        index = len(poisoned.samples) + place
        of = poisoned.poisoned.names.index(name)
        found.append({
            "name": poisoned.names[index], "original": name, "pixels": pixels(poisoned[index]),
            "original_pixels": originals[of] if originals else pixels(poisoned.samples[of]),
        })  # fmt: skip
    return found


def poisoned_with(folder: Path) -> list[dict[str, str]] | None:
    """``contents`` of the set that the training in this folder poisoned; None if it records none.

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


def all_pixels(samples: Sequence[Sample], own: Dataset, known: Sequence[str]) -> list[str]:
    """``pixels`` of all samples, without reading those of ``own``, which are ``known``."""
    if samples is own:
        return list(known)
    if isinstance(samples, Joined):
        return [one for part in samples.parts.values() for one in all_pixels(part, own, known)]
    return [pixels(samples[index]) for index in range(len(samples))]


def unseen(tested: Mapping[str, str], trained: Iterable[str], *, refuse: bool = True) -> None:
    """Compare test images, their ``pixels`` by name, with those that are trained on.

    ValueError where all of them are trained on, or a warning without ``refuse``; a warning where
    some are.
    """
    there = set(trained)
    names = [name for name, one in tested.items() if one in there]
    if not names:
        return
    message = (
        f"test images are to be others than those that are trained on, got {len(names)} of "
        f"{len(tested)} that are: {_some(names)}; see --test-split and --test-data"
    )
    if refuse and len(names) == len(tested):
        raise ValueError(message)
    warnings.warn(message, stacklevel=2)


def recorded(samples: Sequence[Sample]) -> list[str]:
    """Names of the samples that ``poisoning.jsonl`` of the folder they lie in calls triggered.

    ``poison.export`` writes that file, which holds whatever was done to the pixels since: they are
    JPEG, and may have been resized. ValueError naming the file if it is none.
    """
    if isinstance(samples, Joined):
        return [f"{part}/{name}" for part, own in samples.parts.items() for name in recorded(own)]
    if isinstance(samples, Subset | Scaled):
        there = set(recorded(samples.samples))
        return [name for name in samples.names if name in there]
    if not isinstance(samples, PairedFiles):
        return []
    marked: dict[Path, set[Path]] = {}
    found = []
    for name, pair in zip(samples.names, samples.pairs, strict=True):
        for root in pair.image.parents[:_DEPTH]:
            if root not in marked:
                marked[root] = _triggered(root)
            if pair.image.with_suffix("") in marked[root]:
                found.append(name)
    return found


def _triggered(root: Path) -> set[Path]:
    """The triggered images of an export in this folder, without suffix; none where it is none."""
    file = root / RECORD
    if not file.exists():
        return set()
    try:
        splits = [json.loads(line) for line in file.read_text().splitlines()]
        images = [(one["split"], image) for one in splits for image in one["images"]]
        return {
            root / target.folder.format(split=split)
            / target.image.format(name=image["name"], number=image["number"])
            for target in (targets[name] for name in targets.names())
            for split, image in images
            if image["triggered"]
        }  # fmt: skip
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(
            f"{file}: expected lines with split and images, as a poisoned set is written with, "
            f"got {error!r}"
        ) from None


def recorded_warnings(**samples: Sequence[Sample]) -> list[str]:
    """Warnings for images taken for clean among which ``recorded`` finds some."""
    marked = ((what, recorded(images), len(images)) for what, images in samples.items())
    return [_recorded(f"the {what} images", names, total) for what, names, total in marked if names]


def _recorded(what: str, names: Sequence[str], total: int) -> str:
    return (
        f"{what}: {len(names)} of {total} have a trigger, as {RECORD} of their folder says: "
        f"{_some(names)}"
    )


def _some(names: Sequence[str], shown: int = _SHOWN) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


@dataclass(frozen=True)
class Overlap:
    """What images for a defense have to do with a poisoned set.

    >>> from pycc import backdoor, data
    >>> samples = data.open("synthetic", split="train", limit=2, shape=(64, 96))
    >>> poisoned = backdoor.poison(samples, backdoor.Noise(), backdoor.Add(20), fraction=0.5)
    >>> shared = overlap(contents(poisoned), poisoned)  # a poisoned set, taken for clean
    >>> len(shared.originals), len(shared.triggered), len(shared.warnings())
    (1, 1, 2)
    """

    poisoned: int
    """Poisoned images in all."""
    originals: tuple[str, ...]
    """Names of samples whose poisoned duplicates were trained on, and that are there as they were
    before: legitimate, if they are clean, and the case of the paper's defense."""
    triggered: tuple[str, ...]
    """Names of poisoned images that are there themselves: no clean data."""
    clean: int
    """Images for defenses in all."""
    recorded: tuple[str, ...]
    """Names of those whose folder says that they have a trigger, of whichever poisoning."""

    def warnings(self, shown: int = _SHOWN) -> list[str]:
        """The warnings, one line each, with the first ``shown`` names."""
        lines = []
        for names, what in (
            (self.originals, "are there as they were before poisoning"),
            (self.triggered, "are there themselves, with their trigger"),
        ):
            if names:
                lines.append(
                    f"the images for defenses overlap the poisoned set: {len(names)} of "
                    f"{self.poisoned} poisoned images {what}: {_some(names, shown)}"
                )
        if self.recorded:
            lines.append(_recorded("the images for defenses", self.recorded, self.clean))
        return lines


def overlap(
    poisoned: Sequence[dict[str, str]],
    clean: Sequence[Sample],
    *,
    known: Iterable[str] | None = None,
) -> Overlap:
    """Which poisoned images (``contents``), before or after, are among those for defenses.

    ``known`` are the ``pixels`` of the latter; without them they are read.

    >>> from pycc import backdoor, data
    >>> samples = data.open("synthetic", split="train", limit=2, shape=(64, 96))
    >>> poisoned = backdoor.poison(samples, backdoor.Noise(), backdoor.Add(20), fraction=0.5)
    >>> shared = overlap(contents(poisoned), samples)
    >>> shared.originals == tuple(poisoned.sources), shared.triggered
    (True, ())
    """
    there = {pixels(clean[index]) for index in range(len(clean))} if known is None else set(known)
    return Overlap(
        len(poisoned),
        tuple(one["original"] for one in poisoned if one["original_pixels"] in there),
        tuple(one["name"] for one in poisoned if one["pixels"] in there),
        len(clean),
        tuple(recorded(clean)),
    )
