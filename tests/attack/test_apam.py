from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pycc.ops
from pycc.attack import APAM, Scenes, attacks, objectives, run
from pycc.attack import patch as patches
from pycc.attack.objective import Aim
from pycc.data import save_image


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


def optimise(attack: APAM, counter, cut: Scenes, side: int, seed: int = 0) -> Tensor:
    return attack.optimise(counter, cut, side, seed=seed, step_done=lambda _: None)


def test_a_step_goes_against_the_gradient_by_the_step_size(sample, scenes) -> None:
    attack = APAM(size=6, steps=1, objective="over", transform="none", smoothness=0.0)
    cut, side = scenes(attack, Linear(), [sample()])
    before = attack.start(cut, side, 0)
    change = optimise(attack, Linear(), cut, side) - before
    inside = (before > 0.01) & (before < 0.99)
    for channel, sign in ((0, 1.0), (1, -1.0), (2, 0.0)):
        moved = change[:, channel][inside[:, channel]]
        assert torch.allclose(moved, torch.full_like(moved, sign * 2 / 255), atol=1e-6)


@pytest.mark.parametrize(("objective", "red"), [("over", 1.0), ("under", 0.0)])
def test_the_extremes_are_reached(objective: str, red: float, sample, scenes) -> None:
    attack = APAM(size=6, steps=40, step_size=0.05, objective=objective, transform="none",
                  smoothness=0.0)  # fmt: skip
    cut, side = scenes(attack, Linear(), [sample(), sample(1)])
    patch = optimise(attack, Linear(), cut, side)
    assert torch.all(patch[:, 0] == red)
    assert torch.all(patch[:, 1] == 1 - red)


def test_target_is_approached(sample, scenes) -> None:
    attack = APAM(size=16, steps=80, step_size=0.05, decay="cosine", objective="target",
                  target_count=1300.0, transform="none", smoothness=0.0)  # fmt: skip
    cut, side = scenes(attack, Linear(), [sample()])
    assert float(cut.count) < 1290
    images = pycc.ops.paste_patch(
        cut.images, optimise(attack, Linear(), cut, side), top_left=cut.top_left
    )
    reached = float(cut.count + (Linear()(images) - cut.clean).sum())
    assert reached == pytest.approx(1300, abs=1)


def test_momentum_and_normalisation_by_hand(sample, scenes) -> None:
    """Three steps of a patch whose gradient's sign flips: the published update, written out."""
    attack = APAM(size=3, steps=3, step_size=0.1, objective="target", target_count=1275.0,
                  transform="none", smoothness=0.0, momentum=0.9)  # fmt: skip
    with pycc.ops.reference():
        cut, side = scenes(attack, Linear().double(), [sample()])
        cut = dataclasses.replace(
            cut, **{n: getattr(cut, n).double() for n in ("images", "clean", "density", "weight")},
            count=cut.count.double(), cells=cut.cells.double(),
        )  # fmt: skip
        p = attack.start(cut, side, 0).numpy().copy()
        found = optimise(attack, Linear(), cut, side).numpy()
    q = np.zeros_like(p)
    outside = float(cut.count) - float((cut.clean).sum())
    y, x = cut.top_left[0].tolist()
    weights = np.array([1.0, -0.5, 0.0]).reshape(1, 3, 1, 1)
    for _ in range(3):
        window = cut.images.numpy().copy()
        window[:, :, y : y + 3, x : x + 3] = p
        count = outside + float((weights * window).sum())
        g = 2 * (count - 1275.0) * np.broadcast_to(weights, p.shape)
        q = 0.9 * q + g / np.abs(g).sum()
        p = np.clip(p - 0.1 * np.sign(q), 0, 1)
    assert np.allclose(found, p, atol=1e-12)


def test_the_update_does_not_depend_on_the_gradients_scale(sample, scenes) -> None:
    attack = APAM(size=6, steps=5, objective="over", smoothness=0.0)
    patches = []
    for gain in (1.0, 4096.0):
        counter = Linear()
        counter.gain = gain
        cut, side = scenes(attack, counter, [sample()])
        patches.append(optimise(attack, counter, cut, side))
    assert torch.equal(*patches)


def test_a_gradient_of_zero_leaves_the_patch(sample, scenes) -> None:
    attack = APAM(size=6, steps=5, smoothness=0.0)
    cut, side = scenes(attack, Blind(), [sample()])
    assert torch.equal(optimise(attack, Blind(), cut, side), attack.start(cut, side, 0))


def test_smoothness_smooths(sample, scenes) -> None:
    from pycc.attack.patch import roughness

    attack = APAM(size=12, steps=60, smoothness=1.0, decay="cosine", step_size=0.05)
    cut, side = scenes(attack, Blind(), [sample()])
    mask = torch.ones(12, 12)
    before = float(roughness(attack.start(cut, side, 0), mask))
    assert float(roughness(optimise(attack, Blind(), cut, side), mask)) < 0.05 * before


def test_cosine_decay_takes_half_the_way(sample, scenes) -> None:
    way = {}
    for decay in ("none", "cosine"):
        attack = APAM(size=4, steps=20, step_size=1e-3, decay=decay, objective="over",
                      transform="none", smoothness=0.0)  # fmt: skip
        cut, side = scenes(attack, Linear(), [sample()])
        start = attack.start(cut, side, 0)
        inside = (start[:, 0] > 0.05) & (start[:, 0] < 0.95)
        moved = (optimise(attack, Linear(), cut, side) - start)[:, 0][inside]
        way[decay] = float(moved.mean())
    assert way["none"] == pytest.approx(0.020, rel=1e-3)
    assert way["cosine"] == pytest.approx(0.020 * 0.525, rel=1e-3)


