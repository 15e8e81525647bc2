"""Losses, gradients and counts that are no numbers stop a training and lose nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.scenes import QUICK, changed, counter, same, scenes, state
from torch import Tensor

from pycc.models import CounterModel
from pycc.train import NotFiniteError, checkpoint, fit
from pycc.train.held import split
from pycc.types import Sample


def overwhelmed_by_white(value: float) -> CounterModel:
    """A counter whose network is fed ``value`` for an image that is white everywhere."""
    model = counter()
    original = model.preprocess

    def preprocess(images: Tensor) -> Tensor:
        white = (images == 1).flatten(1).all(1)[:, None, None, None]
        return original(torch.where(white, value, images))

    model.preprocess = preprocess  # type: ignore[method-assign]
    return model


def test_a_loss_that_is_no_number_stops_and_names_the_batch(tmp_path: Path) -> None:
    samples = scenes()
    broken = split(samples, 0.25, seed=0)[0][2]
    image = torch.ones_like(samples[broken].image)
    samples[broken] = Sample("broken", image, samples[broken].points)
    problem = "loss is not finite in epoch 1.*broken.*; there is no checkpoint"
    with pytest.raises(NotFiniteError, match=problem):
        fit(overwhelmed_by_white(float("nan")), samples, QUICK, out=tmp_path)


def test_a_loss_that_is_no_number_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    """It breaks in the second epoch; what the first one gave is there, and goes on."""
    model, losses = counter(), []
    loss = model.loss

    def breaking(*arguments: object, **more: object) -> Tensor:
        losses.append(loss(*arguments, **more))
        return losses[-1] * (float("nan") if len(losses) == 6 else 1.0)

    model.loss = breaking
    with pytest.raises(NotFiniteError, match=r"in epoch 2, batch 2 .*; the last good checkpoint"):
        fit(model, scenes(), QUICK, out=tmp_path)
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert (content["state"]["epoch"], content["state"]["batch"]) == (1, 0)
    again, uninterrupted = counter(), counter()
    fit(again, scenes(), QUICK, out=tmp_path, resume=True)
    fit(uninterrupted, scenes(), QUICK, out=tmp_path / "whole")
    assert same(state(again), state(uninterrupted))


def test_a_counter_that_the_last_step_has_ruined_is_not_kept(tmp_path: Path) -> None:
    """No later loss would show it: the only epoch is over, and nothing validates."""
    plan = changed(QUICK, epochs=1, lr=1e30, validation_share=0.0, batch=16)
    with pytest.raises(NotFiniteError, match="scene-0 is not finite after epoch 1; there is no"):
        fit(counter(), scenes(), plan, out=tmp_path)
    assert not (tmp_path / checkpoint.NAME).exists()
    assert not (tmp_path / "weights.pt").exists()


def test_a_count_that_is_no_number_names_its_validation_image(tmp_path: Path) -> None:
    samples = scenes()
    held = split(samples, 0.25, seed=0)[1][1]
    image = torch.ones_like(samples[held].image)
    samples[held] = Sample("odd", image, samples[held].points)
    problem = r"^validation after epoch 1: counts are not finite \(odd\); there is no checkpoint$"
    with pytest.raises(NotFiniteError, match=problem):
        fit(overwhelmed_by_white(float("inf")), samples, QUICK, out=tmp_path)


def test_a_gradient_that_is_no_number_stops_before_the_weights_follow_it(tmp_path: Path) -> None:
    """The loss is finite, its gradient is not: sqrt at 0."""
    model = counter()
    model.loss = lambda images, target, *, points=None: (model(images) * 0).sum().sqrt()
    with pytest.raises(NotFiniteError, match="gradient is not finite in epoch 1, batch 1"):
        fit(model, scenes(), QUICK, out=tmp_path)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
