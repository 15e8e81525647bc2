"""STEERER against the published network and its loss's rules; the rest on a narrow one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from numpy.lib.npyio import NpzFile
from support import narrow
from support.published import close, images_of, published_input, published_state
from torch import Tensor
from torch.nn import functional

from pycc import models
from pycc.commands import main
from pycc.models import hrnet, steerer_loss, steerer_net
from pycc.models.beyond import folded
from pycc.models.steerer import STEERER

Fixture = Callable[[str], NpzFile]


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> STEERER:
    narrow.narrow(monkeypatch)
    return made()


def made(**options: object) -> STEERER:
    counter = narrow.create("steerer", **options)
    assert isinstance(counter, STEERER)
    return counter


def images(height: int, width: int, number: int = 1) -> Tensor:
    return torch.rand(number, 3, height, width, generator=torch.Generator().manual_seed(2))


def published_file(counter: STEERER) -> dict[str, Tensor]:
    """The narrow network's entries as a published file holds them, with those of no use."""
    state = counter.net.state_dict()
    for key, value in counter.net.multi_counters.state_dict().items():
        state[f"counter_copy.{key}"] = value
    state["gaussian.gaussian.gkernel.weight"] = torch.zeros(1, 1, 11, 11)
    between, finest = (f"upsample_module.multi_outputs.{level}." for level in (2, 3))
    for part in ("modulation_layer_small.", "soft_mask."):
        state |= {
            key.replace(between, finest): value
            for key, value in counter.net.state_dict().items()
            if key.startswith(between + part)
        }
    return state


# --- the published network


@pytest.mark.command
@torch.no_grad()
def test_output_is_the_published_networks(fixture: Fixture) -> None:
    """All four maps, and the count of the counter from RGB in [0,1]."""
    numbers = fixture("STEERER")
    with torch.device("meta"):
        counter = STEERER().eval()
    state = published_state(numbers)
    assert list(counter.net.state_dict()) == list(state)
    assert sum(value.numel() for value in state.values()) == numbers["n_state"]
    assert sum(p.numel() for p in counter.parameters()) == 64_336_948
    ignored = [str(key) for key in numbers["ignored_keys"]]
    assert all(key.startswith(STEERER.unused) for key in ignored)
    assert not any(key.startswith(STEERER.unused) for key in state)
    counter.net.load_state_dict(state, strict=True, assign=True)
    assert 1 / counter.scale == numbers["weight"]
    for case in range(len(numbers["seeds"])):
        maps = counter.net(published_input(numbers, case))
        for prediction, name in zip(maps, ("out", "scale2", "scale4", "scale8"), strict=True):
            assert close(prediction, numbers[f"{name}_{case}"])
        assert torch.equal(maps[0], counter.net.finest(published_input(numbers, case)))
        density = counter(images_of(numbers, case))
        assert float(density.double().sum()) == pytest.approx(numbers[f"count_{case}"], rel=1e-6)


# --- geometry


@torch.no_grad()
def test_other_sides_are_extended_by_black_whose_people_count(counter: STEERER) -> None:
    shown = images(45, 64)
    black = functional.pad(shown, (0, 0, 0, 19))
    whole, density = counter(black), counter(shown)
    assert density.shape == (1, 1, 45, 64)
    assert torch.equal(density[:, :, :-1], whole[:, :, :44])
    torch.testing.assert_close(density[:, :, -1], whole[:, :, 44:].sum(2))
    assert torch.equal(counter.preprocess(shown), counter.preprocess(black))
    with pytest.raises(ValueError, match=r"steerer: images must be at least 32x32 .* got 31x64"):
        counter(images(31, 64))
    with pytest.raises(ValueError, match="multiples of 32, got 45x64"):
        counter.net(images(45, 64))


def test_cells_beyond_an_image_are_added_to_its_last_ones() -> None:
    cells = torch.arange(12.0).view(1, 1, 3, 4)
    assert folded(cells, 3, 4, 1) is cells
    assert folded(cells, 1, 2, 1)[0, 0].tolist() == [[0 + 4 + 8, 1 + 2 + 3 + 5 + 6 + 7 + 9 + 21]]
    assert folded(cells, 9, 16, 4).equal(cells)


