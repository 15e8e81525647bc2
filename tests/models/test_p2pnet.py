"""P2PNet against the published network; what does not need its size, on a narrow one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.lib.npyio import NpzFile
from support import narrow
from support.published import close, images_of, published_input, published_state
from torch import Tensor
from torch.nn import functional

import pycc
from pycc import attack, certify, data, models, train
from pycc.counters import heads_of, tiled_density
from pycc.grid import heads_in, reached_window, window_field
from pycc.local import Box, Local
from pycc.models import p2pnet_net
from pycc.models.p2pnet import P2PNet
from pycc.models.p2pnet_loss import matched, p2pnet_loss
from pycc.models.p2pnet_net import Maps, P2PNetNet, Proposals
from pycc.types import Sample

Fixture = Callable[[str], NpzFile]


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> P2PNet:
    """Narrow, counting heads, of which a random image has some in most cells."""
    narrow.narrow(monkeypatch)
    counter = narrow.create("p2pnet", cells="points")
    assert isinstance(counter, P2PNet)
    with torch.no_grad():  # scores above and below a half, that follow the image
        for module in counter.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.reset_parameters()
            elif isinstance(module, torch.nn.Conv2d):
                torch.nn.init.zeros_(module.bias)
        shown = counter.net.maps(counter.preprocess(images(64, 64)))
        counter.net.classification.output.weight.div_(shown.logits.std())
        counter.net.classification.output.bias.sub_(
            shown.logits.mean((0, 2, 3)) / shown.logits.std()
        )
        counter.net.regression.output.weight.mul_(0.01)
    return counter


def images(height: int, width: int, number: int = 1) -> Tensor:
    return torch.rand(number, 3, height, width, generator=torch.Generator().manual_seed(2))


# --- the published network


@pytest.mark.command
@pytest.mark.parametrize("file", ["P2PNet", "P2PNet_raw16"])
@torch.no_grad()
def test_output_is_the_published_networks(fixture: Fixture, file: str) -> None:
    numbers = fixture(file)
    with torch.device("meta"):
        counter = P2PNet(padding=16 if file == "P2PNet_raw16" else 128).eval()
    state = published_state(numbers)
    counter.net.load_state_dict(state, strict=True, assign=True)
    for case in range(len(numbers["seeds"])):
        x = published_input(numbers, case)
        logits, points = counter.net(x)
        assert close(logits, numbers[f"out_{case}"])
        assert close(points, numbers[f"points_{case}"])
        fine, coarse = counter.net.backbone(x)
        assert close(fine[:, :4], numbers[f"aux_body3_{case}"])
        assert close(coarse[:, :4], numbers[f"aux_body4_{case}"])
        assert close(counter.net.fpn(fine, coarse)[:, :4], numbers[f"aux_p4_{case}"])
        # The counter, from RGB in [0,1], counts the published heads, exactly.
        shown = images_of(numbers, case)
        density = counter(shown)
        np.testing.assert_array_equal(density[0, 0], numbers[f"cell_points_{case}"])
        assert float(density.sum()) == numbers[f"n_points_{case}"] == numbers["counts"][case]
        (heads,) = counter.heads(shown)
        np.testing.assert_array_equal(landing(heads, density), numbers[f"position_cells_{case}"])
        counter.cells = "scores"
        assert close(counter(shown)[0, 0], numbers[f"cell_soft_{case}"])
        counter.cells = "points"


def landing(heads: Tensor, density: Tensor) -> np.ndarray:
    """Heads per cell by where they lie; those outside the image are dropped."""
    cells = np.zeros(density.shape[2:], int)
    for x, y in (heads / 8).floor().long().tolist():
        if 0 <= y < cells.shape[0] and 0 <= x < cells.shape[1]:
            cells[y, x] += 1
    return cells


def test_keys_shapes_and_numbers_are_the_published_ones(fixture: Fixture) -> None:
    numbers = fixture("P2PNet")
    with torch.device("meta"):
        counter = models.create("p2pnet")
    state = counter.net.state_dict()
    assert list(state) == [str(key) for key in numbers["keys"]]
    shapes = [",".join(map(str, value.shape)) for value in state.values()]
    assert shapes == [str(shape) for shape in numbers["shapes"]]
    assert sum(p.numel() for p in counter.parameters()) == numbers["n_params"] == 21_579_344
    unused = ("conv3", "conv4", "P3_1", "P3_2", "P5_2")
    idle = sum(
        p.numel() for key, p in counter.net.named_parameters() if key.split(".")[1] in unused
    )
    assert idle == 3_606_272


def test_the_loss_is_the_published_one(fixture: Fixture) -> None:
    numbers = fixture("p2pnet_loss")
    logits, points = (
        torch.from_numpy(numbers[name]).requires_grad_() for name in ("logits", "points")
    )
    heads = [torch.from_numpy(numbers[f"target{row}"]) for row in (0, 1)]
    for row in (0, 1):
        pairs = torch.stack(matched(logits[row], points[row], heads[row]))
        np.testing.assert_array_equal(pairs, numbers[f"match{row}"])
    terms = p2pnet_loss(logits, points, heads)
    assert float(terms.scores.detach()) == pytest.approx(float(numbers["loss_ce"]), rel=1e-6)
    assert float(terms.places.detach()) == pytest.approx(float(numbers["loss_point"]), rel=1e-6)
    (slope,) = torch.autograd.grad(terms.scores, logits)
    assert close(slope, numbers["grad_ce_logits"], 1e-6)
    (slope,) = torch.autograd.grad(terms.places, points)
    assert close(slope, numbers["grad_point_points"], 1e-6)


# --- cells and heads


def test_cells_are_whole_numbers_with_the_slopes_of_scores(counter: P2PNet) -> None:
    shown = images(40, 56).requires_grad_()
    weight = torch.rand(1, 1, 5, 7)
    slopes, maps = [], []
    for cells in ("points", "scores"):
        counter.cells = cells
        density = counter(shown)
        maps.append(density.detach())
        slopes.append(torch.autograd.grad((density * weight).sum(), shown)[0])
    assert torch.equal(maps[0], maps[0].round())
    assert 0 <= float(maps[0].min()) < float(maps[0].max()) <= counter.most_per_cell == 4
    assert 0 < (maps[0] - maps[1]).abs().max() < 2  # each of four scores is off by a half at most
    assert slopes[0].abs().max() > 0
    assert torch.equal(*slopes)


@torch.no_grad()
def test_heads_are_the_points_that_are_counted(counter: P2PNet) -> None:
    shown = images(43, 60, number=2)
    density, heads = counter(shown), counter.heads(shown)
    assert density.shape == (2, 1, 6, 8)
    assert [len(points) for points in heads] == density.sum((1, 2, 3)).tolist()
    # Without regression each lies where its proposal begins: at 2 or 6 pixels of its cell.
    counter.net.regression.output.weight.zero_()
    counter.net.regression.output.bias.zero_()
    for points, cells in zip(counter.heads(shown), density, strict=True):
        assert ((points % 8 == 2) | (points % 8 == 6)).all()
        np.testing.assert_array_equal(landing(points, cells[None]), cells[0])
    # One of the regression is a hundred pixels: of proposal 1, x by 50 and y by -100.
    counter.net.regression.output.bias[2:4] = torch.tensor([0.5, -1.0])
    counter.net.classification.output.weight.zero_()
    counter.net.classification.output.bias.copy_(torch.tensor([0.0, -1, 0, 1, 1, 1, 0, -1]))
    (points, _) = counter.heads(shown)
    assert points[:2].tolist() == [[56.0, -98.0], [64.0, -98.0]]
    assert float(counter(shown)[0].sum()) == len(points) == 48  # a score of 0.5 is no head


@torch.no_grad()
def test_padding_is_the_published_evaluations(counter: P2PNet) -> None:
    """By the mean colour to multiples of 128, below and on the right; its own cells are dropped."""
    shown = images(100, 140)
    padded = functional.pad(counter.preprocess(shown), (0, 116, 0, 28))
    logits, _ = counter.net(padded)
    accepted = (logits.softmax(2)[..., 1] > 0.5).float().view(1, 1, 16, 32, 4).sum(4)
    assert torch.equal(counter(shown), accepted[:, :, :13, :18])
    assert accepted[:, :, 13:].sum() > 0
    counter.padding = 16
    least = functional.pad(counter.preprocess(shown), (0, 4, 0, 12))
    counter.cells = "scores"
    scores = counter.net(least).logits.softmax(2)[..., 1].view(1, 1, 14, 18, 4).sum(4)
    torch.testing.assert_close(counter(shown), scores[:, :, :13])


def test_bad_input(counter: P2PNet) -> None:
    with pytest.raises(ValueError, match="multiples of 16 pixels, got 104x128"):
        counter.net(torch.zeros(1, 3, 104, 128))
    with pytest.raises(ValueError, match="p2pnet: images must be at least 8x8 pixels, got 7x64"):
        counter(images(7, 64))
    with pytest.raises(ValueError, match="p2pnet: images must be at least 8x8"):
        counter.heads(images(7, 64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "vgg19"}, "backbone must be 'vgg16_bn' or 'vgg16', got 'vgg19'"),
        ({"cells": "soft"}, "cells must be 'points' or 'scores', got 'soft'"),
        ({"padding": 8}, "padding must be 128 or 16, got 8"),
        ({"point_weight": -1}, "point_weight must be a number of at least 0, got -1"),
        ({"input": "gray255"}, "3 input channels"),
        ({"scale": 2.0}, "unknown option 'scale'; known: backbone, cells, padding"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message) as caught:
        models.create("p2pnet", **options)
    assert "\n" not in str(caught.value)


# --- geometry


def test_what_cells_see_alternates(counter: P2PNet) -> None:
    """An even cell 122 pixels before itself and 130 after; an odd one 130 and 122."""
    counter.double()
    for parameter in counter.parameters():
        mean = 1.0 / parameter[0].numel()
        torch.nn.init.uniform_(parameter, 0.1 * mean, 2.0 * mean)
    for axis in (2, 3):
        shape = (560, 16) if axis == 2 else (16, 560)
        x = torch.ones(1, 3, *shape, dtype=torch.float64, requires_grad=True)
        # Of positive inputs and weights no ReLU shuts; means take the place of maxima.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.nn.MaxPool2d, "forward", lambda _, y: functional.avg_pool2d(y, 2))
            cells = counter.increasing(counter.net.maps(x)).sum((1, 5 - axis))[0]
        reach = []
        for cell in (34, 35):
            (slope,) = torch.autograd.grad(cells[cell], x, retain_graph=True)
            seen = slope.sum((1, 5 - axis))[0].nonzero().flatten()
            reach.append((8 * cell - int(seen[0]), int(seen[-1]) - 8 * cell - 7))
        assert reach == [(122, 130), (130, 122)]
    assert counter.receptive_field == 8 + 2 * 130


@torch.no_grad()
def test_parts_of_an_image_are_counted_differently(counter: P2PNet) -> None:
    """At odd cells the grid of stride 16 is another, and elsewhere the rest that is padded."""
    counter.double()
    shown = images(908, 32).double()
    cells = counter.increasing(counter.run(counter.preprocess(shown)))[0, 0, :, 1]
    differing = []
    for start in (8, 16, 128):
        window = shown[:, :, start:]
        part = counter.increasing(counter.run(counter.preprocess(window)))[0, 0, :, 1]
        off = (part - cells[start // 8 :]).abs() > 1e-9
        differing.append((bool(off[40:60].any()), bool(off[60:].any())))
    assert differing == [(True, True), (False, True), (False, False)]
    assert counter.period == 16
    assert window_field(counter) is None
    with pytest.raises(ValueError, match="enlarges a grid coarser than its cells cannot count in"):
        tiled_density(counter, shown, 1000)


def test_what_a_patch_changes_is_computed_around_it(counter: P2PNet) -> None:
    """Heads and slopes: each layer is followed, though the window is the whole image."""
    counter.double()
    shown, box = images(437, 40).double(), Box(203, 8, 227, 32)
    patch = images(24, 24).double().requires_grad_()
    pasted = shown.clone()
    pasted[..., *box.slices] = patch
    whole = counter(pasted).sum() - counter(shown).sum()
    (expected,) = torch.autograd.grad(whole, patch)
    local = Local(counter, shown, box)
    assert local.follows_layers
    assert local.cells.shape[0] < 40
    added = local(patch).sum() - local.clean.sum()
    (slope,) = torch.autograd.grad(added, patch)
    assert float(whole.detach()) != 0
    assert float(added.detach()) == float(whole.detach())
    assert (slope - expected).abs().max() <= 1e-6 * expected.abs().max()


# --- the loss


def test_each_image_has_its_own_loss(counter: P2PNet) -> None:
    shown, target = images(128, 64, number=2), torch.zeros(2, 1, 16, 8)
    heads = [torch.tensor([[3.0, 40.0], [60.5, 10.0]]), torch.zeros(0, 2)]
    counter.point_weight = 0.5
    maps = counter.run(counter.preprocess(shown))
    alone = []
    for row in (0, 1):
        logits, points = (v[row : row + 1] for v in Proposals.of(maps))
        terms = p2pnet_loss(logits, points, heads[row : row + 1])
        alone.append(terms.scores + 0.5 * terms.places)
    loss = counter.loss(shown, target, points=heads)
    torch.testing.assert_close(loss, torch.stack(alone).mean())
    with pytest.raises(ValueError, match=r"p2pnet\.loss: points must be those of 2 images, got 1"):
        counter.loss(shown, target, points=heads[:1])
    # Without points they stand in the middle of their cells.
    target[0, 0, 5, 0] = 1.0
    middle = [torch.tensor([[4.0, 44.0]]), heads[1]]
    assert torch.equal(counter.loss(shown, target), counter.loss(shown, target, points=middle))


def test_proposals_outside_the_region_are_no_errors(counter: P2PNet) -> None:
    """They are not matched, and no gradient reaches them; half a cell counts by half."""
    region = torch.ones(1, 1, 8, 8)
    region[..., :4, :], region[..., 4, 0] = 0.0, 0.5
    shown, heads = images(64, 64), [torch.tensor([[20.0, 34.0], [50.0, 60.0]])]
    kept: list[Maps] = []
    run = counter.run

    def watched(x: Tensor) -> Maps:
        kept.append(Maps(*(values.detach().requires_grad_() for values in run(x))))
        return kept[-1]

    counter.run = watched  # type: ignore[method-assign]
    loss = counter.loss(shown, torch.zeros(1, 1, 8, 8), points=heads, region=region)
    loss.backward()
    slopes = kept[0].logits.grad
    assert slopes is not None
    assert (slopes[:, :, :4] == 0).all()
    assert (slopes[:, :, 4:] != 0).all()
    logits, points = (values.detach()[0] for values in Proposals.of(kept[0]))
    weight = region.flatten().repeat_interleave(4)
    inside = weight.nonzero()[:, 0]
    labels = torch.zeros(256, dtype=torch.long)
    labels[inside[matched(logits[inside], points[inside], heads[0])[0]]] = 1
    assert labels.sum() == 2
    weight = torch.where(labels == 1, weight, 0.5 * weight)
    entropy = functional.cross_entropy(logits, labels, reduction="none")
    expected = (weight * entropy).sum() / weight.sum()
    counter.point_weight = 0.0
    loss = counter.loss(shown, torch.zeros(1, 1, 8, 8), points=heads, region=region)
    torch.testing.assert_close(loss.detach(), expected)


def test_more_heads_than_proposals() -> None:
    proposals = torch.tensor([[[2.0, 2.0], [6.0, 2.0]]])
    logits = torch.zeros(1, 2, 2)
    heads = torch.tensor([[6.0, 3.0], [100.0, 100.0], [2.0, 2.0]])
    assert [part.tolist() for part in matched(logits[0], proposals[0], heads)] == [[0, 1], [2, 0]]
    assert float(p2pnet_loss(logits, proposals, [heads]).places) == pytest.approx(1 / 3)
    broken = torch.full((1, 2, 2), float("nan"))
    assert not torch.isfinite(p2pnet_loss(broken, proposals, [heads]).scores)


@pytest.mark.long
@pytest.mark.command
def test_a_short_training_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the trainer, on built-in scenes: full scenes get more heads than sparse ones."""
    narrow.narrow(monkeypatch)
    monkeypatch.setattr(p2pnet_net, "FEATURES", 16)
    torch.manual_seed(0)
    learning = P2PNet()

    def scenes(split: str, heads: int, limit: int) -> list[Sample]:
        return [*data.open("synthetic", split=split, limit=limit, shape=(128, 128), heads=heads)]

    config = train.TrainConfig(
        epochs=25, batch=4, lr=4e-3, crop="128x128", crops=1, validation_share=0.0, clip=1.0
    )
    tests = {heads: scenes("test", heads, 4) for heads in (5, 45)}

    def counted() -> dict[int, float]:
        learning.eval()
        return {heads: mean_count(learning, samples) for heads, samples in tests.items()}

    assert counted()[5] > 100  # nearly every proposal of a random network has the same score
    train.fit(learning, [*scenes("train", 5, 12), *scenes("train", 45, 12)], config)
    after = counted()
    assert after[5] < 15 < 30 < after[45] < 90


