"""A backdoor experiment as text tables in the shape of its paper's.

"Vulnerability and Defense: Mitigating Backdoor Attacks in Deep Learning-Based Crowd Counting
Models" (Luo), Tables 1 to 3, each with what the paper's lack: chance levels and intervals. The
tables take summaries as ``pycc.backdoor.summarise`` makes them; the pictures are those of
``pycc.report.backdoor_pictures``.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pycc.metrics.rates import BANDS
from pycc.report.backdoor_published import PUBLISHED_1, PUBLISHED_2, PUBLISHED_3, disagreements
from pycc.report.summary import aligned

Summary = Mapping[str, Any]
_Entry = Mapping[str, Any]

_LABEL = "  published, ShanghaiTech B, blend 0.1"
"""Of a line that says what the paper measured, whatever was measured here."""
_CHANCE = ("chance: clean model", "chance: no trigger")
_NOTES = (
    "rho_Acc: images without trigger counted within a tenth of the truth; rho_Asr: triggered",
    "images counted a tenth or more off on the attack's side. Both are of images with heads, with",
    "Wilson's 95 % interval.",
    "chance: rho_Asr of the clean model on the same triggered images, and of the row's own model",
    "on images without trigger.",
)
_EXCESS = (
    "excess: rho_Asr less the larger chance level, with the lesser ends of the 95 % intervals of",
    "both differences (Newcombe's, for pairs).",
)
_LEFT = (
    "left: rho_Asr less the lesser chance level, with the larger ends: what a defense must bring",
    "down. A counter that counts nobody has nothing left of an attack that raises counts: only",
    "beside a rho_Acc near the clean model's does it say that a backdoor is removed.",
)
_TARGET = (
    "as target: triggered images counted within a tenth of what the attack made of their truth.",
)


def table_1(summaries: Mapping[str, Summary]) -> str:
    """The clean and the backdoored models, before any defense: errors, accuracy, attack success.

    ``summaries`` by the model's name, as in ``pycc.models``; published values stand below a row
    where the paper has them. "as target" is the share of triggered images counted within a tenth of
    the altered target.
    """
    head = ["model", "strategy", "MAE", "RMSE", "rho_Acc", "rho_Asr", *_CHANCE, "excess",
            "as target"]  # fmt: skip
    lines = [head]
    for model, entry in _entries(summaries, None):
        lines.append([
            model, _name(entry), *_errors(entry), _of(entry, "clean", "accuracy"),
            _of(entry, "triggered", "success"), *_levels(entry), _above(entry, "excess"),
            _of(entry, "triggered", "target_success"),
        ])  # fmt: skip
        published = PUBLISHED_1.get(model, {}).get(_name(entry))
        if published:
            lines.append(_published(head, {4: published[0], 5: published[1]}))
    return _text(lines, *_NOTES, *_EXCESS, *_TARGET, *_remarks(summaries, lines))


def table_2(summaries: Mapping[str, Summary], *, defense: str = "fine-tuning") -> str:
    """Each strategy before and after one defense: accuracy, and the bands of attack success.

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
                row = entry["triggered"]
                bands = row["bands"] if row else [None] * len(BANDS)
                cells = ["/" if row and one is None else _share(one) for one in bands]
                name = strategy if applied is None else f"{strategy}, {defense}"
                lines.append([
                    model, name, _of(entry, "clean", "accuracy"), *cells,
                    _of(entry, "triggered", "success"), *_levels(entry),
                ])  # fmt: skip
                published = None
                if defense == "fine-tuning":
                    published = PUBLISHED_2.get(model, {}).get((strategy, applied is not None))
                if published:
                    lines.append(_published(head, dict(enumerate(published, start=2))))
    return _text(lines, *_NOTES, *_remarks(summaries, lines))


