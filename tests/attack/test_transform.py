from __future__ import annotations

import io
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from pycc import ops
from pycc.attack import APAM, transforms
from pycc.attack.patch import disc, noise
from pycc.attack.transform import blur, draw, homography, jpeg
from pycc.data import quantize

NEUTRAL = np.zeros((1, 16))
NEUTRAL[0, [2, 4, 5]] = -1, -1, 1  # no blur, no noise, quality 95
PHYSICAL = transforms["physical"]
KINDS = [("published", "single"), ("published", "nested"), ("physical", "single")]


def boxes(side: int, room: int, count: int = 1, more: tuple[int, int] = (0, 0)) -> Any:
    """As much of ``AttackedRegion`` as pasting needs: pixels that no patch of [0,1] can imitate."""
    shape = side + 2 * room + more[0], side + 2 * room + more[1]
    corner = torch.tensor([[room + more[0], room + more[1]]] * count)
    return SimpleNamespace(pixels=torch.full((count, 3, *shape), 7.0), top_left=corner)


def picture(side: int, seed: int = 0) -> Tensor:
    return noise(side, seed=seed, purpose="picture", image=0)[None]


def pasted(kind: str, scenes: Any, patch: Tensor, drawn: np.ndarray, **options: Any) -> Tensor:
    mask = options.get("mask", torch.ones(patch.shape[-2:]))
    return transforms[kind].paste(scenes, patch, mask, drawn, options.get("sampling", "single"))


def test_draws_depend_on_their_key_alone() -> None:
    known = {"seed": 3, "step": 4, "eot_samples": 2}
    together = draw([5, 0, 9], **known)
    assert together.shape == (6, 16)
    for row, image in enumerate([5, 0, 9]):
        assert np.array_equal(together[2 * row : 2 * row + 2], draw([image], **known))
    again = [
        {"seed": 4, "step": 4, "eot_samples": 2},
        {"seed": 3, "step": 5, "eot_samples": 2},
        {"seed": 3, "step": 4, "eot_samples": 2, "restart": 1},
    ]
    rows = np.concatenate([together, *(draw([5, 0, 9], **other) for other in again)])
    assert len(np.unique(rows)) == rows.size
    # More draws add to those that fewer give.
    assert np.array_equal(draw([5], seed=3, step=4, eot_samples=7)[:2], together[:2])


def test_draws_fill_their_range() -> None:
    rows = draw(range(500), seed=0, step=0, eot_samples=2)
    assert rows.min() >= -1
    assert rows.max() < 1
    assert np.all(rows.min(0) < -0.98)
    assert np.all(rows.max(0) > 0.98)
    assert np.all(np.abs(rows.mean(0)) < 4 / math.sqrt(3 * len(rows)))


def test_the_published_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Tensor] = {}

    def watch(images: Tensor, patch: Tensor, **options: Any) -> Tensor:
        seen.update(options)
        return images

    monkeypatch.setattr(ops, "paste_patch", watch)
    drawn = np.zeros((4, 16))
    drawn[0, :3], drawn[1, :3], drawn[3, :3] = -1, 1, (0.5, -0.5, 0.1)
    pasted("published", boxes(8, 2, 4), picture(8).expand(4, -1, -1, -1), drawn)
    assert seen["angle"].tolist() == pytest.approx([-5, 5, 0, 2.5])
    assert seen["zoom"].tolist() == pytest.approx([0.975, 1.025, 1, 0.9875])
    assert seen["brightness"].tolist() == pytest.approx([-0.05, 0.05, 0, 0.005])


