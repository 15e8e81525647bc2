from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pycc.ops import paste_patch, paste_patch_reference
from pycc.ops.paste import SAMPLINGS
from pycc.random import Stream


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(Stream(seed, "noise").uniform(size=shape)).float()


@st.composite
def problems(draw: st.DrawFn) -> dict[str, object]:
    count, channels = draw(st.integers(0, 3)), draw(st.integers(1, 3))
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    sides = (draw(st.integers(1, 12)), draw(st.integers(1, 12)))
    stream = Stream(draw(st.integers(0, 2**32)), "paste")
    shared = draw(st.booleans())
    seed = draw(st.integers(0, 2**32))
    lead = () if shared else (count,)
    return {
        "images": noise(count, channels, height, width, seed=seed),
        "patch": noise(*lead, channels, *sides, seed=seed + 1),
        "top_left": torch.from_numpy(stream.integers(40, (count, 2)) - 15),
        "mask": draw(st.sampled_from([None, torch.from_numpy(stream.uniform(size=sides)) < 0.7])),
        "angle": torch.from_numpy(stream.uniform(-180.0, 180.0, count)),
        "zoom": torch.from_numpy(stream.uniform(0.3, 2.5, count)),
        "brightness": torch.from_numpy(stream.uniform(-0.3, 0.3, count)),
        "sampling": draw(st.sampled_from(SAMPLINGS)),
    }


@given(problems())
def test_kernel_and_twin_agree_in_value_and_gradient(problem) -> None:
    upstream = noise(*problem["images"].shape, seed=7)
    results, gradients = [], []
    for op in (paste_patch, paste_patch_reference):
        leaves = {name: problem[name].clone().requires_grad_() for name in ("images", "patch")}
        pasted = op(**{**problem, **leaves})
        pasted.backward(upstream)
        results.append(pasted.detach())
        gradients.append([leaf.grad for leaf in leaves.values()])
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-6)
    # The same pixels are covered, to the bit; the others keep theirs.
    untouched = [result == problem["images"] for result in results]
    assert torch.equal(untouched[0], untouched[1])
    assert torch.equal(gradients[0][0], gradients[1][0])
    torch.testing.assert_close(gradients[0][1], gradients[1][1], rtol=1e-5, atol=1e-5)


@given(problems(), st.booleans())
def test_out_gives_the_same_bits_and_gradients(problem, in_place: bool) -> None:
    upstream = noise(*problem["images"].shape, seed=7)
    patches = [problem["patch"].clone().requires_grad_() for _ in range(2)]
    images = problem["images"].clone()
    buffer = images if in_place else torch.full_like(images, float("nan"))
    expected = paste_patch(**{**problem, "patch": patches[0]})
    got = paste_patch(**{**problem, "images": images, "patch": patches[1]}, out=buffer)
    assert torch.equal(expected, got)
    assert got.data_ptr() == buffer.data_ptr()
    expected.backward(upstream)
    got.backward(upstream)
    assert torch.equal(patches[0].grad, patches[1].grad)


def test_a_reused_buffer_keeps_no_history() -> None:
    images, buffer = noise(1, 3, 9, 9), torch.empty(1, 3, 9, 9)
    patch = noise(3, 4, 4).requires_grad_()
    for _ in range(3):
        pasted = paste_patch(images, patch, top_left=torch.tensor([[2, 2]]), out=buffer)
        assert pasted.grad_fn is not None
        assert not buffer.requires_grad
        pasted.sum().backward()
    assert torch.equal(patch.grad, torch.full_like(patch, 3.0))


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
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_cuda_agrees_with_the_cpu_to_the_bit(problem, device: torch.device) -> None:
    upstream = noise(*problem["images"].shape, seed=5)
    results = []
    for where in ("cpu", device):
        there = {
            name: value.to(where) if isinstance(value, Tensor) else value
            for name, value in problem.items()
        }
        leaves = {name: there[name].clone().requires_grad_() for name in ("images", "patch")}
        pasted = paste_patch(**{**there, **leaves})
        pasted.backward(upstream.to(where))
        results.append([t.cpu() for t in (pasted.detach(), *(v.grad for v in leaves.values()))])
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    torch.testing.assert_close(results[0][2], results[1][2], rtol=1e-6, atol=1e-6)


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


