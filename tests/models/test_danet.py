"""DA-Net against the published network, with offsets of a cell and of hundreds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from numpy.lib.npyio import NpzFile
from support.published import close, published_input, published_state
from support.tensors import same_bits
from torch import Tensor, nn

from pycc import models, ops
from pycc.data.density import recipes
from pycc.models import danet
from pycc.models.base import MODELS, CounterModel

Fixture = Callable[[str], NpzFile]
SIDES = (4, 5, 6, 7)


@pytest.fixture(scope="module")
def counter(fixture: Fixture) -> CounterModel:
    """The published network with offsets of about a cell; tests leave it as it is."""
    torch.manual_seed(5)
    counter = models.create("danet").eval()
    state = published_state(fixture("DANet"), "fine.")
    assert list(counter.net.state_dict()) == list(state)
    counter.net.load_state_dict(state, strict=True)
    return counter.requires_grad_(False)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> CounterModel:
    """The same wiring with few channels, and no ReLU that shuts; offsets of about a cell."""
    monkeypatch.setattr(danet, "BLOCKS", {n: (2,) * len(w) for n, w in danet.BLOCKS.items()})
    monkeypatch.setitem(danet.BLOCKS, 8, (2, 2, 1))
    torch.manual_seed(2)
    counter = models.create("danet", input="gray_unit").eval()
    for name, parameter in counter.net.named_parameters():
        if name.startswith("offsets"):
            nn.init.normal_(parameter, std=1.0)
        else:
            nn.init.uniform_(parameter, 0.0, 0.1)
    return counter


@contextmanager
def replaced(net: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Some parameters have other values inside the block."""
    parameters = {key: net.get_parameter(key) for key in values}
    before = {key: parameter.detach().clone() for key, parameter in parameters.items()}
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(values[key])
    try:
        yield
    finally:
        with torch.no_grad():
            for key, parameter in parameters.items():
                parameter.copy_(before[key])