def mean_count(counter: P2PNet, samples: list[Sample]) -> float:
    counts = [result.count for result in pycc.count(counter, samples)]
    return sum(counts) / len(counts)


# --- attacks, certificates, commands


@pytest.mark.long
def test_an_attack_and_its_checks(counter: P2PNet) -> None:
    """On whole numbers, with the slopes of scores; these agree with differences of scores."""
    sample = Sample("one", images(64, 80)[0], torch.tensor([[40.0, 30.0]], dtype=torch.float64))
    apam = attack.APAM(patch_size=24, steps=5, objective="over", transform="none")
    run = attack.run(counter, [sample], apam, pgd=None)
    (record,) = [row for row in run.run.records if row["condition"] == "apam"]
    assert record["count"] == round(record["count"]) > run.run.records[0]["count"]
    verdicts = {check.name: check.verdict for check in run.checks}
    assert verdicts["gradient agrees with finite differences"] == "pass", run.checks


@torch.no_grad()
def test_the_network_itself_limits_what_a_patch_adds(counter: P2PNet) -> None:
    """No caps, no training data: four people in each cell that the patch reaches."""
    shown = images(64, 700)[0]
    cells = counter(shown[None])[0, 0]
    interval = certify.additive(counter, shown, patch_size=16)
    reached = reached_window(16, 8, 268)
    sums = [float(cells[:, n : n + reached].sum()) for n in range(88 - reached + 1)]
    count, room = float(cells.sum()), 0.01 + 1e-5 * float(cells.sum())
    assert interval.count == count
    assert interval.deterministic
    assert interval.high == pytest.approx(count + max(4 * 8 * reached - s for s in sums) + room)
    assert interval.low == pytest.approx(count - max(sums) - room)
    attacked = shown.clone()
    attacked[:, 24:40, 300:316] = 1 - attacked[:, 24:40, 300:316].round()
    assert float(counter(attacked[None]).sum()) in interval


