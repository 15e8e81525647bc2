"""CLIP-EBC on VGG-19 and on CLIP's ViT-B/16, against the published networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib.npyio import NpzFile
from support import narrow
from support.published import close, images_of, published_input, published_state
from torch import Tensor

from pycc import attack, certify, models
from pycc.grid import window_field
from pycc.models import dace
from pycc.models.clip_ebc import CLIPEBC
from pycc.models.clip_ebc_net import ViTEBCNet
from pycc.types import Sample

Fixture = Callable[[str], NpzFile]
VIT: dict[str, object] = {"backbone": "vit_b_16"}
VGG: dict[str, object] = {"backbone": "vgg19"}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few channels, the same wiring."""
    narrow.narrow(monkeypatch)


def made(**options: object) -> CLIPEBC:
    counter = narrow.create("clip_ebc", **options)
    assert isinstance(counter, CLIPEBC)
    return counter


def images(height: int, width: int, number: int = 1) -> Tensor:
    return torch.rand(number, 3, height, width, generator=torch.Generator().manual_seed(2))


def published(fixture: Fixture, name: str, **options: object) -> tuple[CLIPEBC, NpzFile]:
    numbers = fixture(name)
    with torch.device("meta"):
        counter = CLIPEBC(**options)  # type: ignore[arg-type]
    state = published_state(numbers)
    assert list(counter.net.state_dict()) == list(state)
    assert sum(p.numel() for p in counter.parameters()) == numbers["n_params"]
    trained = sum(p.numel() for p in counter.parameters() if p.requires_grad)
    assert trained == numbers["n_trainable"]
    np.testing.assert_array_equal(counter.net.anchors, numbers["anchors"])
    assert counter.most_per_cell == counter.net.anchors[-1]
    counter.net.load_state_dict(state, assign=True)
    return counter.eval(), numbers


# --- the published networks


@pytest.mark.command
@torch.no_grad()
def test_vgg19_is_the_published_network(fixture: Fixture) -> None:
    """At every size; of 97x131 pixels it counts 96x128."""
    counter, numbers = published(fixture, "CLIP_EBC_VGG19", **VGG, data="nwpu")
    seen: dict[str, Tensor] = {}
    for name in ("features", "reg_layer"):
        part = counter.net.get_submodule(f"backbone.{name}")
        part.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.clone()}))
    for case, cells in enumerate([(8, 12), (12, 16), (6, 10)]):
        logits, density = counter.net.scores(published_input(numbers, case))
        assert close(density, numbers[f"out_{case}"])
        assert close(logits, numbers[f"logits_{case}"])
        for name in ("features", "reg_layer"):
            assert close(seen[name][:, :4], numbers[f"aux_{name}_{case}"])
        shown = counter(images_of(numbers, case))
        assert shown.shape[2:] == cells
        assert close(shown, numbers[f"out_{case}"])
        assert float(shown.double().sum()) == pytest.approx(numbers["counts"][case], rel=1e-5)


@pytest.mark.long
@pytest.mark.command
@torch.no_grad()
def test_vit_is_the_published_network(fixture: Fixture) -> None:
    """At once, at every size, and in published windows, of which two are moved back."""
    counter, numbers = published(fixture, "CLIP_EBC_ViT", **VIT, data="qnrf")
    assert isinstance(counter.net, ViTEBCNet)
    tokens = np.array(counter.net.tokens)
    np.testing.assert_array_equal(tokens, numbers["tokens"][:, : tokens.shape[1]])
    assert close(counter.net.prompt_features(), numbers["text_features"])
    seen: dict[str, Tensor] = {}
    parts = {n: counter.net.get_submodule(n) for n in ("image_decoder", "projection")}
    parts["patch_conv"] = counter.net.image_encoder.conv1
    for name, part in parts.items():
        part.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    for case in range(len(numbers["seeds"])):
        logits, density = counter.net.scores(published_input(numbers, case))
        assert close(density, numbers[f"out_{case}"])
        assert close(logits, numbers[f"logits_{case}"])
        for name in parts:
            assert close(seen[name][:, :4], numbers[f"aux_{name}_{case}"])
        assert close(counter(images_of(numbers, case)), numbers[f"windowed_{case}"])


