"""ZIP against the published networks and their loss; the rest on narrow ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib.npyio import NpzFile
from support import narrow
from support.published import close, images_of, published_input, published_state
from torch import Tensor
from torch.nn import functional

from pycc import models
from pycc.commands import main
from pycc.grid import window_field
from pycc.models import mobilenet_v4
from pycc.models.zip import ZIP
from pycc.models.zip_bins import BINS
from pycc.models.zip_loss import zip_loss
from pycc.models.zip_net import Scores

Fixture = Callable[[str], NpzFile]
PUBLISHED = {
    "ZIP_P": ("p", "shanghaitech_a", 16, 817_887),
    "ZIP_N": ("n", "shanghaitech_b", 16, 3_369_115),
    "ZIP_N8": ("n", "nwpu", 8, 4_301_990),
    "ZIP_T": ("t", "qnrf", 32, 8_672_214),
    "ZIP_T16": ("t", "shanghaitech_a", 16, 10_534_847),
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few channels, the same wiring."""
    narrow.narrow(monkeypatch)


def made(**options: object) -> ZIP:
    counter = narrow.create("zip", **options)
    assert isinstance(counter, ZIP)
    return counter


def images(height: int, width: int, number: int = 1) -> Tensor:
    return torch.rand(number, 3, height, width, generator=torch.Generator().manual_seed(2))


# --- the published networks and loss


