"""Bands that a patch cannot move, and sums that leave their interval only with an alarm."""

from __future__ import annotations

import itertools

import pytest
import torch
from support.completions import model_of
from torch import Tensor

from pycc.defense.bands import Bands, inside_of, score
from pycc.defense.completed import CompletionModel
from pycc.defense.min_max import Table, plan_of
from pycc.defense.surroundings import UNIT, whole_units

CASES = [
    ((9, 13), model_of(0, 3, step=2, people=2.0)),
    ((14, 6), model_of(1, 4)),
    ((7, 19), model_of(2, 5, step=4, people=4.0)),
]
every = pytest.mark.parametrize(("shape", "model"), CASES, ids=["0", "1", "2"])


def map_of(shape: tuple[int, int], seed: int) -> Tensor:
    """Cells of whole numbers of people, float64."""
    return torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(seed)).double()


def contents(cells: Tensor, inside: Tensor, bands: Bands, place: tuple[int, int]) -> list[Tensor]:
    """What a patch may make of a window: anything, and sums at both ends of its band and beyond."""
    draw = torch.rand(cells.shape, generator=torch.Generator().manual_seed(4)).double()
    made = [0.0 * draw, 3.0 * draw**4, 50.0 * draw]
    for end, beyond in ((bands.low[place], -1), (bands.high[place], 1)):
        for sums in (int(end), int(end) + beyond):
            units = torch.zeros(int(inside.sum()), dtype=torch.int64)
            units += max(0, sums) // len(units)
            units[-1] += max(0, sums) - int(units.sum())
            made.append(torch.zeros_like(cells).masked_scatter(inside, units.double() * UNIT))
    return [torch.where(inside, content, cells) for content in made]


@every
def test_a_patch_raises_an_alarm_or_leaves_the_sum_inside(
    shape: tuple[int, int], model: CompletionModel
) -> None:
    silent, loud = 0, 0
    cells = map_of(shape, 0)
    for share in (0.97, 1.3):
        margin = share * score(cells, model)
        bands = Bands.of(cells, model, margin)
        assert bands.alarm == (share < 1.0)
        low, high = bands.ends
        assert low <= bands.count <= high
        plan = plan_of(model.grid, shape)
        reached = []
        for place in itertools.product(
            range(len(plan.rows.starts)), range(len(plan.columns.starts))
        ):
            inside = inside_of(cells, model, place)
            for attacked in contents(cells, inside, bands, place):
                after = Bands.of(attacked, model, margin)
                for name in ("guesses", "low", "high"):  # no bit of the window's own band moves
                    assert getattr(after, name)[place] == getattr(bands, name)[place]
                assert int(after.low.min()) >= 0
                silent, loud = silent + (not after.alarm), loud + after.alarm
                if not after.alarm:
                    assert low <= after.total * UNIT <= high
                    reached.append(after.total * UNIT)
        if share > 1.0:
            assert min(reached) < bands.total * UNIT < max(reached)
    assert min(silent, loud) > 20


@every
def test_bands_are_those_of_the_definition_and_the_score_is_the_least_margin(
    shape: tuple[int, int], model: CompletionModel
) -> None:
    cells = 3.0 * torch.rand(*shape, generator=torch.Generator().manual_seed(9)) ** 4
    units = whole_units(cells)
    bands = Bands.of(cells, model, 1.5)
    table = Table(units, plan_of(model.grid, shape), model.network)
    assert torch.equal(bands.total - bands.sums + bands.guesses, table.alone)
    assert int(bands.sums[0, 0]) == int(units[inside_of(cells, model, (0, 0))].sum())
    guesses = bands.guesses.double() * UNIT
    half = 1.5 * (guesses + 10.0).sqrt()
    torch.testing.assert_close(bands.high.double() * UNIT, guesses + half)
    torch.testing.assert_close(bands.low.double() * UNIT, (guesses - half).clamp(min=0.0))
    least = score(cells, model)
    assert not Bands.of(cells, model, least).alarm
    loud = Bands.of(cells, model, least * (1.0 - 1e-9))
    assert loud.alarm
    assert loud.count == (loud.total + int((loud.guesses - loud.sums)[loud.outlier])) * UNIT
    assert loud.excess[loud.outlier] == loud.excess.max() > 0
