"""Attention maps, their distance and its gradient; a student looks where its teacher does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.planted import QUICK, clean, planted, same, state
from torch import nn

from pycc import models
from pycc.backdoor.defenses.base import twin
from pycc.backdoor.defenses.distillation import (
    AttentionDistillation,
    Distilled,
    attention,
    attention_distance,
    stages,
    watched,
)
from pycc.backdoor.defenses.finetuning import FineTuning
from pycc.models import CounterModel
from pycc.train import TrainConfig, fit
from pycc.types import Sample

pytestmark = pytest.mark.command

IMAGE = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0))


def features(seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def deep(seed: int = 0, *, dropout: float = 0.0, norm: bool = True) -> CounterModel:
    torch.manual_seed(seed)
    second = nn.BatchNorm2d(6) if norm else nn.Identity()
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), second, nn.ReLU(inplace=True), nn.MaxPool2d(4),
        nn.Dropout(dropout), nn.Conv2d(6, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 1, 1),
        nn.Softplus(),
    )  # fmt: skip
    nn.init.constant_(net[7].bias, -3.0)
    return models.wrap(net, stride=4).eval()


def batch(samples: list[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.stack([sample.image for sample in samples])
    target = torch.rand(len(samples), 1, 12, 16, generator=torch.Generator().manual_seed(1))
    return images, target


def test_attention_is_where_features_are_whatever_their_scale_and_order() -> None:
    values = features(0)
    maps = attention(values)
    assert maps.shape == (2, 20)
    expected = values.pow(2).sum(1).reshape(2, 20)
    torch.testing.assert_close(maps, expected / expected.norm(dim=1, keepdim=True))
    torch.testing.assert_close(attention(-7 * values[:, [2, 0, 1]]), maps)
    assert not torch.allclose(attention(values, power=4.0), maps, rtol=0.1)
    assert float(attention(torch.zeros(1, 3, 4, 5)).abs().max()) == 0.0


def test_the_distance_is_zero_for_equal_maps_and_bounded() -> None:
    ours, theirs = features(0), features(1)
    assert float(attention_distance(ours, ours)) == 0.0
    assert float(attention_distance(ours, 3 * ours)) == pytest.approx(0.0, abs=1e-12)
    between = float(attention_distance(ours, theirs))
    assert 0.0 < between == float(attention_distance(theirs, ours))
    left, right = torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2)
    left[..., 0], right[..., 1] = 1.0, 1.0
    assert float(attention_distance(left, right)) == pytest.approx(2**0.5)


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_the_gradient_of_the_distance(power: float) -> None:
    ours = features(0).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: attention_distance(x, features(1), power), ours)


def test_the_gradient_is_zero_at_equal_maps_and_finite_at_empty_ones() -> None:
    for values in (features(0), torch.zeros(2, 3, 4, 5, dtype=torch.float64)):
        ours = values.clone().requires_grad_()
        attention_distance(ours, values).backward()
        assert float(ours.grad.abs().max()) == 0.0
    empty = torch.zeros(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    attention_distance(empty, features(1)).backward()
    assert bool(torch.isfinite(empty.grad).all())


def test_a_layer_is_watched_as_it_returns_before_what_follows_changes_it() -> None:
    counter = deep()
    x = IMAGE[None]
    with watched(counter.net, ["0", "1", "2"]) as seen, torch.no_grad():
        counter(x)
    with torch.no_grad():
        convolved = counter.net[0](x)
        normalised = counter.net[1](convolved)
    assert torch.equal(seen["0"], convolved)
    assert torch.equal(seen["1"], normalised)
    assert float(seen["1"].min()) < 0.0 == float(seen["2"].min())
    assert not counter.net[0]._forward_hooks


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "mcnn",
            [f"branch{b}{part}" for b in (1, 2, 3) for part in (".0", ".2", "")],
        ),
        ("csrnet", ["frontend.3", "frontend.8", "frontend.15", "backend"]),
    ],
)
def test_stages_end_with_an_activation(name: str, expected: list[str]) -> None:
    counter = models.create(name).eval()
    assert stages(counter, IMAGE) == expected
    with watched(counter.net, expected) as seen, torch.no_grad():
        counter(IMAGE[None])
    assert all(float(output.min()) >= 0.0 for output in seen.values())


def test_stages_of_a_plain_network() -> None:
    assert stages(deep(), IMAGE) == ["2", "6"]


def test_between_identical_networks_the_loss_is_the_counters_own() -> None:
    student = deep()
    images, target = batch(clean(3))
    pupil = Distilled(student, twin(student, "teacher"), layers=["2", "6"], beta=5.0)
    pupil.eval()
    alone, both = student.loss(images, target), pupil.loss(images, target)
    assert float(alone.detach()) == float(both.detach())
    for parameters in zip(
        torch.autograd.grad(alone, list(student.parameters())),
        torch.autograd.grad(both, list(pupil.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(*parameters)


def test_the_loss_adds_beta_times_the_distances() -> None:
    student, teacher = deep(0), deep(1)
    images, target = batch(clean(3))
    with watched(student.net, ["2", "6"]) as ours, watched(teacher.net, ["2", "6"]) as theirs:
        student_loss = student.loss(images, target)
        teacher(images)
    distances = sum(attention_distance(ours[name], theirs[name]) for name in ("2", "6"))
    pupil = Distilled(student, teacher, layers=["2", "6"], beta=0.7).eval()
    loss = float(pupil.loss(images, target).detach())
    assert loss == pytest.approx(float((student_loss + 0.7 * distances).detach()))
    assert float(distances.detach()) > 0.01


def test_a_teacher_stays_as_it_is_and_out_of_the_weights(tmp_path: Path) -> None:
    student, teacher = deep(0, dropout=0.2), deep(1, dropout=0.2)
    pupil = Distilled(student, teacher, layers=["2", "6"], beta=1.0)
    assert list(pupil.state_dict()) == list(student.state_dict())
    assert torch.equal(pupil(IMAGE[None]), student(IMAGE[None]))
    before = state(teacher)
    mine = state(student)
    pupil.train()
    assert student.net.training
    assert not any(module.training for module in teacher.net.modules())
    fit(
        pupil,
        clean(4),
        TrainConfig(**QUICK, epochs=1, lr=1e-2, validation_share=0.0),
        out=tmp_path / "r",
    )
    assert same(state(teacher), before)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not same(state(student), mine)


def distance(one: CounterModel, other: CounterModel, samples: list[Sample]) -> float:
    layers = stages(one, samples[0].image)
    images, _ = batch(samples)
    with (
        torch.no_grad(),
        watched(one.net, layers) as ours,
        watched(other.net, layers) as theirs,
    ):
        one(images)
        other(images)
    return sum(float(attention_distance(ours[name], theirs[name])) for name in layers)


def test_the_student_comes_to_look_where_its_teacher_does(tmp_path: Path) -> None:
    """Nearer to the teacher than without the attention, and than before."""
    model, samples = deep(norm=False), clean(6)  # whose means would lag behind in a few steps
    before = state(model)
    fields = {**QUICK, "crop": "32x32", "lr": 1e-2, "teacher_epochs": 20}
    students = []
    for beta in (0.0, 5.0):
        out = tmp_path / str(beta)
        student = AttentionDistillation(**fields, epochs=8, beta=beta)(model, samples, out=out)
        assert same(state(model), before)
        students.append(student)
    teacher = twin(model, "teacher")
    kept = torch.load(tmp_path / "5.0/teacher/checkpoint.pt", weights_only=True)["best"]
    teacher.net.load_state_dict(kept)
    plain, distilled = (distance(student, teacher, samples) for student in students)
    assert distilled < 0.8 * plain
    assert distilled < 0.8 * distance(model, teacher, samples)
    summary = json.loads((tmp_path / "5.0/summary.json").read_text())
    assert summary["layers"] == ["2", "6"]
    assert summary["unit"] > 0


def test_without_attention_it_is_fine_tuning(tmp_path: Path) -> None:
    model, samples = deep(), clean(4)
    fields = {**QUICK, "epochs": 2, "lr": 1e-2}
    student = AttentionDistillation(**fields, beta=0.0)(model, samples, seed=3, out=tmp_path / "a")
    tuned = FineTuning(**fields)(model, samples, seed=3, out=tmp_path / "b")
    assert same(state(student), state(tuned))


def test_weights_of_a_published_counter_are_kept(tmp_path: Path) -> None:
    counter = models.load("mcnn-synthetic")
    defense = AttentionDistillation(**{**QUICK, "crop": "32x32"}, epochs=1, lr=1e-5)
    student = defense(counter, clean(3), out=tmp_path / "run")
    loaded = models.load(tmp_path / "run/weights.npz")
    assert same(loaded.net.state_dict(), student.net.state_dict())
    assert loaded.metadata["defense"]["name"] == "nad"
    assert not same(loaded.net.state_dict(), counter.net.state_dict())


def test_layers_must_be_there_and_run(tmp_path: Path) -> None:
    model = deep()
    defense = AttentionDistillation(**QUICK, layers=["2", "nine"])
    with pytest.raises(ValueError, match="nad: the network has no layer 'nine'"):
        defense(model, clean(2), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    images, target = batch(clean(2))
    model.net.add_module("9", nn.Identity())
    with watched(model.net, ["9"]) as seen, torch.no_grad():
        model(images)
    assert seen["9"].shape == (2, 1, 12, 16)

    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Conv2d(3, 1, 4, stride=4), nn.Conv2d(3, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    bare = models.wrap(Idle(), stride=4)
    pupil = Distilled(bare, twin(bare, "teacher"), layers=["idle"], beta=1.0)
    with pytest.raises(ValueError, match="nad: layers idle do not run while the counter learns"):
        pupil.loss(images, target)
    with pytest.raises(ValueError, match="nad: layers must be named, no module gives maps"):
        AttentionDistillation(**QUICK)(bare, clean(2), out=tmp_path / "run")
    shaped = models.wrap(nn.Sequential(nn.Conv2d(3, 1, 4, stride=4), nn.Flatten(0, 1)), stride=4)
    with (
        pytest.raises(ValueError, match="nad: layer '1' gives no feature maps"),
        watched(shaped.net, ["1"]),
    ):
        shaped(images)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"beta": -1.0}, "nad: beta must be at least 0 and finite, got -1.0"),
        ({"power": 0.5}, "power must be in 1…8, got 0.5"),
        ({"teacher_epochs": 0}, "teacher_epochs must be at least 1, got 0"),
    ],
)
def test_bad_fields(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionDistillation(**fields)


def test_the_planted_counter_has_stages() -> None:
    assert stages(planted(), clean(1)[0].image) == ["1", "2"]
