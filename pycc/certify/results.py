"""Results of a certified data set: a row per method and patch size, and one per attack on it."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pycc.certify.calibration import Calibration
from pycc.runs import Record

CLEAN = "clean"
"""The method of records of undefended counts."""


@dataclass(frozen=True)
class CertifyRow:
    """One method and patch size over all images; errors in people.

    Errors are None if images are not annotated, the certified one also if an interval is unbounded.

    >>> from pycc.certify import CertifyRow
    >>> row = CertifyRow("masked", 20, 10, 3.0, 12.5, 18.0, 0, 0.0, {})
    >>> row.certified_mae - row.clean_mae
    9.5
    """

    method: str
    patch_size: int
    """Side of the patch, pixels."""
    images: int
    clean_mae: float | None
    """Mean absolute error of the defended counter on clean images."""
    certified_mae: float | None
    """Mean distance from the annotated count to the farther end of the interval."""
    width: float | None
    """Mean width of the bounded intervals, people."""
    unbounded: int
    """Images whose interval has no upper end."""
    vacuous: float
    """Share of the images whose interval contains every count that a patch could cause."""
    reasons: dict[str, int]
    """Images by the reason why their interval is unbounded or vacuous, most common first."""
    false_alarms: float | None = None
    """Share of the clean images that raise an alarm; None for methods without alarms."""


@dataclass(frozen=True)
class AttackedRow:
    """One method and patch size, attacked; errors in people.

    >>> from pycc.certify import AttackedRow
    >>> AttackedRow("masked", 20, attacked_mae=4.5, violations=0, images=10).violations
    0
    """

    method: str
    patch_size: int
    attacked_mae: float | None
    """Mean over the images of the largest error of an attacked count without an alarm; images whose
    attacks all raise one are left out. None without annotation, or if no image is left."""
    violations: int
    """Attacked counts outside their intervals, without an alarm."""
    images: int
    alarms: float | None = None
    """Share of the attacked pictures, baselines included, that raise an alarm, if any can."""


@dataclass(frozen=True)
class CertifySummary:
    """The summary of a run: a function of its records, so that a resumed run has the same.

    >>> from pycc.certify import CertifySummary
    >>> summary = CertifySummary(images=10, undefended_mae=2.5, rows=())
    >>> summary.json()["undefended_mae"]
    2.5
    """

    images: int
    undefended_mae: float | None
    """Mean absolute error of the counter without defense; None without annotation."""
    rows: tuple[CertifyRow, ...]
    """By patch size, then method."""
    calibration: Calibration = field(default_factory=Calibration)
    attacks: tuple[AttackedRow, ...] = ()

    def json(self) -> dict[str, object]:
        """Return the content of ``summary.json``."""
        return {
            "images": self.images,
            "undefended_mae": self.undefended_mae,
            "rows": [asdict(row) for row in self.rows],
            "calibration": [number.json() for number in self.calibration.numbers],
            "completions": [asdict(entry.facts) for entry in self.calibration.completions],
            "attacks": [asdict(row) for row in self.attacks],
        }


@dataclass(frozen=True)
class CertifyRun:
    """The result of ``certify.run``.

    >>> from pycc import certify, data, models
    >>> scenes = data.open("synthetic", shape=(96, 128), limit=1)
    >>> method = certify.Masked(allowance=2.0)
    >>> options = {"method": method, "patch_sizes": [20]}
    >>> counter = models.load("mcnn-synthetic")
    >>> calibration = certify.calibrate(counter, [], **options)
    >>> result = certify.run(counter, scenes, calibration=calibration, **options)
    >>> [row.images for row in result.rows], result.violated, len(result.records)
    ([1], False, 2)
    """

    summary: CertifySummary
    records: tuple[Record, ...]
    """One per image, method and patch size, and one of each image's undefended count."""
    folder: Path | None = None
    """The run folder; None if the results are in memory only."""

    @property
    def rows(self) -> tuple[CertifyRow, ...]:
        """The rows of the summary."""
        return self.summary.rows

    @property
    def calibration(self) -> Calibration:
        """The calibration that the run used."""
        return self.summary.calibration

    @property
    def violated(self) -> bool:
        """Whether an attacked count left its interval."""
        return any(row.violations for row in self.summary.attacks)

    @property
    def seconds(self) -> dict[tuple[str, int], float]:
        """Mean seconds per image by method and patch size."""
        return mean_seconds(self.records)


def summarise(
    records: Sequence[Record],
    calibration: Calibration | None = None,
    attacks: Sequence[AttackedRow] = (),
) -> CertifySummary:
    """Summarise a run's records; times are not part of the summary."""
    clean = [record for record in records if record["method"] == CLEAN]
    groups: dict[tuple[int, str], list[Record]] = {}
    for record in records:
        if record["method"] != CLEAN:
            groups.setdefault((record["patch_size"], record["method"]), []).append(record)
    rows = tuple(_row(groups[key]) for key in sorted(groups))
    return CertifySummary(
        len(clean), _error(clean, "count"), rows, calibration or Calibration(), tuple(attacks)
    )


def _row(group: Sequence[Record]) -> CertifyRow:
    bounded = [record for record in group if record["high"] is not None]
    alarms = [record["alarm"] for record in group if record.get("alarm") is not None]
    reasons = Tally(record["reason"] for record in group if record["reason"])
    return CertifyRow(
        method=group[0]["method"],
        patch_size=group[0]["patch_size"],
        images=len(group),
        clean_mae=_error(group, "count"),
        certified_mae=_error(group, "low", "high") if len(bounded) == len(group) else None,
        width=_mean(record["high"] - record["low"] for record in bounded) if bounded else None,
        unbounded=len(group) - len(bounded),
        vacuous=sum(bool(record["vacuous"]) for record in group) / len(group),
        reasons=dict(reasons.most_common()),
        false_alarms=_mean(map(float, alarms)) if alarms else None,
    )


def _error(records: Sequence[Record], *ends: str) -> float | None:
    """Return the mean distance, in people, from the truth to the farthest of the named fields.

    None if an image is not annotated.
    """
    if any(record["truth"] is None for record in records):
        return None
    return _mean(max(abs(record[end] - record["truth"]) for end in ends) for record in records)


def mean_seconds(records: Sequence[Record]) -> dict[tuple[str, int], float]:
    """Return the mean seconds per image, by method and patch size."""
    times: dict[tuple[str, int], list[float]] = {}
    for record in records:
        if record["method"] != CLEAN:
            key = record["method"], record["patch_size"]
            times.setdefault(key, []).append(record["seconds"])
    return {key: _mean(values) for key, values in times.items()}


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else 0.0