@pytest.mark.long
def test_the_field_is_larger_than_most_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the published depth, with few channels: perturbed at all 32 residues, along both axes."""
    narrow.narrow(monkeypatch)
    monkeypatch.setattr(hrnet, "BLOCKS", 4)
    monkeypatch.setattr(hrnet, "MODULES", (1, 4, 3))
    counter = made()
    assert counter.receptive_field is None
    measured = models.measure_receptive_field(counter, probe_side=6144)
    assert measured is not None
    assert (measured.before, measured.after) == (1534, 1503)


# --- loss


def published_loss(maps: list[Tensor], dots: Tensor, factor: float, patch: int) -> Tensor:
    """The published procedure for one image of whole patches, patch by patch."""
    line = torch.exp(-((torch.arange(11) - 5.0) ** 2) / 32)
    kernel = torch.outer(line, line) / line.sum() ** 2
    targets = []
    for level in range(len(maps)):
        heads = functional.avg_pool2d(dots, 2**level) * 4**level
        targets.append(factor * functional.conv2d(heads, kernel[None, None], padding=5))
    weights = [torch.ones_like(prediction) for prediction in maps]
    for row in range(maps[0].shape[2] // patch):
        for column in range(maps[0].shape[3] // patch):
            scores, places = [], []
            for level, (prediction, target) in enumerate(zip(maps, targets, strict=True)):
                side = patch >> level
                place = (
                    ...,
                    slice(row * side, (row + 1) * side),
                    slice(column * side, (column + 1) * side),
                )
                squares = (prediction[place] - target[place]) ** 2
                scores.append(squares.mean() + squares.sum() / (target[place].sum() + 1e-10))
                places.append(place)
            best = int(torch.stack(scores).argmin())
            for level in range(best + 1, len(maps)):
                weights[level][places[level]] = 0.0
    losses = [
        functional.mse_loss(prediction * weight, target * weight) / 2**level
        for level, (prediction, target, weight) in enumerate(
            zip(maps, targets, weights, strict=True)
        )
    ]
    return torch.stack(losses).sum()


def test_loss_is_the_published_procedure(monkeypatch: pytest.MonkeyPatch) -> None:
    """On maps of which each is best somewhere."""
    monkeypatch.setattr(steerer_loss, "PATCH", 16)
    generator = torch.Generator().manual_seed(3)
    dots = (torch.rand(1, 1, 64, 96, generator=generator) < 0.01).float()
    patches = torch.arange(24).view(1, 1, 4, 6)
    maps = []
    for level in range(4):
        heads = functional.avg_pool2d(dots, 2**level) * 4**level
        noise = torch.rand(heads.shape, generator=generator)
        worse = functional.interpolate((patches % 4 != level).float(), size=heads.shape[2:])
        prediction = 100 * steerer_loss.smoothed(heads) + (0.1 + worse) * noise
        maps.append(prediction.requires_grad_())
    wanted = published_loss(maps, dots, 100.0, 16)
    (loss,) = steerer_loss.steerer_loss(maps, dots, factor=100.0)
    torch.testing.assert_close(loss, wanted)
    slopes = torch.autograd.grad(loss, maps)
    for slope, expected in zip(slopes, torch.autograd.grad(wanted, maps), strict=True):
        torch.testing.assert_close(slope, expected)
    trained = [float((slope != 0).float().mean()) for slope in slopes]
    assert trained == [1.0, 0.75, 0.5, 0.25]


def test_loss_is_of_cells_in_the_image_and_the_region(counter: STEERER) -> None:
    shown = images(50, 64, number=2)
    target = torch.zeros(2, 1, 50, 64)
    target[0, 0, 9, 5], target[1, 0, 30, 40] = 1.0, 2.0
    maps = [
        prediction[..., : -(-50 // 2**level), :].detach()
        for level, prediction in enumerate(counter.net(counter.preprocess(shown)))
    ]
    loss = counter.loss(shown, target)
    expected = steerer_loss.steerer_loss(maps, target, factor=100.0)
    torch.testing.assert_close(loss.detach(), expected.mean())
    region = torch.zeros_like(target)
    region[..., :24, :] = 1.0
    inside = counter.loss(shown, target * region, region=region).detach()
    changed = [prediction.clone() for prediction in maps]
    for level, prediction in enumerate(changed):
        prediction[:, :, 24 >> level :] = 7.0
    again = steerer_loss.steerer_loss(changed, target * region, factor=100.0, region=region)
    torch.testing.assert_close(inside, again.mean())
    for wrong, message in (
        ({"target": target[..., 1:]}, r"steerer\.loss: target must be \[2, 1, 50, 64\]"),
        ({"target": target, "region": target[..., 1:]}, r"region must be \[2, 1, 50, 64\]"),
        ({"target": target + 0.2}, r"steerer\.loss: target must hold numbers of heads .* 0\.2"),
    ):
        with pytest.raises(ValueError, match=message):
            counter.loss(shown, **wrong)


def test_only_the_finest_map_trains_the_head(counter: STEERER) -> None:
    """Its weights, and the statistics of its batch norms."""
    narrow.positive(counter).train()
    x = counter.preprocess(images(64, 64, number=2))
    head = [*counter.net.multi_counters.parameters()]
    before = {k: v.clone() for k, v in counter.net.multi_counters.state_dict().items()}
    maps = counter.net(x)
    numbers = counter.net.multi_counters.decoder[2].num_batches_tracked
    assert int(numbers - before["decoder.2.num_batches_tracked"]) == 1
    for level, prediction in enumerate(maps):
        slopes = torch.autograd.grad(prediction.sum(), head, retain_graph=True, allow_unused=True)
        assert all((slope is None) == (level > 0) for slope in slopes)
        trunk = torch.autograd.grad(
            prediction.sum(), counter.net.backbone.conv1.weight, retain_graph=True
        )
        assert trunk[0].abs().max() > 0


def test_loaded_weights_are_tuned(counter: STEERER, tmp_path: Path) -> None:
    """A few steps of the published loss bring the counts of two scenes to their heads."""
    torch.save(published_file(counter), tmp_path / "w.pth")
    tuned = models.load(tmp_path / "w.pth").train()
    target = torch.zeros(2, 1, 64, 64)
    target[0, 0, 8::16, 8::16], target[1, 0, 8::16, 40] = 1.0, 1.0
    shown = 0.1 + 0.8 * functional.max_pool2d(target, 7, 1, 3).expand(-1, 3, -1, -1)
    optimiser = torch.optim.Adam(tuned.parameters(), 0.01)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = tuned.loss(shown, target)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]
    assert tuned(shown).sum((1, 2, 3)).tolist() == pytest.approx([16, 4], rel=0.3)


# --- weights


def test_published_files_are_read_without_what_acts_on_nothing(
    counter: STEERER, tmp_path: Path, refused: Callable[..., None]
) -> None:
    state = published_file(counter)
    assert len(state) == len(counter.net.state_dict()) + 46
    for name, content in {
        "final_state.pth": state,
        "nested.pth": {"net": {f"module.{key}": value for key, value in state.items()}},
    }.items():
        torch.save(content, tmp_path / name)
        loaded = models.load(tmp_path / name)
        assert loaded.options() == counter.options()
        assert torch.equal(loaded(images(64, 32)), counter(images(64, 32)))
        assert loaded.origin.endswith("; not shown by the keys: scale=0.01")
    path = tmp_path / "w.pth"
    torch.save({k: v for k, v in state.items() if "soft_mask" not in k}, path)
    refused(path, r"missing upsample_module\.multi_outputs\.1\.soft_mask")
    torch.save({k: v for k, v in state.items() if "stage4" not in k}, path)  # another trunk
    refused(path, r"does not fit steerer .*missing backbone\.stage4\.0\.branches")
    torch.save({**state, "count_head.weight": torch.zeros(1)}, path)
    refused(path, r"does not fit steerer .*unexpected count_head\.weight")
    torch.save(state, path)
    refused(path, "does not fit mcnn.*; its keys are those of 'steerer'", name="mcnn")


def test_metadata_decide_what_keys_do_not_show(counter: STEERER, tmp_path: Path) -> None:
    other = made(scale=0.005)
    models.save(other, tmp_path / "w.npz", metadata={})
    loaded = models.load(tmp_path / "w.npz")
    assert loaded.scale == 0.005
    assert "not shown" not in loaded.origin
    assert torch.equal(2 * loaded(images(32, 32)), counter(images(32, 32)))


@torch.no_grad()
def test_hrnet_becomes_the_trunk(counter: STEERER, tmp_path: Path) -> None:
    """Published for ImageNet: with the exchange at the end, which STEERER leaves out."""
    archive = {k: torch.rand_like(v.float()) for k, v in hrnet.HRNet().state_dict().items()}
    archive["classifier.weight"] = torch.zeros(10, 8)
    torch.save(archive, tmp_path / "hrnet.pth")
    with pytest.warns(UserWarning, match="gives steerer the trunk of HRNet-W48 .* is untrained"):
        started = models.load(tmp_path / "hrnet.pth", name="steerer")
    for key, value in started.net.backbone.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(value, archive[key]), key
    with pytest.raises(ValueError, match=r"a backbone, not a counter: .*'fidtm' or 'steerer'"):
        models.load(tmp_path / "hrnet.pth")
    assert counter.adopt(counter.net.state_dict()) is None


# --- options, recipe, commands


def test_options_and_recipe(counter: STEERER) -> None:
    cases = [
        ({"scale": 0}, "scale must be a number above 0"),
        ({"input": "gray255"}, "3 input channels"),
        ({"variant": "vgg"}, "unknown option 'variant'; known: input, mean, std, scale"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            models.create("steerer", **options)
    assert (counter.stride, counter.period, counter.minimum_side) == (1, 32, 32)
    recipe = counter.recipe()
    (optimiser,) = recipe.optimisers
    assert (optimiser.kind, optimiser.lr, optimiser.weight_decay) == ("adamw", 1e-5, 1e-2)
    assert (recipe.crop.size, recipe.crop.scale) == ((768, 768), (0.5, 2.0))
    assert recipe.schedule.warmup + recipe.schedule.period == recipe.epochs == 600
    assert recipe.crop.multiple == steerer_net.PERIOD


@pytest.mark.command
def test_commands_take_its_files(
    counter: STEERER, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(published_file(counter), tmp_path / "w.pth")
    assert main("models", ["show", "steerer"]) == 0
    shown = capsys.readouterr().out
    assert "grid             32 pixels, of which 1 make a cell" in shown
    assert "adamw, rate 1e-05" in shown
    assert main("models", ["check", str(tmp_path / "w.pth")]) in (0, 1)
    assert "steerer by its keys" in capsys.readouterr().out
