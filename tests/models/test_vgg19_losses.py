"""The losses of VGG-19's variants against the published ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from numpy.lib.npyio import NpzFile
from support import narrow
from torch import Tensor

from pycc import models
from pycc.models import bayesian, dace
from pycc.models.bayesian import bayesian_loss, posterior
from pycc.models.heads import Heads, heads_of
from pycc.models.unbalanced import generalized_loss, transport_potentials

Fixture = Callable[[str], NpzFile]
FORMS = {
    "bl": {"background": 1.0},
    "nobg": {"background": None},
    "msfanet": {"background": 1.0, "distance": "difference"},
}


def tensor(data: NpzFile, name: str) -> Tensor:
    return torch.from_numpy(data[name])


def close(actual: Tensor, expected: Tensor, tolerance: float) -> bool:
    difference = (actual - expected).abs().max()
    return actual.shape == expected.shape and bool(difference <= tolerance * expected.abs().max())


# --- Bayesian Loss


def published_heads(data: NpzFile) -> list[Heads]:
    people = [tensor(data, "targets0"), torch.zeros(0), tensor(data, "targets2")]
    return [
        Heads(tensor(data, f"points{n}"), people[n], float(data["st_sizes"][n])) for n in range(3)
    ]


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bayesian_loss_is_the_published_one(
    fixture: Fixture, form: str, dtype: torch.dtype
) -> None:
    data = fixture("bl_loss")
    density = tensor(data, "density").to(dtype).requires_grad_()
    heads, options = published_heads(data), FORMS[form]
    for image in (0, 2):
        shares = posterior(heads[image], (8, 8), **options)
        assert close(shares.float(), tensor(data, f"prob{image}_{form}"), 1e-6)
        torch.testing.assert_close(shares.sum(0), torch.ones(64, dtype=torch.float64))
    loss = bayesian_loss(density, heads, **options)
    loss.backward()
    assert loss.item() == pytest.approx(float(data[f"loss_{form}"]), rel=1e-6)
    assert density.grad is not None
    assert close(density.grad.float(), tensor(data, f"grad_{form}"), 1e-6)


def test_the_counters_loss_takes_crops_or_whole_images(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow.narrow(monkeypatch)
    counter = narrow.create("vgg19")
    data = fixture("bl_loss")
    heads, images = published_heads(data), torch.rand(3, 3, 64, 64)
    target = torch.zeros(3, 1, 8, 8)
    target[0, 0, 2, 3] = target[2, 0, 7, 0] = 1.0
    density = counter(images)
    assert torch.equal(counter.loss(images, target, heads=heads), bayesian_loss(density, heads))
    points = [torch.tensor([[28.0, 20.0]]), torch.zeros(0, 2), torch.tensor([[4.0, 60.0]])]
    whole = [Heads(xy, torch.ones(len(xy)), 64.0) for xy in points]
    expected = bayesian_loss(density, whole)
    torch.testing.assert_close(counter.loss(images, target, points=points), expected)
    torch.testing.assert_close(counter.loss(images, target), expected)
    with pytest.raises(ValueError, match=r"vgg19\.loss: points must be those of 3 images, got 1"):
        counter.loss(images, target, points=points[:1])
    with pytest.raises(ValueError, match=r"points must be \[M,2\] .* got \[3\]"):
        counter.loss(images, target, points=[torch.zeros(3)] * 3)
    with pytest.raises(ValueError, match="points must be finite"):
        counter.loss(images, target, points=[torch.full((1, 2), torch.nan)] * 3)


def test_bad_bayesian_arguments() -> None:
    heads = Heads(torch.zeros(1, 2), torch.ones(1), 64.0)
    with pytest.raises(ValueError, match="heads must be those of 2 images, got 1"):
        bayesian_loss(torch.zeros(2, 1, 4, 4), [heads])
    with pytest.raises(ValueError, match="distance must be 'quotient' or 'difference', got 'sum'"):
        posterior(heads, (4, 4), distance="sum")  # type: ignore[arg-type]
    assert bayesian.DISTANCES == ("quotient", "difference")


# --- DM-Count


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dm_count_is_the_published_one(fixture: Fixture, dtype: torch.dtype) -> None:
    """Published, the transport is summed over the three images."""
    data = fixture("dm_loss")
    density = tensor(data, "density").to(dtype).requires_grad_()
    discrete = tensor(data, "discrete").to(dtype)
    points = [tensor(data, f"points{n}").to(dtype) for n in range(3)]
    counts = torch.tensor([float(len(xy)) for xy in points], dtype=dtype)
    terms = {
        "ot": 3 * dace.transport_loss(density, points, stride=8),
        "tv": dace.variation(density, discrete, counts).mean(),
        "count": (density.sum((1, 2, 3)) - counts).abs().mean(),
    }
    precise = {"ot": "grad_ot_f64"}
    for name, term in terms.items():
        assert term.item() == pytest.approx(float(data[name].item()), rel=1e-6, abs=2e-5)
        (slope,) = torch.autograd.grad(term, density)
        expected = tensor(data, precise.get(name, f"grad_{name}"))
        assert close(slope.float(), expected, 1e-5 if dtype == torch.float32 else 1e-6)
    loss = dace.dm_loss(density, discrete, points, transport=3 * 0.1)
    assert loss.item() == pytest.approx(float(data["total"].item()), rel=1e-6)


def test_dm_counts_transport_has_the_weight_of_its_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow.narrow(monkeypatch)
    counter = narrow.create("vgg19", variant="dm_count")
    images, target = torch.rand(2, 3, 32, 48), torch.zeros(2, 1, 4, 6)
    target[0, 0, 1, 1], target[1, 0, 3, 5] = 2.0, 1.0
    points = [torch.full((2, 2), 12.0), torch.tensor([[44.0, 28.0]])]
    expected = dace.dm_loss(counter(images), target, points, transport=1.0)
    torch.testing.assert_close(counter.loss(images, target, points=points), expected)
    torch.testing.assert_close(counter.loss(images, target), expected)
    with pytest.raises(ValueError, match=r"must count for whole people, .* got 0.5"):
        counter.loss(images, target / 2)


def test_a_map_of_nobody_has_finite_gradients() -> None:
    """A network that ends in a ReLU, or in an absolute value, may count exactly nobody."""
    points, target = [torch.tensor([[12.0, 12.0]])], torch.zeros(1, 1, 4, 4)
    heads = [Heads(points[0], torch.ones(1), 32.0)]
    losses = (
        lambda density: dace.dm_loss(density, target, points),
        lambda density: bayesian_loss(density, heads),
        lambda density: generalized_loss(density, heads, crop=32),
    )
    for loss in losses:
        density = torch.zeros(1, 1, 4, 4, requires_grad=True)
        (slope,) = torch.autograd.grad(loss(density), density)
        assert slope.isfinite().all()
        assert (slope < 0).any()


# --- all of them


@pytest.mark.parametrize(
    ("name", "variant"),
    [("vgg19", "bl"), ("vgg19", "dm_count"), ("vgg19", "generalized_loss"),
     ("sfanet", "m_sfanet_qnrf")],
)  # fmt: skip
def test_in_mixed_precision_the_loss_is_single(
    name: str, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow.narrow(monkeypatch)
    counter = narrow.positive(models.create(name, variant=variant)).eval()
    images, points = torch.rand(1, 3, 64, 64), [torch.tensor([[20.0, 12.0], [50.0, 50.0]])]
    target = torch.zeros(1, 1, 64 // counter.stride, 64 // counter.stride)
    for x, y in (points[0] / counter.stride).long().tolist():
        target[0, 0, y, x] = 1.0
    with torch.autocast("cpu", torch.bfloat16):
        density = counter(images)
        assert density.dtype == torch.bfloat16
        loss = counter.loss(images, target, points=points)
    monkeypatch.setattr(counter, "forward", lambda _: density.float())
    assert torch.equal(loss, counter.loss(images, target, points=points))


@pytest.mark.parametrize("people", [0.25, -1.0, float("nan"), float("inf")])
def test_a_target_without_points_must_hold_whole_people(people: float) -> None:
    target = torch.zeros(1, 1, 4, 4)
    target[0, 0, 1, 2] = people
    with pytest.raises(ValueError, match="must count for whole people"):
        heads_of("vgg19", torch.zeros(1, 3, 32, 32), target, None, stride=8)


@pytest.mark.parametrize("people", [0.25, -1.0, float("nan")])
def test_dm_counts_target_holds_whole_people_with_points_too(
    people: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow.narrow(monkeypatch)
    counter = models.create("vgg19", variant="dm_count").eval()
    images, points = torch.rand(1, 3, 32, 32), [torch.tensor([[20.0, 12.0]])]
    target = torch.zeros(1, 1, 4, 4)
    target[0, 0, 1, 2] = 1.0
    assert torch.isfinite(counter.loss(images, target, points=points))
    target[0, 0, 1, 2] = people
    with pytest.raises(ValueError, match=rf"vgg19\.loss: target must hold numbers.* got {people}"):
        counter.loss(images, target, points=points)


# --- Generalized Loss


def test_one_cell_and_one_head_have_the_potentials_of_the_formula() -> None:
    """f = damping (C - g) and the reverse: both are damping C / (1 + damping)."""
    cost, one = torch.tensor([[0.7]], dtype=torch.float64), torch.ones(1)
    damping = 1 / (1 + 0.01 / 0.5)
    for potential in transport_potentials(one, one, cost, 0.5):
        assert float(potential) == pytest.approx(damping * 0.7 / (1 + damping), rel=1e-3)


def test_the_plan_is_near_the_best() -> None:
    """Ten sweeps approach the optimum of the unbalanced problem, which a thousand reach."""
    generator = torch.Generator().manual_seed(0)
    weights = 0.5 * torch.rand(6, generator=generator, dtype=torch.float64)
    people = torch.ones(2, dtype=torch.float64)
    cost = torch.rand(6, 2, generator=generator, dtype=torch.float64)

    def divergence(p: Tensor, q: Tensor) -> Tensor:
        return (torch.xlogy(p, p / q) - p + q).sum()

    def objective(of_cells: Tensor, of_heads: Tensor) -> float:
        plan = torch.exp((of_cells[:, None] + of_heads - cost) / 0.01) * weights[:, None] * people
        kept = divergence(plan.sum(1), weights) + divergence(plan.sum(0), people)
        smooth = divergence(plan, weights[:, None] * people)
        return float((plan * cost).sum() + 0.01 * smooth + 0.5 * kept)

    damping, of_cells, of_heads = 1 / (1 + 0.01 / 0.5), torch.zeros(6), torch.zeros(2)
    for _ in range(1000):
        logs = people.log() + (of_heads - cost) / 0.01
        of_cells = -damping * 0.01 * torch.logsumexp(logs, 1)
        logs = weights.log()[:, None] + (of_cells[:, None] - cost) / 0.01
        of_heads = -damping * 0.01 * torch.logsumexp(logs, 0)
    best = objective(of_cells, of_heads)
    found = objective(*transport_potentials(weights, people, cost, 1.0))
    assert best <= found <= 1.1 * best
    assert objective(*transport_potentials(weights, people, cost.flip(1), 1.0)) > 1.2 * best


def test_generalized_loss_pulls_people_towards_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = [Heads(torch.tensor([[12.0, 28.0]]), torch.ones(1), 48.0)]
    density = torch.full((1, 1, 6, 6), 1 / 36, requires_grad=True)
    (slope,) = torch.autograd.grad(generalized_loss(density, heads, crop=48), density)
    assert int(slope.argmin()) == 3 * 6 + 1
    nobody = [Heads(torch.zeros(0, 2), torch.zeros(0), 48.0)]
    assert generalized_loss(density, nobody, crop=48).item() == pytest.approx(1.2)
    narrow.narrow(monkeypatch)
    counter = narrow.create("vgg19", variant="generalized_loss")
    images = torch.rand(1, 3, 48, 32)
    density, target = counter(images), torch.zeros(1, 1, 6, 4)
    assert torch.equal(
        counter.loss(images, target, heads=heads), generalized_loss(density, heads, crop=48)
    )
    with pytest.raises(ValueError, match="generalized_loss: heads must be those of 1 images, got"):
        generalized_loss(density, [*heads, *heads], crop=48)
