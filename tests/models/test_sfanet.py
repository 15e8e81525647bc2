"""SFANet and M-SFANet against the published networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from numpy.lib.npyio import NpzFile
from support import narrow
from support.marks import long
from support.published import close, images_of, published_input, published_state
from support.scenes import scenes
from torch import Tensor, nn
from torch.nn import functional

from pycc import models
from pycc.grid import window_field
from pycc.local import Box, Local
from pycc.models.bayesian import bayesian_loss
from pycc.models.heads import Heads
from pycc.models.sfanet import SFANet
from pycc.train import TrainConfig, fit

Fixture = Callable[[str], NpzFile]
VARIANTS = ("sfanet", "m_sfanet", "m_sfanet_qnrf")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few channels, the same wiring."""
    narrow.narrow(monkeypatch)


def _outputs(net: nn.Module) -> dict[str, Tensor]:
    """What the parts of a network compute, by the fixtures' names, filled at every call."""
    seen: dict[str, Tensor] = {}
    last = f"conv4_{net.vgg.layers[3]}", f"conv5_{net.vgg.layers[4]}"
    parts = {"conv4": net.vgg.get_submodule(last[0]), "conv5": net.vgg.get_submodule(last[1])}
    parts |= {name: getattr(net, name) for name in ("amp", "dmp") if hasattr(net, name)}
    if hasattr(net, "spm"):
        parts |= {"can": net.spm.can, "aspp": net.spm.assp}
        parts |= {"reg": net.spm.reg_layer} if hasattr(net.spm, "reg_layer") else {}
    for name, part in parts.items():
        part.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    return seen