def test_the_physical_ranges() -> None:
    """Angle ±22.5°, zoom 0.9 to 1.1, corners by 8 % of the side, from the corners themselves."""
    side, centre = 20, 9.5
    ends = {}
    for sign in (-1, 1):
        for name, places in (("angle", [14]), ("zoom", [15]), ("corners", range(6, 14))):
            drawn = np.zeros((1, 16))
            drawn[0, list(places)] = sign
            ends[name, sign] = PHYSICAL.corners(side, drawn)[0] - centre
    flat = PHYSICAL.corners(side, np.zeros((1, 16)))[0] - centre
    assert flat.tolist() == [[-10, -10], [-10, 10], [10, 10], [10, -10]]
    for sign in (-1, 1):
        assert ends["zoom", sign] == pytest.approx(flat * (1 + sign * 0.1))
        assert ends["corners", sign] == pytest.approx(flat + sign * 0.08 * side)
        turned = flat @ [1, 1j] / (ends["angle", sign] @ [1, 1j])
        assert np.angle(turned, deg=True) == pytest.approx(sign * -22.5)
        assert np.abs(turned) == pytest.approx(1)


@pytest.mark.parametrize(("kind", "sampling"), KINDS)
@settings(max_examples=60)
@given(data=st.data())
def test_no_pixel_outside_the_margin_changes(kind: str, sampling: str, data: st.DataObject) -> None:
    side = data.draw(st.integers(4, 24))
    extreme = st.sampled_from([-1.0, 1.0])
    numbers = data.draw(st.lists(st.one_of(extreme, st.floats(-1, 1)), min_size=16, max_size=16))
    room = (margin := transforms[kind].margin(side)) + 3
    mask = disc(side) if data.draw(st.booleans()) else torch.ones(side, side)
    scenes, drawn = boxes(side, room), np.array([numbers])
    made = pasted(kind, scenes, picture(side), drawn, sampling=sampling, mask=mask)
    changed = (made != scenes.pixels).any(1)[0]
    allowed = torch.zeros_like(changed)
    allowed[room - margin : room + side + margin, room - margin : room + side + margin] = True
    assert changed.any() or side < 8  # of the smallest discs perspective and blur leave nothing
    assert not (changed & ~allowed).any()


@pytest.mark.parametrize(("kind", "sampling"), KINDS)
def test_margins_are_not_larger_than_they_need_be(kind: str, sampling: str) -> None:
    """A box that is larger than what can change costs time in every step."""
    side = 60
    outwards = np.zeros((1, 16))
    outwards[0, [0, 1, 14, 15]] = 1
    outwards[0, 6:14] = [-1, -1, -1, 1, 1, 1, 1, -1]  # all corners away from the centre
    scenes = boxes(side, 40)
    changed = (pasted(kind, scenes, picture(side), outwards, sampling=sampling) < 2)[0, 0]
    rows = changed.any(1).nonzero()[:, 0]
    reached = 40 - int(rows.min())
    assert reached <= transforms[kind].margin(side) <= reached + (4 if sampling == "nested" else 1)


@pytest.mark.parametrize(("kind", "sampling"), KINDS)
@pytest.mark.parametrize("shape", ["square", "disc"])
def test_pixels_outside_the_warped_mask_keep_their_bits(kind, sampling, shape) -> None:
    """Two patches tell what is covered: there both show, elsewhere the picture's bits."""
    side, room = 16, 12
    mask = APAM(shape=shape).patch_mask(side)
    drawn = draw([0, 1, 2], seed=1, step=0, eot_samples=1)
    scenes = boxes(side, room, 3)
    scenes.pixels = torch.rand(scenes.pixels.shape, generator=torch.Generator().manual_seed(0))
    made = [
        pasted(kind, scenes, torch.full((3, 3, side, side), value), drawn,
               sampling=sampling, mask=mask)
        for value in (0.1, 0.9)
    ]  # fmt: skip
    covered = (made[1] - made[0] > 0.01).all(1)
    share = covered.float().sum((1, 2)) / mask.sum()
    assert torch.all((share > 0.7) & (share < 1.4))
    for one in made:
        kept = (one == scenes.pixels).all(1)
        if sampling == "nested":  # as published: black where the square turns out of its own box
            kept |= (one == 0).all(1)
        assert torch.all(kept | covered)


