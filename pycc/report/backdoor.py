"""A backdoor experiment as text tables, in the form of the paper's tables.

"Vulnerability and Defense: Mitigating Backdoor Attacks in Deep Learning-Based Crowd Counting
Models" (Luo), Tables 1 to 3, extended by chance levels and intervals, which the paper lacks. The
tables take summaries of ``pycc.backdoor.summarise``; ``pycc.report.backdoor_pictures`` draws the
figures.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence

from pycc.metrics.backdoor import BACKDOORED, CLEAN_MODEL, BackdoorMetrics, BackdoorSummary
from pycc.metrics.rates import BANDS
from pycc.metrics.shares import Difference, Share
from pycc.report.backdoor_published import PUBLISHED_1, PUBLISHED_2, PUBLISHED_3, disagreements
from pycc.report.summary import aligned

_LABEL = "  published, ShanghaiTech B, blend 0.1"
"""Label of a row with the paper's values, which do not depend on what was measured here."""
_CHANCE = ("chance: clean model", "chance: no trigger")
_NOTES = (
    "rho_Acc: images without trigger counted within a tenth of the truth; rho_Asr: triggered",
    "images counted a tenth or more off on the attack's side. Both are of images with heads, with",
    "Wilson's 95 % interval.",
    "chance: rho_Asr of the clean model on the same triggered images, and of the row's own model",
    "on images without trigger.",
)
_EXCESS = (
    "excess: rho_Asr minus the larger chance level, with the smaller ends of the 95 % intervals of",
    "both differences (Newcombe's, for pairs).",
)
_LEFT = (
    "left: rho_Asr minus the smaller chance level, with the larger ends: what a defense must",
    "reduce. It shows that a backdoor is removed only if rho_Acc is near the clean model's: for an",
    "attack that raises counts, a counter that always counts 0 reduces it too.",
)
_TARGET = (
    "as target: triggered images counted within a tenth of what the attack made of their truth.",
)


def table_1(summaries: Mapping[str, BackdoorSummary]) -> str:
    """Format the clean and the backdoored models before any defense: errors, accuracy, success.

    ``summaries`` is by the model's name, as in ``pycc.models``. Published values are printed below
    a row if the paper has them. "as target" is the share of triggered images counted within a tenth
    of the altered target.
    """
    head = ["model", "strategy", "MAE", "RMSE", "rho_Acc", "rho_Asr", *_CHANCE, "excess",
            "as target"]  # fmt: skip
    lines = [head]
    for model, entry in _entries(summaries, None):
        lines.append([
            model, _name(entry), *_errors(entry), _accuracy(entry),
            _success(entry), *_levels(entry), _above(entry, entry.excess),
            _target_success(entry),
        ])  # fmt: skip
        published = PUBLISHED_1.get(model, {}).get(_name(entry))
        if published:
            lines.append(_published(head, {4: published[0], 5: published[1]}))
    return _text(lines, *_NOTES, *_EXCESS, *_TARGET, *_remarks(summaries, lines))


def table_2(summaries: Mapping[str, BackdoorSummary], *, defense: str = "fine-tuning") -> str:
    """Format each strategy before and after one defense: accuracy, and the bands of attack success.

    Arguments as for :func:`table_1`. The bands add up to rho_Asr.
    """
    head = ["model", "strategy", "rho_Acc", *BANDS, "rho_Asr", *_CHANCE]
    lines = [head]
    for model, summary in summaries.items():
        for strategy in _strategies(summary):
            for applied in (None, defense):
                entry = _find(summary, strategy, applied)
                if entry is None:
                    continue
                row = entry.triggered
                bands = (row and row.bands) or [None] * len(BANDS)
                cells = ["/" if row and band is None else _share(band) for band in bands]
                name = strategy if applied is None else f"{strategy}, {defense}"
                lines.append([
                    model, name, _accuracy(entry), *cells,
                    _success(entry), *_levels(entry),
                ])  # fmt: skip
                published = None
                if defense == "fine-tuning":
                    published = PUBLISHED_2.get(model, {}).get((strategy, applied is not None))
                if published:
                    lines.append(_published(head, dict(enumerate(published, start=2))))
    return _text(lines, *_NOTES, *_remarks(summaries, lines))


