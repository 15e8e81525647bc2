"""The page of certificates: intervals as bars against the truth, widths, alarms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pycc.certify.calibration import CalibratedNumber, CompletionFacts, with_unit
from pycc.certify.results import CLEAN, AttackedRow, CertifyRow
from pycc.report.page.alarms import Reading, Readings, alarm_blocks
from pycc.report.page.blocks import (
    Bar,
    Bars,
    Block,
    Cell,
    Content,
    Picture,
    Table,
    Text,
    Verdict,
    number,
)
from pycc.report.page.card import (
    Card,
    CertifiedErrors,
    Errors,
    FailedCheck,
    Threat,
    data_facts,
    model_facts,
    version_of,
)
from pycc.report.page.charts import Line, line_chart
from pycc.report.page.contents import Options, contents
from pycc.report.page.images import picture_uri
from pycc.report.page.provenance import provenance
from pycc.report.page.stored import StoredRun
from pycc.report.page.words import listed, number_of, people, size_text

MOST_BARS = 200
"""Images of one chart of bars, at most, and of all charts that are open from the start."""
_ALARMS = (
    "Of the method alarm, intervals and attacked errors are those of images that raise no alarm. "
    "A patch can provoke an alarm. False alarms: share of the clean images that raise one."
)


@dataclass(frozen=True)
class Certified:
    """One line of a certificate run's ``results.jsonl``."""

    index: int
    image: str
    truth: float | None
    method: str
    patch_size: int | None
    count: float
    low: float | None = None
    high: float | None = None
    deterministic: bool = True
    confidence: float = 1.0
    vacuous: bool = False


@dataclass(frozen=True)
class StoredSummary:
    """The ``summary.json`` of a certificate run."""

    images: int
    undefended_mae: float | None
    rows: tuple[CertifyRow, ...]
    calibration: tuple[CalibratedNumber, ...] = ()
    completions: tuple[CompletionFacts, ...] = ()
    attacks: tuple[AttackedRow, ...] = ()


@contents.register("certify")
def certify_content(run: StoredRun, options: Options) -> Content:
    """Build the page of a certificate run."""
    summary, rows = run.summarised(StoredSummary), run.rows(Certified)
    model, data = model_facts(run), data_facts(run, summary.images)
    methods = listed(_methods(summary)) if summary.rows else "no method"
    return Content(
        title=f"Certificates for {model.title}: {methods} on {data.title}",
        verdict=verdict(run, summary, rows),
        card=card(run, summary),
        main=(_table(summary), _calibration(summary))
        if summary.calibration or summary.completions
        else (_table(summary),),
        curves=(*_curves(summary, options), *_bars(summary, rows)),
        places=_places(run, options),
        shift=_shifts(rows),
        alarm=_alarms(rows, options),
        settings=provenance(run),
    )  # fmt: skip


def _methods(summary: StoredSummary) -> list[str]:
    return list(dict.fromkeys(row.method for row in summary.rows))


def verdict(run: StoredRun, summary: StoredSummary, rows: Sequence[Certified]) -> Verdict:
    """Sum up the certificate for the largest patch, by the method of the least error or width.

    Methods that promise something for every image come before ``alarm``.
    """
    failed = _violations(summary)
    if not summary.rows:
        return Verdict("Nothing was certified.")
    largest = max(row.patch_size for row in summary.rows)
    best = min(
        (row for row in summary.rows if row.patch_size == largest),
        key=lambda row: (
            row.false_alarms is not None, row.unbounded, row.width is None,
            row.certified_mae or row.width or 0.0,
        ),
    )  # fmt: skip
    own = [r for r in rows if (r.method, r.patch_size) == (best.method, best.patch_size)]
    images, patch = number_of(best.images, "image"), f"{largest} x {largest} pixels"
    chance = min((row.confidence for row in own if not row.deterministic), default=1.0)
    alarm, silent = "", ""
    if best.false_alarms is not None:
        alarm, silent = " without an alarm", " that raises no alarm"
    sure = "" if chance == 1.0 else f", with {100 * chance:g} % confidence"
    if best.width is None:
        sentence = (
            f"No upper bound is known for the counts of {images} under a patch of {patch} "
            f"({best.method})."
        )
        return Verdict(sentence, "bad", _checks(summary))
    sentence = (
        f"No patch of {patch}, of any content at any place, moves a count of "
        f"{model_facts(run).name} defended by {best.method} out of its interval{alarm}{sure}: "
        f"{people(best.width)} people wide on average of {images}"
    )
    if best.unbounded:
        sentence += f", {best.unbounded} more have no upper end"
    if best.clean_mae is not None and best.certified_mae is not None:
        sentence += (
            f". The mean absolute error is {people(best.clean_mae)} people without a patch and at "
            f"most {people(best.certified_mae)} with one{silent}"
        )
    if failed:
        sentence = "An attacked count left its certified interval: the certificate does not hold"
    return Verdict(f"{sentence}.", "bad" if failed else "good", _checks(summary))