def inner_results(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The output and what the fixtures call auxiliaries."""
    results: dict[str, Tensor] = {}
    watched = {"last_pre_relu": "conv8_3"}
    watched |= {f"offsets{level}": f"offsets{level}" for level in SIDES}
    watched |= {f"deform{level}_pre_relu": f"conv{level}" for level in SIDES}
    hooks = [
        net.get_submodule(module).register_forward_hook(
            lambda _, __, output, name=name: results.__setitem__(name, output)
        )
        for name, module in watched.items()
    ]
    results["out"] = net(x)
    for hook in hooks:
        hook.remove()
    return results


def check_against(numbers: NpzFile, net: nn.Module) -> None:
    for case in range(len(numbers["seeds"])):
        x = published_input(numbers, case)
        results = inner_results(net, x)
        out = results.pop("out")
        assert close(out, numbers[f"out_{case}"])
        assert out.shape[2:] == tuple(-(-side // 16) for side in x.shape[2:])
        assert float(out.double().sum()) == pytest.approx(float(numbers["counts"][case]), rel=1e-5)
        for name, result in results.items():
            assert close(result[:, :6], numbers[f"aux_{name}_{case}"]), name
    assert len(results) == 9


@torch.no_grad()
def test_output_is_the_published_networks(fixture: Fixture, counter: CounterModel) -> None:
    numbers = fixture("DANet")
    count = sum(parameter.numel() for parameter in counter.net.parameters())
    assert count == 16_474_398 == numbers["n_params"]
    check_against(numbers, counter.net)


@torch.no_grad()
def test_offsets_that_leave_the_map(fixture: Fixture, counter: CounterModel) -> None:
    """The same weights, but those of the offsets as large as any."""
    usual = fixture("DANet")
    scales = dict(zip(usual["keys"], usual["scales"], strict=True))
    large = {
        key: counter.net.get_parameter(key) / float(scales[f"fine.{key}"])
        for key in (f"offsets{level}.weight" for level in SIDES)
    }
    with replaced(counter.net, large):
        check_against(fixture("DANet_bigoffset"), counter.net)


@torch.no_grad()
def test_the_map_keeps_incomplete_cells(small: CounterModel) -> None:
    for height, width, cells in ((101, 139, (7, 9)), (17, 1, (2, 1)), (32, 16, (2, 1))):
        assert small(torch.rand(1, 3, height, width)).shape[2:] == cells
    assert small.stride == 16


@torch.no_grad()
def test_a_tap_reaches_any_cell(small: CounterModel) -> None:
    """So there is no receptive field: offsets of 20 cells to the right see what is there."""
    images = torch.rand(1, 3, 32, 640, generator=torch.Generator().manual_seed(0))
    changed = images.clone()
    changed[..., 560:] = 0.0  # from cell 35 on
    moved = []
    for reach in (0.0, 20.0):
        away = {
            key: torch.tensor([0.0, reach] * 9) if key.endswith("bias") else torch.zeros(())
            for key, _ in small.net.named_parameters()
            if key.startswith("offsets")
        }
        with replaced(small.net, away):
            moved.append((small(images) != small(changed))[0, 0].any(0).tolist())
    assert not any(moved[0][:20])  # what convolutions see
    assert not any(moved[1][:3])
    assert all(moved[1][14:20])
    assert small.receptive_field is None


@torch.no_grad()
def test_the_sum_is_weighted(small: CounterModel) -> None:
    images = torch.rand(1, 3, 32, 48)
    weights = {f"w{level}": torch.tensor([0.5 + 0.25 * level]) for level in (*SIDES, 8)}
    parts = []
    for key in weights:
        only = {other: torch.zeros(1) for other in weights} | {key: torch.ones(1)}
        with replaced(small.net, only):
            parts.append(small(images))
    assert all(part.any() for part in parts)
    expected = sum(weight * part for weight, part in zip(weights.values(), parts, strict=True))
    with replaced(small.net, weights):
        torch.testing.assert_close(small(images), expected)


def test_gradients_flow_through_the_offsets_to_the_image(small: CounterModel) -> None:
    results = []
    for twin in (False, True):
        images = torch.rand(1, 3, 48, 50, generator=torch.Generator().manual_seed(1))
        images.requires_grad_()
        small.zero_grad()
        if twin:
            with ops.reference():
                small(images).sum().backward()
        else:
            small(images).sum().backward()
        results.append([images.grad, *(p.grad for p in small.net.parameters())])
    assert all(grad is not None and grad.any() for grad in results[0])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_float64_takes_the_twin(small: CounterModel, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.dtype] = []

    def counted(x: Tensor, *others: Tensor) -> Tensor:
        calls.append(x.dtype)
        return ops.deform_conv_reference(x, *others)

    monkeypatch.setattr(danet, "deform_conv_reference", counted)
    images = torch.rand(1, 3, 32, 48)
    single = small(images)
    assert calls == []
    double = small.double()(images.double())
    assert calls == [torch.float64] * 4
    torch.testing.assert_close(double.float(), single)
    half = small.bfloat16()(images.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half - single).abs().max() <= 0.05 * single.abs().max()


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_weights_come_back_to_the_bit(suffix: str, small: CounterModel, tmp_path: Path) -> None:
    path = tmp_path / f"danet{suffix}"
    if suffix == ".npz":
        models.save(small, path, metadata={})
        again = models.load(path)
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            for key, value in small.net.state_dict().items():
                file.create_dataset(f"fine.{key}", data=value.numpy())
        again = models.load(path, input="gray_unit")
    assert again.name == "danet"
    assert again.options() == small.options() == {"input": "gray_unit", "scale": 1.0}
    state = again.net.state_dict()
    assert len(state) == 61
    for key, value in small.net.state_dict().items():
        assert same_bits(state[key], value), key
    images = torch.rand(1, 3, 32, 48)
    assert same_bits(again(images), small(images))


def test_recognition(small: CounterModel) -> None:
    state = small.net.state_dict()
    assert danet.DANet.recognise(state) == {}
    assert danet.DANet.recognise(models.create("mcnn").net.state_dict()) is None
    for other in (MODELS[name] for name in MODELS.names()):
        if other is not danet.DANet:
            assert other.recognise(state) is None, other.name


def test_a_trunk_that_reads_colours(tmp_path: Path) -> None:
    """It has VGG-16's first layer; weights show it, and state the other options."""
    with torch.device("meta"):
        numbers = [
            sum(parameter.numel() for parameter in models.create("danet", input=kind).parameters())
            for kind in (None, "rgb255")
        ]
    assert numbers == [16_474_398, 16_474_398 + 1_152]
    counter = models.create("danet", input="rgb_standard", mean=[0.5, 0.4, 0.3]).eval()
    state = counter.net.state_dict()
    assert danet.DANet.recognise(state) == {"input": "rgb_standard"}
    torch.save(state, tmp_path / "w.pth")
    loaded = models.load(tmp_path / "w.pth", mean=[0.5, 0.4, 0.3])
    assert loaded.options() == counter.options()
    images = torch.rand(1, 3, 33, 40)
    assert torch.equal(loaded(images), counter(images))
    assert not torch.equal(loaded(images), loaded(images.flip(1)))
    with pytest.raises(
        ValueError, match=r"wrong shape conv1_1.*; its keys are those of input='rgb"
    ):
        models.load(tmp_path / "w.pth", input="gray255")


def test_the_published_recipe(small: CounterModel) -> None:
    recipe = small.recipe()
    (optimiser,) = recipe.optimisers
    assert (optimiser.kind, optimiser.lr, optimiser.momentum) == ("adam", 1e-5, 0.0)
    assert (recipe.epochs, recipe.batch, recipe.down_sampling) == (1001, 1, "linear16")
    crop = recipe.crop
    assert (crop.kind, crop.number, crop.multiple) == ("quarter_sides", 100, 16)
    assert recipe.density["shanghaitech_a"] == recipe.density["ucf_cc_50"] == "danet_geometry"
    assert recipe.density[""] == "svishwa_window"
    assert set(recipe.density.values()) <= set(recipes.names())
    assert recipe.validation_share == 0.0
    assert any("1/16 of the area" in note for note in recipe.notes)


@torch.no_grad()
def test_initialisation() -> None:
    torch.manual_seed(1)
    for name, parameter in models.create("danet").net.named_parameters():
        if name.startswith("w"):
            assert parameter.tolist() == [1.0]
        elif name.endswith(".bias"):
            assert not parameter.any(), name
        elif parameter.numel() > 4000:  # offsets and deformable kernels too
            assert float(parameter.std()) == pytest.approx(0.01, rel=0.05), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": [0.5] * 3}, "danet: mean and std belong to input 'rgb_standard', got 'gray255'"),
        ({"input": "rgb_standard", "std": [0.2, 0.2, 0]}, "danet: std must be positive"),
        ({"input": "grey"}, "danet: input must be"),
        ({"scale": 0.0}, "danet: scale must be a number above 0"),
        ({"variant": "b"}, "danet: unknown option 'variant'; known: input, mean, std, scale"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.create("danet", **options)


@pytest.mark.long
def test_it_compiles_into_one_graph_and_exports(small: CounterModel) -> None:
    images = torch.rand(1, 3, 32, 48)
    small.requires_grad_(False)
    torch._dynamo.reset()
    compiled = torch.compile(small, fullgraph=True, backend="aot_eager")
    exported = torch.export.export(small, (images,)).module()
    results = []
    for function in (small, compiled, exported):
        leaf = images.clone().requires_grad_()
        total = function(leaf).sum()
        total.backward()
        results.append((total.detach(), leaf.grad))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])
