"""The curves of an attack, and where in the images its patches hurt most."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pycc.report.page.attack_facts import (
    CLEAN,
    NOISE,
    AttackCount,
    AttackFacts,
    Change,
)
from pycc.report.page.attack_gallery import MOST, density_of, worst_changes
from pycc.report.page.blocks import Block, Cell, Drawing, Table, Text, number
from pycc.report.page.charts import Line, Patch, line_chart, place_map
from pycc.report.page.contents import Options
from pycc.report.page.words import number_of, size_text
from pycc.report.summary import SummaryRow

_ROWS, _COLUMNS = 12, 16
"""Cells of the map of places."""
_PLACES = 8
"""Rows of the table of places."""
_FAR = 30.0
"""Largest over least value from which on an axis is logarithmic."""


def curves(facts: AttackFacts, options: Options) -> tuple[Block, ...]:
    """The error by patch size, and the loss while the patches were optimised."""
    if not facts.optimised:
        return ()
    if options.without_curves is not None:
        return (Text((options.without_curves,)),)
    return tuple(chart for chart in (_errors(facts), _losses(facts)) if chart is not None)


def _errors(facts: AttackFacts) -> Drawing | None:
    """MAE, or the mean count without annotation, by patch size; None for one size."""
    sizes = {row.patch_size for row in facts.optimised}
    if len(sizes) < 2:
        return None
    shares = all(size is not None and size <= 1 for size in sizes)
    lines: dict[str, list[SummaryRow]] = {}
    for row in facts.summary.rows:
        if row.patch_size is not None and row.condition in (*facts.names, NOISE):
            label = facts.label(row).replace(f", {size_text(row.patch_size)}", "")
            lines.setdefault(label, []).append(row)
    drawn = [_line(label, rows, shares, facts.annotated) for label, rows in lines.items()]
    clean = facts.means(facts.optimised[0], CLEAN)
    level = None
    if clean is not None and not facts.several[0]:
        level = ("clean", clean.mae if facts.annotated and clean.mae is not None
                 else clean.mean_count)  # fmt: skip
    values = [y for line in drawn for y in line.y] + ([level[1]] if level else [])
    log = min(values) > 0 and max(values) / min(values) > _FAR
    what = "mean absolute error" if facts.annotated else "mean count"
    ends = drawn[0]
    return line_chart(
        drawn, x_label="side of the patch, % of the width" if shares
        else "side of the patch, pixels", y_label=f"{what}, people", level=level, log=log,
        label=f"{what.capitalize()} by patch size: {ends.label} from {ends.y[0]:,.1f} people at "
        f"{ends.x[0]:g} to {ends.y[-1]:,.1f} at {ends.x[-1]:g}.",
        caption=f"{what.capitalize()} by patch size"
        + (", with 95 % bootstrap intervals over the images" if facts.annotated else "")
        + (" (logarithmic scale)." if log else "."),
    )  # fmt: skip


def _line(label: str, rows: Sequence[SummaryRow], shares: bool, annotated: bool) -> Line:
    rows = sorted(rows, key=lambda row: row.patch_size or 0.0)
    x = tuple((row.patch_size or 0.0) * (100 if shares else 1) for row in rows)
    if not annotated:
        return Line(label, x, tuple(row.mean_count for row in rows))
    return Line(
        label, x, tuple(row.mae or 0.0 for row in rows),
        tuple(row.mae_low or 0.0 for row in rows), tuple(row.mae_high or 0.0 for row in rows),
    )  # fmt: skip


def _losses(facts: AttackFacts) -> Drawing | None:
    """The mean loss of each attack's best patch so far, less the first."""
    lines = []
    for means in facts.optimised:
        histories = [row.loss_history for row in facts.rows_of(means) if row.loss_history]
        shortest = min((len(history) for history in histories), default=0)
        if means.victim == facts.optimised[0].victim and shortest > 1:
            mean = np.mean([history[:shortest] for history in histories], axis=0)
            steps = np.linspace(0, 100, shortest)
            lines.append(Line(facts.label(means), tuple(steps.tolist()), tuple(mean.tolist()),
                              points=False))  # fmt: skip
    if not lines:
        return None
    first = lines[-1]
    return line_chart(
        lines, x_label="steps, %", y_label="loss of the best patch so far", zero=False,
        label=f"Loss by step: {first.label} from {first.y[0]:,.4g} to {first.y[-1]:,.4g}.",
        caption="Loss of the objective while the patches were optimised, mean over the images: a "
        "curve that still falls at its end asks for more steps.",
    )  # fmt: skip


