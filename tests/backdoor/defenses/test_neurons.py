"""Adversarial neuron pruning: masks, perturbations, and a backdoor that is removed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.planted import (
    CONVOLUTION,
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
from torch import nn

from pycc import models
from pycc.backdoor.defenses.base import twin
from pycc.backdoor.defenses.channels import layers_of
from pycc.backdoor.defenses.neurons import AdversarialNeuronPruning, PerturbedNeurons
from pycc.models import CounterModel
from pycc.train import NotFiniteError
from pycc.train.held import measured

IMAGE = torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(0))
CPU = torch.device("cpu")


def deep(*, norm: bool = False, bias: bool = True) -> CounterModel:
    torch.manual_seed(3)
    middle = [nn.BatchNorm2d(5, affine=bias)] if norm else []
    net = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1, bias=bias), *middle, nn.ReLU(inplace=True), nn.MaxPool2d(4),
        nn.Conv2d(5, 6, 3, padding=1, bias=bias), nn.ReLU(), nn.Conv2d(6, 1, 1), nn.Softplus(),
    )  # fmt: skip
    for module in net:
        if isinstance(module, nn.BatchNorm2d) and bias:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return models.wrap(net, stride=4).eval()


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_perturbed_neuron_has_other_weights_and_another_offset(norm: bool, bias: bool) -> None:
    """(m + d) w and (1 + e) b, written into the weights themselves."""
    counter = deep(norm=norm, bias=bias)
    layers = layers_of(counter, IMAGE)
    assert [layer.channels for layer in layers] == [5, 6]
    neurons = PerturbedNeurons(layers, CPU)
    with torch.no_grad():
        plain = counter(IMAGE[None])
        with neurons.applied():
            torch.testing.assert_close(counter(IMAGE[None]), plain)
        generator = torch.Generator().manual_seed(1)
        for number, mask in enumerate(neurons.masks):
            neurons.masks[number] = torch.rand(mask.shape, generator=generator)
        neurons.perturb(4, 0, 0.4)
        with neurons.applied():
            density = counter(IMAGE[None])
        written = twin(counter, "test")
        for number, layer in enumerate(layers_of(written, IMAGE)):
            scale = neurons.masks[number] + neurons.weights[number]
            if layer.last.weight is None:  # a normalisation without any is one of weights 1
                layer.last.weight = nn.Parameter(torch.ones_like(scale))
            layer.last.weight *= scale.reshape(-1, *[1] * (layer.last.weight.ndim - 1))
            if layer.last.bias is not None:
                layer.last.bias *= 1 + neurons.offsets[number]
        torch.testing.assert_close(density, written(IMAGE[None]), rtol=1e-4, atol=1e-6)
        assert not torch.allclose(density, plain, rtol=1e-2)
        assert torch.equal(counter(IMAGE[None]), plain)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_pruned_channels_keep_their_offset_and_nothing_else(
    norm: bool, bias: bool, tmp_path: Path
) -> None:
    """Of whatever the layer consists; a normalisation without weights has no offset either."""
    defense = AdversarialNeuronPruning(
        **QUICK, steps=4, mask_lr=0.5, threshold=0.99, tolerance=1e9, images=2
    )
    defended = defense(deep(norm=norm, bias=bias), clean(4), out=tmp_path / "run")
    pruned = json.loads((tmp_path / "run/summary.json").read_text())["pruned"]
    assert sum(map(len, pruned.values())) > 0
    for layer in layers_of(defended, IMAGE):
        seen: list[torch.Tensor] = []
        handle = layer.last.register_forward_hook(
            lambda _, __, output, seen=seen: seen.append(output.detach().clone())
        )
        with torch.no_grad():
            defended(IMAGE[None])
        handle.remove()
        for channel in pruned[layer.name]:
            offset = torch.zeros(1) if layer.last.bias is None else layer.last.bias[channel]
            assert bool((seen[0][0, channel] == offset).all())


def test_perturbations_are_keyed_and_stay_within_their_bound() -> None:
    layers = layers_of(deep(), IMAGE)
    first, second = PerturbedNeurons(layers, CPU), PerturbedNeurons(layers, CPU)
    first.perturb(1, 5, 0.3)
    second.perturb(1, 5, 0.3)
    both = zip([*first.weights, *first.offsets], [*second.weights, *second.offsets], strict=True)
    for a, b in both:
        assert torch.equal(a, b)
        assert float(a.abs().max()) <= 0.3
    second.perturb(1, 6, 0.3)
    assert not torch.equal(first.weights[0], second.weights[0])
    assert not torch.equal(first.weights[0], first.offsets[0])
    first.rest()
    assert float(first.weights[0].abs().max()) == 0.0


@pytest.mark.long
@pytest.mark.parametrize("norm", [False, True])
def test_the_neuron_of_a_backdoor_is_pruned(norm: bool, tmp_path: Path) -> None:
    counter, samples = planted(norm=norm), clean()
    before, error = state(counter), measured(counter, samples).mae
    assert all(count(counter, triggered(s)) > count(counter, s) + 30 for s in samples)
    defense = AdversarialNeuronPruning(**QUICK, steps=200, tolerance=0.3)
    defended = defense(counter, samples, out=tmp_path / "run")
    assert same(state(counter), before)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    silent = summary["pruned"][CONVOLUTION]
    assert TRIGGER in silent
    assert not set(HEADS) <= set(silent)
    for sample in samples:
        here = count(defended, sample)
        assert count(defended, triggered(sample)) == pytest.approx(here, abs=1.0)
    assert measured(defended, samples).mae <= 1.3 * error
    # Only weights go, and nothing else changes.
    last = defended.net[1] if norm else defended.net[0]
    assert bool((last.weight[silent] == 0).all())
    kept = [channel for channel in range(7) if channel not in silent]
    now = state(defended)
    for name, value in before.items():
        if name == f"net.{int(norm)}.weight":
            assert torch.equal(now[name][kept], value[kept])
        else:
            assert torch.equal(now[name], value)


def test_a_neuron_that_no_perturbation_wakes_is_not_found(tmp_path: Path) -> None:
    """What is not active on clean images under any perturbation has no gradient: a known limit."""
    counter, samples = planted(threshold=0.5), clean()
    defense = AdversarialNeuronPruning(**QUICK, steps=50, tolerance=0.3)
    defended = defense(counter, samples, out=tmp_path / "run")
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert TRIGGER not in summary["pruned"][CONVOLUTION]
    assert count(defended, triggered(samples[0])) > count(defended, samples[0]) + 30


def test_masks_lie_in_the_unit_interval_and_fall(tmp_path: Path) -> None:
    defense = AdversarialNeuronPruning(**QUICK, steps=30, mask_lr=0.3)
    defense(planted(), clean(4), out=tmp_path / "run")
    (mask,) = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)["masks"]
    assert float(mask.min()) >= 0.0
    assert float(mask.max()) <= 1.0
    assert float(mask.min()) < 0.5


def test_thresholds_take_all_neurons_below_them() -> None:
    defense = AdversarialNeuronPruning(threshold=0.6)
    masks = [torch.tensor([0.0, 0.55, 1.0]), torch.tensor([0.0, 0.04, 0.62, 0.61])]
    order, stops = defense.pruning_order(masks)
    assert order == [(0, 0), (1, 0), (1, 1), (0, 1)]
    assert stops == [2, 3, 4]
    assert AdversarialNeuronPruning(threshold=0.0).pruning_order(masks) == ([(0, 0), (1, 0)], [2])
    assert defense.pruning_order([torch.ones(3)]) == ([], [])


def test_stopped_anywhere_it_goes_on_to_the_same_masks(tmp_path: Path) -> None:
    defense = AdversarialNeuronPruning(**QUICK, steps=12, every_minutes=1e-9)
    samples = clean(6)
    uninterrupted = defense(planted(), samples, seed=2, out=tmp_path / "whole")

    class StoppedError(Exception):
        pass

    def stop(done: int, total: int, label: str) -> None:
        assert total == 12
        if done == 7:
            raise StoppedError

    with pytest.raises(StoppedError):
        defense(planted(), samples, seed=2, out=tmp_path / "part", progress=stop)
    content = torch.load(tmp_path / "part/checkpoint.pt", weights_only=True)
    assert content["step"] == 6
    again = defense(planted(), samples, seed=2, out=tmp_path / "part", resume=True)
    assert same(state(again), state(uninterrupted))
    for name in ("summary.json", "results.jsonl"):
        assert (tmp_path / "part" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_a_gradient_that_is_no_number_stops(tmp_path: Path) -> None:
    counter = planted()
    counter.net[0].weight.data[0] = 1e30
    with pytest.raises(NotFiniteError, match="anp: gradient is not finite in step 1"):
        AdversarialNeuronPruning(**QUICK)(counter, clean(3), out=tmp_path / "run")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "anp: steps must be at least 1, got 0"),
        ({"epsilon": 1.5}, r"epsilon must be in \[0,1\], got 1.5"),
        ({"inner_steps": 0}, "inner_steps must be at least 1"),
        ({"alpha": -0.1}, r"alpha must be in \[0,1\]"),
        ({"mask_lr": 0.0}, r"mask_lr must be in \(0,1\]"),
        ({"momentum": 1.0}, r"momentum must be in \[0,1\)"),
        ({"threshold": 1.0}, r"threshold must be in \[0,1\)"),
        ({"tolerance": float("inf")}, "tolerance must be at least 0 and finite"),
        ({"images": 0}, "images must be at least 1"),
        ({"every_minutes": 0.0}, "every_minutes must be above 0"),
    ],
)
def test_bad_fields(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdversarialNeuronPruning(**fields)


def test_a_counter_without_channels_is_refused(tmp_path: Path) -> None:
    bare = models.wrap(nn.Conv2d(3, 1, 4, stride=4), stride=4)
    with pytest.raises(ValueError, match="anp: the counter has no convolution of several"):
        AdversarialNeuronPruning(**QUICK)(bare, clean(2), out=tmp_path / "run")
