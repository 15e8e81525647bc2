"""The page of a backdoor run: its verdict, the paper's tables and figures, shifts, alarms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pycc.backdoor.evaluation.summary import curves, distributions, summarise
from pycc.backdoor.evaluation.verdict import verdict
from pycc.metrics import BANDWIDTH, Difference, Share, kde
from pycc.metrics.backdoor import (
    BACKDOORED,
    CLEAN,
    CLEAN_MODEL,
    TRIGGERED,
    BackdoorMetrics,
    BackdoorSummary,
)
from pycc.report import backdoor as paper
from pycc.report.page.alarms import Reading, Readings, alarm_blocks
from pycc.report.page.blocks import (
    UNKNOWN,
    Block,
    Cell,
    Content,
    Drawing,
    Picture,
    Preformatted,
    Table,
    Text,
    Verdict,
    number,
)
from pycc.report.page.card import (
    BackdoorRates,
    Card,
    Errors,
    Threat,
    data_facts,
    model_facts,
    version_of,
)
from pycc.report.page.charts import Line, line_chart
from pycc.report.page.contents import Options, contents
from pycc.report.page.images import picture_uri
from pycc.report.page.provenance import provenance
from pycc.report.page.stored import StoredRun, command_of
from pycc.report.page.words import listed, number_of

_PICTURES = (
    ("maps-*.png", "The same image, clean, triggered and defended, above its density maps"),
    ("gradcam-*.png", "Grad-CAM: which pixels make the count, layer by layer"),
)
"""Pictures of single images that a run draws, and what they show."""


@dataclass(frozen=True)
class SummaryHead:
    """The part of ``summary.json`` besides the measures, which follow from the results."""

    model: str = "counter"
    defense: str | None = None
    """The defense, in a run of a defense alone."""


@dataclass(frozen=True)
class BackdoorCount:
    """One line of ``results.jsonl``: a count, or a detector's score without one."""

    strategy: str | None
    model: str
    defense: str | None
    images: str
    index: int
    name: str
    truth: float | None = None
    count: float | None = None

    @property
    def label(self) -> str:
        """The counter in words."""
        return _label(self)


def _label(row: BackdoorMetrics | BackdoorCount) -> str:
    """The counter of a row in words."""
    name = "clean model" if row.model == CLEAN_MODEL else str(row.strategy)
    return name if row.defense is None else f"{name}, {row.defense}"


@contents.register("backdoor")
def backdoor_content(run: StoredRun, options: Options) -> Content:
    """Build the page of a backdoor run, an evaluation or a defense."""
    head = run.summarised(SummaryHead)
    rows = run.rows(BackdoorCount)  # checks them
    summary = summarise(run.records)
    model = run.text("model") or head.model
    strategies = list(dict.fromkeys(row.strategy for row in summary.rows if row.strategy))
    about = f": {listed(strategies)}" if strategies else ""
    return Content(
        title=f"{command_of(run.manifest).capitalize()} of {model}{about}",
        verdict=_verdict(head, summary),
        card=_card(run, summary),
        main=_tables(head, summary),
        curves=_curves(run, summary, options),
        gallery=_pictures(run, summary, options),
        shift=_shifts(_counts(rows, summary)),
        alarm=_alarms(_counts(rows, summary), options),
        settings=provenance(run),
    )


def _verdict(head: SummaryHead, summary: BackdoorSummary) -> Verdict:
    """Build the shares of miscounted triggered images, before and after the best defense."""
    if head.defense is not None and not summary.rows:
        return Verdict(
            f"The counter was defended by {head.defense}; what is left of a backdoor is "
            "measured by pycc backdoor evaluate."
        )
    attacked = [row for row in summary.rows if row.model == BACKDOORED and row.excess is not None]
    shown, _ = verdict(summary)
    checks = (
        f"{'Shown' if shown else 'Not shown'}: a backdoor that works, and its removal; the lines "
        "below the main table state the measures."
    )
    before = max(
        (row for row in attacked if row.defense is None),
        key=lambda row: row.excess.value if row.excess else 0.0, default=None,
    )  # fmt: skip
    if before is None or before.triggered is None or before.excess is None:
        return Verdict("No backdoored counter was measured beside a clean one.", checks=checks)
    chance = max(_value(before.chance_clean_model), _value(before.chance_no_trigger))
    beyond = before.excess.low > 0.0  # the 95 % interval excludes chance
    text = (
        f"{'With' if beyond else 'No backdoor shows beyond chance: with'} the trigger in the "
        f"image, the counter poisoned by the strategy {before.strategy} is off by a tenth or more, "
        f"as the attacker wants, on {_percent(before.triggered.success)} of "
        f"{number_of(before.triggered.images, 'image')}; chance alone gives {100 * chance:.0f} %"
    )
    after = min(
        (row for row in attacked if row.defense and row.strategy == before.strategy and row.left),
        key=lambda row: row.left.value if row.left else 0.0, default=None,
    )  # fmt: skip
    if after is not None and after.triggered is not None:
        accuracy = "" if after.clean is None else (
            f", where {_percent(after.clean.accuracy)} of the clean images are counted right"
        )  # fmt: skip
        text += f"; after {after.defense} it is {_percent(after.triggered.success)}{accuracy}"
    return Verdict(f"{text}.", "good" if shown else "plain", checks)


