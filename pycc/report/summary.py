"""The summary of an attack run and its table: functions of the results alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pycc import metrics
from pycc.runs import Record

Row = dict[str, Any]

_KEY = ("victim", "patch_size", "surrogates", "condition")


def summarise(records: Sequence[Record]) -> dict[str, Any]:
    """One row for each condition, patch size, surrogates and victim.

    Order of rows: victim by victim no patch and PGD, then size by size (in the order in which they
    were asked for) the baselines and the attacks. Errors are in people, shares in per cent; with
    several seeds, means over them. ``mae_low`` and ``mae_high`` bound the MAE in 95 % of bootstrap
    samples of the images. ``gain_over_noise`` is the MAE less that of noise of the same size and
    place. Values that are undefined are None, errors against the heads of images without annotation
    among them. Rows of images that come in groups hold ``mae_by_group`` and the groups' mean,
    ``mae_over_groups``.

    >>> common = {"index": 0, "truth": 100, "surrogates": None, "victim": None}
    >>> clean = {**common, "condition": "clean", "patch_size": None, "count": 90.0, "area": 0.0}
    >>> noise = {**common, "condition": "noise", "patch_size": 20, "count": 95.0, "area": 0.01}
    >>> rows = summarise([clean, noise])["rows"]
    >>> [(row["condition"], row["mae"]) for row in rows]
    [('clean', 10.0), ('noise', 5.0)]
    """
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in sorted(records, key=lambda r: (int(r["index"]), r.get("seed", 0))):
        groups.setdefault(tuple(record.get(name) for name in _KEY), []).append(record)
    victims, sizes, surrogates, conditions = (
        list(dict.fromkeys(record.get(name) for record in records)) for name in _KEY
    )
    sizes = [None, *(size for size in sizes if size is not None)]
    # Baselines come first, in the order in which they were measured.
    surrogates.sort(key=lambda label: label is not None)
    fixed = [
        c
        for c in conditions
        if not any("loss_history" in r for r in records if r["condition"] == c)
    ]
    conditions = fixed + [c for c in conditions if c not in fixed]
    rows: list[Row] = []
    for victim in victims:
        clean = {r["index"]: r["count"] for r in groups.get((victim, None, None, "clean"), [])}
        for size in sizes:
            noise = groups.get((victim, size, None, "noise"))
            level = None if noise is None else _row(noise, clean)["mae"]
            for condition in conditions:
                for label in surrogates:
                    group = groups.get((victim, size, label, condition))
                    if group:
                        row = _row(group, clean)
                        mae = row["mae"]
                        row["gain_over_noise"] = None if None in (mae, level) else mae - level
                        rows.append(row)
    images = len({r["index"] for r in records if r["condition"] == "clean"})
    return {"images": images, "rows": rows}


def _row(group: Sequence[Record], clean: dict[int, float]) -> Row:
    first = group[0]
    by_seed: dict[int, list[Record]] = {}
    for record in group:
        by_seed.setdefault(record.get("seed", 0), []).append(record)
    measured = [_measures(records, clean) for records in by_seed.values()]
    rates = [m["error_rate"] for m in measured if m["error_rate"] is not None]
    return {
        **{name: first.get(name) for name in _KEY},
        "images": len({record["index"] for record in group}),
        "seeds": len(by_seed),
        **_errors(group, list(by_seed.values())),
        "mean_count": float(np.mean([m["mean_count"] for m in measured])),
        "error_rate": float(np.mean(rates)) if rates else None,
        "error_rate_undefined": max(m["error_rate_undefined"] for m in measured),
        "area": 100 * sum(record["area"] for record in group) / len(group),
    }


def _errors(group: Sequence[Record], by_seed: Sequence[Sequence[Record]]) -> Row:
    """Errors in people against the annotated heads; None for images without annotation."""
    names = ("mae", "rmse", "bias", "mae_by_seed", "mae_low", "mae_high")
    if any(record["truth"] is None for record in group):
        return dict.fromkeys(names)
    pairs = [([r["truth"] for r in rs], [r["count"] for r in rs]) for rs in by_seed]
    by_image: dict[int, list[float]] = {}
    for record in group:
        error = abs(record["count"] - record["truth"])
        by_image.setdefault(record["index"], []).append(error)
    low, high = metrics.bootstrap([float(np.mean(values)) for values in by_image.values()])
    found: Row = {
        measure.__name__: float(np.mean([measure(truth, count) for truth, count in pairs]))
        for measure in (metrics.mae, metrics.rmse, metrics.bias)
    }
    found |= {
        "mae_by_seed": [metrics.mae(truth, count) for truth, count in pairs],
        "mae_low": low,
        "mae_high": high,
    }
    groups = [record["group"] for record in group if "group" in record]
    if groups:
        truth, counts = ([record[name] for record in group] for name in ("truth", "count"))
        means = metrics.mae_by_group(truth, counts, groups)
        found |= {"mae_by_group": means, "mae_over_groups": float(np.mean([*means.values()]))}
    return found


def _measures(group: Sequence[Record], clean: dict[int, float]) -> Row:
    count = [record["count"] for record in group]
    rate = metrics.error_rate([clean[record["index"]] for record in group], count)
    return {
        "mean_count": metrics.mean_count(count),
        "error_rate": rate.percent,
        "error_rate_undefined": rate.undefined,
    }


_COLUMNS = (
    ("MAE", "mae", 1),
    ("RMSE", "rmse", 1),
    ("bias", "bias", 1),
    ("mean count", "mean_count", 1),
    ("error rate %", "error_rate", 1),
    ("gain over noise", "gain_over_noise", 1),
    ("area %", "area", 3),
)


def table(
    summary: Mapping[str, Any],
    *,
    published: Mapping[int, tuple[float, float]] | None = None,
) -> str:
    """The rows of a summary as aligned text, with what needs saying about them below.

    ``published`` holds MAE and RMSE by size in pixels (0: no patch) to stand beside the attacks.

    >>> clean = {"index": 0, "truth": 100, "count": 90.0, "area": 0.0, "condition": "clean",
    ...          "patch_size": None, "surrogates": None, "victim": None}
    >>> table(summarise([clean])).splitlines()[2].split()
    ['clean', '10.0', '10.0…10.0', '10.0', '-10.0', '90.0', '0.0', '-', '0.000']
    """
    rows = summary["rows"]
    several = [name for name in ("victim", "surrogates") if any(r[name] is not None for r in rows)]
    head = ["patch", "patch size", *several, *(title for title, _, _ in _COLUMNS)]
    head.insert(head.index("MAE") + 1, "95 %")
    if published:
        head += ["published MAE", "RMSE"]
    lines = [head]
    for row in rows:
        size = "" if row["patch_size"] is None else str(row["patch_size"])
        names = [str(row[name] or "") for name in several]
        line = [row["condition"], size, *names, *(_cell(row, *c[1:]) for c in _COLUMNS)]
        ends = _cell(row, "mae_low", 1), _cell(row, "mae_high", 1)
        line.insert(len(several) + 3, "-" if row["mae_low"] is None else "…".join(ends))
        if published:
            line += _beside(row, published)
        lines.append(line)
    left = 2 + len(several)
    text = aligned(lines, left)
    seeds = max((row["seeds"] for row in rows), default=1)
    text.append(
        f"images: {summary['images']}; seeds: {seeds}; errors in people, with bootstrap intervals "
        "over the images; error rate against the clean prediction"
    )
    if published:
        text.append("published: APAM (arXiv 2104.10868), Table 1, white-box, target 10 x GT")
    if any(row["mae"] is None for row in rows):
        text.append("images without annotation: errors against their heads are unknown")
    for row in rows:
        if row["condition"] == "clean" and "mae_by_group" in row:
            found = ", ".join(f"{name} {mae:,.1f}" for name, mae in row["mae_by_group"].items())
            by = " ".join(str(row[name]) for name in several if row[name] is not None)
            text.append(
                f"MAE by group{by and f', {by}'}: {found}; mean {row['mae_over_groups']:,.1f}"
            )
    undefined = max((row["error_rate_undefined"] for row in rows), default=0)
    if undefined:
        images = "1 image" if undefined == 1 else f"{undefined} images"
        text.append(f"error rate undefined on {images}: the clean prediction is 0")
    return "\n".join(text)


def people(value: float | None) -> str:
    """A number of people, or a dash where it is unknown."""
    return "-" if value is None else f"{value:,.1f}"


def aligned(lines: Sequence[Sequence[str]], left: int) -> list[str]:
    """Columns, the first ``left`` of them to the left, and a rule below the head."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = []
    for number, line in enumerate(lines):
        cells = [
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        text.append("  ".join(cells).rstrip())
        if number == 0:
            text.append("-" * len(text[0]))
    return text


def _beside(row: Row, published: Mapping[int, tuple[float, float]]) -> list[str]:
    size = 0 if row["condition"] == "clean" else row["patch_size"]
    optimised = row["condition"] == "clean" or row.get("surrogates") is None
    fixed = row["condition"] in ("grey", "black", "noise", "crowd", "pgd")
    found = published.get(size) if optimised and not fixed and isinstance(size, int) else None
    return ["", ""] if found is None else [f"{value:,.1f}" for value in found]


def checks_table(outcomes: Sequence[Mapping[str, str]]) -> str:
    """The checks of a run as aligned text: verdict, name, figure.

    >>> check = {"verdict": "pass", "name": "gradient", "figure": "error 1e-6"}
    >>> print(checks_table([check]))
    check            figure
    -----------------------
    pass   gradient  error 1e-6
    """
    lines = [[check["verdict"], check["name"], check["figure"]] for check in outcomes]
    return "\n".join(aligned([["check", "", "figure"], *lines], 3))


def _cell(row: Row, field: str, digits: int) -> str:
    value = row[field]
    return "-" if value is None else f"{value:,.{digits}f}"