def _violations(summary: StoredSummary) -> tuple[FailedCheck, ...]:
    return tuple(
        FailedCheck(
            f"attacked counts stay in their intervals: {row.method}, {size_text(row.patch_size)}",
            f"{row.violations} outside",
        )
        for row in summary.attacks
        if row.violations
    )


def _checks(summary: StoredSummary) -> str:
    failed = len(_violations(summary))
    if failed:
        return f"{failed} of {number_of(len(summary.attacks), 'attack')} broke the certificate:"
    if summary.attacks:
        return "Attacks on the defended counters moved no count out of its interval."
    return "The defended counters were not attacked; pycc certify --attack tries."


def card(run: StoredRun, summary: StoredSummary) -> Card:
    """Build the card of a certificate run: its threat, data and certified errors."""
    failed = _violations(summary)
    return Card(
        kind="certify",
        run=run.name,
        pycc=version_of(run),
        model=model_facts(run),
        data=data_facts(run, summary.images),
        threat=Threat(
            "patch", tuple(_methods(summary)),
            tuple(dict.fromkeys(float(row.patch_size) for row in summary.rows)), location="any",
        ),
        clean=Errors(summary.undefended_mae),
        attacked=tuple(
            Errors(row.attacked_mae, patch_size=row.patch_size, method=row.method)
            for row in summary.attacks
        ),
        certified=tuple(
            CertifiedErrors(row.method, row.patch_size, row.certified_mae, row.width, row.unbounded)
            for row in summary.rows
        ),
        failed_checks=failed,
        unreliable=bool(failed),
    )  # fmt: skip


def _table(summary: StoredSummary) -> Table:
    attacked = {(row.method, row.patch_size): row for row in summary.attacks}
    alarming = any(row.false_alarms is not None for row in summary.rows)
    rows = []
    for row in summary.rows:
        attack = attacked.get((row.method, row.patch_size))
        certified = number(row.certified_mae)
        if row.unbounded:
            certified = Cell(f"unbounded on {row.unbounded}", tone="bad")
        rows.append((
            Cell(size_text(row.patch_size), float(row.patch_size)), Cell(row.method),
            number(row.clean_mae),
            *([number(None if attack is None else attack.attacked_mae)] if attacked else []),
            certified, number(row.width), number(100 * row.vacuous, 0, unit=" %"),
            *([_share(row.false_alarms)] if alarming else []),
            *([_share(None if attack is None else attack.alarms)] if alarming and attacked else []),
        ))  # fmt: skip
    head = ("patch", "method", "clean MAE", *(["attacked MAE"] if attacked else []),
            "certified MAE", "mean width", "vacuous", *(["false alarms"] if alarming else []),
            *(["alarms, attacked"] if alarming and attacked else []))  # fmt: skip
    clean = "unknown" if summary.undefended_mae is None else f"{summary.undefended_mae:,.1f}"
    return Table(
        "Certified errors", head, tuple(rows),
        (
            f"{number_of(summary.images, 'image')}; MAE of the counter without defense: {clean}. "
            "In people. Certified MAE: mean distance from the truth to the farther end of the "
            "interval. Vacuous: intervals that exclude nothing a patch could cause.",
            "A certificate bounds what the defended counter predicts under one square patch of "
            "this size. It does not say that the count is right, and nothing about larger or "
            "further patches.",
            *([_ALARMS] if alarming else []),
        ),
    )  # fmt: skip


