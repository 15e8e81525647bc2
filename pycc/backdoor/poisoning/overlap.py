"""Fingerprints of the data of a run, and overlaps between sets of images."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pycc import runs
from pycc.backdoor.poisoning.poison import RECORD, PoisonedTraining
from pycc.counters import identity
from pycc.data import quantize
from pycc.data.dataset import Dataset, PairedFiles, data_fingerprint
from pycc.data.scaled import Scaled
from pycc.data.subset import Subset
from pycc.data.target import targets
from pycc.runs import fingerprint
from pycc.train.items import Joined
from pycc.types import Counter, Sample, each

_SHOWN = 10
"""Largest number of names in a message."""
_DEPTH = 3
"""Largest number of folders between an export and its images: SPLIT_data/images in its layout."""


def content_of(
    content: Counter | Sequence[Sample] | None,
) -> str | dict[str, int | str] | None:
    """The identity of a counter, or a fingerprint of samples; None for None."""
    if content is None:
        return None
    if isinstance(content, Counter):
        return identity(content)
    return data_fingerprint(content)


@dataclass(frozen=True)
class PoisonedImage:
    """A poisoned image and its original, with fingerprints of the pixels of both.

    >>> PoisonedImage("a_poisoned", "a", pixels="12", original_pixels="34").original
    'a'
    """

    name: str
    original: str
    """Name of the sample that it was made of."""
    pixels: str
    """Fingerprint, as of ``pixels``."""
    original_pixels: str


def contents(
    poisoned: PoisonedTraining, originals: Sequence[str] | None = None
) -> list[PoisonedImage]:
    """List the poisoned images and their originals.

    ``originals`` are fingerprints of the samples' pixels, if they are known (``pixels`` of
    ``PoisonedImage``); None reads the images.

    >>> from pycc import backdoor, data
    >>> samples = data.open("synthetic", split="train", limit=2, shape=(64, 96))
    >>> poisoned = backdoor.poison(samples, backdoor.Noise(), backdoor.Add(20), fraction=0.5)
    >>> (image,) = contents(poisoned)
    >>> image.name == image.original + "_poisoned"
    True
    """
    images = []
    for place, original in enumerate(poisoned.sources):
        index = len(poisoned.samples) + place
        source = poisoned.poisoned.names.index(original)
        images.append(PoisonedImage(
            poisoned.names[index], original, pixels(poisoned[index]),
            originals[source] if originals else pixels(poisoned.samples[source]),
        ))  # fmt: skip
    return images


def poisoned_with(folder: Path) -> list[PoisonedImage] | None:
    """The poisoned images of the training in this folder; None if its manifest lists none.

    ValueError for a manifest that cannot be read.
    """
    if not (folder / runs.MANIFEST).exists():
        return None
    settings = runs.read_manifest(folder).get("settings")
    if not isinstance(settings, dict) or "poisoning" not in settings:
        return None
    return [PoisonedImage(**image) for image in settings["poisoned"]]


def pixels(sample: Sample) -> str:
    """A fingerprint of a sample's pixels, in 8 bits."""
    return fingerprint([("image", quantize(sample.image))])


def all_pixels(samples: Sequence[Sample], training: Dataset, known: Sequence[str]) -> list[str]:
    """``pixels`` of all samples; those of ``training`` are ``known`` and not read again."""
    if samples is training:
        return list(known)
    if isinstance(samples, Joined):
        parts = (all_pixels(part, training, known) for part in samples.parts.values())
        return [fingerprint for part in parts for fingerprint in part]
    return [pixels(sample) for sample in each(samples)]


def check_unseen(tested: Mapping[str, str], trained: Iterable[str], *, refuse: bool = True) -> None:
    """Compare test images, their ``pixels`` by name, with those that are trained on.

    ValueError if all of them are trained on, or a warning without ``refuse``; a warning if some
    are.
    """
    training = set(trained)
    names = [name for name, content in tested.items() if content in training]
    if not names:
        return
    message = (
        f"test images must not be trained on, got {len(names)} of {len(tested)} that are: "
        f"{_listed(names)}; see --test-split and --test-data"
    )
    if refuse and len(names) == len(tested):
        raise ValueError(message)
    warnings.warn(message, stacklevel=2)