# --- geometry


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("options", [VGG, VIT])
@torch.no_grad()
def test_every_size_keeps_the_relation_of_map_and_image(options: dict[str, object]) -> None:
    counter = made(**options)
    for side in (16, 23, 24, 31, 32, 47):
        density = counter(images(side, 40))
        assert density.shape == (1, 1, side // 8, 5)
        counted = side // 16 * 2
        assert (density[:, :, :counted, :4] > 0).all()
        assert (density[:, :, counted:] == 0).all()
        assert (density[..., 4:] == 0).all()
    assert (counter.stride, counter.period, window_field(counter)) == (8, 16, None)
    with pytest.raises(ValueError, match="clip_ebc: images must be at least 16x16 pixels, got 15x"):
        counter(images(15, 40))


@pytest.mark.usefixtures("small")
def test_the_field_of_vgg19_covers_both_kinds_of_cells() -> None:
    """Perturbed at all sixteen residues, along both axes."""
    counter = made(**VGG)
    assert models.measure_receptive_field(counter) == models.ReceptiveField(150, 150, 308)
    assert counter.receptive_field == 308


@pytest.mark.usefixtures("small")
@torch.no_grad()
def test_a_cell_of_the_vit_is_that_of_its_windows() -> None:
    """Nothing outside them matters; in an image counted at once, all of it does."""
    counter = made(**VIT, window=32).double()
    shown = images(72, 32).double()
    first, second, last = (
        CLIPEBC.run(counter, counter.preprocess(shown[:, :, top : top + 32]))[1][0, 0]
        for top in (0, 32, 40)
    )
    cells = counter(shown)[0, 0]
    assert cells.shape == (9, 4)
    expected = torch.cat([first, second[:1], (second[1:] + last[:3]) / 2, last[3:]])
    torch.testing.assert_close(cells, expected)
    changed = shown.clone()
    changed[:, :, 32:] = 0.5
    moved = (counter(changed)[0, 0] - cells).abs().amax(1) > 1e-9
    assert moved.tolist() == [False] * 4 + [True] * 5
    counter.sliding = False
    whole = counter(shown)[0, 0]
    assert whole.shape == (9, 4)
    assert (whole[8] == 0).all()  # of 72 pixels the network counts 64
    moved = (counter(changed)[0, 0] - whole).abs().amax(1) > 1e-9
    assert moved.tolist() == [True] * 8 + [False]
    assert counter.receptive_field is None


@pytest.mark.usefixtures("small")
@torch.no_grad()
def test_no_cell_exceeds_the_last_anchor() -> None:
    """Which bounds what a patch can add, without caps from training data."""
    counter = made(**VGG, scale=2.0)
    assert counter.most_per_cell == pytest.approx(2 * 4.29992)
    torch.nn.init.constant_(counter.net.classifier.bias, 0.0)
    counter.net.classifier.bias[-1] = 100.0  # everywhere the last bin
    shown = images(64, 64)
    density = counter(shown)
    torch.testing.assert_close(density, torch.full_like(density, 2 * 4.29992))
    interval = certify.additive(counter, shown[0], patch_size=16)
    assert interval.high == pytest.approx(float(density.sum()), rel=1e-3)
    assert interval.low <= 0.0


@pytest.mark.usefixtures("small")
@torch.no_grad()
def test_prompts_reach_their_block_alone() -> None:
    """Each of the blocks' prompts changes the counts; a block's outputs for them are dropped."""
    counter = made(**VIT, prompts=3)
    net = counter.net
    assert isinstance(net, ViTEBCNet)
    shown = images(32, 48)
    before = counter(shown)
    widths: list[int] = []
    for block in net.image_encoder.transformer.resblocks:
        block.register_forward_hook(lambda _, __, out: widths.append(out.shape[1]))
    for name in ("vpt_0", "vpt_1"):
        kept = net.get_parameter(name).clone()
        net.get_parameter(name).add_(1.0)
        assert not torch.equal(counter(shown), before)
        net.get_parameter(name).copy_(kept)
    assert widths == [1 + 3 + 2 * 3] * 4


@pytest.mark.command
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("options", [VGG, {**VIT, "window": 48}])
def test_a_patch_can_be_attacked(options: dict[str, object]) -> None:
    """Through the engine, whose count of the attacked image is the counter's own."""
    counter = made(**options)
    sample = Sample("one", images(80, 104)[0], torch.zeros(0, 2, dtype=torch.float64))
    apam = attack.APAM(patch_size=24, steps=20, objective="over", transform="none", smoothness=0.0)
    run = attack.run(counter, [sample], apam, pgd=None, checks=False)
    (record,) = [r for r in run.run.records if r["condition"] == "apam"]
    assert record["zero_gradient"] < 0.5
    with torch.no_grad():
        clean = float(counter(sample.image[None]).sum())
    assert run.run.records[0]["count"] == pytest.approx(clean, rel=1e-3)
    assert record["count"] > run.run.records[0]["count"]
    shown = images(56, 24).double().requires_grad_()
    assert torch.autograd.gradcheck(counter.double(), shown, eps=1e-7, fast_mode=True)


# --- loss, weights, options


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("options", [VGG, VIT])
def test_loss_is_dace_on_what_the_network_returns(options: dict[str, object]) -> None:
    counter = made(**options)
    shown, points = images(48, 64, 2), [torch.tensor([[3.0, 40.0], [60.5, 10.0]])] * 2
    target = torch.zeros(2, 1, 6, 8)
    target[:, 0, 5, 0] = target[:, 0, 1, 7] = 1
    logits, density = counter.net.scores(counter.preprocess(shown))
    for kind in dace.COUNT_LOSSES:
        counter.count_loss = kind
        expected = dace.dace_loss(logits, density, target, count_loss=kind, points=points)
        loss = counter.loss(shown, target, points=points)
        assert torch.equal(loss, expected)
    loss.backward()
    learning = {k for k, p in counter.net.named_parameters() if p.grad is not None}
    frozen = {k for k in counter.net.state_dict() if k.startswith(("image_enc", "text_enc"))}
    assert not learning & frozen
    assert ("vpt_0" in learning) == (counter.backbone == "vit_b_16")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("options", "keys"),
    [
        (VGG, {}),
        ({**VIT, "prompts": 5, "window": 48}, {"prompts": 5, "window": 48, "text_encoder": True}),
    ],
)
def test_files_show_backbone_prompts_and_window(
    tmp_path: Path, options: dict[str, object], keys: dict[str, object]
) -> None:
    counter = made(**options)
    state = counter.net.state_dict()
    assert CLIPEBC.recognise(state) == {"backbone": options["backbone"], **keys}
    torch.save({"model_state_dict": state, "epoch": 3}, tmp_path / "ckpt.pth")
    loaded = models.load(tmp_path / "ckpt.pth")
    shown = images(64, 96)
    assert torch.equal(loaded(shown), counter(shown))
    assert loaded.options() == counter.options()
    hidden = "data='shanghaitech_a', anchors='average'"
    hidden += ", prompt='word'" if keys else ""
    assert loaded.origin.endswith(f"not shown by the keys: {hidden}")
    models.save(counter, tmp_path / "own.npz", metadata={})
    assert models.load(tmp_path / "own.npz").options() == counter.options()
    wrong = {"prompts": 7} if keys else {"backbone": "resnet50"}
    with pytest.raises(ValueError, match=r"ckpt\.pth does not fit .*; its keys are those of "):
        models.load(tmp_path / "ckpt.pth", **wrong)
    with pytest.raises(ValueError, match=r"was trained with backbone=.*, got backbone='resnet50'"):
        models.load(tmp_path / "own.npz", backbone="resnet50")