PLACE = torch.zeros(2, 2, dtype=torch.long)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": noise(3, 8, 8)}, ValueError, r"images must be \[N,C,H,W\], got \[3, 8, 8\]"),
        ({"images": noise(2, 3, 8, 8).half()}, ValueError, "images must be float32"),
        ({"patch": noise(1, 4, 4)}, ValueError, r"patch must be \[3,p,q\] or \[2,3,p,q\]"),
        ({"patch": noise(3, 3, 4, 4)}, ValueError, "patch must be"),
        ({"patch": noise(3, 4, 4).double()}, ValueError, "patch must be float32"),
        ({"patch": 1.0}, TypeError, "patch must be a tensor"),
        ({"top_left": PLACE[:1]}, ValueError, r"top_left must be \[2,2\] \(y, x\), got \[1, 2\]"),
        ({"top_left": PLACE.float()}, ValueError, "top_left must be int64 or int32"),
        ({"top_left": PLACE + (1 << 40)}, ValueError, "top_left must be within"),
        ({"mask": torch.ones(4, 5)}, ValueError, r"mask must be \[4, 4\] like the patch"),
        ({"mask": torch.full((4, 4), 0.5)}, ValueError, "mask must hold 0 and 1 only"),
        ({"top_left": PLACE - 2**63}, ValueError, "top_left must be within"),
        ({"top_left": PLACE.to("meta")}, ValueError, "top_left must hold values"),
        ({"patch": noise(3, 4, 4).to("meta")}, ValueError, "patch must be on the device"),
        ({"mask": torch.ones(4, 4, device="meta")}, ValueError, "mask must be on the device"),
        ({"zoom": 0.0}, ValueError, "zoom must be within"),
        ({"angle": "left"}, TypeError, "angle must be a number, got str"),
        ({"angle": 10**400}, ValueError, "angle must be within"),
        ({"angle": torch.zeros(2, device="meta")}, ValueError, "angle must hold values"),
        ({"zoom": torch.tensor([1.0, float("nan")])}, ValueError, "zoom must be finite"),
        ({"angle": torch.zeros(3)}, ValueError, r"angle must be a number or \[2\]"),
        ({"brightness": float("inf")}, ValueError, "brightness must be within"),
        ({"sampling": "bicubic"}, ValueError, "sampling must be one of 'single', 'nested'"),
        ({"out": torch.zeros(2, 3, 8, 9)}, ValueError, r"out must be \[2, 3, 8, 8\]"),
        ({"out": torch.zeros(2, 3, 8, 8).requires_grad_()}, ValueError, "out must not require"),
    ],
)
@pytest.mark.parametrize("op", [paste_patch, paste_patch_reference])
def test_bad_arguments_change_nothing(op, change, error, message) -> None:
    arguments = {
        "images": noise(2, 3, 8, 8),
        "patch": noise(3, 4, 4),
        "top_left": PLACE,
        "out": torch.zeros(2, 3, 8, 8),
    }
    arguments.update(change)
    with pytest.raises(error, match=f"paste_patch: .*{message}"):
        op(**arguments)
    assert not arguments["out"].any()


@pytest.mark.parametrize("op", [paste_patch, paste_patch_reference])
def test_out_may_not_overlap_what_is_read(op) -> None:
    memory = noise(3, 1, 8, 8)
    with pytest.raises(ValueError, match="images itself or not overlap"):
        op(memory[:2], noise(1, 2, 2), top_left=PLACE, out=memory[1:])
    with pytest.raises(ValueError, match="out must not overlap the patch"):
        op(noise(2, 1, 8, 8), memory[1, :, :4, :4], top_left=PLACE, out=memory[:2])
    leaf = noise(2, 1, 8, 8).requires_grad_()
    with pytest.raises(ValueError, match=r"out must not require|images need no gradient"):
        op(leaf, noise(1, 2, 2), top_left=PLACE, out=leaf)
    with pytest.raises(ValueError, match="images need no gradient"):
        op(leaf, noise(1, 2, 2), top_left=PLACE, out=leaf.detach())


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


@pytest.mark.parametrize("mask", [None, torch.ones(4, 4, dtype=torch.uint8)])
@pytest.mark.parametrize("nested", [False, True])
def test_registration(mask: Tensor | None, nested: bool) -> None:
    from pycc.ops.paste import _paste_patch, _paste_patch_backward

    transform = torch.tensor([[1.0, 0.0, 1.0, 0.0]] * 2).double()
    images = noise(2, 3, 8, 8).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, from inside opcheck
        for patch in (noise(1, 3, 4, 4), noise(2, 3, 4, 4)):
            arguments = (images, patch.requires_grad_(), mask, PLACE, transform, nested)
            torch.library.opcheck(_paste_patch, arguments)
            torch.library.opcheck(
                _paste_patch_backward,
                (images.detach(), patch.detach(), mask, PLACE, transform, nested),
            )


def test_it_compiles_into_one_graph() -> None:
    from pycc.ops.paste import _paste_patch

    transform = torch.tensor([[0.9, 0.1, 1.1, 0.0]] * 2).double()

    def loss(images: Tensor, patch: Tensor) -> Tensor:
        return _paste_patch(images, patch, None, PLACE, transform, False).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    gradients = []
    for function in (loss, compiled):
        patch = noise(1, 3, 4, 4).requires_grad_()
        function(noise(2, 3, 8, 8), patch).backward()
        gradients.append(patch.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": noise(2, 3, 8, 8).double()}, "images must be float32"),
        ({"patch": noise(3, 3, 4, 4)}, "patch must be"),
        ({"patch": noise(1, 2, 4, 4)}, "patch must be"),
        ({"mask": torch.ones(4, 5, dtype=torch.uint8)}, "mask must be"),
        ({"mask": torch.ones(4, 4)}, "mask must be uint8"),
        ({"top_left": PLACE[:1]}, "top_left must be"),
        ({"transform": torch.ones(2, 4)}, "transform must be float64"),
    ],
)
def test_the_registered_op_checks_before_it_hands_out_pointers(change, message) -> None:
    arguments = {
        "images": noise(2, 3, 8, 8),
        "patch": noise(1, 3, 4, 4),
        "mask": None,
        "top_left": PLACE,
        "transform": torch.tensor([[1.0, 0.0, 1.0, 0.0]] * 2).double(),
        "nested": False,
    }
    torch.ops.pycc.paste_patch(**arguments)
    with pytest.raises(ValueError, match=message):
        torch.ops.pycc.paste_patch(**{**arguments, **change})


def test_the_registered_op_reads_a_transposed_mask_right() -> None:
    mask = (noise(4, 4) < 0.5).to(torch.uint8)
    arguments = (PLACE, torch.tensor([[1.0, 0.0, 1.0, 0.0]] * 2).double(), False)
    images, patch = noise(2, 3, 8, 8), noise(1, 3, 4, 4)
    expected = torch.ops.pycc.paste_patch(images, patch, mask, *arguments)
    got = torch.ops.pycc.paste_patch(images, patch, mask.T.contiguous().T, *arguments)
    assert torch.equal(got, expected)
