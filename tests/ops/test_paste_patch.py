from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tensors import every_device, noise, views
from torch import Tensor

from pycc.ops import paste_patch, paste_patch_reference
from pycc.ops.paste_patch import SAMPLINGS
from pycc.random import Stream

PLACE = torch.zeros(2, 2, dtype=torch.long)
NOWHERE = (float("nan"), float("inf"), float("-inf"))


@st.composite
def problems(draw: st.DrawFn) -> dict[str, object]:
    count, channels, height, width, *sides = (
        draw(st.integers(0, most)) for most in (3, 3, 24, 24, 12, 12)
    )
    stream = Stream(draw(st.integers(0, 2**32)), "paste")
    lead = draw(st.sampled_from([(), (count,)]))
    seed = draw(st.integers(0, 2**32))

    def each(low: float, high: float, *extremes: float) -> float | Tensor:
        values = torch.from_numpy(stream.uniform(low, high, count))
        return draw(st.sampled_from([values, values.float(), low, high, *extremes]))

    images = noise(count, channels, height, width, seed=seed)
    patch = noise(*lead, channels, *sides, seed=seed + 1)
    for values in (images, patch):
        if values.numel():
            places = st.lists(st.integers(0, values.numel() - 1), max_size=2)
            for place in draw(places):
                values.view(-1)[place] = draw(st.sampled_from(NOWHERE))
    mask = torch.from_numpy(stream.uniform(size=sides)) < 0.7
    top_left = torch.from_numpy(stream.integers(40, (count, 2)) - 15)
    return {
        "images": draw(views(images)),
        "patch": draw(views(patch)),
        "top_left": draw(st.sampled_from([top_left, top_left.int(), top_left.mT.contiguous().mT])),
        "mask": draw(st.sampled_from([None, mask, mask.float(), mask.mT.contiguous().mT])),
        "angle": each(-180.0, 180.0, 0, 90),
        "zoom": each(0.3, 2.5, 1, 0.001, 1000.0),
        "brightness": each(-0.3, 0.3, 0),
        "sampling": draw(st.sampled_from(SAMPLINGS)),
    }


def on(problem: dict[str, object], device: torch.device | str) -> dict[str, object]:
    return {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in problem.items()
    }


def fresh(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape).copy_(tensor)


def with_gradients(op, problem) -> list[Tensor]:
    """What ``op`` returns, and the gradients of images and patch."""
    leaves = {name: problem[name].detach().requires_grad_() for name in ("images", "patch")}
    pasted = op(**{**problem, **leaves})
    pasted.backward(noise(*pasted.shape, seed=7).to(pasted.device))
    return [pasted.detach(), *(leaf.grad for leaf in leaves.values())]


@given(problems())
def test_kernel_and_twin_agree_in_value_and_gradient(problem) -> None:
    got, expected = (with_gradients(op, problem) for op in (paste_patch, paste_patch_reference))
    torch.testing.assert_close(got[0], expected[0], rtol=0, atol=1e-6, equal_nan=True)
    # The same pixels are covered, to the bit; the others keep theirs.
    bits = fresh(problem["images"]).view(torch.int32)
    untouched = [result.contiguous().view(torch.int32) == bits for result in (got[0], expected[0])]
    assert torch.equal(*untouched)
    assert torch.equal(got[1], expected[1])
    torch.testing.assert_close(got[2], expected[2], rtol=5e-5, atol=1e-5)


@given(problems(), st.booleans())
def test_out_gives_the_same_bits_and_gradients(problem, in_place: bool) -> None:
    upstream = noise(*problem["images"].shape, seed=7)
    patches = [fresh(problem["patch"]).requires_grad_() for _ in range(2)]
    images = fresh(problem["images"])
    buffer = images if in_place else torch.full_like(images, float("nan"))
    expected = paste_patch(**{**problem, "patch": patches[0]})
    got = paste_patch(**{**problem, "images": images, "patch": patches[1]}, out=buffer)
    assert torch.equal(expected.view(torch.int32), got.view(torch.int32))
    assert got.data_ptr() == buffer.data_ptr()
    expected.backward(upstream)
    got.backward(upstream)
    assert torch.equal(patches[0].grad, patches[1].grad)


@pytest.mark.parametrize("op", [paste_patch, paste_patch_reference])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_neighbour_of_weight_zero_counts_for_nothing(op, sampling: str, device) -> None:
    patch = noise(1, 3, 3).to(device)
    patch[0, 1, 1] = float("nan")
    place = torch.ones(1, 2, dtype=torch.long, device=device)
    pasted = op(torch.zeros(1, 1, 5, 5, device=device), patch, top_left=place, sampling=sampling)
    assert torch.equal(pasted[0, :, 1:4, 1:4].nan_to_num(nan=9.0), patch.nan_to_num(nan=9.0))
    assert pasted.isnan().sum() == 1
    outside = torch.tensor([[1, 1, 1], [1, 0, 1], [1, 1, 1]], device=device)
    pasted = op(
        torch.zeros(1, 1, 5, 5, device=device),
        patch,
        top_left=place,
        mask=outside,
        angle=20.0,
        sampling="nested",  # whose patch is 0 where the mask is
    )
    assert pasted.isfinite().all()