@pytest.mark.command
@pytest.mark.parametrize("name", PUBLISHED)
@torch.no_grad()
def test_output_is_the_published_networks(fixture: Fixture, name: str) -> None:
    """At every size; of 150x201 pixels it counts 160x224, and so does the counter."""
    numbers = fixture(name)
    variant, data, block, parameters = PUBLISHED[name]
    counter = ZIP(variant=variant, data=data, block=block).eval()  # type: ignore[arg-type]
    state = published_state(numbers)
    assert list(counter.net.state_dict()) == list(state)
    assert sum(p.numel() for p in counter.parameters()) == numbers["n_params"] == parameters
    assert ZIP.recognise(state) == {"variant": variant, "block": block, "data": data}
    lowest, highest = numbers["bins"].T
    assert counter.bins.lowest == tuple(lowest)
    assert tuple(highest) == (*(low - 1 for low in lowest[1:]), math.inf)
    np.testing.assert_allclose(counter.bins.centers, numbers["bin_centers"], rtol=1e-8)
    counter.net.load_state_dict(state)
    seen: dict[str, Tensor] = {}
    for part in ("encoder", "refiner", "decoder"):
        module = counter.net.backbone.get_submodule(part)
        module.register_forward_hook(lambda _, __, out, part=part: seen.update({part: out}))
    for case in range(len(numbers["seeds"])):
        x = published_input(numbers, case)
        scores = counter.net.scores(x)
        for part, features in seen.items():
            assert close(features[:, :4], numbers[f"aux_{part}_{case}"])
        assert close(counter.net(x), numbers[f"out_{case}"])
        assert close(scores.empty, numbers[f"pi_logits_{case}"])
        assert close(scores.bins, numbers[f"bin_logits_{case}"])
        shown = images_of(numbers, case)
        density = counter(shown)
        assert density.shape[2:] == tuple(-(-side // block) for side in shown.shape[2:])
        assert float(density.double().sum()) == pytest.approx(numbers["counts"][case], rel=1e-6)


def test_loss_is_the_published_one(fixture: Fixture) -> None:
    numbers = fixture("ZIP_loss")
    bins = BINS["shanghaitech_a", 16]
    empty, logits = (
        torch.from_numpy(numbers[key]).requires_grad_() for key in ("pi_logits", "bin_logits")
    )
    centers = torch.tensor(bins.centers, dtype=torch.float64).view(1, -1, 1, 1)
    rates = (logits.softmax(1) * centers[:, 1:]).sum(1, keepdim=True)
    density = empty.softmax(1)[:, 1:] * rates
    np.testing.assert_allclose(rates.detach(), numbers["lam"], rtol=1e-7)
    np.testing.assert_allclose(density.detach(), numbers["den"], rtol=1e-7)
    target = 256 * functional.avg_pool2d(torch.from_numpy(numbers["target"]).double(), 16)
    terms = zip_loss(Scores(empty, logits), rates, density, target, bins)
    maps = sum(
        weight * numbers[f"part_aux_mae_loss_{scale}"]
        for scale, weight in zip(numbers["scales"], numbers["scale_weights"], strict=True)
    )
    parts = [numbers["part_cls_zice"], numbers["part_reg_zipnll"], maps, numbers["part_cnt_loss"]]
    np.testing.assert_allclose([float(term.detach().mean()) for term in terms], parts, rtol=1e-6)
    total = terms.total().mean()
    assert float(total.detach()) == pytest.approx(float(numbers["total"]), rel=1e-7)
    total.backward()
    for logit, key in ((empty, "grad_pi_logits"), (logits, "grad_bin_logits")):
        assert logit.grad is not None
        assert close(logit.grad, numbers[key], 1e-6)


# --- geometry


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("block", [8, 16, 32])
@torch.no_grad()
def test_every_size_keeps_map_image_and_count(block: int) -> None:
    """The people of cells beyond the image are in its last row and column."""
    counter = made(variant="n", block=block)
    for side in (block, 33, 40, 41, 64, 65):
        shown = images(side, 33)
        density = counter(shown)
        whole = counter.net(counter.preprocess(shown))
        rows, columns = -(-side // block), -(-33 // block)
        assert density.shape == (1, 1, rows, columns)
        assert whole.shape[2:] == (-(-side // 32) * (32 // block), 64 // block)
        assert torch.equal(density[..., :-1, :-1], whole[..., : rows - 1, : columns - 1])
        torch.testing.assert_close(density.sum(), whole.sum())
        corner = whole[..., rows - 1 :, columns - 1 :].sum()
        torch.testing.assert_close(density[0, 0, -1, -1], corner)
    assert (counter.stride, counter.period, counter.minimum_side) == (block, 32, block)
    with pytest.raises(ValueError, match=rf"images must be at least {block}x.* got {block - 1}x40"):
        counter(images(block - 1, 40))


@pytest.mark.long
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("block", [8, 16, 32])
@pytest.mark.parametrize("variant", ["p", "n", "t"])
def test_the_field_covers_all_kinds_of_cells(variant: str, block: int) -> None:
    """Perturbed at all 32 residues, along both axes."""
    counter = made(variant=variant, block=block)
    measured = models.measure_receptive_field(counter)
    assert measured is not None
    assert 2 * max(measured.before, measured.after) + block == counter.receptive_field
    assert (window_field(counter) is None) == (block < 32)


@pytest.mark.usefixtures("small")
@torch.no_grad()
def test_no_cell_exceeds_what_is_declared() -> None:
    """The last bin everywhere, nowhere empty; at the border, cells beyond the image add up."""
    counter = made(block=8, scale=2.0)
    last = 2.0 * 4.31551732
    for parameter in counter.net.parameters():
        parameter.zero_()
    counter.net.bin_head.bias[-1] = counter.net.pi_head.bias[1] = 100.0
    density = counter(images(33, 33))
    torch.testing.assert_close(density[..., :-1, :-1], torch.full((1, 1, 4, 4), last))
    assert float(density.max()) == pytest.approx(16 * last) == counter.most_per_cell
    assert made(block=32, data="qnrf").most_per_cell == pytest.approx(38.8572259)
    counter.net.pi_head.bias[1] = -100.0
    assert float(counter(images(32, 32)).max()) < 1e-30


# --- loss


@pytest.mark.usefixtures("small")
def test_loss_is_of_blocks_in_the_image_and_the_region() -> None:
    counter = made(variant="t", data="shanghaitech_b").train()
    shown = images(64, 96, 2)
    target = torch.zeros(2, 1, 4, 6)
    target[0, 0, 1, 2], target[0, 0, 2, 5], target[1, 0, 0, 0] = 1, 12, 3
    for module in counter.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    empty, logits, rates, density = counter.net(counter.preprocess(shown))
    terms = zip_loss(Scores(empty, logits), rates, density, target, counter.bins)
    loss = counter.loss(shown, target)
    torch.testing.assert_close(loss, terms.total().mean())
    # The twelve heads of one block are of the last bin, "nine and more".
    chosen = logits.log_softmax(1)[0, :, 2, 5]
    assert len(chosen) == 9
    one = torch.zeros_like(target)
    one[0, 0, 2, 5] = 1.0
    inside = zip_loss(
        Scores(empty, logits), rates, one * density, one * target, counter.bins, region=one
    )
    torch.testing.assert_close(inside.classes, torch.stack([-chosen[8], chosen.new_zeros(())]))
    torch.testing.assert_close(counter.loss(shown, one * target, region=one), inside.total().mean())
    smaller = counter.loss(shown[..., :65], target[..., :5])
    assert smaller.isfinite()
    assert smaller != loss
    with pytest.raises(ValueError, match=r"zip\.loss: target must be \[2, 1, 4, 6\]"):
        counter.loss(shown, target[..., 1:])
    with pytest.raises(ValueError, match=r"zip\.loss: target must hold numbers of heads .* 0\.2"):
        counter.loss(shown, target + 0.2)


@pytest.mark.usefixtures("small")
def test_loaded_weights_are_tuned(tmp_path: Path) -> None:
    """A few steps of the published loss bring the counts of two scenes to their heads."""
    torch.manual_seed(0)
    torch.save(made(data="nwpu", block=16).net.state_dict(), tmp_path / "w.pth")
    counter = models.load(tmp_path / "w.pth").train()
    shown = images(64, 64, 2)
    target = torch.zeros(2, 1, 4, 4)
    target[0, 0, 0], target[1, 0, :, 3] = 2, 7
    optimiser = torch.optim.Adam(counter.parameters(), 0.02)
    before = counter(shown).sum((1, 2, 3)).detach() - target.sum((1, 2, 3))
    for _ in range(40):
        optimiser.zero_grad()
        counter.loss(shown, target).backward()
        optimiser.step()
    after = counter(shown).sum((1, 2, 3)).detach() - target.sum((1, 2, 3))
    assert after.abs().sum() < 0.2 * before.abs().sum()


# --- weights


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "options",
    [
        {"variant": "p", "data": "shanghaitech_a", "block": 8},
        {"variant": "n", "data": "qnrf", "block": 32},
        {"variant": "t", "data": "nwpu", "block": 16},
    ],
)
def test_files_show_variant_block_and_data(tmp_path: Path, options: dict[str, object]) -> None:
    """As published: the configuration beside the weights, floats of which one is infinite."""
    counter = made(**options)
    bins = [[float(low), float(low)] for low in counter.bins.lowest]
    bins[-1][1] = math.inf
    config = {
        "model_name": "mobilenetv4_conv_small", "block_size": counter.stride, "bins": bins,
        "bin_centers": [*counter.bins.centers], "zero_inflated": True, "num_vpt": None,
        "norm": "none", "act": "none",
    }  # fmt: skip
    path = tmp_path / "best_mae_0.pth"
    torch.save({"config": config, "weights": counter.net.state_dict()}, path)
    loaded = models.load(path)
    assert loaded.options() == counter.options()
    assert torch.equal(loaded(images(64, 96)), counter(images(64, 96)))
    assert "not shown by the keys" not in loaded.origin
    half = {
        k: v.half() if v.is_floating_point() else v for k, v in counter.net.state_dict().items()
    }
    torch.save(half, tmp_path / "half.pth")
    halved = models.load(tmp_path / "half.pth", data=options["data"])
    assert torch.equal(halved.net.bin_centers, counter.net.bin_centers)
    torch.testing.assert_close(halved(images(64, 96)), counter(images(64, 96)), rtol=0.02, atol=0.1)


@pytest.mark.usefixtures("small")
def test_weights_of_other_variants_bins_and_families_are_refused(
    tmp_path: Path, refused: Callable[..., None]
) -> None:
    path = tmp_path / "w.pth"
    state = made(data="shanghaitech_b", block=8).net.state_dict()
    torch.save(state, path)
    refused(path, r"its keys are those of variant='p'", variant="n")
    refused(path, r"unexpected backbone\.refiner\.0\..*keys are those of block=8", block=32)
    refused(path, r"the last is 4\.40968, expected 4\.31552; its keys .* data='shanghaitech_b'",
            data="shanghaitech_a")  # fmt: skip
    refused(path, "does not fit mcnn.*; its keys are those of 'zip'", name="mcnn")
    own = {**state, "bin_centers": state["bin_centers"] * 1.1}
    torch.save(own, path)
    refused(path, r"its bin_centers are not those of the data set: the last is 4\.85")
    plain = {k: v for k, v in state.items() if not k.startswith("pi_head")}
    torch.save(plain, path)
    refused(path, r"does not fit zip .*missing pi_head\.weight, pi_head\.bias")


@pytest.mark.usefixtures("small")
@torch.no_grad()
def test_mobilenet_becomes_the_encoder(tmp_path: Path) -> None:
    for variant, other in (("p", "t"), ("t", "n")):
        counter = made(variant=variant)
        encoder = counter.net.backbone.encoder
        archive = {k: torch.rand_like(v.float()) for k, v in encoder.state_dict().items()}
        archive |= {"conv_head.weight": torch.zeros(9, 2, 1, 1), "classifier.bias": torch.zeros(9)}
        torch.save(archive, tmp_path / "timm.pth")
        with pytest.warns(UserWarning, match="zip the encoder of MobileNetV4 .* is untrained"):
            started = models.load(tmp_path / "timm.pth", name="zip", variant=variant)
        for key, value in started.net.backbone.encoder.state_dict().items():
            if value.is_floating_point():
                assert torch.equal(value, archive[key]), key
        with pytest.raises(ValueError, match=r"mobilenet: .* is it MobileNetV4 of this size\?"):
            made(variant=other).adopt(archive)
    assert counter.adopt(counter.net.state_dict()) is None
    assert counter.adopt({"features.0.weight": torch.zeros(4, 3, 3, 3)}) is None


def test_small_has_half_of_the_channels() -> None:
    """Of each block, not of the stem."""
    for half, full in zip(mobilenet_v4.PLANS["p"], mobilenet_v4.PLANS["n"], strict=True):
        for block, twice in zip(half, full, strict=True):
            assert (2 * block.channels, 2 * block.hidden) == (twice.channels, twice.hidden)


# --- options, recipe, commands


def test_bad_options() -> None:
    cases = [
        ({"variant": "s"}, "variant must be 'p' or 'n' or 't', got 's'"),
        ({"data": "jhu"}, "data must be 'shanghaitech_a' or .* or 'nwpu', got 'jhu'"),
        ({"block": 4}, "block must be None or 8 or 16 or 32, got 4"),
        ({"input": "gray255"}, "3 input channels"),
        ({"bins": 5}, "unknown option 'bins'; known: variant, data, block"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            models.create("zip", **options)


@pytest.mark.usefixtures("small")
def test_input_and_recipe_are_the_published_ones() -> None:
    counter = made()
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
    shown = images(8, 8)
    torch.testing.assert_close(counter.preprocess(shown), (shown - mean) / std)
    for data, side, block in (
        ("shanghaitech_a", 448, 16), ("shanghaitech_b", 448, 16), ("qnrf", 672, 32),
        ("nwpu", 672, 16),
    ):  # fmt: skip
        counter = made(data=data)
        recipe = counter.recipe()
        assert counter.stride == block
        assert recipe.crop.size == (side, side)
        assert recipe.crop.scale == (0.75, 2.5 if data == "shanghaitech_b" else 2.0)
        assert (recipe.epochs, recipe.batch, recipe.optimisers[0].lr) == (1300, 8, 1e-4)
        assert recipe.schedule.geometric


@pytest.mark.command
@pytest.mark.usefixtures("small")
def test_commands_take_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"weights": made(variant="n").net.state_dict()}, tmp_path / "w.pth")
    assert main("models", ["show", "zip"]) == 0
    shown = capsys.readouterr().out
    assert "receptive field" in shown.lower()
    assert main("models", ["check", str(tmp_path / "w.pth")]) in (0, 1)
    assert "zip by its keys" in capsys.readouterr().out
