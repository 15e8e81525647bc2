"""The summary of an attack run and its table: functions of the results alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pycc import metrics
from pycc.run import Record

Row = dict[str, Any]


def summarise(records: Sequence[Record]) -> dict[str, Any]:
    """One row for each condition and size over the images that have a result for it.

    Order of rows: no patch, then size by size (in the order in which they were asked for) the
    baselines and the attack. Errors are in people, shares in per cent; ``gain_over_noise`` is the
    MAE less that of noise of the same size and place. Values that are undefined are None.
    """
    groups: dict[tuple[Any, str], list[Record]] = {}
    for record in sorted(records, key=lambda r: int(r["index"])):
        groups.setdefault((record["size"], record["condition"]), []).append(record)
    sizes = list(dict.fromkeys(size for record in records if (size := record["size"]) is not None))
    conditions = list(dict.fromkeys(record["condition"] for record in records))
    order = [(size, name) for size in (None, *sizes) for name in conditions]
    clean = {r["index"]: r["count"] for r in groups.get((None, "none"), [])}
    rows = {key: _row(*key, groups[key], clean) for key in order if key in groups}
    for (size, _), row in rows.items():
        noise = rows.get((size, "noise"))
        row["gain_over_noise"] = None if noise is None else row["mae"] - noise["mae"]
    return {"images": len(clean), "rows": list(rows.values())}


def _row(size: Any, condition: str, group: Sequence[Record], clean: dict[int, float]) -> Row:
    truth = [record["truth"] for record in group]
    count = [record["count"] for record in group]
    rate = metrics.error_rate([clean[record["index"]] for record in group], count)
    return {
        "condition": condition,
        "size": size,
        "images": len(group),
        "mae": metrics.mae(truth, count),
        "rmse": metrics.rmse(truth, count),
        "bias": metrics.bias(truth, count),
        "mean_count": metrics.mean_count(count),
        "error_rate": rate.percent,
        "error_rate_undefined": rate.undefined,
        "area": 100 * sum(record["area"] for record in group) / len(group),
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


def table(summary: dict[str, Any]) -> str:
    """The rows of a summary as aligned text, with what needs saying about them below."""
    head = ["patch", "size", *(title for title, _, _ in _COLUMNS)]
    lines = [head]
    for row in summary["rows"]:
        size = "" if row["size"] is None else str(row["size"])
        lines.append([row["condition"], size, *(_cell(row, *c[1:]) for c in _COLUMNS)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = []
    for number, line in enumerate(lines):
        left = [line[0].ljust(widths[0])]
        right = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        text.append("  ".join(left + right).rstrip())
        if number == 0:
            text.append("-" * len(text[0]))
    text.append(
        f"images: {summary['images']}; errors in people; error rate against the clean prediction"
    )
    undefined = max((row["error_rate_undefined"] for row in summary["rows"]), default=0)
    if undefined:
        images = "1 image" if undefined == 1 else f"{undefined} images"
        text.append(f"error rate undefined on {images}: the clean prediction is 0")
    return "\n".join(text)


def _cell(row: Row, field: str, digits: int) -> str:
    value = row[field]
    return "-" if value is None else f"{value:,.{digits}f}"
