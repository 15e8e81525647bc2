"""The box that a patch can change gives the whole image's losses, gradients and patches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.marks import long
from torch import Tensor, nn

import pycc.ops
from pycc import models
from pycc.attack import APAM, Place
from pycc.attack.evaluation.builder import CleanCounts, Member, ProblemBuilder
from pycc.attack.evaluation.cells import cell_density
from pycc.attack.evaluation.checked import SampleCache, check_samples
from pycc.attack.patch import anywhere, roughness
from pycc.attack.transform import draw, transforms
from pycc.grid import cell_weight

pytestmark = pytest.mark.command

CASES = {
    "middle": {"patch_size": 9},
    "share of the width": {"patch_size": 0.16},
    "top left corner": {"patch_size": 9, "location": "given", "top_left": (0, 0)},
    "bottom right corner": {"patch_size": 9, "location": "given", "top_left": (92, 130)},
    "left border": {"patch_size": 14, "location": "given", "top_left": (41, 0)},
    "lower border, odd place": {"patch_size": 7, "location": "given", "top_left": (93, 67)},
    "anywhere": {"patch_size": 12, "location": "random"},
    "disc": {"patch_size": 16, "shape": "disc", "location": "given", "top_left": (31, 50)},
    "nested": {"patch_size": 11, "sampling": "nested"},
    "not transformed": {"patch_size": 11, "transform": "none"},
    "before a camera": {"patch_size": 13, "transform": "physical"},
    "several draws": {"patch_size": 9, "eot_samples": 3},
    "over": {"patch_size": 9, "objective": "over"},
    "under": {"patch_size": 9, "objective": "under"},
    "target": {"patch_size": 9, "objective": "target", "target_count": 400.0},
    "ten times the heads": {"patch_size": 9, "objective": "target"},
    "pap": {"patch_size": 9, "objective": "pap"},
    "one pixel": {"patch_size": 1},
}


def full_image_loss(
    attack: APAM, counter: nn.Module, sample, place: Place, patch: Tensor, step: int
) -> Tensor:
    """The loss as its definition has it, on the full image."""
    image = sample.image[None].double()
    builder = ProblemBuilder([Member(counter)], SampleCache([sample]), CleanCounts())
    (item,) = check_samples([sample], [], counter.stride, seed=0).items
    # Only what ``paste`` asks of scenes: boxes (here the full image) and places.
    scenes = replace(
        builder.full_image(attack, item).regions[0],
        pixels=image,
        top_left=torch.tensor([place.top_left]),
    )
    mask = attack.patch_mask(place.side).double()
    drawn = draw([0], seed=0, step=step, eot_samples=attack.eot_samples)
    attacked = transforms[attack.transform].paste(scenes, patch, mask, drawn, attack.sampling)
    cells = counter(attacked)[:, 0]
    weight = cell_weight(sample.roi, cells.shape[1:], counter.stride).double()
    truth = cell_density(sample, cells.shape[1:], counter.stride).double()
    count = (weight * cells).sum((1, 2))
    if attack.objective == "density":
        loss = (weight * (cells - attack.factor * truth) ** 2).sum((1, 2)) / weight.sum()
    elif attack.objective == "pap":
        loss = -(weight * torch.sigmoid(truth - cells).detach() * cells).sum((1, 2))
    elif attack.objective == "target":
        wanted = attack.target_count or attack.factor * float(item.truth)
        clean = float((weight * counter(image)[0, 0]).sum())
        loss = (count - wanted) ** 2 / (2 * abs(clean - wanted))
    else:
        loss = -count if attack.objective == "over" else count
    penalty = attack.smoothness * roughness(patch, mask).sum()
    return loss.mean() + (penalty / weight.sum() if attack.objective == "density" else penalty)


@pytest.mark.parametrize("region", [False, True], ids=["whole image", "region"])
@pytest.mark.parametrize("case", CASES)
def test_gradient_is_that_of_the_image(case: str, region: bool, tiny, sample, problem) -> None:
    attack = APAM(steps=0, **CASES[case])
    image = sample(3, shape=(101, 139), heads=12, region=region)
    counter = tiny().double()
    with pycc.ops.reference():
        made = problem(attack, counter, [image])
        place = attack.place((101, 139), seed=0, image=0)
        patch = attack.start([0], place.side, 0).double()
        local = attack.gradient(made, patch, 0, 7)
        whole = patch.clone().requires_grad_()
        loss = full_image_loss(attack, counter, image, place, whole, 7)
        (full,) = torch.autograd.grad(loss, whole)
    assert made.regions[0].local.follows_layers
    assert made.regions[0].local.cells.shape != (25, 34)
    assert float(full.abs().max()) > 0
    assert torch.allclose(local, full, rtol=0, atol=1e-11 * float(full.abs().max()))


class Opaque(nn.Module):
    """A counter whose layers cannot be followed: what it does depends on what it is given."""

    def __init__(self, inner: nn.Module, receptive_field: int | None) -> None:
        super().__init__()
        self.inner, self.stride, self.receptive_field = inner, inner.stride, receptive_field

    def forward(self, images: Tensor) -> Tensor:
        if float(images.detach().mean()) < 0:
            return torch.zeros(())
        cells: Tensor = self.inner(images)
        return cells


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_patches_agree_after_many_steps(case: str, tiny, sample, problem) -> None:
    """Layer by layer, by windows, and on the full image: the same patches to the last level."""
    attack = APAM(steps=12, step_size=16 / 255, **CASES[case])
    image = sample(4, shape=(101, 139), heads=12)
    trials = []
    with pycc.ops.reference():
        for wrap in (lambda c: c, lambda c: Opaque(c, 20), lambda c: Opaque(c, None)):
            made = problem(attack, wrap(tiny().double()), [image])
            trials.append((made, attack.optimise(made, seed=0, step_done=lambda _: None)))
    follows = [made.regions[0].local.follows_layers for made, _ in trials]
    assert follows == [True, False, False]
    falls = [torch.tensor(p.loss_history) - p.loss_history[0][0] for _, p in trials]
    for (_, other), fall in zip(trials[1:], falls[1:], strict=True):
        assert torch.equal(trials[0][1].patches, other.patches)
        assert torch.allclose(falls[0], fall, rtol=1e-5, atol=1e-6)


def test_a_smaller_field_than_the_true_one_would_be_wrong(tiny, sample, problem) -> None:
    attack = APAM(patch_size=9, objective="over", transform="none", smoothness=0.0)
    image = sample(3, shape=(101, 139))
    gradients = []
    with pycc.ops.reference():
        for field in (20, 10):
            made = problem(attack, Opaque(tiny().double(), field), [image])
            patch = attack.start([0], 9, 0).double()
            gradients.append(attack.gradient(made, patch, 0, 0))
    assert not torch.allclose(*gradients, rtol=1e-3)


def test_images_of_different_sizes_form_one_batch(tiny, sample, problem) -> None:
    attack = APAM(patch_size=10, steps=10, eot_samples=2)
    images = [sample(0, shape=(96, 120)), sample(1, shape=(104, 140)), sample(2, shape=(120, 97))]
    with pycc.ops.reference():
        counter = tiny().double()
        together = problem(attack, counter, images)
        patches = attack.optimise(together, seed=0, step_done=lambda _: None).patches
        builder = ProblemBuilder([Member(counter)], SampleCache(images), CleanCounts())
        for item in check_samples(images, [attack], 4, seed=0).items:
            place = attack.place(item.shape, seed=0, image=item.index)
            alone = attack.optimise(
                builder.problem(attack, [item], [place]), seed=0, step_done=lambda _: None
            )
            assert torch.equal(alone.patches[0], patches[item.index])


@pytest.mark.long
def test_a_moving_place_has_the_images_gradient_each_step(tiny, sample, problem) -> None:
    attack = APAM(
        patch_size=9, objective="over", location="moving", transform="none", smoothness=0.0
    )
    image = sample(5, shape=(101, 139))
    counter = tiny().double()
    places = set()
    with pycc.ops.reference():
        made = problem(attack, counter, [image])
        patch = attack.start([0], 9, 0).double()
        for step in range(12):
            (part,) = attack.problems_at(made, 0, step)
            local = attack.gradient(part, patch, 0, step)
            whole = patch.clone().requires_grad_()
            place = anywhere((101, 139), 9, seed=0, image=0, purpose="moving", step=step)
            loss = full_image_loss(attack, counter, image, Place(9, place), whole, step)
            (full,) = torch.autograd.grad(loss, whole)
            assert torch.allclose(local, full, rtol=0, atol=1e-11 * float(full.abs().max()))
            places.add(place)
    assert len(places) > 10


def test_a_problem_of_two_counters_combines_their_losses(tiny, sample) -> None:
    attack = APAM(patch_size=9, objective="over", smoothness=0.0)
    images = [sample(0, shape=(101, 139)), sample(1, shape=(96, 120))]
    first, second = tiny().eval(), tiny().eval()
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.mul_(1.3)
    items = check_samples(images, [attack], 4, seed=0).items
    places = [attack.place(item.shape, seed=0, image=item.index) for item in items]
    members = [Member(first, "a"), Member(second, "b")]
    losses = {}
    for name, chosen in (("mean", members), ("worst", members), ("a", members[:1]),
                         ("b", members[1:])):  # fmt: skip
        combine = name if name in ("mean", "worst") else "mean"
        made = ProblemBuilder(chosen, SampleCache(images), CleanCounts(), combine=combine).problem(
            attack, items, places
        )
        patch = attack.start(made.index, 9, 0)
        losses[name] = attack.objective_loss(made, patch, attack.patch_mask(9))
    assert torch.allclose(losses["mean"], (losses["a"] + losses["b"]) / 2)
    assert torch.allclose(losses["worst"], torch.maximum(losses["a"], losses["b"]))


@pytest.mark.parametrize("top_left", [(141, 3), *long((60, 77), (0, 0))])
def test_mcnn(top_left: tuple[int, int], sample, problem) -> None:
    """Its largest column has a field of 72 pixels; padding coincides at true borders."""
    attack = APAM(patch_size=20, location="given", top_left=top_left, steps=3)
    image = sample(5, shape=(161, 203), heads=20)
    counter = models.create("mcnn").double()
    generator = torch.Generator().manual_seed(1)
    for parameter in counter.parameters():
        draws = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        fan = parameter[0].numel() if parameter.ndim > 1 else 10_000
        parameter.data.copy_(draws * (2 / fan) ** 0.5)
    with pycc.ops.reference():
        made = problem(attack, counter, [image])
        patch = attack.start([0], 20, 0).double()
        local = attack.gradient(made, patch, 0, 1)
        whole = patch.clone().requires_grad_()
        place = attack.place((161, 203), seed=0, image=0)
        loss = full_image_loss(attack, counter, image, place, whole, 1)
        (full,) = torch.autograd.grad(loss, whole)
    assert made.regions[0].local.follows_layers
    assert float(full.abs().max()) > 0
    assert torch.allclose(local, full, rtol=0, atol=1e-11 * float(full.abs().max()))