def _share(share: float | None) -> Cell:
    return number(None if share is None else 100 * share, 0, unit=" %")


def _calibration(summary: StoredSummary) -> Table:
    rows = tuple(
        (Cell(entry.kind), Cell("all sizes" if entry.patch_size is None
                                else size_text(entry.patch_size)),
         Cell(with_unit(entry.kind, f"{entry.value:,.3f}"), entry.value), Cell(entry.source),
         number(entry.images, 0))
        for entry in summary.calibration
    ) + tuple(
        (Cell(f"network of {network.method}"), Cell(size_text(network.patch_size)), Cell("-"),
         Cell(network.source), number(network.images, 0))
        for network in summary.completions
    )  # fmt: skip
    columns = "number", "patch", "value", "images of", "images"
    return Table("Numbers and networks fixed on other images before", columns, rows)


def _curves(summary: StoredSummary, options: Options) -> tuple[Block, ...]:
    """Interval width and certified error by patch size, one line per method."""
    if len({row.patch_size for row in summary.rows}) < 2:
        return ()
    if options.without_curves is not None:
        return (Text((options.without_curves,)),)
    charts = []
    for field, what, level in (
        ("width", "mean width of the interval", None),
        ("certified_mae", "certified mean absolute error", summary.undefended_mae),
    ):
        lines = []
        for method in _methods(summary):
            known = [(row.patch_size, value) for row in summary.rows if row.method == method
                     and (value := getattr(row, field)) is not None]  # fmt: skip
            if known:
                x, y = zip(*known, strict=True)
                lines.append(Line(method, x, y))
        if lines:
            charts.append(line_chart(
                lines, x_label="side of the patch, pixels", y_label=f"{what}, people",
                level=None if level is None else ("no patch, no defense", level),
                label=f"{what.capitalize()} by patch size: {lines[0].label} from "
                f"{lines[0].y[0]:,.1f} people at {lines[0].x[0]} px to {lines[0].y[-1]:,.1f} at "
                f"{lines[0].x[-1]} px.",
                caption=f"{what.capitalize()} by patch size, in people.",
            ))  # fmt: skip
    return tuple(charts)


def _bars(summary: StoredSummary, rows: Sequence[Certified]) -> tuple[Bars, ...]:
    """The intervals of each method and patch size; those of the middle size are shown at first."""
    sizes = list(dict.fromkeys(row.patch_size for row in summary.rows))
    first = sizes[min(2, len(sizes) - 1)] if sizes else None
    charts = []
    for means in sorted(summary.rows, key=lambda row: (row.patch_size != first, row.patch_size)):
        own = [r for r in rows if (r.method, r.patch_size) == (means.method, means.patch_size)]
        if own:
            charts.append(_chart(means, own, opened=means.patch_size == first))
    return tuple(charts)


def _chart(means: CertifyRow, rows: Sequence[Certified], *, opened: bool) -> Bars:
    shown = sorted(rows, key=lambda row: (row.high is not None, -_width(row)))[:MOST_BARS]
    shown.sort(key=lambda row: row.count if row.truth is None else row.truth)
    ends = [row.high for row in shown if row.high is not None]
    top = 1.02 * max([1.0, *ends, *(row.truth or row.count for row in shown)])
    bars = []
    for row in shown:
        low, high = row.low or 0.0, top if row.high is None else row.high
        end = "no upper end" if row.high is None else f"{row.high:,.0f}"
        inside = row.truth is None or low <= row.truth <= high
        bars.append(Bar(
            row.image, number(row.truth, 0), number(row.count, 0), f"{low:,.0f} … {end}",
            100 * low / top, 100 * (high - low) / top, row.high is None,
            100 * min(max(row.count, 0.0), top) / top,
            None if row.truth is None else 100 * min(row.truth, top) / top,
            "plain" if inside else "bad",
        ))  # fmt: skip
    outside = sum(bar.tone == "bad" for bar in bars)
    notes = []
    if len(rows) > len(shown):
        notes.append(f"The {len(shown)} widest of {number_of(len(rows), 'interval')}.")
    if outside:
        notes.append(
            f"On {number_of(outside, 'image')} the truth lies outside the interval: the counter "
            "miscounts there without any patch, which no certificate mends."
        )
    return Bars(
        f"Intervals of {means.method}, {size_text(means.patch_size)}", tuple(bars),
        f"{top:,.0f}", tuple(notes), opened,
    )  # fmt: skip


