"""Certificates as a table, curves and images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pycc.report.summary import aligned, people

_REASONS = 3
"""Number of reasons for unbounded or vacuous intervals per row of the table, most common first."""


def certificates_table(summary: Mapping[str, Any], seconds: Mapping[tuple[str, int], float]) -> str:
    """Format clean, certified and attacked error, width and time, by patch and method.

    ``seconds`` are per image, by method and patch. They are not part of the summary, which must not
    depend on time.
    """
    lines = [
        ["patch", "method", "clean MAE", "certified MAE", "attacked MAE", "mean width", "vacuous",
         "s per image"],
        ["clean", "", people(summary["undefended_mae"]), "", "", "", "", ""],
    ]  # fmt: skip
    attacked = {(r["method"], r["patch_size"]): r for r in summary.get("attacks", ())}
    for row in summary["rows"]:
        attack = attacked.get((row["method"], row["patch_size"]))
        certified = people(row["certified_mae"])
        lines.append([
            str(row["patch_size"]),
            row["method"],
            people(row["clean_mae"]),
            f"unbounded on {row['unbounded']}" if row["unbounded"] else certified,
            people(None if attack is None else attack["attacked_mae"]),
            people(row["width"]),
            f"{100 * row['vacuous']:.0f} %",
            f"{seconds[row['method'], row['patch_size']]:.2f}",
        ])  # fmt: skip
    text = aligned(lines, 2)
    text.append(
        f"images: {summary['images']}; errors in people; certified: the mean distance between the "
        "truth and the farther end of the interval, for any patch at any place"
    )
    for row in summary["rows"]:
        reasons = list(row["reasons"].items())
        where = f"{row['method']}, {row['patch_size']} pixels"
        for reason, images in reasons[:_REASONS]:
            text.append(f"{where}, {images} of {row['images']} images: {reason}")
        if len(reasons) > _REASONS:
            text.append(f"{where}: {len(reasons) - _REASONS} more reasons in results.jsonl")
    if summary["undefended_mae"] is None:
        text.append("images without annotation: errors against their heads are unknown")
    for entry in summary.get("calibration", ()):
        patch = "" if entry["patch_size"] is None else f" for {entry['patch_size']} pixels"
        if entry.get("counter"):
            patch += f", counter {entry['counter'] + 1}"
        images, source = entry["images"], entry["source"]
        where = source if not images else f"{images} images of {source}"
        text.append(f"{entry['kind']}{patch}: {entry['value']:.4g} people, {where}")
    for attack in summary.get("attacks", ()):
        if attack["violations"]:
            text.append(
                f"VIOLATED: {attack['method']}, {attack['patch_size']} pixels: "
                f"{attack['violations']} attacked counts outside their intervals"
            )
    return "\n".join(text)


def draw_curve(summary: Mapping[str, Any], file: Path) -> None:
    """Draw the mean width and the certified error by patch side, one line per method.

    Only the width if images are not annotated.
    """
    from matplotlib.figure import Figure

    known = summary["undefended_mae"] is not None
    figure = Figure(figsize=(9.0 if known else 4.8, 4.0), layout="constrained")
    widths, *others = figure.subplots(1, 1 + known, squeeze=False)[0]
    for method in sorted({row["method"] for row in summary["rows"]}):
        rows = [r for r in summary["rows"] if r["method"] == method and r["width"] is not None]
        sides = [r["patch_size"] for r in rows]
        widths.plot(sides, [r["width"] for r in rows], "o-", label=method)
        bounded = [r for r in rows if r["certified_mae"] is not None]
        for errors in others:
            errors.plot(
                [r["patch_size"] for r in bounded], [r["certified_mae"] for r in bounded], "o-"
            )
    widths.set(xlabel="side of the patch, pixels", ylabel="mean width of the interval, people")
    widths.set_ylim(bottom=0)
    if widths.get_legend_handles_labels()[0]:
        widths.legend()
    for errors in others:
        errors.axhline(summary["undefended_mae"], color="0.5", linestyle=":", label="no patch")
        errors.set(xlabel="side of the patch, pixels", ylabel="certified MAE, people")
        errors.set_ylim(bottom=0)
        errors.legend()
    figure.savefig(file, dpi=120)


def draw_intervals(
    image: NDArray[np.float32],
    heat: NDArray[np.float32],
    what: str,
    title: str,
    file: Path,
    box: tuple[float, float, float, float],
) -> None:
    """Draw an image [H,W,3] in [0,1], and where a patch would change its count most.

    ``heat`` [h,w] is the number of people in the worst window that a patch could affect around each
    cell, drawn over the image; ``what`` is its label. ``box`` (x, y, width, height), in pixels,
    marks the worst window of all.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(10.0, 4.0), layout="constrained")
    plain, hot = figure.subplots(1, 2)
    height, width = image.shape[:2]
    plain.imshow(image)
    hot.imshow(image.mean(2), cmap="gray")
    shown = hot.imshow(heat, cmap="inferno", alpha=0.6, extent=(0, width, height, 0))
    figure.colorbar(shown, ax=hot, label=what)
    hot.add_patch(Rectangle(box[:2], box[2], box[3], fill=False, edgecolor="cyan", linewidth=1.5))
    for axes in (plain, hot):
        axes.set_axis_off()
    figure.suptitle(title)
    figure.savefig(file, dpi=100)


def widest(records: Sequence[Mapping[str, Any]], number: int) -> list[Mapping[str, Any]]:
    """Return the ``number`` records with the widest bounded intervals, of one method and patch."""
    bounded = [r for r in records if r.get("high") is not None and r["method"] != "clean"]
    return sorted(bounded, key=lambda r: r["low"] - r["high"])[:number]
