"""Fine-pruning: which channels go, how many, and that they stay exactly zero."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.planted import (
    CONVOLUTION,
    DORMANT,
    HEADS,
    QUICK,
    TRIGGER,
    clean,
    count,
    planted,
    same,
    state,
    triggered,
)
from torch import Tensor, nn

from pycc import models
from pycc.backdoor.defenses.channels import (
    activity,
    chosen_layers,
    dormancy,
    held_silent,
    layers_of,
    outermost,
    prune,
)
from pycc.backdoor.defenses.pruning import FinePruning
from pycc.runs import Run
from pycc.train import TrainConfig, fit

IMAGE = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("mcnn", ["branch1.5.conv", "branch2.5.conv", "branch3.5.conv"]),
        ("csrnet", ["backend.10"]),
        ("narrow", ["head.2"]),
    ],
)
def test_layers_next_to_the_density_map(name: str, last: list[str]) -> None:
    counter = models.create(name).eval()
    layers = layers_of(counter, IMAGE)
    convolutions = [
        key
        for key, module in counter.net.named_modules()
        if isinstance(module, nn.Conv2d) and module.out_channels > 1
    ]
    assert [layer.name for layer in layers] == convolutions
    assert [layer.name for layer in outermost(counter, IMAGE, layers)] == last


def test_a_residual_path_leads_past_a_convolution() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.branch = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
            self.idle, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(x + self.branch(x).relu_())

    counter = models.wrap(Residual(), stride=1)
    layers = layers_of(counter, IMAGE)
    assert [layer.name for layer in layers] == ["stem", "branch"]
    assert [layer.name for layer in outermost(counter, IMAGE, layers)] == ["stem", "branch"]
    counter.requires_grad_(False)
    assert len(outermost(counter, IMAGE, layers)) == 2


def test_a_normalisation_belongs_to_the_convolution_that_it_reads() -> None:
    (alone,) = layers_of(planted(), IMAGE)
    (normalised,) = layers_of(planted(norm=True), IMAGE)
    assert (alone.norm, alone.last) == (None, alone.convolution)
    assert isinstance(normalised.norm, nn.BatchNorm2d)
    assert normalised.last is normalised.norm


def test_activity_is_the_mean_over_images_of_what_a_relu_lets_through() -> None:
    counter, samples = planted(), clean(3)
    (layer,) = layers_of(counter, samples[0].image)
    (means,) = activity(counter, samples, [0, 2], [layer])
    for channel in range(layer.channels):
        expected = 0.0
        for index in (0, 2):
            with torch.no_grad():
                output = layer.convolution(samples[index].image[None])[0, channel]
            expected += float(output.clamp(min=0).double().mean()) / 2
        assert float(means[channel]) == pytest.approx(expected, rel=1e-5, abs=1e-12)
    assert not layer.convolution._forward_hooks


def test_dormancy_compares_layers_by_their_own_mean_and_keeps_the_most_active() -> None:
    means = [torch.tensor([0.1, 0.2, 0.9]), torch.tensor([100.0, 350.0, 300.0, 0.0])]
    order = dormancy(means)
    assert order == [(1, 3), (0, 0), (0, 1), (1, 0), (1, 2)]
    assert dormancy([means[0], 1e-3 * means[1]]) == order
    assert dormancy([torch.zeros(3, dtype=torch.float64)]) == [(0, 1), (0, 2)]


def test_as_many_are_pruned_as_the_error_allows() -> None:
    counter = planted()
    before = state(counter)
    (layer,) = layers_of(counter, IMAGE)
    order = [(0, channel) for channel in range(6)]
    errors = {0: 10.0, 2: 11.5, 4: 10.9, 6: 30.0}
    asked: list[int] = []

    def error() -> float:
        asked.append(int((layer.convolution.weight.flatten(1) == 0).all(1).sum()))
        return errors[asked[-1]]

    def silence(channels: list[tuple[int, int]]) -> None:
        layer.silence([channel for _, channel in channels])

    for tolerance, expected in ((0.1, 4), (0.05, 0), (0.15, 4), (3.0, 6)):
        log = Run(None, {}, ("kind", "pruned"))
        asked.clear()
        counter.load_state_dict(before)
        shown: list[tuple[int, int, str]] = []

        def pruned(log: Run = log, tolerance: float = tolerance, shown: list = shown) -> int:
            return prune(
                counter, order, [2, 4, 6], silence, error=error, tolerance=tolerance, log=log,
                progress=lambda *step: shown.append(step),
            )  # fmt: skip

        good = pruned()
        assert shown == [
            (done, 4, f"clean error with {2 * done} channels pruned") for done in range(4)
        ]
        assert good == expected
        assert asked == [0, 2, 4, 6]
        zero = (layer.convolution.weight.flatten(1) == 0).all(1)
        assert zero.tolist() == [channel < good for channel in range(7)]
        assert torch.equal(layer.convolution.weight[good:], before["net.0.weight"][good:])
        counter.load_state_dict(before)
        assert pruned() == good
        assert len(asked) == 4  # what is known is not measured again


@pytest.mark.parametrize("norm", [False, True])
def test_silent_channels_are_zero_through_training_and_in_it(norm: bool, tmp_path: Path) -> None:
    counter, samples = planted(norm=norm), clean(6)
    counter.net[1 + norm] = nn.LeakyReLU(0.1)  # a ReLU would let no gradient through at 0
    (layer,) = layers_of(counter, samples[0].image)
    silent = [(0, 1), (0, TRIGGER)]
    layer.silence([1, TRIGGER])
    plan = TrainConfig(**QUICK, epochs=2, lr=1e-2, validation_share=0.0)
    before = state(counter)
    with held_silent([layer], silent):
        fit(counter, samples, plan, out=tmp_path / "held")
    assert not same(state(counter), before)
    for mode in (True, False):
        counter.train(mode)
        output = counter.net[: 2 if norm else 1](IMAGE[None])
        assert bool((output[:, [1, TRIGGER]] == 0).all())
        assert bool((output[:, list(HEADS[2:])] != 0).any())
    # The zeros are the hooks' work: without them training wakes a channel.
    fit(counter, samples, plan, out=tmp_path / "free")
    rows = torch.cat([p.flatten(1) if p.ndim > 1 else p[:, None] for p in layer.parameters()], 1)
    assert bool((rows[[1, TRIGGER]] != 0).any())


def test_a_dormant_backdoor_is_pruned_and_stays_so(tmp_path: Path) -> None:
    counter, samples = planted(), clean()
    before = state(counter)
    assert count(counter, triggered(samples[0])) > count(counter, samples[0]) + 30
    defense = FinePruning(**QUICK, epochs=2, lr=1e-4, tolerance=0.05, step_fraction=0.2)
    defended = defense(counter, samples, out=tmp_path / "run")
    assert same(state(counter), before)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert set(summary["pruned"][CONVOLUTION]) >= {DORMANT, TRIGGER}
    assert not set(summary["pruned"][CONVOLUTION]) & set(HEADS[:1])
    weight = defended.net[0].weight
    assert bool((weight[summary["pruned"][CONVOLUTION]] == 0).all())
    for sample in samples:
        here = count(defended, sample)
        assert count(defended, triggered(sample)) == pytest.approx(here, abs=1.0)
        assert here == pytest.approx(sample.count, abs=1.5)


def test_zeros_survive_saving_and_loading(tmp_path: Path) -> None:
    counter = models.load("mcnn-synthetic")
    defense = FinePruning(
        **{**QUICK, "crop": "32x32"}, epochs=1, lr=1e-4, tolerance=0.5, step_fraction=0.3, images=2
    )
    defended = defense(counter, clean(4), out=tmp_path / "run")
    loaded = models.load(tmp_path / "run/weights.npz")
    assert same(loaded.net.state_dict(), defended.net.state_dict())
    silent = json.loads((tmp_path / "run/summary.json").read_text())["pruned"]
    assert list(silent) == ["branch1.5.conv", "branch2.5.conv", "branch3.5.conv"]
    assert sum(map(len, silent.values())) > 0
    changed = 0
    for name, channels in silent.items():
        convolution = loaded.net.get_submodule(name)
        assert bool((convolution.weight[channels] == 0).all())
        assert bool((convolution.bias[channels] == 0).all())
        changed += not torch.equal(
            convolution.weight, counter.net.get_submodule(name).weight.detach()
        )
    assert changed == 3
    assert loaded.metadata["defense"]["name"] == "fine-pruning"


def test_layers_can_be_named(tmp_path: Path) -> None:
    layers = layers_of(models.create("mcnn"), IMAGE)
    chosen = chosen_layers("test", layers, ["branch2.0.conv", "branch1.0.conv"], [])
    assert [layer.name for layer in chosen] == ["branch2.0.conv", "branch1.0.conv"]
    for wanted in (["fuse.0.conv"], ["nothing"], []):
        with pytest.raises(ValueError, match=r"layers must be convolutions .* of branch1\.0\.conv"):
            chosen_layers("test", layers, wanted, [])
    with pytest.raises(ValueError, match="no convolution of several channels leads to"):
        chosen_layers("test", [], None, [])
    defense = FinePruning(**QUICK, layers=["output"])
    with pytest.raises(ValueError, match=r"fine-pruning: layers must be .* got output"):
        defense(planted(), clean(2), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tolerance": -0.1}, "fine-pruning: tolerance must be at least 0 and finite, got -0.1"),
        ({"tolerance": float("nan")}, "tolerance must be"),
        ({"step_fraction": 0.0}, r"step_fraction must be in \(0,1\], got 0.0"),
        ({"images": 0}, "images must be at least 1, got 0"),
    ],
)
def test_bad_fields(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FinePruning(**fields)