def places(facts: AttackFacts, options: Options) -> tuple[Block, ...]:
    """Build the maps of the patches that move counts most, and of where people appear."""
    placed = [change for change in worst_changes(facts) if change.attacked.top_left is not None]
    changes = placed[:MOST]
    if not changes:
        return ()
    table = _places_table(changes)
    if options.without_curves is not None:
        return (table,)
    heat, mapped = _heat(facts, changes)
    patches = [
        Patch(x / row.width, y / row.height, side / row.width, side / row.height)
        for row, (y, x), side in _placed(changes)
    ]
    caption = f"Outlines: where the worst patches lie in {number_of(len(changes), 'image')}"
    if heat is not None:
        caption += (
            ". Red: where they add people to the density map; blue: where they hide some (mean of "
            f"{number_of(mapped, 'image')})"
        )
    ratio = float(np.median([row.attacked.height / row.attacked.width for row in changes]))
    drawn = place_map(
        heat, patches, unit="people per image", ratio=min(2.0, max(0.4, ratio)),
        label=f"{caption}. The table below holds the largest.", caption=f"{caption}.",
    )  # fmt: skip
    return (drawn, table)


def _placed(changes: Sequence[Change]) -> list[tuple[AttackCount, tuple[int, int], int]]:
    return [
        (change.attacked, change.attacked.top_left, change.attacked.side)
        for change in changes
        if change.attacked.top_left is not None and change.attacked.side is not None
    ]


def _places_table(changes: Sequence[Change]) -> Table:
    rows = []
    for change in changes[:_PLACES]:
        row = change.attacked
        y, x = row.top_left or (0, 0)
        centre = (x + (row.side or 0) / 2) / row.width, (y + (row.side or 0) / 2) / row.height
        rows.append((
            Cell(row.image), Cell(size_text(row.patch_size)), Cell(f"{x}, {y}"),
            Cell(_third(*centre)), number(change.people, signed=True),
            number(change.percent, signed=True, unit=" %"),
        ))  # fmt: skip
    notes = ("Place: pixels from the left and the top to the patch's upper left corner.",)
    head = ("image", "patch", "place x, y", "part of the image", "shift, people", "shift")
    return Table("Places of the largest shifts", head, tuple(rows), notes)


def _third(x: float, y: float) -> str:
    """The part of the image that a point lies in, in words."""
    down = ("top", "middle", "bottom")[min(2, int(3 * y))]
    across = ("left", "centre", "right")[min(2, int(3 * x))]
    return "centre" if (down, across) == ("middle", "centre") else f"{down} {across}"


def _heat(facts: AttackFacts, changes: Sequence[Change]) -> tuple[NDArray[np.float64] | None, int]:
    """People that the patches add [rows,columns], mean over the images, and their number."""
    total, images = np.zeros((_ROWS, _COLUMNS)), 0
    for change in changes:
        before, after = (density_of(facts, row) for row in (change.clean, change.attacked))
        if before is None or after is None or before.shape != after.shape:
            continue
        y, x = (
            ((np.arange(length) + 0.5) / length * cells).astype(int)
            for length, cells in zip(before.shape, (_ROWS, _COLUMNS), strict=True)
        )
        np.add.at(total, (y[:, None], x[None, :]), (after - before).astype(np.float64))
        images += 1
    return (total / images, images) if images else (None, 0)