def table_3(summaries: Mapping[str, BackdoorSummary], *, defense: str = "fine-tuning") -> str:
    """Format accuracy and attack success before and after one defense, one line per strategy.

    Arguments as for :func:`table_1`.
    """
    after = "after"
    head = ["model", "strategy", "rho_Acc", after, "rho_Asr", after, _CHANCE[0], _CHANCE[1], after]
    lines = [head]
    for model, before in _entries(summaries, None):
        defended = _find(summaries[model], before.strategy, defense, before.model)
        chance = _share(defended.chance_no_trigger) if defended else "-"
        lines.append([
            model, _name(before),
            *(_accuracy(entry) for entry in (before, defended)),
            *(_success(entry) for entry in (before, defended)),
            *_levels(before), chance if before.raises is not None else "/",
        ])  # fmt: skip
        published = PUBLISHED_3.get(model, {}).get(_name(before))
        if published and defense == "fine-tuning":
            lines.append(_published(head, dict(enumerate(published, start=2))))
    return _text(lines, f"after: {defense}.", *_NOTES, *_remarks(summaries, lines))


def defenses_table(summary: BackdoorSummary) -> str:
    """Format one model under every tested defense, by strategy, undefended first.

    "excess" is rho_Asr minus the larger of the two chance levels, "left" minus the smaller one;
    "MAE" and "RMSE" are of images without trigger.
    """
    lines = [["strategy", "defense", "rho_Acc", "rho_Asr", *_CHANCE, "excess", "left", "MAE",
              "RMSE"]]  # fmt: skip
    certified = []
    for entry in summary.rows:
        lines.append([
            _name(entry), entry.defense or "none", _accuracy(entry),
            _success(entry), *_levels(entry), _above(entry, entry.excess),
            _above(entry, entry.left), *_errors(entry),
        ])  # fmt: skip
        certified += _certificates(entry)
    return _text(lines, *certified, *_NOTES, *_EXCESS, *_LEFT)


def detections_table(summary: BackdoorSummary) -> str:
    """Format the quality of detectors of triggered images: one line per strategy and detector."""
    lines = [["strategy", "detector", "AUC", "false alarms", "found"]]
    lines += [
        [row.strategy or "clean", row.defense or "-", f"{row.auc:.3f}",
         _share(row.false_alarms), _share(row.detected)]
        for row in summary.detections
    ]  # fmt: skip
    return _text(
        lines, "chance: an AUC of 0.5, and as many found as false alarms.",
        "false alarms, found: clean and triggered test images flagged at a threshold that no test",
        "image chose: the 95 % quantile of the scores of clean reference images.",
    )  # fmt: skip


def tables(summaries: Mapping[str, BackdoorSummary], *, defense: str = "fine-tuning") -> str:
    """Format all tables of an experiment, each under its title; empty ones are left out.

    Notes that several tables share are printed once. ``summaries`` is by the model's name;
    ``defense`` is the one in Tables 2 and 3.
    """
    parts = [("Table 1: backdoor attacks", table_1(summaries))]
    if any(_strategies(summary) for summary in summaries.values()):
        parts.append(("Table 2: bands of attack success", table_2(summaries, defense=defense)))
    if any(row.defense for summary in summaries.values() for row in summary.rows):
        parts.append((f"Table 3: before and after {defense}", table_3(summaries, defense=defense)))
        parts += [
            (f"All defenses: {name}", defenses_table(summary))
            for name, summary in summaries.items()
        ]
    parts += [
        (f"Detectors: {name}", detections_table(summary))
        for name, summary in summaries.items()
        if summary.detections
    ]
    printed: set[str] = set()
    shown = []
    for title, text in parts:
        body, notes = text.split("\n\n")
        new = [note for note in notes.split("\n") if note not in printed]
        printed.update(new)
        shown.append("\n".join([title, "", body, *new]))
    return "\n\n".join(shown)


def _text(lines: Sequence[Sequence[str]], *notes: str) -> str:
    """Format a table and, after an empty line, its notes."""
    return "\n".join([*aligned(lines, 2), "", *notes])


def _entries(
    summaries: Mapping[str, BackdoorSummary], defense: str | None
) -> Iterator[tuple[str, BackdoorMetrics]]:
    """Yield the clean model's entry and those of the strategies, model by model."""
    for name, summary in summaries.items():
        for entry in summary.rows:
            in_paper = entry.strategy is None or entry.model == BACKDOORED
            if in_paper and entry.defense == defense:
                yield name, entry


def _strategies(summary: BackdoorSummary) -> list[str]:
    rows = summary.rows
    return list(dict.fromkeys(str(row.strategy) for row in rows if row.model == BACKDOORED))


