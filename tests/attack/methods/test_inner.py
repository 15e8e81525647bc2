"""The patch inside a training loop: small, at its place, and worse for the loss than noise."""

from __future__ import annotations

import pytest
import torch

from pycc import data, models
from pycc.attack import InnerAttack

pytestmark = pytest.mark.command


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
                attacked_image = InnerAttack(24, 5, 0.2)(counter, image, target, seed)
            losses = [
                float((counter(x[None]) - target).square().sum()) for x in (noise, attacked_image)
            ]
            assert losses[1] > 1.5 * losses[0]
            rows, columns = (attacked_image != image).any(0).nonzero().T
            assert int(rows.max() - rows.min()) < 24
            assert int(columns.max() - columns.min()) < 24
            assert 0 <= float(attacked_image.min()) <= float(attacked_image.max()) <= 1
    assert all(parameter.grad is None for parameter in counter.parameters())


def test_it_is_a_function_of_its_seed() -> None:
    counter, image, target = scene()
    attack = InnerAttack(24, 2)
    assert torch.equal(attack(counter, image, target, 1), attack(counter, image, target, 1))
    assert not torch.equal(attack(counter, image, target, 1), attack(counter, image, target, 2))


def test_a_patch_that_does_not_fit_is_refused() -> None:
    counter, image, target = scene()
    crop, truth = image[:, :32, :40], target[:, :8, :10]
    attacked_image = InnerAttack(32, 1)(counter, crop, truth, 0)
    assert ((attacked_image != crop).any(0).any(1)).all()
    with pytest.raises(ValueError, match="a patch of 33 pixels needs an image of 33x33, got 32x40"):
        InnerAttack(33, 1)(counter, crop, truth, 0)


@pytest.mark.parametrize("seed", range(4))
def test_its_window_shows_all_that_the_patch_can_reach(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The patch of the whole image, but where a gradient's sign hangs on the rounding."""
    counter = models.load("mcnn-synthetic").eval()
    image = data.open("synthetic", shape=(240, 320))[0].image
    target = torch.zeros(1, 60, 80)
    around = InnerAttack(12, 3)(counter, image, target, seed)
    monkeypatch.setattr(type(counter), "receptive_field", None)
    whole = InnerAttack(12, 3)(counter, image, target, seed)
    painted = (whole != image).any(0)
    assert torch.equal(painted, (around != image).any(0))
    assert ((whole - around)[:, painted].abs() < 1e-6).float().mean() > 0.98


def test_errors_outside_the_region_attract_no_patch() -> None:
    """With nothing inside, no step has a gradient; with all inside, it is as without a region."""
    counter, image, target = scene()
    attack = InnerAttack(24, 3)
    everywhere = torch.ones_like(target)
    free = attack(counter, image, target, 1)
    assert torch.equal(attack(counter, image, target, 1, region=everywhere), free)
    noise = InnerAttack(24, 0)(counter, image, target, 1)
    nobody = torch.zeros_like(target)
    assert torch.equal(attack(counter, image, nobody, 1, region=nobody), noise)


@pytest.mark.parametrize("fields", [{"patch_size": 0}, {"steps": -1}, {"step_size": 0.0}])
def test_bad_fields(fields: dict) -> None:
    with pytest.raises(ValueError, match="an inner attack needs a patch_size of at least 1"):
        InnerAttack(**fields)
