"""A counter as a regressor of the Adversarial Robustness Toolbox, and patches as its attacks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("art", reason="needs pip install 'pycc[art]'", exc_type=ImportError)

from art.attacks.evasion import FastGradientMethod
from art.estimators.regression.pytorch import PyTorchRegressor
from art.exceptions import EstimatorError

from pycc import attack, data, models
from pycc.adapters.art import CounterRegressor, PatchEvasion
from pycc.counters import count

SHAPE = (64, 96)
ATTACK = attack.APAM(patch_size=24, objective="over", steps=8, step_size=0.25)


@pytest.fixture
def regressor() -> CounterRegressor:
    return CounterRegressor(models.load("mcnn-synthetic"), SHAPE)


@pytest.fixture
def images() -> np.ndarray:
    scenes = data.open("synthetic", split="test", limit=2, shape=SHAPE, heads=9)
    return np.stack([scenes[index].image.numpy() for index in range(2)])


def test_it_counts_as_the_counter_does(regressor, images) -> None:
    counted = [each.count for each in count(regressor.counter, torch.from_numpy(images))]
    for x in (images, images.astype(np.float64)):
        np.testing.assert_allclose(regressor.predict(x)[:, 0], counted, rtol=1e-5)
    assert regressor.input_shape == (3, *SHAPE)


def test_its_gradient_is_that_of_the_squared_error(regressor, images) -> None:
    x = torch.from_numpy(images).requires_grad_()
    truth = np.array([9.0, 9.0])
    error = (regressor.counter(x).sum((1, 2, 3)) - 9.0).square().mean()
    (wanted,) = torch.autograd.grad(error, x)
    for y in (truth, truth[:, None]):
        np.testing.assert_allclose(regressor.loss_gradient(images, y), wanted, rtol=1e-4, atol=1e-6)


def test_a_gradient_attack_of_the_toolbox_raises_the_error(regressor, images) -> None:
    truth = regressor.predict(images)[:, 0] - 1.0
    attacked = FastGradientMethod(regressor, eps=0.02).generate(images, truth)
    assert np.abs(attacked - images).max() == pytest.approx(0.02, rel=1e-3)
    clean, after = (np.abs(regressor.predict(x)[:, 0] - truth) for x in (images, attacked))
    assert (after > 2 * clean).all()


def test_a_patch_attack_is_one_of_the_toolbox(regressor, images) -> None:
    evasion = PatchEvasion(regressor, ATTACK, seed=3)
    attacked = evasion.generate(x=images, y=np.array([9.0, 9.0]))
    alone = ATTACK(regressor.counter, torch.from_numpy(images), seed=3)
    np.testing.assert_array_equal(attacked, torch.stack(list(alone.images)).numpy())
    np.testing.assert_allclose(regressor.predict(attacked)[:, 0], alone.attacked_counts, rtol=1e-5)
    assert (regressor.predict(attacked) > regressor.predict(images) + 1.0).all()
    assert torch.equal(evasion.result.places, alone.places)
    assert "attack=APAM" in repr(evasion)
    evasion.set_params(seed=4)
    assert not np.array_equal(evasion.generate(images), attacked)


def test_wrong_arguments(regressor, images) -> None:
    with pytest.raises(TypeError, match=r"attack must be a PatchAttack .*, got str"):
        PatchEvasion(regressor, "apam")
    other = PyTorchRegressor(torch.nn.Conv2d(3, 1, 1), torch.nn.MSELoss(), (3, *SHAPE))
    with pytest.raises(EstimatorError):
        PatchEvasion(other, ATTACK)
    with pytest.raises(ValueError, match="got 0…255: 8-bit levels, divide by 255"):
        PatchEvasion(regressor, ATTACK).generate(np.round(images / images.max()) * 255)
