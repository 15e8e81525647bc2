from __future__ import annotations

import dataclasses
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pycc.attack import APAM, Problem, Universal, attacks, optimisers, run
from pycc.attack import patch as patches
from pycc.attack.tracker import LOOKS, look_at
from pycc.attack.transform import draw
from pycc.data import quantize, save_image

pytestmark = pytest.mark.command


class Linear(nn.Module):
    """A map whose count grows with red and falls with green, and does not see blue."""

    stride, receptive_field = 1, 1
    gain = 1.0

    def forward(self, images: Tensor) -> Tensor:
        return self.gain * (images[:, :1] - 0.5 * images[:, 1:2] + 0 * images[:, 2:])


class Blind(nn.Module):
    """Always the same map, whatever the image."""

    stride, receptive_field = 4, 1

    def forward(self, images: Tensor) -> Tensor:
        return 0 * images[:, :1, ::4, ::4] + 1.0


def optimise(attack: APAM, made: Problem, seed: int = 0) -> Tensor:
    return attack.optimise(made, seed=seed, step_done=lambda _: None).patches


def start(attack: APAM, made: Problem) -> Tensor:
    return quantize(attack.start(made.index, made.side, 0))


def test_a_step_goes_against_the_gradient_by_the_step_size(sample, problem) -> None:
    attack = APAM(patch_size=6, steps=1, objective="over", transform="none", smoothness=0.0)
    made = problem(attack, Linear(), [sample()])
    before = start(attack, made)
    change = optimise(attack, made) - before
    inside = (before > 0.01) & (before < 0.99)
    for channel, sign in ((0, 1.0), (1, -1.0), (2, 0.0)):
        moved = change[:, channel][inside[:, channel]]
        assert torch.allclose(moved, torch.full_like(moved, sign * 2 / 255), atol=1 / 255)


@pytest.mark.parametrize(("objective", "red"), [("over", 1.0), ("under", 0.0)])
def test_the_extremes_are_reached(objective: str, red: float, sample, problem) -> None:
    attack = APAM(patch_size=6, steps=40, step_size=0.05, objective=objective, transform="none",
                  smoothness=0.0)  # fmt: skip
    made = problem(attack, Linear(), [sample(), sample(1)])
    patch = optimise(attack, made)
    assert torch.all(patch[:, 0] == red)
    assert torch.all(patch[:, 1] == 1 - red)


@pytest.mark.parametrize("wanted", [{"target_count": 1300.0}, {"factor": 1300 / 9}])
def test_target_is_approached(wanted: dict, sample, problem) -> None:
    attack = APAM(patch_size=16, steps=80, step_size=0.05, decay="cosine", objective="target",
                  transform="none", smoothness=0.0, **wanted)  # fmt: skip
    made = problem(attack, Linear(), [sample(heads=9)])
    assert float(made.regions[0].count) < 1290
    optimised = attack.optimise(made, seed=0, step_done=lambda _: None)
    added = made.added(optimised.patches, attack.patch_mask(16))
    assert float(made.regions[0].count + added) == pytest.approx(1300, abs=1)


def test_momentum_and_normalisation_by_hand(sample, problem) -> None:
    """Three steps of a patch whose gradient's sign flips: the published update, written out."""
    attack = APAM(patch_size=3, steps=3, step_size=0.1, objective="target", target_count=1275.0,
                  transform="none", smoothness=0.0, momentum=0.9)  # fmt: skip
    made = problem(attack, Linear(), [sample()])
    scenes = made.regions[0]
    p = attack.start(made.index, 3, 0).double().numpy().copy()
    follow = optimisers["momentum"](0.9)
    patch = torch.from_numpy(p).float()
    q = np.zeros_like(p)
    outside = float(scenes.count) - float(scenes.local.clean.sum())
    y, x = scenes.top_left[0].tolist()
    weights = np.array([1.0, -0.5, 0.0]).reshape(1, 3, 1, 1)
    scale = 2 * abs(float(scenes.count) - 1275.0)
    for step in range(3):
        window = scenes.pixels.double().numpy().copy()
        window[:, :, y : y + 3, x : x + 3] = p
        count = outside + float((weights * window).sum())
        g = 2 * (count - 1275.0) / scale * np.broadcast_to(weights, p.shape)
        slope = attack.gradient(made, patch, 0, step)
        assert np.allclose(slope.numpy(), g, atol=2e-5)
        q = 0.9 * q + g / np.abs(g).sum()
        p = np.clip(p - 0.1 * np.sign(q), 0, 1)
        patch = (patch - follow(slope, 0.1)).clamp(0, 1)
        assert np.allclose(patch.numpy(), p, atol=1e-6)


