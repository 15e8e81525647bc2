"""The completed counter: its map, its gradient, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.completions import model_of, network_of
from support.toys import Tiny, Whole, pictures

from pycc import defense
from pycc.counters import identity
from pycc.defense.completion_net import CompletionNetwork
from pycc.grid import reached_window

PATCH = 5
REACH = reached_window(PATCH, Tiny.stride, 8)
IMAGES = pictures((36, 44), 2)


def test_the_map_sums_to_the_count_and_keeps_what_is_visible() -> None:
    counter, model = Tiny(), model_of(3, REACH, step=2)
    completed = defense.completed(counter, patch_size=PATCH, completion=model)
    with torch.no_grad():
        plain, maps = counter(IMAGES), completed(IMAGES)
    for before, after in zip(plain[:, 0], maps[:, 0], strict=True):
        _, count, _ = model.min_max(before).people
        assert float(after.double().sum()) == pytest.approx(count, rel=1e-6)
        changed = before != after
        rows, columns = changed.any(1), changed.any(0)
        assert 0 < int(changed.sum()) <= 2 * model.grid.side**2
        assert torch.equal(before[~rows], after[~rows])
        assert torch.equal(before[:, ~columns], after[:, ~columns])


def test_gradients_pass_through_visible_cells_and_the_network_or_straight_through() -> None:
    counter, model = Tiny(), model_of(3, REACH)
    images = IMAGES[:1].double().requires_grad_()
    double = Tiny().double()
    completed = defense.completed(double, patch_size=PATCH, completion=model)
    (gradient,) = torch.autograd.grad(completed(images).sum(), images)
    step = 1e-3 * torch.sign(gradient)
    with torch.no_grad():
        ends = [completed((images + sign * step).clamp(0, 1)).sum() for sign in (1, -1)]
        moved = (images + step).clamp(0, 1) - (images - step).clamp(0, 1)
    assert float(ends[0] - ends[1]) == pytest.approx(float((gradient * moved).sum()), rel=0.1)
    plain = IMAGES[:1].clone().requires_grad_()
    (expected,) = torch.autograd.grad(counter(plain).sum(), plain)
    straight = defense.completed(counter, patch_size=PATCH, completion=model, straight_through=True)
    density = straight(plain)
    (through,) = torch.autograd.grad(density.sum(), plain)
    torch.testing.assert_close(through, expected)
    same = defense.completed(counter, patch_size=PATCH, completion=model)
    torch.testing.assert_close(density, same(plain), rtol=1e-5, atol=1e-6)


def test_networks_have_identities() -> None:
    counter = Tiny()
    made = {
        identity(defense.completed(counter, patch_size=PATCH, completion=model))
        for model in (model_of(0, REACH), model_of(1, REACH), model_of(0, REACH, step=2))
    }
    assert len(made) == 3
    assert network_of(4) == network_of(4) != network_of(5)
    assert CompletionNetwork.of_json(network_of(4).json()) == network_of(4)


def test_refusals() -> None:
    model = model_of(0, REACH)
    with pytest.raises(ValueError, match="completed: the counter must have a bounded receptive"):
        defense.completed(Whole(), patch_size=PATCH, completion=model)
    with pytest.raises(ValueError, match=f"a patch of 9 pixels reaches .* fitted for {REACH}"):
        defense.completed(Tiny(), patch_size=9, completion=model)
    with pytest.raises(TypeError, match="completed: completion must be a completion of a"):
        defense.completed(Tiny(), patch_size=PATCH, completion=model.network)
    with pytest.raises(ValueError, match=r"first_bias must be finite numbers \[8\], got \[7\]"):
        replace(model.network, first_bias=torch.zeros(7))
    with pytest.raises(ValueError, match="third must be finite numbers"):
        replace(model.network, third=torch.full((6,), torch.nan))
    huge = replace(model.network, third=torch.full((6,), 3e38), second_bias=torch.full((6,), 9.0))
    endless = replace(huge, third=torch.tensor([3e38, -3e38] * 3))
    completed = defense.completed(
        Tiny(), patch_size=PATCH, completion=replace(model, network=endless)
    )
    with pytest.raises(ValueError, match="network must predict finite numbers, got NaN"):
        completed(IMAGES)