@pytest.mark.parametrize("op", [paste_patch, paste_patch_reference])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(
    ("channels", "sides", "zoom"), [(0, (4, 4), 0.001), (0, (4, 4), 1.0), (1, (0, 4), 1.0)]
)
def test_nothing_to_paste(op, sampling: str, channels: int, sides, zoom: float) -> None:
    images = -torch.zeros(2, channels, 5, 6)  # the sign of a zero is a bit too
    patch = torch.full((channels, *sides), float("nan"))
    pasted = op(images, patch, top_left=PLACE, zoom=zoom, sampling=sampling)
    assert torch.equal(pasted.view(torch.int32), images.view(torch.int32))


def test_a_reused_buffer_keeps_no_history() -> None:
    images, buffer = noise(1, 3, 9, 9), torch.empty(1, 3, 9, 9)
    patch = noise(3, 4, 4).requires_grad_()
    for _ in range(3):
        pasted = paste_patch(images, patch, top_left=torch.tensor([[2, 2]]), out=buffer)
        assert pasted.grad_fn is not None
        assert not buffer.requires_grad
        pasted.sum().backward()
    assert torch.equal(patch.grad, torch.full_like(patch, 3.0))


@pytest.mark.parametrize("op", [paste_patch, paste_patch_reference])
@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_autograd_sees_that_out_is_written(op, learns: bool, in_place: bool) -> None:
    buffer, factor = torch.ones(2, 1, 5, 5), torch.ones(2, 1, 5, 5).requires_grad_()
    product = (factor * buffer).sum()
    images = buffer if in_place else noise(2, 1, 5, 5)
    op(images, noise(1, 2, 2).requires_grad_(learns), top_left=PLACE, out=buffer)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_without_a_transform_it_is_a_copy(sampling: str, device: torch.device) -> None:
    images, patch = noise(2, 3, 10, 12).to(device), noise(3, 4, 5, seed=1).to(device)
    got = paste_patch(
        images, patch, top_left=torch.tensor([[2, 3], [8, -2]]).to(device), sampling=sampling
    )
    expected = images.clone()
    expected[0, :, 2:6, 3:8] = patch
    expected[1, :, 8:10, 0:3] = patch[:, :2, 2:]
    assert torch.equal(got, expected)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_are_counter_clockwise(turns: int) -> None:
    patch = noise(1, 5, 5)
    got = paste_patch(
        torch.zeros(1, 1, 5, 5),
        patch,
        top_left=torch.zeros(1, 2, dtype=torch.long),
        angle=90.0 * turns,
    )
    torch.testing.assert_close(got[0], torch.rot90(patch, turns, (1, 2)), rtol=0, atol=1e-6)


def disc(side: int) -> np.ndarray:
    centre = side // 2
    offset = np.arange(side) - centre
    return np.hypot(offset[:, None], offset[None]) <= min(centre, side - centre) - 2


@pytest.mark.parametrize("op", [paste_patch, paste_patch_reference])
@pytest.mark.parametrize("case", range(20))
def test_nested_sampling_is_the_published_circle_transform(
    fixture, op, case: int, device: torch.device
) -> None:
    numbers = fixture("patch")
    side, angle, zoom, added, x, y, height, width = numbers["cases"][case]
    side, x, y, height, width = (int(value) for value in (side, x, y, height, width))
    patch = np.random.Generator(np.random.PCG64(9000 + side)).random((1, side, side))
    pasted = op(
        torch.full((1, 1, 128, 160), -1.0, device=device),  # no patch value is negative
        torch.from_numpy(patch).float().to(device),
        top_left=torch.tensor([[y, x]], device=device),
        mask=torch.from_numpy(disc(side)).to(device),
        angle=float(angle),
        zoom=float(zoom),
        brightness=float(added),
        sampling="nested",
    )[0, 0].cpu()
    covered = pasted != -1.0
    box = (slice(y, y + height), slice(x, x + width))
    assert covered.sum() == covered[box].sum()
    if f"mask_{case}" in numbers:
        assert np.array_equal(covered[box].numpy(), numbers[f"mask_{case}"] != 0)
    published = numbers[f"patch_{case}"]
    difference = np.abs(pasted[box].numpy() - published)[covered[box].numpy()]
    assert difference.max() <= 1e-5 * published.max()


