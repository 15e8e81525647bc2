"""CAN against the published networks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from numpy.lib.npyio import NpzFile
from support.published import close, images_of, published_input, published_state
from torch.nn import functional

from pycc import models
from pycc.models import vgg
from pycc.models.can import CAN
from pycc.models.csrnet import CSRNet

Fixture = Callable[[str], NpzFile]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few channels, the same wiring."""
    monkeypatch.setattr(vgg, "FRONTEND", (4, None, 4, None, 4, None, 6))
    monkeypatch.setattr(vgg, "BACKEND", (5, 4))


@pytest.mark.command
@pytest.mark.parametrize(
    ("file", "variant", "parameters"),
    [("CAN", "commissarma", 20_719_937), ("CAN_weizheliu", "weizheliu", 18_103_489)],
)
@torch.no_grad()
def test_output_is_the_published_networks(
    fixture: Fixture, file: str, variant: str, parameters: int
) -> None:
    numbers = fixture(file)
    counter = models.create("can", variant=variant, quadrants=False).eval()
    net = counter.net
    state = published_state(numbers)
    assert set(net.state_dict()) == set(state)
    net.load_state_dict(state, strict=True)
    assert sum(p.numel() for p in net.parameters()) == parameters == numbers["n_params"]
    seen = {}
    parts = {"frontend": net.frontend, "backend": net.backend}
    if variant == "commissarma":
        parts |= {"scale6": net.conv6_1, "weight6_logit": net.conv6_2}
    else:
        parts["context"] = net.context
    for name, part in parts.items():
        part.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    for case in range(len(numbers["seeds"])):
        assert close(net(published_input(numbers, case)), numbers[f"out_{case}"])
        for name, output in seen.items():
            assert close(output[:, :4], numbers[f"aux_{name}_{case}"])
        counted = float(counter(images_of(numbers, case)).double().sum())
        assert counted == pytest.approx(float(numbers["counts"][case]), rel=1e-4, abs=1e-4)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("shape", [(32, 48), (35, 59), (16, 17)])
@torch.no_grad()
def test_quadrants_are_counted_apart(shape: tuple[int, int]) -> None:
    counter = models.create("can", variant="weizheliu").eval()
    torch.nn.init.normal_(counter.net.output_layer.weight)
    undivided = models.create("can", variant="weizheliu", quadrants=False).eval()
    undivided.net.load_state_dict(counter.net.state_dict())
    images = torch.rand(1, 3, *shape)
    top, left = shape[0] // 16 * 8, shape[1] // 16 * 8
    parts = [undivided(images[:, :, rows, columns]) for rows in (slice(top), slice(top, None))
             for columns in (slice(left), slice(left, None))]  # fmt: skip
    density = counter(images)
    assert density.shape == (1, 1, shape[0] // 8, shape[1] // 8)
    torch.testing.assert_close(density[..., : top // 8, : left // 8], parts[0])
    torch.testing.assert_close(density.sum(), torch.stack([part.sum() for part in parts]).sum())
    # In training the input is a quadrant already.
    counter.train()
    assert counter(images).shape == density.shape


def test_quadrants_are_the_authors_habit() -> None:
    assert models.create("can", variant="weizheliu").quadrants
    assert not models.create("can").quadrants
    with pytest.raises(ValueError, match=r"at least 16x16 pixels, got 15x40"):
        models.create("can", variant="weizheliu")(torch.rand(1, 3, 15, 40))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("variant", ["commissarma", "weizheliu"])
def test_every_pixel_reaches_every_cell(variant: str) -> None:
    torch.manual_seed(2)  # under some weights every ReLU of so narrow a network shuts
    counter = models.create("can", variant=variant, quadrants=False).double().eval()
    for parameter in counter.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    images = torch.rand(1, 3, 160, 8, dtype=torch.float64, requires_grad=True)
    counter(images)[0, 0, 0, 0].backward()
    assert images.grad is not None
    assert images.grad[0, :, -8:].abs().sum() > 0
    assert counter.receptive_field is None


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("variant", ["commissarma", "weizheliu"])
def test_gradients_are_those_of_differences(variant: str) -> None:
    torch.manual_seed(2)
    counter = models.create("can", variant=variant, quadrants=False).double().eval()
    for parameter in counter.parameters():
        torch.nn.init.uniform_(parameter, 0.1, 0.3)  # no ReLU shuts
    images = torch.rand(1, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(counter, images)


@pytest.mark.usefixtures("small")
def test_loss_recipe_and_keys() -> None:
    counter = models.create("can")
    images, target = torch.rand(2, 3, 16, 16), torch.rand(2, 1, 2, 2)
    expected = functional.mse_loss(counter(images), target, reduction="sum") / 2
    torch.testing.assert_close(counter.loss(images, target), expected)
    authors = models.create("can", variant="weizheliu")
    assert (authors.recipe().batch, authors.recipe().crop.kind) == (26, "quadrant")
    assert counter.recipe().optimisers[0].momentum == 0.95
    for network in (counter, authors):
        state = network.net.state_dict()
        assert CAN.recognise(state) == {"variant": network.variant}
        assert CSRNet.recognise(state) is None