def test_none_is_plain_pasting_for_several_draws_too() -> None:
    patch = torch.cat([picture(5, 1), picture(5, 2)])
    scenes = boxes(5, 4, 2)
    scenes.top_left = torch.tensor([[0, 3], [4, 1]])
    made = pasted("none", scenes, patch, draw([0, 1], seed=0, step=0, eot_samples=3))
    assert len(made) == 6
    for row in range(6):
        y, x = scenes.top_left[row // 3].tolist()
        expected = scenes.pixels[row // 3].clone()
        expected[:, y : y + 5, x : x + 5] = patch[row // 3]
        assert torch.equal(made[row], expected)


@pytest.mark.parametrize("kind", ["published", "physical"])
def test_rows_of_several_draws_belong_to_their_image(kind: str) -> None:
    patch = torch.cat([picture(7, 1), picture(7, 2)])
    both, drawn = boxes(7, 6, 2), draw([3, 8], seed=0, step=2, eot_samples=3)
    together = pasted(kind, both, patch, drawn)
    for row in range(6):
        alone = pasted(kind, boxes(7, 6), patch[row // 3][None], drawn[row : row + 1])
        assert torch.allclose(together[row], alone[0], atol=1e-6)


def test_the_neutral_physical_transform_is_the_patch_up_to_jpeg() -> None:
    side, room = 24, 10
    y, x = torch.meshgrid(*[torch.linspace(0, 1, side)] * 2, indexing="ij")
    patch = quantize(torch.stack([y, 0.5 + 0 * y, 1 - x])[None] * 0.8 + 0.1)
    scenes = boxes(side, room)
    made = pasted("physical", scenes, patch, NEUTRAL)
    inside = torch.zeros(made.shape[2:], dtype=torch.bool)
    inside[room : room + side, room : room + side] = True
    levels = (patch[0].permute(1, 2, 0) * 255).round().byte().numpy()
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "JPEG", quality=95)
    kept = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255
    assert torch.allclose(made[0][:, inside], kept.flatten(1), atol=1e-5)
    assert torch.allclose(made[0][:, inside], patch.flatten(2)[0], atol=0.04)
    assert torch.equal(made[:, :, ~inside], scenes.pixels[:, :, ~inside])


@given(st.integers(0, 2**32), st.integers(1, 40))
@settings(max_examples=40)
def test_homographies_bring_the_corners_home(seed: int, side: int) -> None:
    drawn = draw([0, 1], seed=seed, step=0, eot_samples=1)
    corners = PHYSICAL.corners(side, drawn)
    wanted = np.array([[0, 0], [0, 1], [1, 1], [1, 0]]) * side - 0.5
    for matrix, four in zip(homography(corners, side), corners, strict=True):
        projected = np.concatenate([four, np.ones((4, 1))], 1) @ matrix.T
        assert projected[:, :2] / projected[:, 2:] == pytest.approx(wanted, abs=1e-6 * side)
        assert np.all(projected[:, 2] > 0)


@pytest.mark.parametrize("side", [1, 2, 3, 9])
def test_the_physical_patch_does_not_depend_on_where_its_box_begins(side: int) -> None:
    """Boxes are aligned to the counter's cells: a small patch may lie many sides from its corner.

    There lie the places that a perspective sends to infinity.
    """
    patch, drawn = picture(side), draw(range(40), seed=0, step=0, eot_samples=1)
    patch = patch.expand(40, -1, -1, -1)
    near = pasted("physical", boxes(side, 3, 40), patch, drawn)
    for more in ((31, 29), (3 * side, 0), (0, 200)):
        far = pasted("physical", boxes(side, 3, 40, more), patch, drawn)
        cut = far[:, :, more[0] :, more[1] :][:, :, : near.shape[2], : near.shape[3]]
        assert torch.allclose(cut, near, atol=1e-4)
        assert int((far != 7).sum()) == int((near != 7).sum())


@given(st.floats(0, 1), st.integers(0, 100))
@settings(max_examples=25)
def test_blur_is_the_truncated_gaussian(sigma: float, seed: int) -> None:
    values = torch.cat([picture(12, seed), picture(12, seed + 1)]).double()
    blurred = blur(values, np.array([sigma, 0.0]))
    assert torch.equal(blurred[1], values[1])  # each row has its own width
    expected = [
        gaussian_filter(channel, max(sigma, 1e-3), mode="nearest", radius=3)
        for channel in values[0].numpy()
    ]
    assert np.allclose(blurred[0].numpy(), expected, atol=1e-12)


def test_blur_keeps_constants_and_mass() -> None:
    sigma = np.array([0.3, 1.0])
    flat = torch.full((2, 3, 9, 9), 0.3, dtype=torch.float64)
    assert torch.allclose(blur(flat, sigma), flat, atol=1e-15)
    spot = torch.zeros(2, 3, 9, 9, dtype=torch.float64)
    spot[..., 4, 4] = 1.0
    blurred = blur(spot, sigma)
    assert torch.allclose(blurred.sum((2, 3)), torch.ones(2, 3, dtype=torch.float64))
    assert torch.equal(blurred, blurred.flip(2))
    spread = blurred[1, 0, 4, 4] / blurred[1, 0, 4, 5]
    assert float(spread) == pytest.approx(math.exp(0.5))


@pytest.mark.parametrize(("kind", "sampling"), KINDS)
def test_the_gradient_reaches_every_pixel_of_the_patch(kind: str, sampling: str) -> None:
    patch = (0.3 + 0.4 * picture(11)).requires_grad_()
    made = pasted(
        kind, boxes(11, 8), patch, draw([0], seed=0, step=0, eot_samples=4), sampling=sampling
    )
    weights = 1 + torch.rand(made.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((weights * made).sum(), patch)
    assert torch.all(gradient > 0)


def test_jpeg_passes_the_gradient_straight_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worse quality changes what is seen, and not the gradient: that of no compression at all."""
    seen, gradients = [], []
    for quality in (-1.0, 1.0, None):
        if quality is None:
            monkeypatch.setattr("pycc.attack.transform.jpeg", lambda patch, _: patch)
        patch = (0.3 + 0.4 * picture(16)).requires_grad_()
        drawn = draw([0], seed=0, step=0, eot_samples=1)
        drawn[0, 5] = quality or 0.0
        made = pasted("physical", boxes(16, 8), patch, drawn)
        weights = torch.rand(made.shape, generator=torch.Generator().manual_seed(1))
        gradients += torch.autograd.grad((weights * made).sum(), patch)
        seen.append(made.detach())
    assert not torch.allclose(seen[0], seen[1], atol=0.02)
    assert torch.equal(gradients[0], gradients[1])
    assert torch.allclose(gradients[0], gradients[2], atol=1e-6)


def test_jpeg_is_worse_for_a_lower_quality() -> None:
    patch = picture(32)[:, :1].expand(2, 3, -1, -1)
    lost = (jpeg(patch, [50, 95]) - patch).square().mean((1, 2, 3))
    assert lost[0] > 1.5 * lost[1] > 0


def test_a_physical_attack_beats_noise(tiny, sample, problem) -> None:
    attack = APAM(patch_size=24, steps=25, step_size=0.1, decay="cosine", objective="over",
                  transform="physical", eot_samples=2, smoothness=0.0)  # fmt: skip
    made = problem(attack, tiny(), [sample(), sample(1)])
    mask = attack.patch_mask(24)
    optimised = attack.optimise(made, seed=0, step_done=lambda _: None).patches
    rivals = attack.start(made.index, 24, 7)
    drawn = draw(made.index, seed=99, step=0, eot_samples=8)
    gained = [attack.transformed_loss(made, patch, drawn) for patch in (optimised, rivals)]
    assert torch.all(gained[0] < gained[1] - 1)
    assert torch.all(
        attack.objective_loss(made, optimised, mask) < attack.objective_loss(made, rivals, mask) - 1
    )