def test_adam_by_its_definition() -> None:
    follow, reference = optimisers["adam"](0.9), torch.zeros(1, 3, 4, 4, requires_grad=True)
    other = torch.optim.Adam([reference], lr=0.1, betas=(0.9, 0.999), eps=1e-8)
    patch = torch.zeros(1, 3, 4, 4)
    for step in range(5):
        gradient = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        gradient = gradient / gradient.abs().sum() * gradient.numel()
        reference.grad = gradient.clone()
        other.step()
        patch = patch - follow(7.0 * gradient, 0.1)  # whose scale does not matter
        assert torch.allclose(patch, reference.detach(), atol=1e-5)


def test_sign_forgets() -> None:
    follow = optimisers["sign"](0.9)
    follow(torch.ones(1, 3, 2, 2), 0.5)
    assert torch.equal(follow(-torch.ones(1, 3, 2, 2), 0.5), torch.full((1, 3, 2, 2), -0.5))


def test_the_best_is_kept_not_the_last(sample, problem) -> None:
    """With steps of half the range around a target, the last patch is not the best."""
    attack = APAM(patch_size=8, steps=20, step_size=0.5, objective="target", target_count=1290.0,
                  transform="none", smoothness=0.0, momentum=0.0)  # fmt: skip
    made = problem(attack, Linear(), [sample()])
    optimised = attack.optimise(made, seed=0, step_done=lambda _: None)
    (path,) = optimised.loss_history
    assert len(path) == LOOKS + 1
    assert list(path) == sorted(path, reverse=True)
    judged = attack.objective_loss(made, optimised.patches, attack.patch_mask(8))
    assert float(judged) == pytest.approx(path[-1], rel=1e-4)
    assert path[-1] < path[0]


def test_restarts_start_elsewhere_and_the_best_of_all_is_kept(tiny, sample, problem) -> None:
    made = problem(APAM(patch_size=10), tiny(), [sample(), sample(1)])
    ends = []
    for restarts in (1, 3):
        attack = APAM(patch_size=10, steps=6, step_size=0.05, objective="over", restarts=restarts)
        steps: list[int] = []
        optimised = attack.optimise(made, seed=0, step_done=steps.append)
        assert steps == list(range(1, 6 * restarts + 1))
        assert all(len(path) == restarts * (LOOKS + 1) for path in optimised.loss_history)
        ends.append([path[LOOKS :: LOOKS + 1] for path in optimised.loss_history])
        mask = attack.patch_mask(10)
        judged = attack.objective_loss(made, optimised.patches, mask)
        # The best by the loss, which the penalty on roughness is part of; the path is without it.
        rough = attack.penalty(made, optimised.patches, mask)
        assert torch.all(rough > 0)
        for end, objective in zip(ends[-1], judged.tolist(), strict=True):
            assert any(loss == pytest.approx(objective, rel=1e-5) for loss in end)
    assert [more[:1] for more in ends[1]] == ends[0]
    assert not torch.equal(attack.start([0], 10, 0, 0), attack.start([0], 10, 0, 1))


def test_patches_are_judged_evenly_and_at_both_ends() -> None:
    for steps in (0, 1, 7, 20, 120):
        looks = look_at(steps)
        assert (looks[0], looks[-1], len(looks)) == (0, steps, LOOKS + 1)
        assert max(b - a for a, b in pairwise(looks)) <= steps / LOOKS + 1


def test_draws_average_the_gradient(tiny, sample, problem) -> None:
    many = APAM(patch_size=10, eot_samples=4, objective="over", smoothness=0.0)
    made = problem(many, tiny(), [sample(), sample(1)])
    patch = many.start(made.index, 10, 0)
    drawn = draw(made.index, seed=0, step=3, eot_samples=4)
    single = APAM(patch_size=10, objective="over", smoothness=0.0)
    gradients = []
    for row in range(4):
        leaf = patch.clone().requires_grad_()
        loss = single.transformed_loss(made, leaf, drawn[row::4]).sum()
        gradients.append(torch.autograd.grad(loss, leaf)[0])
    gradient = many.gradient(made, patch, 0, 3)
    expected = torch.stack(gradients).mean(0)
    assert torch.allclose(gradient, expected, atol=1e-6 * float(expected.abs().max()))


