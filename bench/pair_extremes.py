"""Pairs of windows of the completion certificate, against its twin in torch."""

from __future__ import annotations

import torch
from timer import Row, check, seconds

from pycc.defense.min_max import WindowGrid, plan_of
from pycc.ops import WindowPairs, pair_extremes, pair_extremes_reference
from pycc.random import Stream

SHAPE, REACH = (192, 256), 36
"""Cells of an image of 768x1024 pixels at stride 4, and of a patch of 81 pixels."""
PEOPLE = 2**32
"""Whole units per person."""


def rows() -> list[Row]:
    plan = plan_of(WindowGrid.of(REACH), SHAPE)
    stream = Stream(0, "bench")
    cells = torch.from_numpy(stream.integers(PEOPLE // 100, SHAPE)).long()
    starts, columns = plan.rows.starts, plan.columns.starts
    spans = len(starts), len(plan.rows.spans), len(columns), len(plan.columns.spans)
    pairs = WindowPairs(
        torch.nn.functional.pad(cells.cumsum(0).cumsum(1), (1, 0, 1, 0)),
        torch.from_numpy(stream.integers(20 * PEOPLE, spans)).long(),
        starts, columns, plan.rows.span_of, plan.columns.span_of,
        (plan.rows.length, plan.columns.length),
    )  # fmt: skip
    for got, wanted in zip(pair_extremes(pairs), pair_extremes_reference(pairs), strict=True):
        check(got, wanted, 0.0)
    near = int((pairs.row_spans >= 0).sum()) * int((pairs.column_spans >= 0).sum())
    return [
        Row(
            f"{near / 1e6:.1f} million pairs of near windows, map of {SHAPE[0]}x{SHAPE[1]}",
            "pair_extremes", seconds(lambda: pair_extremes(pairs)),
            "twin", seconds(lambda: pair_extremes_reference(pairs)), 10,
        )
    ]  # fmt: skip
