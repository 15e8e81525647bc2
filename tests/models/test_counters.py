"""What every registered counter promises."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pycc import models
from pycc.models.base import CounterModel
from pycc.types import Counter


@pytest.fixture(params=models.names())
def counter(request: pytest.FixtureRequest) -> CounterModel:
    torch.manual_seed(3)
    return models.create(request.param).eval()


def test_names_are_known() -> None:
    assert "mcnn" in models.names()
    with pytest.raises(ValueError, match="unknown model 'vgg'; known: mcnn"):
        models.create("vgg")


def test_it_is_a_counter(counter: CounterModel) -> None:
    assert isinstance(counter, Counter)
    assert isinstance(counter, nn.Module)


@torch.no_grad()
def test_stride(counter: CounterModel) -> None:
    for height, width in ((64, 96), (67, 99)):
        density = counter(torch.rand(2, 3, height, width))
        assert density.shape[:2] == (2, 1)
        for size, cells in ((height, density.shape[2]), (width, density.shape[3])):
            # Networks differ in whether a last, incomplete cell is kept.
            assert cells in (size // counter.stride, -(-size // counter.stride))


def test_receptive_field_is_the_measured_one(counter: CounterModel) -> None:
    """Neither smaller (certificates would be wrong) nor larger (they would be weak)."""
    measured = models.measure_receptive_field(counter)
    if counter.receptive_field is None:
        assert measured is None
        return
    assert measured is not None
    assert 2 * max(measured.before, measured.after) + counter.stride == counter.receptive_field
    assert measured.before == measured.after


@torch.no_grad()
def test_pixels_outside_the_receptive_field_do_not_matter(counter: CounterModel) -> None:
    """On weights as they are: all that lies outside a cell's square is replaced by noise."""
    if counter.receptive_field is None:
        pytest.skip("unbounded")
    counter.double()
    for parameter in counter.parameters():
        parameter.normal_(std=0.2)
    field, stride = counter.receptive_field, counter.stride
    side = -(-2 * field // stride) * stride
    row = column = side // stride // 2
    margin = (field - stride) // 2
    rows = slice(row * stride - margin, row * stride + stride + margin)
    images = torch.rand(1, 3, side, side, dtype=torch.float64)
    changed = torch.rand_like(images)
    changed[:, :, rows, rows] = images[:, :, rows, rows]
    before, after = counter(images), counter(changed)
    scale = before.abs().max()
    assert (before[0, 0, row, column] - after[0, 0, row, column]).abs() <= 1e-12 * scale
    assert (before - after).abs().max() > 1e-3 * scale


@torch.no_grad()
def test_shifting_by_the_stride_shifts_the_map(counter: CounterModel) -> None:
    if counter.receptive_field is None:
        pytest.skip("unbounded")
    counter.double()
    for parameter in counter.parameters():
        parameter.normal_(std=0.2)
    stride, margin = counter.stride, -(-counter.receptive_field // counter.stride)
    side = (3 * margin) * stride
    images = torch.rand(1, 3, side + stride, side + stride, dtype=torch.float64)
    first, second = (
        counter(images[:, :, :-stride, :-stride]),
        counter(images[:, :, stride:, stride:]),
    )
    inner, shifted = slice(margin, -margin), slice(margin + 1, 1 - margin)
    torch.testing.assert_close(first[:, :, shifted, shifted], second[:, :, inner, inner])


@torch.no_grad()
def test_batches_do_not_mix(counter: CounterModel) -> None:
    images = torch.rand(3, 3, 64, 64)
    together = counter(images)
    for index in range(3):
        torch.testing.assert_close(together[index : index + 1], counter(images[index : index + 1]))


def test_bad_images(counter: CounterModel) -> None:
    small = counter.minimum_side - 1
    cases = [
        (torch.rand(3, 64, 64), r"must be \[N,3,H,W\] .* got \[3, 64, 64\]"),
        (torch.rand(1, 1, 64, 64), r"got \[1, 1, 64, 64\]"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "must be torch.float32 .* got torch.uint8"),
        (torch.rand(1, 3, 64, 64, dtype=torch.float64), "got torch.float64"),
        (torch.rand(1, 3, 64, small), f"at least {counter.minimum_side}x.* got 64x{small}"),
    ]
    for images, message in cases:
        with pytest.raises(ValueError, match=f"{counter.name}: images {message}|{message}"):
            counter(images)
    with pytest.raises(TypeError, match="must be a tensor, got list"):
        counter([[0.0]])


def test_loss_is_a_scalar_that_a_step_of_descent_lowers(counter: CounterModel) -> None:
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        target = torch.rand_like(counter(images))
    for parameter in counter.parameters():
        nn.init.uniform_(parameter, 0.0, 0.005)  # no ReLU shuts
    loss = counter.loss(images, target)
    assert loss.shape == ()
    loss.backward()
    norm = torch.sqrt(sum((p.grad**2).sum() for p in counter.parameters() if p.grad is not None))
    assert norm > 0
    with torch.no_grad():
        for parameter in counter.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * float(loss) / norm**2 * parameter.grad
    assert counter.loss(images, target) < loss
    with pytest.raises(ValueError, match=r"target must be \[2, 1, "):
        counter.loss(images, target[:, :, 1:])


def test_options_build_the_counter_again(counter: CounterModel) -> None:
    again = models.create(counter.name, **counter.options())
    assert again.options() == counter.options()
    shapes = [value.shape for value in counter.state_dict().values()]
    assert [value.shape for value in again.state_dict().values()] == shapes
