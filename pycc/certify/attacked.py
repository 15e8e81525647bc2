"""Attacks on certified counters, whose counts must stay inside their intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

from pycc import attack
from pycc.attack import APAM, PatchAttack
from pycc.certify.calibration import Calibration
from pycc.certify.maps import Objective, certified_map, shape_of
from pycc.certify.methods.base import Certificate
from pycc.certify.results import AttackedRow
from pycc.certify.weakest import WeakestPlaces
from pycc.defense.mixture import parts_of
from pycc.defense.region import regional
from pycc.grid import heads_in
from pycc.ranks import Ranks
from pycc.runs import MANIFEST, Record, Run
from pycc.types import Counter, Progress, Sample, each

OBJECTIVES: tuple[Objective, ...] = ("over", "under")


def adaptive_attack(*, steps: int = 40, step_size: float = 0.25) -> PatchAttack:
    """Return the attack on certified counters: APAM from the places of ``WeakestPlaces``.

    It takes ``steps`` gradient steps, the first of size ``step_size`` (of the range [0,1]), then
    decreasing as a cosine.

    >>> adaptive_attack(steps=5).steps
    5
    """
    return APAM(
        steps=steps, step_size=step_size, decay="cosine", transform="none", smoothness=0.0,
        location="worst",
    )  # fmt: skip


def attacked_rows(
    template: PatchAttack,
    methods: Sequence[Certificate],
    patch_sizes: Sequence[int],
    counter: Counter,
    calibration: Calibration,
    samples: Sequence[Sample],
    log: Run,
    *,
    seed: int,
    progress: Progress | None,
    ranks: Ranks,
) -> tuple[AttackedRow, ...]:
    """Attack each method and patch size, pushing counts up and down; return errors and violations.

    ``template`` is the attack; its patch size and objective are replaced. ``log`` contains the
    records of all intervals. Methods whose defended counter has no useful gradient are left out.
    Baselines, which are not optimised, are measured once, together with the attack that pushes
    counts up. Each attack is a separate run, in a folder inside that of ``log`` if there is one, so
    that an interrupted run can be resumed.
    """
    intervals = {(r["image"], r["method"], r["patch_size"]): r for r in log.records}
    groups = [
        (suffix, counted, WeakestPlaces(counted, calibration), group)
        for suffix, counted, group in _groups(counter, samples)
    ]
    rows = []
    for method in methods:
        for patch_size in patch_sizes:
            tally = _Tally()
            for (suffix, counted, weakest, group), objective in product(groups, OBJECTIVES):
                victim = method.defended(counted, patch_size, calibration, seed=seed)
                if victim is None:
                    continue
                name = f"{method.name}-{patch_size}-{objective}{suffix}"
                out = log.file("attacks", name)
                attacked = attack.run(
                    victim, group, replace(template, patch_size=patch_size, objective=objective),
                    seed=seed, pgd=None, checks=False, compare=objective == "over",
                    candidates=weakest.candidates(method, objective), save_images=False,
                    progress=_share(progress, len(group), f"attacking {name}"), out=out,
                    ranks=ranks, resume=out is not None and (out / MANIFEST).exists(),
                )  # fmt: skip
                for record in attacked.run.ordered():
                    if record["condition"] == "clean":
                        continue  # every patch, optimised or not, must leave the count inside
                    tally.add(record, intervals[record["image"], method.name, patch_size])
            if tally.images:
                rows.append(tally.row(method.name, patch_size))
    return tuple(rows)


def _groups(
    counter: Counter, samples: Sequence[Sample]
) -> Iterator[tuple[str, Counter, Sequence[Sample]]]:
    """Iterate over samples that one counter counts, with a suffix of the names of their attacks.

    Samples without a region of interest are one group. Every other sample has a counter of its
    region, which replaces the region of the sample.
    """
    inside = [number for number, sample in enumerate(each(samples)) if sample.roi is not None]
    if not inside:
        yield "", counter, samples
        return
    plain = [samples[number] for number in range(len(samples)) if number not in set(inside)]
    if plain:
        yield "", counter, plain
    for number in inside:
        sample = samples[number]
        points = None
        if sample.annotated and sample.roi is not None:
            points = sample.points[heads_in(sample.points, sample.roi)]
        cells = shape_of(certified_map(parts_of(counter)[0][0], sample))
        only = Sample(sample.name, sample.image, points)
        yield f"-{number:04d}", regional(counter, sample, cells), [only]


@dataclass
class _Tally:
    """The attacked counts of one method and patch size, compared with their intervals."""

    images: set[str] = field(default_factory=set)
    errors: dict[str, float | None] = field(default_factory=dict)
    """The largest error of an image's counts without an alarm; None without annotation."""
    alarms: list[bool] = field(default_factory=list)
    violations: int = 0

    def add(self, record: Record, bound: Record) -> None:
        """Add the record of an attacked image; ``bound`` is that of its interval."""
        image, count, truth = record["image"], record["count"], bound["truth"]
        self.images.add(image)
        if "alarm" in record:
            self.alarms.append(record["alarm"])
            if record["alarm"]:
                return  # the certificate and the count are those of images without an alarm
        high = float("inf") if bound["high"] is None else bound["high"]
        self.violations += not bound["low"] <= count <= high
        error = self.errors.get(image) or 0.0
        self.errors[image] = None if truth is None else max(error, abs(count - truth))

    def row(self, method: str, patch_size: int) -> AttackedRow:
        """Return the row of the summary."""
        known = [error for error in self.errors.values() if error is not None]
        return AttackedRow(
            method, patch_size,
            sum(known) / len(known) if known and len(known) == len(self.errors) else None,
            self.violations, len(self.images),
            sum(self.alarms) / len(self.alarms) if self.alarms else None,
        )  # fmt: skip


def _share(progress: Progress | None, images: int, text: str) -> Progress | None:
    """Return the progress of an attack, in images."""
    if progress is None:
        return None
    shown = progress

    def report(done: float, total: float, label: str, /) -> None:
        shown(images * done / max(total, 1e-9), images, f"{text}: {label}")

    return report
