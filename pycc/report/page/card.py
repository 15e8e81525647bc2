"""``card.json``: what a run measured, for programs and for leaderboards of many runs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pycc.report.page.parse import parsed
from pycc.report.page.stored import StoredRun
from pycc.runs import write_json

CARD = "card.json"
SCHEMA = 1
"""Version of the format; cards of other versions are refused."""
UNKNOWN = "unknown"
"""A name that a run did not store."""


@dataclass(frozen=True)
class ModelFacts:
    """The counter that was measured."""

    name: str
    weights: str
    """Name of built-in weights or of a file, without its folder."""
    fingerprint: str | None
    """SHA-256 of weights, options and geometry, or of several counters' joined by +."""

    @property
    def title(self) -> str:
        """The counter in a title; a run from Python knows no name of it."""
        return "a counter" if self.name == UNKNOWN else self.name


@dataclass(frozen=True)
class DataFacts:
    """The images that it was measured on."""

    name: str
    split: str
    images: int
    fingerprint: str | None
    """SHA-256 of the pixels."""

    @property
    def title(self) -> str:
        """The images in a title; a run from Python knows no name of them.

        >>> DataFacts("street", "test", 4, None).title, DataFacts(UNKNOWN, UNKNOWN, 4, None).title
        ('street, test', 'images of a Python program')
        """
        known = [name for name in (self.name, self.split) if name != UNKNOWN]
        return ", ".join(known) or "images of a Python program"


@dataclass(frozen=True)
class Threat:
    """The threat model: the kind of attack, its methods and its patch sizes."""

    kind: str
    """``patch``, ``backdoor`` or ``none``."""
    methods: tuple[str, ...] = ()
    patch_sizes: tuple[float, ...] = ()
    """Pixels (whole numbers), or shares of the image's width (below 1)."""
    objective: str | None = None
    location: str | None = None
    steps: int | None = None


@dataclass(frozen=True)
class Errors:
    """Errors of counts in people, at one patch size; None without annotation."""

    mae: float | None
    mean_count: float | None = None
    patch_size: float | None = None
    method: str | None = None
    victim: str | None = None
    """The counter, in a run of several."""
    surrogates: str | None = None
    """The counters that the patches were made on, if not on the victim."""
    low: float | None = None
    """Ends of the bootstrap interval of the MAE."""
    high: float | None = None


@dataclass(frozen=True)
class CertifiedErrors:
    """Errors that no patch of one size can exceed, in people."""

    method: str
    patch_size: float
    mae: float | None
    """Mean distance from the truth to the farther end of the interval; None if one is unbounded."""
    width: float | None
    """Mean width of the bounded intervals."""
    unbounded: int


@dataclass(frozen=True)
class BackdoorRates:
    """A backdoor before or after a defense; shares of images in [0,1]."""

    strategy: str
    defense: str | None
    accuracy: float | None
    success: float | None
    excess: float | None
    """Attack success over the larger chance level."""


@dataclass(frozen=True)
class FailedCheck:
    """A check of the run that failed."""

    name: str
    figure: str


@dataclass(frozen=True)
class Card:
    """The card of one run: its model, data, threat and errors.

    ``unreliable`` is True if a check of the run failed: its figures are then no evidence of
    robustness.
    """

    kind: str
    run: str
    """Name of the run folder."""
    pycc: str
    model: ModelFacts
    data: DataFacts
    threat: Threat
    clean: Errors | None = None
    noise: tuple[Errors, ...] = ()
    attacked: tuple[Errors, ...] = ()
    certified: tuple[CertifiedErrors, ...] = ()
    backdoor: tuple[BackdoorRates, ...] = ()
    failed_checks: tuple[FailedCheck, ...] = ()
    unreliable: bool = False
    schema: int = SCHEMA

    def write(self, folder: Path) -> Path:
        """Write ``card.json`` into a run folder; returns the file."""
        write_json(folder / CARD, asdict(self))
        return folder / CARD

    @classmethod
    def read(cls, file: str | os.PathLike[str]) -> Card:
        """Read a card; ValueError for one that is damaged or of another version."""
        path = Path(file)
        try:
            value = json.loads(path.read_text("utf-8"))
        except ValueError:
            raise ValueError(f"{path}: expected JSON, got something else") from None
        schema = value.get("schema") if isinstance(value, dict) else None
        if schema != SCHEMA:
            raise ValueError(
                f"{path}: expected a card of schema {SCHEMA}, got "
                + ("none" if schema is None else f"schema {schema}, of another version of pycc")
            )
        return parsed(cls, value, str(path))


def model_facts(run: StoredRun, *weights: str) -> ModelFacts:
    """The counter of a run, from its flags (``weights``, the first that is given) and manifest."""
    named = [name for flag in weights or ("weights",) if (name := run.text(flag))]
    file = Path(named[0]).name if named else UNKNOWN
    stored = run.manifest.settings.get("model")
    name = run.text("model") or (stored if isinstance(stored, str) else file.partition(".")[0])
    prints = run.manifest.fingerprints.get("weights")
    if isinstance(prints, Mapping):
        prints = "+".join(str(value) for value in prints.values())
    return ModelFacts(name, file, prints if isinstance(prints, str) else None)


def data_facts(
    run: StoredRun, images: int, *, part: str = "data", split: str = "split"
) -> DataFacts:
    """The data of a run: ``part`` of the fingerprints, and the flag that names the split."""
    path = run.text("data")
    prints = run.manifest.fingerprints.get(part)
    pixels = prints.get("pixels") if isinstance(prints, Mapping) else None
    return DataFacts(
        UNKNOWN if path is None else Path(path).name,
        run.text(split) or UNKNOWN,
        images,
        pixels if isinstance(pixels, str) else None,
    )


def version_of(run: StoredRun) -> str:
    """The version of pycc that made a run."""
    return str(run.manifest.environment.get("pycc", "unknown"))