def test_the_update_does_not_depend_on_the_gradients_scale(sample, problem) -> None:
    attack = APAM(patch_size=6, steps=5, objective="over", smoothness=0.0)
    patches = []
    for gain in (1.0, 4096.0):
        counter = Linear()
        counter.gain = gain
        made = problem(attack, counter, [sample()])
        patches.append(optimise(attack, made))
    assert torch.equal(*patches)


def test_a_gradient_of_zero_leaves_the_patch(sample, problem) -> None:
    attack = APAM(patch_size=6, steps=5, smoothness=0.0)
    made = problem(attack, Blind(), [sample()])
    assert torch.equal(optimise(attack, made), start(attack, made))


def test_smoothness_smooths(sample, problem) -> None:
    from pycc.attack.patch import roughness

    attack = APAM(patch_size=12, steps=60, smoothness=1.0, decay="cosine", step_size=0.05)
    made = problem(attack, Blind(), [sample()])
    mask = torch.ones(12, 12)
    before = float(roughness(start(attack, made), mask))
    assert float(roughness(optimise(attack, made), mask)) < 0.05 * before


def test_what_is_measured_of_a_counter_leaves_the_penalty_out(sample, problem) -> None:
    """A patch that is smoothed before a blind counter gains nothing, and has no gradient."""
    for attack in (
        APAM(patch_size=12, steps=20, smoothness=1.0, step_size=0.05, objective="over"),
        Universal(patch_size=12, steps=20, smoothness=1.0, step_size=0.05, objective="over"),
    ):
        made = problem(attack, Blind(), [sample()])
        if isinstance(attack, Universal):
            optimised = attack.train([lambda made=made: made], seed=0, step_done=lambda _: None)
        else:
            optimised = attack.optimise(made, seed=0, step_done=lambda _: None)
        assert not torch.equal(optimised.patches, start(attack, made)), "it was smoothed"
        assert set(optimised.loss_history[0]) == {0.0}
        assert optimised.zero_gradient == (1.0,)


def test_the_path_is_that_of_the_patch_that_is_kept(tiny, sample, problem) -> None:
    """By the loss with its penalty: where that chooses a smoother patch, the objective may rise."""
    attack = APAM(patch_size=12, steps=20, smoothness=1.0, step_size=0.1, objective="over")
    made = problem(attack, tiny(), [sample(), sample(1)])
    optimised = attack.optimise(made, seed=0, step_done=lambda _: None)
    judged = attack.objective_loss(made, optimised.patches, attack.patch_mask(12))
    assert [path[-1] for path in optimised.loss_history] == pytest.approx(judged.tolist(), rel=1e-4)
    assert any(path[-1] > path[0] for path in optimised.loss_history)


def test_cosine_decay_takes_half_the_way(sample, problem) -> None:
    way = {}
    for decay in ("none", "cosine"):
        attack = APAM(patch_size=4, steps=20, step_size=1e-2, decay=decay, objective="over",
                      transform="none", smoothness=0.0)  # fmt: skip
        made = problem(attack, Linear(), [sample()])
        first = start(attack, made)
        inside = first[:, 0] < 0.75
        moved = (optimise(attack, made) - first)[:, 0][inside]
        way[decay] = float(moved.mean())
    # Rounded to 8 bits, over a dozen pixels.
    assert way["none"] == pytest.approx(0.20, abs=1 / 255)
    assert way["cosine"] == pytest.approx(0.20 * 0.525, abs=1 / 255)


