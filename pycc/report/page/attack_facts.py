"""A stored attack, typed: its counts, means, checks and settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from pycc.report.page.parse import parsed
from pycc.report.page.stored import StoredRun
from pycc.report.page.words import size_text
from pycc.report.summary import AttackSummary, SummaryRow
from pycc.runs import MANIFEST, RESULTS

CLEAN, NOISE = "clean", "noise"


@dataclass(frozen=True)
class AttackCount:
    """One line of an attack's ``results.jsonl``."""

    index: int
    image: str
    condition: str
    patch_size: float | None
    surrogates: str | None
    victim: str | None
    height: int
    width: int
    truth: float | None
    count: float
    cells: tuple[int, int]
    top_left: tuple[int, int] | None = None
    side: int | None = None
    file: str | None = None
    loss_history: tuple[float, ...] = ()


@dataclass(frozen=True)
class AttackMethod:
    """The settings of one attack that a reader asks for first; methods may lack some."""

    name: str
    patch_size: float
    objective: str | None = None
    location: str | None = None
    steps: int | None = None


@dataclass(frozen=True)
class AttackSettings:
    """The settings of an attack run that its page depends on."""

    attacks: tuple[AttackMethod, ...]
    save_images: bool
    save_maps: bool


@dataclass(frozen=True)
class Change:
    """The change of one image's count by a patch."""

    attacked: AttackCount
    clean: AttackCount

    @property
    def people(self) -> float:
        """People that the patch added to the count; below 0 if it hid some."""
        return self.attacked.count - self.clean.count

    @property
    def percent(self) -> float | None:
        """The same, in per cent of the clean count; None where that is 0."""
        return 100 * self.people / self.clean.count if self.clean.count > 0 else None


class AttackFacts:
    """A stored attack, typed; ValueError for one that is damaged."""

    def __init__(self, run: StoredRun) -> None:
        self.run = run
        self.counts = run.rows(AttackCount)
        self.summary = run.summarised(AttackSummary)
        where = f"{run.folder / MANIFEST}, settings"
        self.settings = parsed(AttackSettings, run.manifest.settings, where)
        self.clean = {(row.victim, row.index): row for row in self.counts if row.condition == CLEAN}
        lost = [row for row in self.counts if (row.victim, row.index) not in self.clean]
        if lost:
            raise ValueError(
                f"{run.folder / RESULTS}: expected the clean count of image "
                f"{lost[0].image!r}, got none"
            )

    @property
    def names(self) -> list[str]:
        """The attacks, each once."""
        return list(dict.fromkeys(method.name for method in self.settings.attacks))

    @property
    def annotated(self) -> bool:
        """Whether all images have head annotations."""
        return all(row.truth is not None for row in self.counts)

    @property
    def several(self) -> tuple[bool, bool]:
        """Whether there are several victims, and patches made on other counters."""
        rows = self.summary.rows
        return any(r.victim is not None for r in rows), any(r.surrogates is not None for r in rows)

    @cached_property
    def optimised(self) -> list[SummaryRow]:
        """The rows of attacks, without baselines."""
        return [row for row in self.summary.rows if row.condition in self.names]

    @property
    def reported(self) -> list[SummaryRow]:
        """The rows of attacks, and of noise, which shows the effect of place and size alone."""
        return [r for r in self.summary.rows if r.condition in (*self.names, NOISE)]

    def means(self, like: SummaryRow, condition: str) -> SummaryRow | None:
        """The row of the clean images, or of a baseline of the same size, for the same victim."""
        size = None if condition == CLEAN else like.patch_size
        for row in self.summary.rows:
            if (row.condition, row.patch_size, row.victim) == (condition, size, like.victim):
                return row
        return None

    def rows_of(self, means: SummaryRow) -> list[AttackCount]:
        """The counts of which a row of the summary holds the means."""
        wanted = (means.condition, means.patch_size, means.surrogates, means.victim)
        return [
            row
            for row in self.counts
            if (row.condition, row.patch_size, row.surrogates, row.victim) == wanted
        ]

    def changes(self, rows: Sequence[AttackCount]) -> list[Change]:
        """Pair the counts with those of the clean images."""
        return [Change(row, self.clean[row.victim, row.index]) for row in rows]

    def label(self, means: SummaryRow) -> str:
        """The condition with its size, and the counters where there are several."""
        victims, surrogates = self.several
        parts = [means.condition, size_text(means.patch_size)]
        parts += [f"made on {means.surrogates}"] if surrogates and means.surrogates else []
        parts += [f"against {means.victim}"] if victims and means.victim else []
        return ", ".join(part for part in parts if part)
