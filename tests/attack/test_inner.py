"""The patch inside a training loop: small, at its place, and worse for the loss than noise."""

from __future__ import annotations

import pytest
import torch

from pycc import data, models
from pycc.attack import InnerAttack


def scene() -> tuple[models.CounterModel, torch.Tensor, torch.Tensor]:
    counter = models.load("mcnn-synthetic")
    image = data.open("synthetic", shape=(96, 128))[0].image
    with torch.no_grad():
        return counter, image, counter(image[None])[0]


def test_it_raises_the_loss_above_noise_and_changes_a_square_alone() -> None:
    counter, image, target = scene()
    with torch.no_grad():
        for seed in range(3):
            noise = InnerAttack(24, 0)(counter, image, target, seed)
            with torch.enable_grad():
                found = InnerAttack(24, 5, 0.2)(counter, image, target, seed)
            losses = [float((counter(x[None]) - target).square().sum()) for x in (noise, found)]
            assert losses[1] > 1.5 * losses[0]
            rows, columns = (found != image).any(0).nonzero().T
            assert int(rows.max() - rows.min()) < 24
            assert int(columns.max() - columns.min()) < 24
            assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert all(parameter.grad is None for parameter in counter.parameters())


def test_it_is_a_function_of_its_seed() -> None:
    counter, image, target = scene()
    attack = InnerAttack(24, 2)
    assert torch.equal(attack(counter, image, target, 1), attack(counter, image, target, 1))
    assert not torch.equal(attack(counter, image, target, 1), attack(counter, image, target, 2))


def test_it_is_no_larger_than_half_of_a_crop() -> None:
    counter, image, target = scene()
    found = InnerAttack(81, 1)(counter, image[:, :32, :40], target[:, :8, :10], 0)
    rows, columns = (found != image[:, :32, :40]).any(0).nonzero().T
    assert max(int(rows.max() - rows.min()), int(columns.max() - columns.min())) < 16


@pytest.mark.parametrize("fields", [{"size": 0}, {"steps": -1}, {"step_size": 0.0}])
def test_bad_fields(fields: dict) -> None:
    with pytest.raises(ValueError, match="an inner attack needs a size of at least 1"):
        InnerAttack(**fields)
