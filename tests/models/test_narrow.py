"""The narrow counter: what its cells see, what its loss compares, and MCNN's columns in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pycc import models
from pycc.models import measure_receptive_field


def test_a_cell_sees_32_pixels() -> None:
    counter = models.create("narrow").eval()
    assert (counter.stride, counter.receptive_field) == (4, 32)
    measured = measure_receptive_field(counter)
    assert measured.side <= 32


def test_its_columns_are_mcnns(tmp_path: Path) -> None:
    mcnn = models.load("mcnn-synthetic")
    file = tmp_path / "mcnn.npz"
    models.save(mcnn, file, metadata={})
    with pytest.warns(
        UserWarning, match="the columns of MCNN up to their second pooling; the rest"
    ):
        counter = models.load(file, name="narrow")
    image = torch.rand(1, 3, 40, 56)
    x = counter.preprocess(image)
    with torch.no_grad():
        for name in ("branch1", "branch2", "branch3"):
            first_half = getattr(counter.net, name)(x)
            column = getattr(mcnn.net, name)
            torch.testing.assert_close(
                first_half, torch.nn.Sequential(*list(column.children())[:4])(x)
            )
    learning = {name for name, p in counter.named_parameters() if p.requires_grad}
    assert all(name.startswith("net.head") for name in learning)
    every = models.create("narrow", columns="train")
    assert all(p.requires_grad for p in every.parameters())
    with pytest.raises(ValueError, match="columns must be 'keep' or 'train'"):
        models.create("narrow", columns="frozen")


def test_other_weights_are_still_refused(tmp_path: Path) -> None:
    file = tmp_path / "mcnn.npz"
    models.save(models.load("mcnn-synthetic"), file, metadata={})
    with pytest.raises(ValueError, match="is of model 'mcnn', not 'can'"):
        models.load(file, name="can")


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    counter = models.create("narrow").train()
    counter(torch.rand(2, 3, 64, 64))  # its statistics move
    counter.eval()
    models.save(counter, tmp_path / "narrow.npz", metadata={"seed": 1})
    loaded = models.load(tmp_path / "narrow.npz")
    image = torch.rand(1, 3, 40, 56)
    assert loaded.name == "narrow"
    assert torch.equal(loaded(image), counter(image))


def test_the_loss_is_least_at_the_truth() -> None:
    """And refuses a target of another size; blocks that do not fit are left out."""
    counter = models.create("narrow").train()
    images = torch.rand(2, 3, 256, 256)
    with torch.no_grad():
        target = counter(images)
    assert float(counter.loss(images, target).detach()) == pytest.approx(0.0, abs=1e-9)
    assert float(counter.loss(images, target * 1.3).detach()) > 0
    assert float(counter.loss(images, target * 0.7).detach()) > 0
    with pytest.raises(ValueError, match="target must be"):
        counter.loss(images, target[..., 1:])
    small = torch.rand(1, 3, 32, 32)  # of the larger blocks none fits
    assert float(counter.loss(small, counter(small).detach() + 0.1).detach()) > 0


@pytest.mark.filterwarnings("ignore:weights. .* gives narrow the columns")
def test_columns_that_read_another_scale_are_refused(tmp_path: Path) -> None:
    """They would see its grey of 0…255 as 255 times as bright."""
    file = tmp_path / "unit.npz"
    models.save(models.load("mcnn-synthetic", input="gray_unit"), file, metadata={})
    with pytest.raises(ValueError, match="reads input='gray_unit', narrow 'gray255'"):
        models.load(file, name="narrow")
