"""The window gives the image's gradient, and no smaller one would."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pycc.ops
from pycc.attack import APAM, Box, Place, influence
from pycc.attack.apam import Transform
from pycc.attack.cells import cell_density, cell_weight
from pycc.attack.objective import MEANS
from pycc.attack.patch import roughness


def box(top: int, left: int, side: int) -> Box:
    return Box(top, left, top + side, left + side)


def test_sides_for_mcnn() -> None:
    sides = [
        influence(box(300, 401, p), (768, 1024), stride=4, receptive_field=72).shape
        for p in (20, 40, 81, 163)
    ]
    assert sides == [(168, 168), (188, 188), (228, 228), (308, 308)]


def test_unbounded_field_takes_the_image() -> None:
    window = influence(box(3, 9, 5), (101, 139), stride=4, receptive_field=None)
    assert window == Box(0, 0, 101, 139)


@settings(deadline=None)
@given(
    st.integers(-30, 100),
    st.integers(1, 60),
    st.integers(1, 16),
    st.integers(1, 50),
    st.integers(20, 300),
)
def test_an_axis(start: int, side: int, stride: int, field: int, size: int) -> None:
    if start >= size or start + side <= 0:
        with pytest.raises(ValueError, match="must meet the image"):
            influence(Box(start, 0, start + side, 1), (size, 9), stride=stride, receptive_field=3)
        return
    extent = Box(start, 0, start + side, 1)
    window = influence(extent, (size, 9), stride=stride, receptive_field=field)
    low, high = window.top, window.bottom
    assert low % stride == 0
    assert low == 0 or low <= start - field + 1
    assert high == size or (high % stride == 0 and high >= start + side + field - 1)
    if low > 0 and high < size:
        moved = influence(
            Box(start + stride + 1, 0, start + side + stride + 1, 1),
            (10_000, 9),
            stride=stride,
            receptive_field=field,
        )
        assert moved.shape[0] == high - low


@pytest.mark.parametrize("sampling", ["single", "nested"])
@settings(deadline=None)
@given(
    side=st.integers(1, 60),
    angle=st.floats(-5, 5),
    zoom=st.floats(0.975, 1.025),
    top=st.integers(-3, 3),
)
def test_extent_covers_every_transform(
    sampling: str, side: int, angle: float, zoom: float, top: int
) -> None:
    attack = APAM(size=side, sampling=sampling)
    place = Place(side, (20 + top, 20 - top))
    drawn = Transform(*(torch.tensor([v]) for v in (angle, zoom, 0.0)))
    images = torch.full((1, 1, 100, 100), 2.0)
    changed = pycc.ops.paste_patch(
        images,
        torch.full((1, side, side), 0.5),
        top_left=torch.tensor([place.top_left]) + attack.shift(side, drawn),
        angle=drawn.angle,
        zoom=drawn.zoom,
        sampling=sampling,
    )
    rows, columns = torch.nonzero(changed[0, 0] != 2.0, as_tuple=True)
    extent = attack.extent(place)
    assert extent.top <= int(rows.min()) <= int(rows.max()) < extent.bottom
    assert extent.left <= int(columns.min()) <= int(columns.max()) < extent.right
    middle = place.top_left[0] + (side - 1) / 2
    assert abs((int(rows.min()) + int(rows.max())) / 2 - middle) <= 0.5


CASES = {
    "middle": {"size": 9},
    "share of the width": {"size": 0.16},
    "top left corner": {"size": 9, "location": "given", "top_left": (0, 0)},
    "bottom right corner": {"size": 9, "location": "given", "top_left": (92, 130)},
    "left border": {"size": 14, "location": "given", "top_left": (41, 0)},
    "lower border, odd place": {"size": 7, "location": "given", "top_left": (93, 67)},
    "anywhere": {"size": 12, "location": "random"},
    "disc": {"size": 16, "shape": "disc", "location": "given", "top_left": (31, 50)},
    "nested": {"size": 11, "sampling": "nested"},
    "not transformed": {"size": 11, "transform": "none"},
    "over": {"size": 9, "objective": "over"},
    "under": {"size": 9, "objective": "under"},
    "target": {"size": 9, "objective": "target", "target_count": 400.0},
    "one pixel": {"size": 1},
}


def full_image_loss(attack, counter, sample, place, patch, transform):
    """The loss as its definition has it, on the full image."""
    images = sample.image[None].double()
    mask = attack.mask(place.side).double()
    attacked = pycc.ops.paste_patch(
        images,
        patch,
        top_left=torch.tensor([place.top_left]) + attack.shift(place.side, transform),
        mask=mask,
        angle=transform.angle,
        zoom=transform.zoom,
        brightness=transform.brightness,
        sampling=attack.sampling,
    )
    cells = counter(attacked)[0, 0]
    weight = cell_weight(sample, cells.shape, counter.stride).double()
    count = (weight * cells).sum()
    if attack.objective == "density":
        truth = cell_density(sample, cells.shape, counter.stride).double()
        loss = (weight * (cells - attack.factor * truth) ** 2).sum() / weight.sum()
    else:
        loss = {
            "over": -count,
            "under": count,
            "target": (count - (attack.target_count or 0.0)) ** 2,
        }[attack.objective]
    penalty = attack.smoothness * roughness(patch, mask).sum()
    return loss + (penalty / weight.sum() if attack.objective in MEANS else penalty)


@pytest.mark.parametrize("region", [False, True], ids=["whole image", "region"])
@pytest.mark.parametrize("case", CASES)
def test_gradient_of_the_window_is_that_of_the_image(
    case: str, region: bool, tiny, sample, scenes
) -> None:
    attack = APAM(steps=0, **CASES[case])
    image = sample(3, shape=(101, 139), heads=12, region=region)
    counter = tiny().double()
    with pycc.ops.reference():
        cut, side = scenes(attack, counter, [image])
        place = attack.place((101, 139), seed=0, image=0)
        patch = attack.start(cut, side, 0)
        transform = attack.draw(cut.index, 0, 7)
        mask = attack.mask(side).double()
        local = attack.gradient(counter, cut, patch, mask, transform)
        whole = patch.clone().requires_grad_()
        loss = full_image_loss(attack, counter, image, place, whole, transform)
        (full,) = torch.autograd.grad(loss, whole)
    assert cut.images.shape[-2:] != (101, 139)
    assert float(full.abs().max()) > 0
    assert torch.allclose(local, full, rtol=0, atol=1e-12 * float(full.abs().max()))


@pytest.mark.parametrize("case", CASES)
def test_patches_agree_after_many_steps(case: str, tiny, sample, scenes) -> None:
    attack = APAM(steps=12, step_size=16 / 255, **CASES[case])
    image = sample(4, shape=(101, 139), heads=12)
    patches = []
    with pycc.ops.reference():
        for field in (20, None):
            counter = tiny(field).double()
            cut, side = scenes(attack, counter, [image])
            patches.append(attack.optimise(counter, cut, side, seed=0, step_done=lambda _: None))
    assert torch.allclose(*patches, rtol=0, atol=1e-12)


def test_a_smaller_window_would_be_wrong(tiny, sample, scenes) -> None:
    attack = APAM(size=9, objective="over", transform="none", smoothness=0.0)
    image = sample(3, shape=(101, 139))
    gradients = []
    with pycc.ops.reference():
        for field in (20, 10):
            counter = tiny(field).double()
            cut, side = scenes(attack, counter, [image])
            patch = attack.start(cut, side, 0)
            still = attack.draw(cut.index, 0, 0)
            mask = attack.mask(side).double()
            gradients.append(attack.gradient(counter, cut, patch, mask, still))
    assert not torch.allclose(*gradients, rtol=1e-3)


def test_windows_of_images_of_different_sizes_form_one_batch(tiny, sample, scenes) -> None:
    attack = APAM(size=10, steps=10)
    images = [sample(0, shape=(96, 120)), sample(1, shape=(104, 140)), sample(2, shape=(120, 97))]
    with pycc.ops.reference():
        together, side = scenes(attack, tiny().double(), images)
        assert len(together.images) == 3
        patches = attack.optimise(
            tiny().double().eval(), together, side, seed=0, step_done=lambda _: None
        )
        for row, patch in enumerate(patches):
            fields = {f.name: getattr(together, f.name) for f in dataclasses.fields(together)}
            one = type(together)(**{name: v[row : row + 1] for name, v in fields.items()})
            alone = attack.optimise(
                tiny().double().eval(), one, side, seed=0, step_done=lambda _: None
            )
            assert torch.allclose(alone[0], patch, rtol=0, atol=1e-12)


@pytest.mark.parametrize("top_left", [(60, 77), (0, 0), (141, 3)])
def test_mcnn(top_left: tuple[int, int], sample, scenes) -> None:
    """Its largest column has a field of 72 pixels; padding coincides at true borders."""
    from pycc import models

    attack = APAM(size=20, location="given", top_left=top_left, steps=3)
    image = sample(5, shape=(161, 203), heads=20)
    gradients = []
    for bounded in (True, False):
        counter = models.create("mcnn", resize=None if bounded else 4).double()
        generator = torch.Generator().manual_seed(1)
        for parameter in counter.parameters():
            draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            fan = parameter[0].numel() if parameter.ndim > 1 else 10_000
            parameter.data.copy_(draw * (2 / fan) ** 0.5)
        if not bounded:  # the same network on the whole image, without the resize
            counter.resize = None
        counter.requires_grad_(False)
        with pycc.ops.reference():
            cut, side = scenes(attack, counter, [image])
            patch = attack.start(cut, side, 0)
            transform = attack.draw(cut.index, 0, 1)
            mask = attack.mask(side).double()
            gradients.append(attack.gradient(counter, cut, patch, mask, transform))
    local, full = gradients
    assert float(full.abs().max()) > 0
    assert torch.allclose(local, full, rtol=0, atol=1e-12 * float(full.abs().max()))