def test_transforms_are_keyed_by_image_and_step_and_stay_in_range() -> None:
    attack = APAM()
    drawn = [attack.draw((image,), 0, step) for image in range(40) for step in range(25)]
    for name, low, high in (("angle", -5, 5), ("zoom", 0.975, 1.025), ("brightness", -0.05, 0.05)):
        values = torch.cat([getattr(one, name) for one in drawn])
        assert len(values.unique()) > 990
        assert low <= float(values.min()) < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < float(values.max()) <= high
    together = attack.draw((0, 7), 0, 3)
    assert torch.equal(together.angle[1:], attack.draw((7,), 0, 3).angle)


def test_the_seed_changes_the_result(tiny, sample, scenes) -> None:
    attack = APAM(size=8, steps=2)
    cut, side = scenes(attack, tiny(), [sample()])
    counter = tiny().eval()
    first, again, other = (optimise(attack, counter, cut, side, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_given_first_picture(tmp_path: Path, sample, scenes) -> None:
    picture = torch.zeros(3, 30, 30)
    picture[0] = 1.0
    save_image(tmp_path / "red.png", picture)
    attack = APAM(size=10, steps=0, init=str(tmp_path / "red.png"))
    cut, side = scenes(attack, Blind(), [sample()])
    assert torch.equal(optimise(attack, Blind(), cut, side)[0], picture[:, :10, :10])
    before = attack.settings()["init_content"]
    save_image(tmp_path / "red.png", 1 - picture)
    assert attack.settings()["init_content"] != before


def test_a_counter_of_nonsense_is_told(sample, scenes) -> None:
    attack = APAM(size=6, steps=1)
    cut, side = scenes(attack, Linear(), [sample()])
    counter = Linear()
    counter.gain = math.nan
    with pytest.raises(ValueError, match="loss must be finite"):
        optimise(attack, counter, cut, side)


@pytest.mark.parametrize("name", objectives.names())
def test_objectives_are_zero_or_constant_without_change(name: str, sample, scenes) -> None:
    attack = APAM(size=6)
    cut, _ = scenes(attack, Linear(), [sample(), sample(1)])
    loss = objectives[name](torch.zeros_like(cut.clean), cut, Aim(10.0, 1200.0))
    expected = torch.square(cut.count - 1200.0) if name == "target" else torch.zeros(2)
    assert torch.allclose(loss, expected)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"size": 0}, "size must be"),
        ({"size": -3}, "size must be"),
        ({"size": 1.5}, "size must be"),
        ({"size": math.nan}, "size must be"),
        ({"steps": -1}, "steps must be at least 0, got -1"),
        ({"step_size": 0.0}, "step_size must be"),
        ({"step_size": math.nan}, "step_size must be"),
        ({"momentum": 1.1}, "momentum must be"),
        ({"smoothness": -0.1}, "smoothness must be"),
        ({"factor": math.inf}, "factor must be within"),
        ({"beta": 0.0}, "beta must be"),
        ({"shape": "star"}, "shape must be one of square, disc, got 'star'"),
        ({"decay": "linear"}, "decay must be one of"),
        ({"objective": "chaos"}, "objective must be one of density, over, under, target"),
        ({"objective": "target"}, "target_count must be a count"),
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
        ({"size": 65}, "fits the image, got 65 pixels for 64x80"),
        ({"size": 0.01}, "1 pixel or more that fits the image, got 0 pixels"),
        ({"size": 1.0}, "got 80 pixels for 64x80"),
        ({"size": 9, "location": "given", "top_left": (56, 0)}, "inside the image"),
        ({"size": 9, "location": "given", "top_left": (0, -1)}, "inside the image"),
    ],
)
def test_a_patch_that_does_not_fit(fields: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        APAM(**fields).place((64, 80), seed=0, image=0)


def test_an_image_sized_patch_fits() -> None:
    place = APAM(size=64).place((64, 64), seed=0, image=0)
    assert (place.side, place.top_left) == (64, (0, 0))


def test_every_registered_attack_is_a_dataclass_with_help_for_every_field() -> None:
    for name in attacks.names():
        assert attacks[name].name == name
        for field in dataclasses.fields(attacks[name]):
            assert field.metadata["help"], (name, field.name)


@pytest.mark.parametrize("objective", ["density", "over", "under"])
def test_smoothness_shapes_the_patch_of_every_objective(tiny, sample, scenes, objective) -> None:
    rough = []
    for weight in (0.0, 0.3):
        attack = APAM(size=20, objective=objective, steps=8, smoothness=weight, step_size=0.05)
        made, side = scenes(attack, tiny(), [sample()])
        patch = attack.optimise(tiny().eval(), made, side, seed=0, step_done=lambda _: None)
        rough.append(float(patches.roughness(patch, attack.mask(side))[0]))
    assert rough[1] < 0.9 * rough[0]


def test_an_attack_runs_with_cudnn_deterministic_and_exact(tiny, sample) -> None:
    seen = []

    class Watching(tiny):  # type: ignore[misc]
        def forward(self, images):
            flags = torch.backends.cudnn
            seen.append((flags.enabled, flags.deterministic, flags.benchmark, flags.allow_tf32))
            return super().forward(images)

    run(APAM(size=8, steps=1), Watching(), [sample()])
    assert set(seen) == {(True, True, False, False)}


def test_numpy_sizes_are_pixels() -> None:
    assert APAM(size=np.int64(20)) == APAM(size=20)
