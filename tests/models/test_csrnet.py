"""CSRNet against the published network, in both variants."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from numpy.lib.npyio import NpzFile
from support.published import close, images_of, published_input, published_state
from torch import Tensor

from pycc import models
from pycc.models import initial, vgg

Fixture = Callable[[str], NpzFile]


@pytest.fixture(scope="module")
def state(fixture: Fixture) -> dict[str, Tensor]:
    return published_state(fixture("CSRNet"))


@pytest.mark.command
@pytest.mark.parametrize(
    ("file", "variant"), [("CSRNet", "leeyeehoo"), ("CSRNet_up", "commissarma")]
)
@torch.no_grad()
def test_output_is_the_published_networks(
    fixture: Fixture, state: dict[str, Tensor], file: str, variant: str
) -> None:
    numbers = fixture(file)
    counter = models.create("csrnet", variant=variant).eval()
    counter.net.load_state_dict(state, strict=True)
    assert list(state) == [str(key) for key in numbers["keys"]]
    assert sum(p.numel() for p in counter.net.parameters()) == 16_263_489 == numbers["n_params"]
    assert sum(p.numel() for p in counter.net.frontend.parameters()) == 7_635_264
    for case in range(len(numbers["seeds"])):
        x = published_input(numbers, case)
        features = counter.net.frontend(x)
        assert close(features[:, :4], numbers[f"aux_frontend_{case}"])
        assert close(counter.net.backend(features)[:, :4], numbers[f"aux_backend_{case}"])
        assert close(counter.net(x), numbers[f"out_{case}"])
        # The counter, from RGB in [0,1], counts what the published map sums to.
        images = images_of(numbers, case)
        torch.testing.assert_close(counter.preprocess(images), x, rtol=1e-5, atol=1e-5)
        counted = float(counter(images).double().sum())
        assert counted == pytest.approx(float(numbers["counts"][case]), rel=1e-4)


def test_variants_differ_by_convention_and_by_64(state: dict[str, Tensor]) -> None:
    fed = torch.rand(1, 3, 24, 32)
    cells = {}
    for variant in ("leeyeehoo", "commissarma"):
        counter = models.create("csrnet", variant=variant, mean=[0.5] * 3, std=[0.225] * 3).eval()
        counter.net.load_state_dict(state)
        cells[variant] = counter(fed).detach()
    torch.testing.assert_close(64 * cells["leeyeehoo"], cells["commissarma"])
    assert models.create("csrnet", variant="c3").scale == 0.01


def test_the_loss_is_the_sum_of_squares_up_to_a_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over pixels, where the published loss is: against any target, not only constant cells."""
    monkeypatch.setattr(vgg, "FRONTEND", (4, None, 4, None, 4, None, 4))
    monkeypatch.setattr(vgg, "BACKEND", (4,))
    images = torch.rand(1, 3, 16, 24)
    counter = models.create("csrnet")
    target = torch.rand(1, 1, 2, 3)
    expected = ((counter(images) - target) ** 2).sum()
    torch.testing.assert_close(counter.loss(images, target), expected)
    counter = models.create("csrnet", variant="commissarma")
    pixels = torch.rand(1, 1, 16, 24)
    sums = torch.nn.functional.avg_pool2d(pixels, 8) * 64
    differences = []
    for _ in range(2):
        initial.gaussian(counter.net)
        x = counter.preprocess(images)
        published = ((counter.net(x) - pixels) ** 2).sum()
        differences.append(published - counter.loss(images, sums))
    torch.testing.assert_close(differences[0], differences[1])
    with pytest.raises(ValueError, match=r"csrnet\.loss: target must be \[1, 1, 2, 3\]"):
        counter.loss(images, pixels)


def test_vgg16_becomes_the_front_end(tmp_path: Path) -> None:
    counter = models.create("csrnet")
    torch.manual_seed(0)
    archive = {
        f"features.{key}": torch.randn_like(value)
        for key, value in counter.net.frontend.state_dict().items()
    }
    archive["features.24.weight"] = torch.zeros(512, 512, 3, 3)
    archive["classifier.0.bias"] = torch.zeros(4096)
    before = counter.net.backend[0].weight.clone()
    assert counter.adopt(archive) == "the first 10 convolutions of VGG-16 (21 of its tensors read)"
    for key, value in counter.net.frontend.state_dict().items():
        assert torch.equal(value, archive[f"features.{key}"])
    assert torch.equal(counter.net.backend[0].weight, before)
    assert counter.adopt({"branch1.0.weight": torch.zeros(1)}) is None
    with pytest.raises(ValueError, match=r"features\.2\.weight must be floats .* without batch"):
        counter.adopt({**archive, "features.2.weight": torch.zeros(64)})


def test_published_recipes() -> None:
    authors = models.create("csrnet").recipe()
    (optimiser,) = authors.optimisers
    assert (optimiser.kind, optimiser.lr, optimiser.momentum) == ("sgd", 1e-7, 0.95)
    assert (optimiser.weight_decay, authors.epochs, authors.flip) == (5e-4, 400, 0.0)
    other = models.create("csrnet", variant="commissarma").recipe()
    assert (other.optimisers[0].kind, other.flip, other.crop.multiple) == ("adam", 0.5, 16)
    assert (authors.down_sampling, other.down_sampling) == ("cubic8", "sum")
    with pytest.raises(ValueError, match="csrnet: no published training recipe"):
        models.create("csrnet", variant="c3").recipe()


def test_initialisation() -> None:
    torch.manual_seed(1)
    net = models.create("csrnet").net
    assert net.backend[0].weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert (net.frontend[0].bias == 0).all()
    assert (net.output_layer.bias == 0).all()