def table_3(summaries: Mapping[str, Summary], *, defense: str = "fine-tuning") -> str:
    """Accuracy and attack success before and after one defense, a line a strategy.

    Arguments as for :func:`table_1`.
    """
    after = "after"
    head = ["model", "strategy", "rho_Acc", after, "rho_Asr", after, _CHANCE[0], _CHANCE[1], after]
    lines = [head]
    for model, before in _entries(summaries, None):
        found = _find(summaries[model], before["strategy"], defense, before["model"])
        defended: _Entry = found or {"clean": None, "triggered": None}
        chance = _share(found["chance_no_trigger"]) if found else "-"
        lines.append([
            model, _name(before),
            *(_of(entry, "clean", "accuracy") for entry in (before, defended)),
            *(_of(entry, "triggered", "success") for entry in (before, defended)),
            *_levels(before), chance if before["raises"] is not None else "/",
        ])  # fmt: skip
        published = PUBLISHED_3.get(model, {}).get(_name(before))
        if published and defense == "fine-tuning":
            lines.append(_published(head, dict(enumerate(published, start=2))))
    return _text(lines, f"after: {defense}.", *_NOTES, *_remarks(summaries, lines))


def defenses_table(summary: Summary) -> str:
    """One model under every defense that was tried, strategy by strategy, undefended first.

    "excess" is rho_Asr less the larger of the two chance levels, "left" less the lesser one; "MAE"
    and "RMSE" are of images without trigger.
    """
    lines = [["strategy", "defense", "rho_Acc", "rho_Asr", *_CHANCE, "excess", "left", "MAE",
              "RMSE"]]  # fmt: skip
    certified = []
    for entry in summary["rows"]:
        lines.append([
            _name(entry), entry["defense"] or "none", _of(entry, "clean", "accuracy"),
            _of(entry, "triggered", "success"), *_levels(entry), _above(entry, "excess"),
            _above(entry, "left"), *_errors(entry),
        ])  # fmt: skip
        certified += _certificates(entry)
    return _text(lines, *certified, *_NOTES, *_EXCESS, *_LEFT)


def detections_table(summary: Summary) -> str:
    """What detectors of triggered images are worth: a line for each strategy and detector."""
    lines = [["strategy", "detector", "AUC", "false alarms", "found"]]
    lines += [
        [one["strategy"] or "clean", one["defense"] or "-", f"{one['auc']:.3f}",
         _share(one["false_alarms"]), _share(one["detected"])]
        for one in summary["detections"]
    ]  # fmt: skip
    return _text(
        lines, "chance: an AUC of 0.5, and as many found as false alarms.",
        "false alarms, found: clean and triggered test images flagged at a threshold that no test",
        "image chose: the 95 % quantile of the scores of clean reference images.",
    )  # fmt: skip


def tables(summaries: Mapping[str, Summary], *, defense: str = "fine-tuning") -> str:
    """All tables of an experiment, each under its title; those without a line are left out.

    What several have to say below is said once.

    ``summaries`` by the model's name; ``defense`` is the one that Tables 2 and 3 show.
    """
    parts = [("Table 1: backdoor attacks", table_1(summaries))]
    if any(_strategies(summary) for summary in summaries.values()):
        parts.append(("Table 2: bands of attack success", table_2(summaries, defense=defense)))
    if any(one["defense"] for summary in summaries.values() for one in summary["rows"]):
        parts.append((f"Table 3: before and after {defense}", table_3(summaries, defense=defense)))
        parts += [
            (f"All defenses: {name}", defenses_table(summary))
            for name, summary in summaries.items()
        ]
    parts += [
        (f"Detectors: {name}", detections_table(summary))
        for name, summary in summaries.items()
        if summary["detections"]
    ]
    told: set[str] = set()
    shown = []
    for title, text in parts:
        body, notes = text.split("\n\n")
        new = [note for note in notes.split("\n") if note not in told]
        told.update(new)
        shown.append("\n".join([title, "", body, *new]))
    return "\n\n".join(shown)


def _text(lines: Sequence[Sequence[str]], *notes: str) -> str:
    """A table and, after an empty line, what needs saying about it."""
    return "\n".join([*aligned(lines, 2), "", *notes])


def _entries(summaries: Mapping[str, Summary], defense: str | None) -> Iterator[tuple[str, _Entry]]:
    """The clean model's line and those of the strategies, model by model."""
    for name, summary in summaries.items():
        for entry in summary["rows"]:
            own = entry["strategy"] is None or entry["model"] == "backdoored"
            if own and entry["defense"] == defense:
                yield name, entry