@pytest.mark.usefixtures("small")
def test_files_that_do_not_fit(tmp_path: Path, refused: Callable[..., None]) -> None:
    state = made(**VIT).net.state_dict()
    path = tmp_path / "w.pth"
    torch.save({k: v for k, v in state.items() if k != "vpt_1"}, path)
    refused(path, "missing vpt_1")  # prompts of the first block alone are another network
    torch.save({**state, "vpt_0": torch.tensor(1.0)}, path)
    refused(path, r"wrong shape vpt_0 \[\] instead of \[1, 8\]")
    torch.save({**state, "image_encoder.positional_embedding": torch.zeros(200, 8)}, path)
    refused(path, r"positional_embedding \[200, 8\] instead of \[197, 8\]")
    torch.save(made(**VGG).net.state_dict(), path)
    refused(path, "does not fit vgg19 .*; its keys are those of 'clip_ebc'", name="vgg19")


@pytest.mark.usefixtures("small")
@torch.no_grad()
def test_without_text_encoder_maps_are_the_same_bits(tmp_path: Path) -> None:
    counter = made(**VIT)
    lean = counter.without_text_encoder()
    shown = images(48, 64)
    assert torch.equal(lean(shown), counter(shown))
    models.save(lean, tmp_path / "own.npz", metadata={})
    loaded = models.load(tmp_path / "own.npz", sliding=False)
    assert loaded.options() == {**counter.options(), "text_encoder": False, "sliding": False}
    with pytest.raises(ValueError, match="backbone 'vgg19' has no text encoder"):
        made(**VGG).without_text_encoder()