def test_the_seed_changes_the_result(tiny, sample, problem) -> None:
    attack = APAM(patch_size=8, steps=2)
    made = problem(attack, tiny(), [sample()])
    first, again, other = (optimise(attack, made, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_given_first_picture(tmp_path: Path, sample, problem) -> None:
    picture = torch.zeros(3, 30, 30)
    picture[0] = 1.0
    save_image(tmp_path / "red.png", picture)
    attack = APAM(patch_size=10, steps=0, init=str(tmp_path / "red.png"))
    made = problem(attack, Blind(), [sample()])
    assert torch.equal(optimise(attack, made)[0], picture[:, :10, :10])
    before = attack.settings()["init_content"]
    save_image(tmp_path / "red.png", 1 - picture)
    assert attack.settings()["init_content"] != before


def test_a_counter_of_nonsense_is_told(sample, problem) -> None:
    attack = APAM(patch_size=6, steps=1)
    counter = Linear()
    made = problem(attack, counter, [sample()])
    made.regions[0].local.clean.fill_(math.nan)
    with pytest.raises(ValueError, match="loss must be finite"):
        optimise(attack, made)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"patch_size": 0}, "size must be"),
        ({"patch_size": -3}, "size must be"),
        ({"patch_size": 1.5}, "size must be"),
        ({"patch_size": math.nan}, "size must be"),
        ({"steps": -1}, "steps must be at least 0, got -1"),
        ({"step_size": 0.0}, "step_size must be"),
        ({"step_size": math.nan}, "step_size must be"),
        ({"momentum": 1.1}, "momentum must be"),
        ({"smoothness": -0.1}, "smoothness must be"),
        ({"factor": math.inf}, "factor must be within"),
        ({"beta": 0.0}, "beta must be"),
        ({"shape": "star"}, "shape must be one of square, disc, got 'star'"),
        ({"decay": "linear"}, "decay must be one of"),
        ({"objective": "chaos"}, "objective must be one of density, over, under, erase, target"),
        ({"optimiser": "newton"}, "optimiser must be one of"),
        ({"restarts": 0}, "restarts must be at least 1, got 0"),
        ({"eot_samples": 0}, "eot_samples must be at least 1, got 0"),
        ({"location": "moon"}, "location must be one of"),
        ({"target_count": 5.0}, "target_count must be none"),
        ({"objective": "target", "target_count": -5.0}, "target_count must be at least 0"),
        ({"location": "given"}, "top_left must be a row and a column"),
        ({"top_left": (1, 2)}, "top_left must be a row and a column"),
        ({"transform": "wild"}, "transform must be one of"),
        ({"sampling": "cubic"}, "sampling must be one of"),
    ],
)
def test_bad_fields(fields: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        APAM(**fields)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"patch_size": 65}, "fits the image, got 65 pixels for 64x80"),
        ({"patch_size": 0.01}, "1 pixel or more that fits the image, got 0 pixels"),
        ({"patch_size": 1.0}, "got 80 pixels for 64x80"),
        ({"patch_size": 9, "location": "given", "top_left": (56, 0)}, "inside the image"),
        ({"patch_size": 9, "location": "given", "top_left": (0, -1)}, "inside the image"),
    ],
)
def test_a_patch_that_does_not_fit(fields: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        APAM(**fields).place((64, 80), seed=0, image=0)


def test_an_image_sized_patch_fits() -> None:
    place = APAM(patch_size=64).place((64, 64), seed=0, image=0)
    assert (place.side, place.top_left) == (64, (0, 0))


def test_every_registered_attack_is_a_dataclass_with_help_for_every_field() -> None:
    for name in attacks.names():
        assert attacks[name].name == name
        for field in dataclasses.fields(attacks[name]):
            assert field.metadata["help"], (name, field.name)


@pytest.mark.parametrize("objective", ["density", "over", "under"])
def test_smoothness_shapes_the_patch_of_every_objective(tiny, sample, problem, objective) -> None:
    rough = []
    for weight in (0.0, 0.3):
        attack = APAM(
            patch_size=20, objective=objective, steps=8, smoothness=weight, step_size=0.05
        )
        patch = optimise(attack, problem(attack, tiny(), [sample()]))
        rough.append(float(patches.roughness(patch, attack.patch_mask(20))[0]))
    assert rough[1] < 0.9 * rough[0]


def test_an_attack_runs_with_cudnn_deterministic_and_exact(tiny, sample) -> None:
    seen = []

    class Watching(tiny):  # type: ignore[misc]
        def forward(self, images):
            flags = torch.backends.cudnn
            seen.append((flags.enabled, flags.deterministic, flags.benchmark, flags.allow_tf32))
            return super().forward(images)

    run(Watching(), [sample()], APAM(patch_size=8, steps=1), checks=False)
    assert set(seen) == {(True, True, False, False)}


def test_numpy_sizes_are_pixels() -> None:
    assert APAM(patch_size=np.int64(20)) == APAM(patch_size=20)
