"""Windows that cover each place, entries that see nothing hidden, intervals that nothing leaves."""

from __future__ import annotations

import itertools

import pytest
import torch
from support.completions import network_of
from torch import Tensor

from pycc.defense.min_max import MinMax, Place, Plan, Table, WindowGrid, guess, min_max, plan_of
from pycc.defense.surroundings import (
    BLOCKS,
    INSIDE,
    MOST_PEOPLE,
    SOFTENING,
    SPANS,
    UNIT,
    blanked_span,
    block_edges,
    summed,
    whole_units,
)

CASES = [
    ((9, 13), WindowGrid(3, 2)),
    ((14, 6), WindowGrid(4, 1)),
    ((7, 19), WindowGrid(5, 4)),
    ((5, 4), WindowGrid(6, 2)),
]


def cells_of(shape: tuple[int, int], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3.0 * torch.rand(*shape, generator=generator) ** 4


def places_of(plan: Plan) -> list[Place]:
    return [(i, j) for i in range(len(plan.rows.starts)) for j in range(len(plan.columns.starts))]


def hidden_cells(plan: Plan, *places: Place) -> Tensor:
    hidden = torch.zeros(plan.shape, dtype=torch.bool)
    for place in places:
        hidden[plan.inside(place)] = True
    return hidden


@pytest.mark.parametrize("reach", range(1, 7))
def test_some_window_contains_every_place(reach: int) -> None:
    for step, cells in itertools.product(range(1, 6), range(1, 18)):
        grid = WindowGrid(reach, step)
        starts = grid.starts(cells)
        assert all(0 <= start <= max(0, cells - grid.side) for start in starts)
        length = min(reach, cells)
        for first in range(cells - length + 1):
            assert any(s <= first and first + length <= s + grid.side for s in starts)


def by_definition(units: Tensor, plan: Plan, network, place: Place, other: Place | None) -> float:
    """The prediction for a window: visible blocks one by one, without prefix sums."""
    side, (top, left) = plan.grid.side, plan.corner(place)
    edges = block_edges(side)
    hidden = torch.zeros(SPANS, SPANS, dtype=torch.bool)
    hidden[INSIDE, INSIDE] = True
    if other is not None:
        down, right = (b - a for a, b in zip((top, left), plan.corner(other), strict=True))
        rows, columns = blanked_span(down, side), blanked_span(right, side)
        if rows is not None and columns is not None:
            hidden[slice(*rows), slice(*columns)] = True
    first = network.first_bias.double()
    for i, j in itertools.product(range(BLOCKS), repeat=2):
        if hidden[i // 2, j // 2]:
            continue
        block = []
        for start, number, cells in ((top, i, plan.shape[0]), (left, j, plan.shape[1])):
            ends = [min(max(start + edge, 0), cells) for edge in edges[number : number + 2]]
            block.append((*ends, max(1, edges[number + 1] - edges[number])))
        (y0, y1, high), (x0, x1, wide) = block
        people = float(units[y0:y1, x0:x1].sum()) * UNIT
        weights = network.first[i // 2 * SPANS + j // 2].double()
        inner = i % 2 * 2 + j % 2
        first = first + weights[inner] * ((people + SOFTENING) ** 0.5 - SOFTENING**0.5)
        first = first + weights[4 + inner] * ((y1 - y0) * (x1 - x0) / (high * wide))
    second = (network.second.double() @ first.relu() + network.second_bias).relu()
    return float((second @ network.third.double() + network.third_bias).clamp(min=0.0))


@pytest.mark.parametrize(("shape", "grid"), CASES)
def test_entries_and_extremes_are_those_of_the_definition(
    shape: tuple[int, int], grid: WindowGrid
) -> None:
    units, network = whole_units(cells_of(shape)), network_of(1)
    plan = plan_of(grid, shape)
    table, places = Table(units, plan, network), places_of(plan)
    rows = torch.stack([table.row(place).flatten() for place in places])
    for (a, place), (b, other) in itertools.product(enumerate(places), repeat=2):
        if (a + 3 * b) % 5:
            continue
        both, shared = hidden_cells(plan, place, other), hidden_cells(plan, other)
        own = 1.0 - float((hidden_cells(plan, place) & shared).sum()) / float(shared.sum())
        expected = float(units[~both].sum()) * UNIT
        expected += by_definition(units, plan, network, place, other)
        expected += own * by_definition(units, plan, network, other, place)
        assert int(rows[a, b]) * UNIT == pytest.approx(expected, rel=1e-5)
    alone = table.alone.flatten()
    visible = float(units[~hidden_cells(plan, places[-1])].sum()) * UNIT
    expected = visible + by_definition(units, plan, network, places[-1], None)
    assert int(alone[-1]) * UNIT == pytest.approx(expected, rel=1e-5)
    full = torch.cat([torch.cat([alone, torch.tensor([table.total])])[None],
                      torch.cat([rows, alone[:, None]], 1)])  # fmt: skip
    result = min_max(units, grid, network)
    assert result.prediction == int(full.max(1).values.min())
    assert result.low == int(full[:, :-1].min())
    assert result.high == int(full[1:].max())
    assert result.high == max(
        int(table.row(result.high_at).max()), int(table.alone[result.high_at])
    )
    column = [table.row(place)[result.low_at] for place in places]
    assert result.low == min(int(table.alone[result.low_at]), *map(int, column))
    assert entry(table, result) == result.prediction


def entry(table: Table, result: MinMax) -> int:
    if result.first is None or result.second is None:
        known = result.first or result.second
        return table.total if known is None else int(table.alone[known])
    return int(table.row(result.first)[result.second])


@pytest.mark.parametrize("seed", range(4))
def test_no_hidden_cell_moves_a_bit(seed: int) -> None:
    shape, grid = CASES[seed % 3]
    cells, network = cells_of(shape, seed), network_of(seed)
    plan = plan_of(grid, shape)
    table, places = Table(whole_units(cells), plan, network), places_of(plan)
    generator = torch.Generator().manual_seed(seed)
    other = Table(whole_units(1e3 * torch.rand(shape, generator=generator)), plan, network)
    changed = 0
    for place in places[:: 1 + len(places) // 12]:
        strange = torch.where(hidden_cells(plan, place), 40.0 * cells_of(shape, seed + 9), cells)
        attacked = Table(whole_units(strange), plan, network)
        # The row of the window, and its column in every other row.
        assert torch.equal(attacked.row(place), table.row(place))
        assert attacked.alone[place] == table.alone[place]
        for row in places[:: 1 + len(places) // 7]:
            assert attacked.row(row)[place] == table.row(row)[place]
        changed += not torch.equal(attacked.alone, table.alone)
    assert changed > 0  # the others do see it
    assert not torch.equal(other.row(places[0]), table.row(places[0]))


@pytest.mark.parametrize("seed", range(6))
def test_no_patch_leaves_the_interval(seed: int) -> None:
    """Every place of the patch, borders included, with contents of many scales."""
    shape, grid = CASES[seed % 3]
    cells, network = cells_of(shape, seed), network_of(seed, people=0.3 + seed)
    result = min_max(whole_units(cells), grid, network)
    assert result.low <= result.prediction <= result.high
    assert result.low < result.high
    generator = torch.Generator().manual_seed(seed)
    moved = set()
    for top, left in itertools.product(*(range(0, n - grid.reach + 1, 2) for n in shape)):
        attacked = cells.clone()
        part = torch.rand(grid.reach, grid.reach, generator=generator) ** 2
        scale = (0.0, 1.0, 30.0)[(top + left) // 2 % 3]
        attacked[top : top + grid.reach, left : left + grid.reach] = scale * part
        prediction = min_max(whole_units(attacked), grid, network).prediction
        assert result.low <= prediction <= result.high
        moved.add(prediction)
    assert len(moved) > 3


def test_a_guess_has_the_table_s_value_and_a_gradient() -> None:
    (shape, grid), network = CASES[0], network_of(2)
    plan = plan_of(grid, shape)
    cells = cells_of(shape).requires_grad_()
    table = Table(whole_units(cells), plan, network)
    for place, other in (((1, 1), None), ((1, 1), (2, 2)), ((0, 4), (2, 3))):
        people = guess(cells, plan, network, place, other)
        assert float(people.detach()) == pytest.approx(table.guess(place, other) * UNIT, rel=1e-5)
        (gradient,) = torch.autograd.grad(people, cells)
        hidden = hidden_cells(plan, place, *([] if other is None else [other]))
        assert float(gradient[hidden].abs().max()) < 1e-14  # of differences of sums
        assert gradient.any()
        assert float(gradient.abs().max()) <= network.slope


def test_cells_are_whole_units_whose_sums_do_not_overflow() -> None:
    cells = torch.tensor([[1.0, -2.0], [float(2**40), 2.0**-40]])
    units = whole_units(cells)
    assert units.tolist() == [[2**32, 0], [int(MOST_PEOPLE / 4 / UNIT), 0]]
    assert int(summed(units)[-1, -1]) == int(units.sum()) > 0


def test_bad_grids() -> None:
    with pytest.raises(ValueError, match="completion: step must be at least 1, got 0"):
        WindowGrid(4, 0)