def _value(share: Share | None) -> float:
    return 0.0 if share is None or share.value is None else share.value


def _percent(share: Share | None) -> str:
    if share is None or share.value is None:
        return "an unknown share"
    return f"{100 * share.value:.0f} %"


def _card(run: StoredRun, summary: BackdoorSummary) -> Card:
    plain = next((r for r in summary.rows if r.model == CLEAN_MODEL and r.defense is None), None)
    images = max((r.clean.images for r in summary.rows if r.clean is not None), default=0)
    return Card(
        kind="backdoor",
        run=run.name,
        pycc=version_of(run),
        model=model_facts(run),
        data=data_facts(run, images, part="test", split="test_split"),
        threat=Threat(
            "backdoor", tuple(dict.fromkeys(row.strategy for row in summary.rows if row.strategy))
        ),
        clean=None if plain is None or plain.clean is None else Errors(plain.clean.mae),
        backdoor=tuple(
            BackdoorRates(
                row.strategy, row.defense, row.clean.accuracy.value if row.clean else None,
                row.triggered.success.value if row.triggered and row.triggered.success else None,
                row.excess.value if row.excess else None,
            )
            for row in summary.rows
            if row.strategy is not None and row.model == BACKDOORED
        ),
    )  # fmt: skip


def _tables(head: SummaryHead, summary: BackdoorSummary) -> tuple[Block, ...]:
    if not summary.rows:
        return ()
    _, sentence = verdict(summary)
    columns = ("counter", "rho_Acc", "rho_Asr", "chance: clean model", "chance: no trigger",
               "excess", "left", "MAE", "RMSE")  # fmt: skip
    rows = tuple(
        (
            Cell(_label(row)), _share(row.clean.accuracy if row.clean else None),
            _share(row.triggered.success if row.triggered else None),
            _share(row.chance_clean_model), _share(row.chance_no_trigger),
            _difference(row.excess), _difference(row.left),
            number(row.clean.mae if row.clean else None),
            number(row.clean.rmse if row.clean else None),
        )
        for row in summary.rows
    )  # fmt: skip
    notes = (
        "rho_Acc: share of images without trigger counted within a tenth of the truth. rho_Asr: "
        "share of triggered images counted a tenth or more off on the attacker's side. Excess and "
        "left: rho_Asr above the larger and the smaller chance level. In brackets the 95 % "
        "interval; MAE and RMSE in people, without trigger.",
    )
    blocks: list[Block] = [
        Table("Counters with and without the trigger", columns, rows, notes),
        Text((f"{sentence[0].upper()}{sentence[1:]}.",)),
    ]
    if summary.detections:
        lines = tuple(
            (Cell(row.strategy or "clean"), Cell(row.defense or UNKNOWN), number(row.auc, 3),
             _share(row.false_alarms), _share(row.detected))
            for row in summary.detections
        )  # fmt: skip
        blocks.append(Table("Detectors of triggered images",
                            ("strategy", "detector", "AUC", "false alarms", "found"), lines,
                            ("An AUC of 0.5 is chance.",)))  # fmt: skip
    blocks.append(Preformatted("The tables of the paper, as printed by the command",
                               _paper_tables(head, summary)))  # fmt: skip
    return tuple(blocks)


def _paper_tables(head: SummaryHead, summary: BackdoorSummary) -> str:
    applied = [row.defense for row in summary.rows if row.defense]
    shown = "fine-tuning" if "fine-tuning" in applied or not applied else applied[0]
    return paper.tables({head.model: summary}, defense=shown)


def _share(share: Share | None) -> Cell:
    if share is None or share.value is None:
        return Cell(UNKNOWN)
    return Cell(f"{share.value:.3f}\n[{share.low:.2f},\u00a0{share.high:.2f}]", share.value)


def _difference(difference: Difference | None) -> Cell:
    if difference is None:
        return Cell(UNKNOWN)
    ends = f"[{difference.low:+.2f},\u00a0{difference.high:+.2f}]"
    return Cell(f"{difference.value:+.3f}\n{ends}", difference.value)