def _find(
    summary: BackdoorSummary, strategy: str | None, defense: str | None, model: str = BACKDOORED
) -> BackdoorMetrics | None:
    wanted = (strategy, model, defense)
    for entry in summary.rows:
        if (entry.strategy, entry.model, entry.defense) == wanted:
            return entry
    return None


def _name(entry: BackdoorMetrics) -> str:
    return "clean" if entry.model == CLEAN_MODEL else str(entry.strategy)


def _accuracy(entry: BackdoorMetrics | None) -> str:
    """Format rho_Acc on images without trigger; "-" if it is missing."""
    return _share(entry.clean.accuracy if entry and entry.clean else None)


def _success(entry: BackdoorMetrics | None) -> str:
    """Format rho_Asr; "/" without a strategy, "-" if it is missing."""
    if entry and entry.raises is None:
        return "/"
    return _share(entry.triggered.success if entry and entry.triggered else None)


def _target_success(entry: BackdoorMetrics) -> str:
    """Format the share counted within a tenth of the target, as ``_success`` does rho_Asr."""
    if entry.raises is None:
        return "/"
    return _share(entry.triggered.target_success if entry.triggered else None)


def _levels(entry: BackdoorMetrics) -> list[str]:
    if entry.raises is None:
        return ["/", "/"]
    return [_share(entry.chance_clean_model), _share(entry.chance_no_trigger)]


def _errors(entry: BackdoorMetrics) -> list[str]:
    row = entry.clean
    return [f"{row.mae:,.1f}", f"{row.rmse:,.1f}"] if row else ["-", "-"]


def _share(rate: Share | None) -> str:
    if rate is None or rate.value is None:
        return "-"
    return f"{rate.value:.3f} [{_short(rate.low)} {_short(rate.high)}]"


def _above(entry: BackdoorMetrics, over: Difference | None) -> str:
    """Format attack success above one of the chance levels: the entry's ``excess`` or ``left``."""
    if entry.raises is None or over is None:
        return "/" if entry.raises is None else "-"
    return f"{over.value:+.3f} [{_short(over.low)} {_short(over.high)}]"


def _short(value: float) -> str:
    """Format two digits without the leading zero: .35, -.02, 1.0."""
    text = f"{value:.2f}"
    if text.lstrip("-") == "1.00":
        return text[:-1]
    return text.replace("0.", ".", 1) if text != "-0.00" else ".00"


def _published(head: Sequence[str], values: Mapping[int, float | None]) -> list[str]:
    line = ["", _LABEL, *[""] * (len(head) - 2)]
    for place, value in values.items():
        line[place] = "/" if value is None else f"{value:.3f}"
    return line


def _certificates(entry: BackdoorMetrics) -> list[str]:
    """Format the certified intervals of clean and of triggered images, one line each."""
    lines = []
    for images, row in (entry.certified or {}).items():
        width = row.width
        bounded = "no bounded interval" if width is None else f"mean width {width:,.1f}"
        lines.append(
            f"certified: {_name(entry)}, {entry.defense or 'none'}, {images} images: {bounded}, "
            f"{row.unbounded} unbounded; whole interval within a tenth of the truth: "
            f"{_share(row.accuracy)}"
        )
    return lines


def _remarks(summaries: Mapping[str, BackdoorSummary], lines: Sequence[Sequence[str]]) -> list[str]:
    """Return the numbers of images, what no share covers, and notes on the published values."""
    remarks = []
    for name, summary in summaries.items():
        rows = [row for entry in summary.rows for row in (entry.clean, entry.triggered) if row]
        images = sorted({row.images for row in rows})
        if not images:
            continue
        text = f"{name}: {' or '.join(map(str, images))} images"
        headless = max(row.without_heads for row in rows)
        if headless:
            most = max(row.headless_count or 0.0 for row in rows)
            text += (
                f"; {headless} without heads, in errors but in no share (mean count at most "
                f"{most:,.1f})"
            )
        negative = max(row.negative for row in rows)
        if negative:
            text += f"; up to {negative} counts below 0, treated as lowered to 0"
        remarks.append(text)
    if any(line[1] == _LABEL for line in lines):
        for name in summaries:
            remarks += disagreement_note(name) if name in PUBLISHED_1 else []
    return remarks


def disagreement_note(model: str) -> list[str]:
    """Describe where the paper contradicts itself on a model, in lines of a note."""
    note = f"published of {model}, the paper's tables disagree: {'; '.join(disagreements(model))}."
    return textwrap.wrap(note, 95, break_on_hyphens=False)
