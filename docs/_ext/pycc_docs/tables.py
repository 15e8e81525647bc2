"""Markdown tables made from committed results: those of ``docs/results`` and ``bench/results``.

A file of ``docs/results`` holds ``{"title", "commands", "columns", "rows"}``. A column has a name
and a format, by default that of its kind; a cell is a number, a text, null for an empty one, or a
list of the values that the format takes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
RESULTS, BENCHMARKS = ROOT / "docs" / "results", ROOT / "bench" / "results"
MARK = re.compile(r"<!-- table: ([\w-]+) -->\n(.*?)\n<!-- end of table -->", re.DOTALL)
"""A table in the README, which is shown without Sphinx: its name, and its lines."""


def read(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    """The content of a file of results; ValueError for an unknown name, with the known ones."""
    file = folder / f"{name}.json"
    if not file.exists():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.json")))
        raise ValueError(f"no results {name!r} in {folder.name}; known: {known}")
    content: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return content


def rows_of(content: dict[str, Any]) -> list[list[str]]:
    """The cells of each row as they are printed."""
    formats = [column.get("format") for column in content["columns"]]
    return [
        [_cell(value, layout) for value, layout in zip(row, formats, strict=True)]
        for row in content["rows"]
    ]


def results_table(name: str) -> str:
    """The table of ``docs/results/NAME.json`` in Markdown."""
    content = read(name)
    return markdown([column["name"] for column in content["columns"]], rows_of(content))


def benchmark_table(name: str) -> str:
    """The table of ``bench/results/NAME.json`` in Markdown."""
    content = read(name, BENCHMARKS)
    if "image" in content:
        return _steps_table(content["rows"])
    titles = ["subject", "what is timed", "its time", "against", "time", "ratio", "target"]
    rows = []
    for row in content["rows"]:
        limit = row.get("limit", False)
        sign = "≤" if limit else "≥"
        target = "" if row.get("target") is None else f"{sign} {row['target']:,g}"
        note = f" ({row['note']})" if row.get("note") else ""
        against = f"limit: {row['baseline']}" if limit else row["baseline"]
        rows.append([
            row["subject"], row["kernel"], duration(row["kernel_seconds"]), against + note,
            duration(row["baseline_seconds"]), f"{row['ratio']:,.2f}", target,
        ])  # fmt: skip
    return markdown(titles, rows)


def _steps_table(rows: Sequence[dict[str, Any]]) -> str:
    """One attack step of each counter."""
    cells = []
    for row in rows:
        options = ", ".join(f"{name}={value}" for name, value in row["options"].items())
        cells.append([
            f"`{row['model']}`" + (f", {options}" if options else ""),
            f"{row['parameters']:,}",
            {None: "the whole image", 0: "what changes"}.get(
                row["whole_layers"], "what changes, then whole layers"
            ),
            duration(row["seconds_a_step"]), f"{row['whole_image']:.2f} x",
            f"{row['megabytes']:,.0f} MB",
        ])  # fmt: skip
    return markdown(
        ["counter", "parameters", "computes", "a step", "whole image", "memory of it"], cells
    )


def machine(name: str) -> str:
    """One sentence: where and with what ``bench/results/NAME.json`` was measured."""
    content = read(name, BENCHMARKS)
    cores = f"{content['machine']['cores']} cores"
    threads = f", {content['threads']} threads" if "threads" in content else ""
    torch = content.get("versions", {}).get("torch") or content.get("torch")
    gpu = content["machine"].get("gpu", "no GPU")
    return (
        f"{content['machine']['cpu']}, {cores}, {gpu}{threads}; torch {torch}; commit "
        f"`{content['commit']}`."
    )


def duration(seconds: float) -> str:
    """A time in the unit that fits it."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:,.0f} µs"
    return f"{seconds * 1e3:,.2f} ms" if seconds < 1 else f"{seconds:,.2f} s"


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def filled(text: str) -> str:
    """A page with its marked tables made anew."""

    def table(match: re.Match[str]) -> str:
        name = match[1]
        return f"<!-- table: {name} -->\n{results_table(name)}\n<!-- end of table -->"

    return MARK.sub(table, text)


def _cell(value: Any, layout: str | None) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        if layout is None or all(isinstance(item, str) for item in value):
            raise ValueError(f"a list needs a format, got {value!r}")
        return layout.format(*value)
    if layout is not None:
        return layout.format(value)
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"