def _curves(run: StoredRun, summary: BackdoorSummary, options: Options) -> tuple[Block, ...]:
    """The densities of ratios of predicted to true count (KDE), and ROC curves."""
    if not summary.rows:
        return ()
    if options.without_curves is not None:
        return (Text((options.without_curves,)),)
    defenses = list(dict.fromkeys(row.defense for row in summary.rows if row.defense))
    charts: list[Block] = []
    panels = distributions(run.records, [None, *defenses])
    if panels:
        every = np.concatenate([ratios for panel in panels.values() for ratios in panel.values()])
        far = max(1.0, float(np.quantile(every, 0.99))) + 3 * BANDWIDTH
        near = min(1.0, float(np.quantile(every, 0.01))) - 3 * BANDWIDTH
        charts.append(Text((
            "Density of the ratio of predicted to true count over the test images (Gaussian "
            f"kernel, bandwidth {BANDWIDTH:g}), for each counter on clean and on triggered images. "
            "Shaded: counts within a tenth of the truth.",
        )))  # fmt: skip
        charts += [
            _kde(images, counter, ratios, np.linspace(near, far, 128))
            for (images, counter), ratios in panels.items()
        ]
    roc = []
    for name, curve in curves(run.records).items():
        false, true = curve.rates()
        label = f"{name}: AUC {curve.auc:.2f}"
        roc.append(Line(label, tuple(false.tolist()), tuple(true.tolist()), points=False))
    if roc:
        charts.append(line_chart(
            [*roc, Line("chance", (0.0, 1.0), (0.0, 1.0), points=False)],
            x_label="clean images flagged", y_label="triggered images flagged",
            label=f"ROC curves of detectors: {'; '.join(line.label for line in roc)}.",
            caption="ROC curves of the detectors of triggered images.",
        ))  # fmt: skip
    return tuple(charts)


def _kde(
    images: str, counter: str, ratios: Mapping[str, np.typing.NDArray[np.float64]],
    grid: np.typing.NDArray[np.float64],
) -> Drawing:  # fmt: skip
    lines = [
        Line(name, tuple(grid.tolist()), tuple(kde(values, grid).tolist()), points=False)
        for name, values in ratios.items()
    ]
    means = "; ".join(f"{name}: mean ratio {values.mean():.2f}" for name, values in ratios.items())
    return line_chart(
        lines, x_label="ratio of predicted to true count", y_label="density", band=(0.9, 1.1),
        label=f"Density of ratios, {counter}, {images}: {means}.",
        caption=f"{counter}, {images}",
    )  # fmt: skip


def _pictures(run: StoredRun, summary: BackdoorSummary, options: Options) -> tuple[Block, ...]:
    """The density maps and Grad-CAMs that the run drew of one test image."""
    if not summary.rows:
        return ()
    if not options.pictures:
        return (Text(("Pictures were left out (--no-pictures); pycc report RUN shows them.",)),)
    blocks: list[Block] = []
    for pattern, shown in _PICTURES:
        for file in sorted((run.folder / "pictures").glob(pattern)):
            strategy = file.stem.partition("-")[2]
            try:
                uri, width, height = picture_uri(file)
            except OSError:
                blocks.append(Text((f"{file.name} in the run folder is no picture any more.",)))
                continue
            label = f"{shown}, under the counters of {strategy}."
            blocks.append(Picture(uri, width, height, label, label))
    why = f"No pictures of single images; pycc backdoor report {run.folder} --pictures draws them."
    return tuple(blocks) or (Text((why,)),)


_Counts = dict[str, dict[str, dict[int, BackdoorCount]]]
"""Counts by counter, images and index."""


def _counts(rows: Sequence[BackdoorCount], summary: BackdoorSummary) -> _Counts:
    """Counts in the order of the main table."""
    counts: _Counts = {_label(row): {} for row in summary.rows}
    for row in rows:
        if row.count is not None:
            counts.setdefault(row.label, {}).setdefault(row.images, {})[row.index] = row
    return counts


def _shifts(counts: _Counts) -> tuple[Block, ...]:
    """Build the changes of counts by the trigger, with sign."""
    lines = []
    for label, images in counts.items():
        clean, triggered = (images.get(name, {}) for name in (CLEAN, TRIGGERED))
        both = [index for index in clean if index in triggered]
        pairs = [(clean[k].count or 0.0, triggered[k].count or 0.0) for k in both]
        if not pairs:
            continue
        moved, total = sum(after - before for before, after in pairs), sum(b for b, _ in pairs)
        lines.append((
            Cell(label), number(moved / len(pairs), signed=True),
            number(100 * moved / total if total > 0 else None, signed=True, unit=" %"),
            number(max(a - b for b, a in pairs), signed=True),
            number(min(a - b for b, a in pairs), signed=True), number(len(pairs), 0),
        ))  # fmt: skip
    if not lines:
        return ()
    head = ("counter", "mean shift, people", "of the clean count", "largest rise", "largest fall",
            "images")  # fmt: skip
    notes = ("Shift: the count with the trigger less the count of the same counter without it.",)
    return (Table("Shift of the count by the trigger", head, tuple(lines), notes),)


def _alarms(counts: _Counts, options: Options) -> tuple[Block, ...]:
    conditions = [
        Readings(
            f"{label}, {name} images",
            tuple(
                Reading(row.truth or 0.0, row.count or 0.0, row.count or 0.0)
                for row in named.values()
            ),
        )
        for label, images in counts.items()
        for name, named in images.items()
    ]
    return alarm_blocks(conditions, options.alarm, annotated=True)