def test_overlays_show_the_points(counter: P2PNet, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = images(64, 80)[0]
    (points,) = counter.heads(shown[None])
    roi = torch.zeros(64, 80, dtype=torch.bool)
    roi[:32] = True
    found = heads_of(counter.train(), Sample("one", shown, None, roi))
    assert counter.training
    assert found is not None
    assert 0 < len(found) < len(points)
    assert torch.equal(found, points[heads_in(points, roi)])


# --- weights and recipe


@torch.no_grad()
def test_vgg16_becomes_the_backbone(counter: P2PNet) -> None:
    """With batch normalisation, or without: their indices differ."""
    for backbone, last in (("vgg16_bn", 40), ("vgg16", 28)):
        made = P2PNet(backbone=backbone).eval()
        layers = made.net.backbone.layers()
        archive = {
            f"features.{k}": torch.rand_like(v.float()) for k, v in layers.state_dict().items()
        }
        archive = {k: v for k, v in archive.items() if "num_batches" not in k}
        archive["classifier.0.bias"] = torch.zeros(4096)
        assert f"features.{last}.weight" in archive
        head = made.net.classification.output.weight.clone()
        taken = made.adopt(archive)
        assert taken is not None
        assert taken.startswith("the first 13 convolutions of VGG-16 (")
        body4 = made.net.backbone.get_submodule("body4")
        number = 7 if backbone == "vgg16_bn" else 5
        assert torch.equal(body4[number].weight, archive[f"features.{last}.weight"])
        assert torch.equal(made.net.classification.output.weight, head)
        assert P2PNet.recognise(made.net.state_dict()) == {"backbone": backbone}
        assert made(images(32, 48)).shape == (1, 1, 4, 6)
        other = P2PNet(backbone="vgg16" if backbone == "vgg16_bn" else "vgg16_bn")
        with pytest.raises(ValueError, match=r"features\..* batch normalisation"):
            other.adopt(archive)
    assert P2PNet.recognise(archive) is None


def test_recipe_is_the_published_one(counter: P2PNet) -> None:
    recipe = counter.recipe()
    assert (recipe.epochs, recipe.batch, recipe.clip, recipe.flip) == (3500, 32, 0.1, 0.5)
    assert (recipe.crop.number, recipe.crop.size) == (4, (128, 128))
    (optimiser,) = recipe.optimisers
    assert (optimiser.kind, optimiser.lr, optimiser.weight_decay) == ("adam", 1e-4, 0.0)
    assert optimiser.backbone == 0.1
    assert len(counter.backbone_parameters()) == 13 * 4
    assert recipe.density == {"": "dots"}
    assert isinstance(counter.net, P2PNetNet)