def _strategies(summary: Summary) -> list[str]:
    rows = summary["rows"]
    return list(dict.fromkeys(one["strategy"] for one in rows if one["model"] == "backdoored"))


def _find(
    summary: Summary, strategy: str | None, defense: str | None, model: str = "backdoored"
) -> _Entry | None:
    wanted = (strategy, model, defense)
    for entry in summary["rows"]:
        if (entry["strategy"], entry["model"], entry["defense"]) == wanted:
            found: _Entry = entry
            return found
    return None


def _name(entry: _Entry) -> str:
    return "clean" if entry["model"] == "clean" else str(entry["strategy"])


def _of(entry: _Entry, images: str, field: str) -> str:
    """A share of one of the entry's rows; "/" where it has no meaning, "-" where it is missing."""
    if images == "triggered" and entry.get("raises", True) is None:
        return "/"
    row = entry[images]
    return _share(row[field] if row else None)


def _levels(entry: _Entry) -> list[str]:
    if entry["raises"] is None:
        return ["/", "/"]
    return [_share(entry["chance_clean_model"]), _share(entry["chance_no_trigger"])]


def _errors(entry: _Entry) -> list[str]:
    row = entry["clean"]
    return [f"{row['mae']:,.1f}", f"{row['rmse']:,.1f}"] if row else ["-", "-"]


def _share(found: Mapping[str, Any] | None) -> str:
    if found is None or found["value"] is None:
        return "-"
    return f"{found['value']:.3f} [{_short(found['low'])} {_short(found['high'])}]"


def _above(entry: _Entry, level: str) -> str:
    """Attack success above one of the chance levels: "excess" or "left"."""
    found = entry[level]
    if entry["raises"] is None or found is None:
        return "/" if entry["raises"] is None else "-"
    return f"{found['value']:+.3f} [{_short(found['low'])} {_short(found['high'])}]"


def _short(value: float) -> str:
    """Two digits without the leading zero: .35, -.02, 1.0."""
    text = f"{value:.2f}"
    if text.lstrip("-") == "1.00":
        return text[:-1]
    return text.replace("0.", ".", 1) if text != "-0.00" else ".00"


def _published(head: Sequence[str], values: Mapping[int, float | None]) -> list[str]:
    line = ["", _LABEL, *[""] * (len(head) - 2)]
    for place, value in values.items():
        line[place] = "/" if value is None else f"{value:.3f}"
    return line


def _certificates(entry: _Entry) -> list[str]:
    """What certified intervals of clean and of triggered images say, a line each."""
    said = []
    for images, found in (entry["certified"] or {}).items():
        width = found["width"]
        bounded = "no bounded interval" if width is None else f"mean width {width:,.1f}"
        said.append(
            f"certified: {_name(entry)}, {entry['defense'] or 'none'}, {images} images: {bounded}, "
            f"{found['unbounded']} unbounded; whole interval within a tenth of the truth: "
            f"{_share(found['accuracy'])}"
        )
    return said


def _remarks(summaries: Mapping[str, Summary], lines: Sequence[Sequence[str]]) -> list[str]:
    """How many images, what no share covers, and what to know of the published values."""
    found = []
    for name, summary in summaries.items():
        rows = [one[k] for one in summary["rows"] for k in ("clean", "triggered") if one[k]]
        images = sorted({row["images"] for row in rows})
        if not images:
            continue
        text = f"{name}: {' or '.join(map(str, images))} images"
        headless = max(row["without_heads"] for row in rows)
        if headless:
            most = max(row["headless_count"] or 0.0 for row in rows)
            text += (
                f"; {headless} without heads, in errors but in no share (mean count at most "
                f"{most:,.1f})"
            )
        negative = max(row["negative"] for row in rows)
        if negative:
            text += f"; up to {negative} counts below 0, taken as lowered to nobody"
        found.append(text)
    if any(line[1] == _LABEL for line in lines):
        for name in summaries:
            found += _disagreement(name) if name in PUBLISHED_1 else []
    return found


def _disagreement(model: str) -> list[str]:
    """Where the paper contradicts itself on a model, in lines of a note."""
    said = f"published of {model}, the paper's tables disagree: {'; '.join(disagreements(model))}."
    return textwrap.wrap(said, 95, break_on_hyphens=False)
