"""Heads that a density map shows."""

from __future__ import annotations

import pytest
import torch

from pycc.report.overlay import peaks


def test_heads_are_the_maxima() -> None:
    density = torch.zeros(9, 9)
    density[2, 2], density[2, 3], density[6, 7] = 1.0, 0.5, 0.3
    first, second = peaks(density, 4).tolist()
    assert first == pytest.approx([(2 + 0.5 / 1.5 + 0.5) * 4, 10.0])
    assert second == pytest.approx([30.0, 26.0])
    assert len(peaks(density, 4, least=0.4)) == 1


def test_a_plateau_is_one_head_and_a_slope_none() -> None:
    density = torch.zeros(5, 12)
    density[2, 2:5] = 0.4
    assert peaks(density, 1).tolist() == [pytest.approx([3.5, 2.5])]
    density[2, 5] = 0.5  # the plateau now climbs to a cell that is higher
    (head,) = peaks(density, 1).tolist()
    assert head[0] > 5


def test_an_empty_map_has_no_heads() -> None:
    assert peaks(torch.zeros(4, 4), 8).shape == (0, 2)
    assert peaks(torch.full((4, 4), -1.0), 8).shape == (0, 2)


def test_separated_heads_are_found_one_by_one() -> None:
    """Gaussians of one person each, six cells apart: every one is found within half a cell."""
    places = torch.tensor([[x, y] for x in range(4, 60, 6) for y in range(4, 40, 6)]) + 0.3
    rows, columns = torch.arange(44.0), torch.arange(64.0)
    density = torch.stack([
        torch.exp(-((rows[:, None] + 0.5 - y) ** 2 + (columns + 0.5 - x) ** 2) / 2) / (2 * torch.pi)
        for x, y in places.tolist()
    ]).sum(0)  # fmt: skip
    heads = peaks(density, 1)
    assert len(heads) == len(places)
    nearest = torch.cdist(places.double(), heads).amin(1)
    assert float(nearest.max()) < 0.5