def recorded(samples: Sequence[Sample]) -> list[str]:
    """Names of the samples that ``poisoning.jsonl`` in their folder lists as triggered.

    ``poison.export`` writes that file. It also covers images that were compressed or resized later.
    ValueError, naming the file, if it cannot be read.
    """
    if isinstance(samples, Joined):
        parts = samples.parts.items()
        return [f"{part}/{name}" for part, inner in parts for name in recorded(inner)]
    if isinstance(samples, Subset | Scaled):
        triggered = set(recorded(samples.samples))
        return [name for name in samples.names if name in triggered]
    if not isinstance(samples, PairedFiles):
        return []
    exports: dict[Path, set[Path]] = {}
    names = []
    for name, pair in zip(samples.names, samples.pairs, strict=True):
        for root in pair.image.parents[:_DEPTH]:
            if root not in exports:
                exports[root] = _triggered(root)
            if pair.image.with_suffix("") in exports[root]:
                names.append(name)
    return names


def _triggered(root: Path) -> set[Path]:
    """The triggered images of an export in this folder, without suffix; empty without an export."""
    file = root / RECORD
    if not file.exists():
        return set()
    try:
        splits = [json.loads(line) for line in file.read_text().splitlines()]
        images = [(split["split"], image) for split in splits for image in split["images"]]
        return {
            root / target.folder.format(split=split)
            / target.image.format(name=image["name"], number=image["number"])
            for target in (targets[name] for name in targets.names())
            for split, image in images
            if image["triggered"]
        }  # fmt: skip
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(
            f"{file}: expected lines with split and images, as of pycc backdoor poison, "
            f"got {error!r}"
        ) from None


def recorded_warnings(**samples: Sequence[Sample]) -> list[str]:
    """Warnings for sets of supposedly clean images, by name, that ``recorded`` lists images of."""
    listed = ((label, recorded(images), len(images)) for label, images in samples.items())
    return [
        _recorded(f"the {label} images", names, total) for label, names, total in listed if names
    ]


def _recorded(label: str, names: Sequence[str], total: int) -> str:
    return (
        f"{label}: {len(names)} of {total} have a trigger according to {RECORD} in their folder: "
        f"{_listed(names)}"
    )


def _listed(names: Sequence[str], shown: int = _SHOWN) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


@dataclass(frozen=True)
class Overlap:
    """The overlap between the images for defenses and a poisoned set.

    >>> from pycc import backdoor, data
    >>> samples = data.open("synthetic", split="train", limit=2, shape=(64, 96))
    >>> poisoned = backdoor.poison(samples, backdoor.Noise(), backdoor.Add(20), fraction=0.5)
    >>> shared = overlap(contents(poisoned), poisoned)  # a poisoned set, supposedly clean
    >>> len(shared.originals), len(shared.triggered), len(shared.warnings())
    (1, 1, 2)
    """

    poisoned: int
    """Number of poisoned images."""
    originals: tuple[str, ...]
    """Names of samples with a poisoned duplicate whose originals are among the images for defenses:
    legitimate, and the case of the paper's defense."""
    triggered: tuple[str, ...]
    """Names of poisoned images that are among the images for defenses, which are then not clean."""
    clean: int
    """Number of images for defenses."""
    recorded: tuple[str, ...]
    """Names of images for defenses that ``poisoning.jsonl`` in their folder lists as triggered."""

    def warnings(self, shown: int = _SHOWN) -> list[str]:
        """The warnings, one line each, with the first ``shown`` names."""
        lines = []
        for names, which in (
            (self.originals, "are there without the trigger"),
            (self.triggered, "are there with the trigger"),
        ):
            if names:
                lines.append(
                    f"the images for defenses overlap the poisoned set: {len(names)} of "
                    f"{self.poisoned} poisoned images {which}: {_listed(names, shown)}"
                )
        if self.recorded:
            lines.append(_recorded("the images for defenses", self.recorded, self.clean))
        return lines


def overlap(
    poisoned: Sequence[PoisonedImage],
    clean: Sequence[Sample],
    *,
    known: Iterable[str] | None = None,
) -> Overlap:
    """Compare the poisoned images and their originals with the images for defenses.

    ``poisoned`` are those of ``contents``, ``clean`` the images for defenses. ``known`` are
    fingerprints of the pixels of the latter; None reads them.

    >>> from pycc import backdoor, data
    >>> samples = data.open("synthetic", split="train", limit=2, shape=(64, 96))
    >>> poisoned = backdoor.poison(samples, backdoor.Noise(), backdoor.Add(20), fraction=0.5)
    >>> shared = overlap(contents(poisoned), samples)
    >>> shared.originals == tuple(poisoned.sources), shared.triggered
    (True, ())
    """
    if known is None:
        known = (pixels(clean[index]) for index in range(len(clean)))
    contained = set(known)
    return Overlap(
        len(poisoned),
        tuple(image.original for image in poisoned if image.original_pixels in contained),
        tuple(image.name for image in poisoned if image.pixels in contained),
        len(clean),
        tuple(recorded(clean)),
    )
