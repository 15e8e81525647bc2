"""The narrow counter: what its cells see, what its loss compares, and MCNN's columns in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import narrow as small

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


# --- on VGG-16


@pytest.fixture
def csrnet_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights of a CSRNet with few channels, without metadata."""
    small.narrow(monkeypatch)
    file = tmp_path / "csrnet.pth"
    torch.save(small.create("csrnet").net.state_dict(), file)
    return file


def test_on_vgg_a_cell_sees_32_pixels() -> None:
    """The declared field is the measured one; cells are positive, and the grid has stride 4."""
    torch.manual_seed(0)
    counter = models.create("narrow", variant="vgg").eval()
    assert (counter.stride, counter.receptive_field) == (4, 32)
    measured = measure_receptive_field(counter)
    assert (measured.before, measured.after, measured.side) == (14, 14, 32)
    assert sum(p.numel() for p in counter.parameters()) == 1_186_625
    with torch.no_grad():
        density = counter(torch.rand(2, 3, 42, 57, generator=torch.Generator().manual_seed(1)))
    assert list(density.shape) == [2, 1, 10, 14]
    assert float(density.min()) > 0


@pytest.mark.filterwarnings("ignore:weights. .* gives narrow the layers of CSRNet")
@torch.no_grad()
def test_its_layers_are_csrnets(csrnet_file: Path) -> None:
    counter = models.load(csrnet_file, name="narrow", variant="vgg")
    csrnet = models.load(csrnet_file, name="csrnet")
    x = counter.preprocess(torch.rand(1, 3, 40, 56))
    torch.testing.assert_close(counter.net.frontend(x), csrnet.net.frontend[:14](x))
    learning = [n for n, p in counter.net.named_parameters() if p.requires_grad]
    assert {n.rpartition(".")[0] for n in learning} == {
        "frontend.10", "frontend.12", "head.0", "head.2", "head.4",
    }  # fmt: skip
    assert all(
        p.requires_grad
        for p in models.create("narrow", variant="vgg", columns="train").parameters()
    )
    slow = {id(p) for p in counter.backbone_parameters()}
    assert slow == {id(p) for p in counter.net.frontend.parameters()}
    assert models.create("narrow").backbone_parameters() == []


@pytest.mark.filterwarnings("ignore:weights. .* gives narrow the")
def test_saved_and_loaded_it_is_the_same_on_vgg(csrnet_file: Path, tmp_path: Path) -> None:
    counter = models.load(csrnet_file, name="narrow", variant="vgg", mean=[0.5] * 3, std=[0.25] * 3)
    models.save(counter, tmp_path / "narrow.npz", metadata={})
    loaded = models.load(tmp_path / "narrow.npz")
    image = torch.rand(1, 3, 40, 56)
    assert (loaded.name, loaded.options()) == ("narrow", counter.options())
    assert torch.equal(loaded(image), counter(image))
    bare = tmp_path / "bare.pth"
    torch.save(counter.net.state_dict(), bare)
    assert models.load(bare).options()["variant"] == "vgg"


@pytest.mark.filterwarnings("ignore:weights. .* gives narrow the")
def test_weights_without_its_layers_are_refused(csrnet_file: Path, tmp_path: Path) -> None:
    """Of another network, of other widths, or trained on another convention."""
    file = tmp_path / "mcnn.npz"
    models.save(models.load("mcnn-synthetic"), file, metadata={})
    with pytest.raises(ValueError, match="is of model 'mcnn', not 'narrow'"):
        models.load(file, name="narrow", variant="vgg")
    with pytest.raises(ValueError, match="does not fit narrow"):
        models.load(csrnet_file, name="narrow")
    state = torch.load(csrnet_file)
    del state["frontend.12.bias"]
    torch.save(state, csrnet_file)
    with pytest.raises(ValueError, match=r"frontend\.12\.bias must be floats \[4\], got nothing"):
        models.load(csrnet_file, name="narrow", variant="vgg")
    other = small.create("csrnet", variant="commissarma")
    models.save(other, tmp_path / "other.npz", metadata={})
    with pytest.raises(ValueError, match=r"reads mean=\[0\.5, 0\.5, 0\.5\], narrow \[0\.485"):
        models.load(tmp_path / "other.npz", name="narrow", variant="vgg")
    with pytest.raises(ValueError, match="variant must be 'mcnn' or 'vgg', got 'resnet'"):
        models.create("narrow", variant="resnet")
    with pytest.raises(ValueError, match="mean and std belong to input 'rgb_standard'"):
        models.create("narrow", mean=[0.5] * 3)


def test_it_starts_from_vgg16_of_other_files(monkeypatch: pytest.MonkeyPatch) -> None:
    small.narrow(monkeypatch)
    counter = models.create("narrow", variant="vgg")
    state = {f"features.{k}": v + 1 for k, v in counter.net.frontend.state_dict().items()}
    assert counter.adopt(state) == "the first 6 convolutions of VGG-16 (12 of its tensors read)"
    for key, value in counter.net.frontend.state_dict().items():
        assert torch.equal(value, state[f"features.{key}"])
    assert counter.adopt({"branch1.0.conv.weight": torch.zeros(1)}) is None