def test_the_published_composite(fixture) -> None:
    numbers = fixture("patch")
    side, angle, zoom, added, x, y, _, _ = numbers["composite_case"]
    side = int(side)
    patch = np.random.Generator(np.random.PCG64(9000 + side)).random((1, side, side))
    image = np.random.Generator(np.random.PCG64(int(numbers["composite_image_seed"])))
    background = torch.from_numpy(image.random(tuple(numbers["image_shape"]))).float()
    pasted = paste_patch(
        background[None, None],
        torch.from_numpy(patch).float(),
        top_left=torch.tensor([[int(y), int(x)]]),
        mask=torch.from_numpy(disc(side)),
        angle=float(angle),
        zoom=float(zoom),
        brightness=float(added),
        sampling="nested",
    )
    np.testing.assert_allclose(pasted[0, 0].numpy(), numbers["composite"], rtol=0, atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("lead", [(), (2,)])
def test_gradcheck_of_the_twin(sampling: str, lead: tuple[int, ...]) -> None:
    images = noise(2, 2, 9, 8).double().requires_grad_()
    patch = (0.2 + 0.6 * noise(*lead, 2, 4, 3, seed=3).double()).requires_grad_()
    options = {
        "top_left": torch.tensor([[2, 1], [6, 5]]),
        "mask": torch.tensor([[1, 1, 0], [1, 1, 1], [0, 1, 1], [1, 1, 1]]),
        "angle": torch.tensor([17.0, -120.0]),
        "zoom": torch.tensor([1.3, 0.8]),
        "brightness": torch.tensor([0.05, -0.1]),
        "sampling": sampling,
    }
    assert torch.autograd.gradcheck(
        lambda i, p: paste_patch_reference(i, p, **options), (images, patch)
    )


def test_threads_do_not_matter(with_threads) -> None:
    images, results = noise(5, 3, 200, 210), []
    for threads in (1, 2, 5):
        with_threads(threads)
        patch = noise(5, 3, 80, 70, seed=1).requires_grad_()
        places = torch.tensor([[10, 10], [150, 150], [-30, 5], [0, 0], [60, 60]])
        pasted = paste_patch(images, patch, top_left=places, angle=31.0, zoom=1.2)
        pasted.backward(images)
        results.append((pasted.detach(), patch.grad))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.cuda
@given(problem=problems())
@every_device
def test_cuda_agrees_with_the_cpu_to_the_bit(problem, device: torch.device) -> None:
    expected, got = (with_gradients(paste_patch, on(problem, where)) for where in ("cpu", device))
    exactly = {"rtol": 0, "atol": 0, "equal_nan": True}
    torch.testing.assert_close(got[0].cpu(), expected[0], **exactly)
    torch.testing.assert_close(got[1].cpu(), expected[1], **exactly)
    torch.testing.assert_close(got[2].cpu(), expected[2], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("op", [paste_patch, paste_patch_reference])
def test_the_clip_is_float32_and_keeps_nan(op) -> None:
    """0.6 + 0.4 is 1 in float32: unclipped. A patch that diverged must not look like black."""
    patch = torch.tensor([[[float("nan"), 0.6, 0.7]]], requires_grad=True)
    place = torch.zeros(1, 2, dtype=torch.long)
    pasted = op(torch.zeros(1, 1, 1, 3), patch, top_left=place, brightness=0.4)
    assert pasted[0, 0, 0, 0].isnan()
    assert pasted[0, 0, 0, 1:].tolist() == [1.0, 1.0]
    pasted[..., 1:].sum().backward()
    assert patch.grad[0, 0].tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("in_place", [False, True])
def test_the_twin_fills_out(in_place: bool) -> None:
    images, patch = noise(2, 1, 8, 8), noise(1, 3, 3)
    expected = paste_patch_reference(images, patch, top_left=PLACE)
    buffer = images if in_place else torch.empty_like(images)
    assert torch.equal(paste_patch_reference(images, patch, top_left=PLACE, out=buffer), expected)
    assert torch.equal(buffer, expected)


def test_views_are_read_right() -> None:
    images, patch = noise(2, 3, 9, 8), noise(3, 5, 4, seed=1)
    mask = torch.rand(5, 4) < 0.5
    expected = paste_patch(images, patch, top_left=PLACE + 1, mask=mask, angle=20.0)
    got = paste_patch(
        images.to(memory_format=torch.channels_last),
        patch.transpose(1, 2).contiguous().transpose(1, 2),
        top_left=(PLACE + 1).T.contiguous().T,
        mask=mask.T.contiguous().T,
        angle=20.0,
    )
    assert torch.equal(got, expected)
    negative = torch.complex(torch.zeros_like(patch), -patch).conj().imag  # a lazy negation
    assert negative.is_neg()
    negated = paste_patch(images, negative, top_left=PLACE + 1, mask=mask, angle=20.0)
    assert torch.equal(negated, expected)