@pytest.mark.usefixtures("small")
@torch.no_grad()
def test_published_encoders_become_the_backbone(tmp_path: Path) -> None:
    counter, donor = made(**VIT), made(**VIT)
    assert isinstance(donor.net, ViTEBCNet)
    assert donor.net.text_encoder is not None
    for parameter in donor.net.parameters():
        parameter.add_(0.1)
    archive = {f"visual.{k}": v.half() for k, v in donor.net.image_encoder.state_dict().items()}
    archive |= {k: v.half() for k, v in donor.net.text_encoder.state_dict().items()}
    archive |= {"visual.proj": torch.zeros(16, 16), "logit_scale": torch.tensor(4.6)}
    vpt = counter.net.get_parameter("vpt_0").clone()
    taken = counter.adopt(archive)
    assert taken is not None
    assert taken.startswith("CLIP's ViT-B/16: ")
    for key, value in counter.net.image_encoder.state_dict().items():
        assert torch.equal(value, archive[f"visual.{key}"].float())
    assert torch.equal(counter.net.get_parameter("vpt_0"), vpt)
    with pytest.raises(ValueError, match=r"not the weights of CLIP's RN50: missing"):
        made().adopt(archive)
    on_vgg = made(**VGG)
    trunk = {f"features.{k}": v + 0.1 for k, v in on_vgg.net.trunk.state_dict().items()}
    torch.save(trunk, tmp_path / "vgg19.pth")
    with pytest.warns(UserWarning, match="clip_ebc the first 16 convolutions of VGG-19 .*untrai"):
        started = models.load(tmp_path / "vgg19.pth", name="clip_ebc", backbone="vgg19")
    assert torch.equal(started.net.trunk[0].weight, trunk["features.0.weight"])


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "vgg16"}, "backbone must be 'resnet50' or 'vgg19' or 'vit_b_16', got 'vgg1"),
        ({**VIT, "prompts": 0}, "prompts must be an integer of at least 1, got 0"),
        ({**VIT, "window": 100}, "window must be a positive multiple of 16 pixels, got 100"),
        ({"prompts": 8}, "prompts belongs to backbone 'vit_b_16', got 'resnet50'"),
        ({**VGG, "sliding": False}, "sliding belongs to backbone 'vit_b_16', got 'vgg19'"),
        ({**VGG, "text_encoder": False}, "belongs to backbone 'resnet50' or 'vit_b_16', got 'vgg"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.create("clip_ebc", **options)


@pytest.mark.usefixtures("small")
def test_recipes_are_the_published_ones() -> None:
    vit, vgg = made(**VIT).recipe(), made(**VGG).recipe()
    assert (vit.crop.size, vit.crop.number, vit.batch) == ((224, 224), 2, 32)
    assert vit.schedule.warmup_lr == 1e-3 > vit.optimisers[0].lr
    assert (vgg.crop.size, vgg.crop.number, vgg.batch) == ((448, 448), 1, 8)
    assert vgg.schedule.warmup_lr == 1e-6