@pytest.mark.command
@pytest.mark.parametrize(
    ("file", "variant", "parameters"),
    [("SFANet", "sfanet", 17_002_054), ("MSFANet", "m_sfanet", 22_904_390),
     ("MSFANet_QNRF", "m_sfanet_qnrf", 28_618_113)],
)  # fmt: skip
@torch.no_grad()
def test_output_is_the_published_networks(
    fixture: Fixture, file: str, variant: str, parameters: int
) -> None:
    numbers = fixture(file)
    state = published_state(numbers)
    assert SFANet.recognise(state) == {"variant": variant}
    counter = models.create("sfanet", variant=variant).eval()
    net = counter.net
    assert set(net.state_dict()) == set(state)
    net.load_state_dict(state, strict=True)
    assert sum(p.numel() for p in net.parameters()) == parameters == numbers["n_params"]
    seen = _outputs(net)
    for case in range(len(numbers["seeds"])):
        output = net(published_input(numbers, case))
        density, *others = output if isinstance(output, tuple) else (output,)
        assert close(density, numbers[f"out_{case}"])
        for attention in others:
            assert close(attention, numbers[f"attention_{case}"])
        for name, value in seen.items():
            expected = numbers[f"aux_{name}_{case}"]
            assert close(value[:, : expected.shape[1]], expected), name
        counted = float(counter(images_of(numbers, case)).double().sum())
        assert counted == pytest.approx(float(numbers["counts"][case]), rel=1e-4, abs=1e-4)
    assert len(seen) == {"sfanet": 4, "m_sfanet": 6, "m_sfanet_qnrf": 6}[variant]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_images_of_any_size(variant: str) -> None:
    """Sides that the network refuses are extended by the mean colour; other cells are as before."""
    counter = narrow.create("sfanet", variant=variant)
    images = torch.rand(1, 3, 41, 50)
    mean = torch.tensor(counter.convention.mean).view(1, 3, 1, 1)
    extended = mean.expand(1, 3, 48, 64).clone()
    extended[..., :41, :50] = images
    assert torch.allclose(counter(images), counter(extended)[..., :20, :25], atol=1e-6)
    for sides in ((16, 33), (16, 17), (31, 18)):
        assert counter(torch.rand(1, 3, *sides)).shape[2:] == (sides[0] // 2, sides[1] // 2)
    with pytest.raises(ValueError, match="sfanet: images must be at least 16x16 pixels, got 15x40"):
        counter(torch.rand(1, 3, 15, 40))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("shape", [(176, 144), (173, 146)])
def test_a_change_is_followed_through_the_whole_image(shape: tuple[int, int]) -> None:
    """No window has the image's cells; the layers have rules, also for what extends and cuts."""
    counter = narrow.create("sfanet").double()
    assert window_field(counter) is None
    images, box = torch.rand(1, 3, *shape, dtype=torch.float64), Box(8, 128, 16, 136)
    local = Local(counter, images, box)
    assert local.follows_layers
    reached = Box(0, 0, 8 + 67, shape[1] // 2)  # 134 pixels beyond the box
    assert local.cells.intersection(reached) == local.cells
    pixels = torch.rand(1, 3, *box.shape, dtype=torch.float64)
    changed = images.clone()
    changed[..., *box.slices] = pixels
    density = counter(changed)
    torch.testing.assert_close(local(pixels), density[..., *local.cells.slices])
    rest = (density - counter(images)).detach()
    rest[..., *local.cells.slices] = 0
    assert not rest.any()


@pytest.mark.usefixtures("small")
@torch.no_grad()
def test_resizing_is_the_published_evaluation() -> None:
    """Sides go to the nearest multiple of 16, halves to the even one; the count is kept."""
    counter = narrow.create("sfanet", resize=16)
    plain = narrow.create("sfanet")
    assert (counter.receptive_field, plain.receptive_field) == (None, 270)
    for sides, fed in (((41, 50), (48, 48)), ((40, 56), (32, 64)), ((17, 23), (16, 16))):
        images = torch.rand(1, 3, *sides)
        resized = functional.interpolate(
            images, fed, mode="bilinear", antialias=True, align_corners=False
        )
        density = counter(images)
        assert density.shape[2:] == (sides[0] // 2, sides[1] // 2)
        torch.testing.assert_close(density.sum(), plain(resized.clamp(0, 1)).sum())
    # An image that fits is counted as it is, and people stay where they are.
    images = torch.rand(1, 3, 32, 48)
    assert torch.equal(counter(images), plain(images))
    assert models.create("sfanet", **counter.options()).resize == 16


@pytest.mark.usefixtures("small")
def test_the_loss_is_the_published_one() -> None:
    counter = narrow.create("sfanet").train()
    images, target = torch.rand(2, 3, 32, 48), torch.rand(2, 1, 16, 24) * 0.01
    density, attention = counter.net(counter.preprocess(images))
    crowded = (target > 0.004).float()
    assert 0.2 < float(crowded.mean()) < 0.8
    expected = ((density - target) ** 2).sum() / 2
    expected = expected + 0.1 * functional.binary_cross_entropy(
        attention, crowded, reduction="sum"
    ) / 2  # fmt: skip
    torch.testing.assert_close(counter.loss(images, target), expected)
    # What lies outside the region of interest is no error.
    region = torch.zeros_like(target)
    assert float(counter.loss(images, target * 0, region=region).detach()) == 0.0


@pytest.mark.usefixtures("small")
def test_the_loss_for_qnrf_is_bayesian() -> None:
    """With the paper's background, cells of 2 pixels, and the target's heads without points."""
    # So few people that no head has enough: else all backgrounds have one loss.
    counter = narrow.create("sfanet", variant="m_sfanet_qnrf", scale=1e-3).train()
    images, target = torch.rand(2, 3, 32, 48), torch.zeros(2, 1, 16, 24)
    points = [torch.zeros(0, 2), torch.tensor([[9.0, 21.0], [41.0, 3.0]])]
    target[1, 0, 10, 4] = target[1, 0, 1, 20] = 1.0
    heads = [Heads(xy, torch.ones(len(xy)), 32.0) for xy in points]
    expected = bayesian_loss(counter(images), heads, distance="difference", stride=2)
    for given in ({"points": points}, {"heads": heads}, {}):
        torch.testing.assert_close(counter.loss(images, target, **given), expected)
    other = bayesian_loss(counter(images), heads, stride=2)
    assert float((other - expected).abs().detach()) > 1e-4
    expected.backward()
    assert float(counter.net.conv_out.conv.bias.grad.abs()) > 0


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("variant", ["m_sfanet", "m_sfanet_qnrf"])
def test_every_pixel_reaches_every_cell(variant: str) -> None:
    counter = narrow.positive(narrow.create("sfanet", variant=variant)).double()
    images = torch.rand(1, 3, 320, 16, dtype=torch.float64, requires_grad=True)
    counter(images)[0, 0, 0, 0].backward()
    assert images.grad is not None
    assert images.grad[0, :, -16:].abs().sum() > 0
    assert counter.receptive_field is None


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_those_of_differences(variant: str) -> None:
    counter = narrow.create("sfanet", variant=variant).double()
    images = torch.rand(1, 3, 32, 24, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(counter, images, eps=1e-7, fast_mode=True)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("variant", "normalised", "words"),
    [("sfanet", True, "the 13 convolutions of VGG-16, and their batch norms (91 of"),
     ("m_sfanet", False, "the 13 convolutions of VGG-16 (26 of its tensors read)"),
     ("m_sfanet_qnrf", False, "the 16 convolutions of VGG-19 (32 of its tensors read)")],
)  # fmt: skip
def test_vgg_becomes_the_trunk(variant: str, normalised: bool, words: str) -> None:
    """Under torchvision's numbers: those of a VGG that torchvision's rule builds here."""
    counter = models.create("sfanet", variant=variant)
    trunk = counter.net.vgg
    layers: list[nn.Module] = []
    own = []
    for block, place in trunk.places():
        if place == 1 and block > 1:
            layers.append(nn.MaxPool2d(2))
        kernel = trunk.get_submodule(f"conv{block}_{place}").conv.weight
        own.append((f"conv{block}_{place}", len(layers)))
        layers.append(nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, padding=1))
        layers += [nn.BatchNorm2d(kernel.shape[0])] if normalised else []
        layers.append(nn.ReLU())
    layers.append(nn.MaxPool2d(2))
    state = {f"features.{k}": v for k, v in nn.Sequential(*layers).state_dict().items()}
    state["classifier.0.bias"] = torch.zeros(4)
    assert counter.adopt(state).startswith(words)
    for key, number in own:
        layer = trunk.get_submodule(key)
        assert torch.equal(layer.conv.weight, state[f"features.{number}.weight"])
        if normalised:
            assert torch.equal(layer.bn.running_mean, state[f"features.{number + 1}.running_mean"])
    other = "m_sfanet_qnrf" if variant != "m_sfanet_qnrf" else "sfanet"
    with pytest.raises(ValueError, match="vgg-1"):
        models.create("sfanet", variant=other).adopt(state)
    assert counter.adopt({"branch1.0.weight": torch.zeros(1)}) is None
    before = counter.net.vgg.conv1_1.conv.weight.clone()
    with pytest.raises(ValueError, match=r"features\.0\.bias must be floats .* of torch\.int64"):
        counter.adopt({**state, "features.0.bias": state["features.0.bias"].long()})
    assert torch.equal(counter.net.vgg.conv1_1.conv.weight, before)


@pytest.mark.usefixtures("small")
def test_files_of_other_variants_are_named(tmp_path: Path, refused: Callable[..., None]) -> None:
    state = narrow.create("sfanet", variant="m_sfanet").net.state_dict()
    torch.save({"model": state, "epoch": 3}, tmp_path / "w.pth")
    loaded = models.load(tmp_path / "w.pth")
    assert loaded.options()["variant"] == "m_sfanet"
    refused(
        tmp_path / "w.pth", r"unexpected spm\.assp.*; its keys are those of variant='m_sfanet'$",
        variant="sfanet",
    )  # fmt: skip
    refused(tmp_path / "w.pth", "its keys are those of 'sfanet'$", name="can")
    with pytest.raises(ValueError, match="sfanet: variant must be 'sfanet' or 'm_sfanet'"):
        models.create("sfanet", variant="m-sfanet")
    with pytest.raises(ValueError, match="sfanet: resize must be None or 16, got 8"):
        models.create("sfanet", resize=8)


@pytest.mark.usefixtures("small")
@pytest.mark.command
@pytest.mark.parametrize("variant", ["sfanet", *long("m_sfanet_qnrf")])
def test_it_learns(variant: str) -> None:
    """Its loss halves, and held-out images are counted better, from a fresh narrow network."""
    torch.manual_seed(2)
    counter = models.create("sfanet", variant=variant)
    for module in counter.net.modules():
        if isinstance(module, nn.Conv2d):  # N(0, 0.01) is meant for hundreds of channels
            nn.init.kaiming_normal_(module.weight)
    plan = TrainConfig(
        epochs=12, batch=4, lr=3e-3, crop="48x64", crops=2, validation_share=0.25, patience=None
    )
    log = fit(counter, scenes(8), plan)
    held = [row.errors.mae for row in log.validations]
    assert log.epochs[-1].loss < 0.5 * log.epochs[0].loss
    assert min(held) < 0.6 * held[0]


@pytest.mark.usefixtures("small")
def test_published_recipes() -> None:
    recipes = {variant: models.create("sfanet", variant=variant).recipe() for variant in VARIANTS}
    (adam,) = recipes["sfanet"].optimisers
    assert (adam.kind, adam.lr, recipes["sfanet"].batch, recipes["sfanet"].epochs) == (
        "adam", 1e-4, 8, 500
    )  # fmt: skip
    assert recipes["sfanet"].density == {"": "fixed5_reflect"}
    assert recipes["m_sfanet"].notes[1:] == recipes["sfanet"].notes
    (adam,) = recipes["m_sfanet_qnrf"].optimisers
    assert (adam.lr, adam.weight_decay, recipes["m_sfanet_qnrf"].crop.size) == (
        5e-4, 1e-4, (512, 512)
    )  # fmt: skip