def _width(row: Certified) -> float:
    return (row.high or 0.0) - (row.low or 0.0)


def _places(run: StoredRun, options: Options) -> tuple[Block, ...]:
    """The pictures that the run drew of the images of the widest intervals."""
    files = sorted((run.folder / "pictures").glob("[0-9][0-9][0-9][0-9]*-*.png"))
    if not options.pictures:
        return (Text(("Pictures were left out (--no-pictures); pycc report RUN shows them.",)),)
    if not files:
        why = (
            "The run drew no picture of single images: it does if matplotlib is installed "
            "(pip install 'pycc[plot]') and the counter's receptive field is bounded."
        )
        return (Text((why,)),)
    blocks: list[Block] = [Text((
        "Images of the widest intervals. Colour: people in the worst window that a patch could "
        "reach around each place; the box is the worst window of all.",
    ))]  # fmt: skip
    names = {row.index: row.image for row in run.rows(Certified)}
    for file in files:
        try:
            uri, width, height = picture_uri(file)
            index, _, rest = file.stem.partition("-")
            name = names.get(int(index), file.stem)
        except (OSError, ValueError):
            blocks.append(Text((f"{file.name} in the run folder is no picture any more.",)))
            continue
        label = f"{name}: the image, and where a patch would change its count most"
        blocks.append(Picture(uri, width, height, f"{label}.", f"{name} ({rest})"))
    return tuple(blocks)


def _shifts(rows: Sequence[Certified]) -> tuple[Block, ...]:
    """Build the largest changes of counts by a patch, down and up."""
    groups: dict[tuple[int, str], list[Certified]] = {}
    for row in rows:
        if row.method != CLEAN and row.patch_size is not None:
            groups.setdefault((row.patch_size, row.method), []).append(row)
    lines = []
    for (size, method), group in sorted(groups.items()):
        total = sum(row.count for row in group)
        fall = sum((row.low or 0.0) - row.count for row in group)
        bounded = [row for row in group if row.high is not None]
        rise = sum((row.high or 0.0) - row.count for row in bounded)
        some = sum(row.count for row in bounded)
        lines.append((
            Cell(size_text(size), float(size)), Cell(method),
            number(fall / len(group), signed=True),
            number(100 * fall / total if total > 0 else None, signed=True, unit=" %"),
            number(rise / len(bounded) if bounded else None, signed=True),
            number(100 * rise / some if some > 0 else None, signed=True, unit=" %"),
        ))  # fmt: skip
    if not lines:
        return ()
    head = ("patch", "method", "fall at most, people", "of the count", "rise at most, people",
            "of the count")  # fmt: skip
    notes = ("Means over the images, from the count of the defended counter without a patch to the "
             "ends of the interval; rises of bounded intervals.",)  # fmt: skip
    return (Table("Shift of the count that no patch exceeds", head, tuple(lines), notes),)


def _alarms(rows: Sequence[Certified], options: Options) -> tuple[Block, ...]:
    clean = {row.index: row.count for row in rows if row.method == CLEAN}
    annotated = all(row.truth is not None for row in rows)
    groups: dict[str, list[Reading]] = {}
    for row in sorted(rows, key=lambda row: (row.patch_size or 0, row.method)):
        truth = clean.get(row.index, row.count) if row.truth is None else row.truth
        if row.method == CLEAN:
            reading = Reading(truth, row.count, row.count)
        else:
            high = float("inf") if row.high is None else row.high
            reading = Reading(truth, row.low or 0.0, high)
        label = (
            row.method if row.patch_size is None else f"{row.method}, {size_text(row.patch_size)}"
        )
        groups.setdefault(label, []).append(reading)
    conditions = [
        Readings(label, tuple(readings), possible=label != CLEAN)
        for label, readings in groups.items()
    ]
    return alarm_blocks(conditions, options.alarm, annotated=annotated)
