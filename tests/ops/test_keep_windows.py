from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tensors import VIEWS, every_device, noise, plain, same_bits, views
from torch import Tensor

from pycc.ops import keep_windows, keep_windows_reference, reference
from pycc.random import Stream


@st.composite
def problems(draw: st.DrawFn) -> dict[str, object]:
    count, channels, windows = (draw(st.integers(0, 3)) for _ in range(3))
    height, width = draw(st.integers(0, 12)), draw(st.integers(0, 40))
    seed = draw(st.integers(0, 2**32))
    images = noise(count, channels, height, width, seed=seed)
    odd = Stream(seed, "odd").uniform(size=tuple(images.shape))
    for low, value in ((0.0, float("nan")), (0.02, float("inf")), (0.04, float("-inf"))):
        images[torch.from_numpy((odd >= low) & (odd < low + 0.02))] = value
    places = st.integers(-(2**31), 2**31 - 1) | st.integers(-50, 50)
    top_left = torch.tensor(
        [[draw(places), draw(places)] for _ in range(windows)],
        dtype=draw(st.sampled_from([torch.int64, torch.int32])),
    )
    sides = ((0, height), (0, width))
    return {
        "images": draw(views(images)),
        "top_left": draw(views(top_left.reshape(windows, 2))),
        "window": tuple(draw(st.integers(*side) | st.sampled_from(side)) for side in sides),
        "fill": draw(st.sampled_from([0.5, -3]) | views(noise(channels, seed=seed + 1))),
    }


def moved(problem: dict[str, object], device: torch.device) -> dict[str, object]:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in problem.items()}


def by_hand(images, top_left, window, fill) -> Tensor:
    """Pixel by pixel, with Python's integers."""
    count, channels, height, width = images.shape
    colour = fill if isinstance(fill, Tensor) else torch.full((channels,), float(fill))
    rows = colour[None, None, :, None, None].expand(count, len(top_left), -1, height, width).clone()
    for m, (top, left) in enumerate(top_left.tolist()):
        for y in range(window[0] if width else 0):
            for x in range(window[1] if height else 0):
                place = (..., (top + y) % height, (left + x) % width)
                rows[:, m][place] = images[place]
    return rows.reshape(count * len(top_left), channels, height, width)


@every_device
@given(problem=problems())
def test_it_is_the_window_and_the_fill(problem, device: torch.device) -> None:
    expected = by_hand(**{k: plain(v) if isinstance(v, Tensor) else v for k, v in problem.items()})
    for op in (keep_windows, keep_windows_reference):
        got = op(**moved(problem, device))
        assert got.device.type == device.type
        assert same_bits(got, expected)


@every_device
@given(problem=problems(), into=st.booleans(), data=st.data())
def test_kernel_and_twin_agree_in_gradient_to_the_bit(problem, into: bool, data, device) -> None:
    gradients = []
    there = moved(problem, device)
    shape = keep_windows(**there).shape
    upstream = data.draw(views(noise(*shape, seed=7))).to(device)
    for op in (keep_windows, keep_windows_reference):
        leaf = there["images"].detach().requires_grad_()
        kept = op(**{**there, "images": leaf})
        if into:
            buffer = torch.full(shape, 7.0, device=device)
            again = op(**{**there, "images": leaf}, out=buffer)
            assert same_bits(again, kept)
            assert again.data_ptr() == buffer.data_ptr()
            kept = again
        gradients += torch.autograd.grad(kept, leaf, upstream)
    assert torch.equal(*gradients)


@every_device
@given(problem=problems(), dtype=st.sampled_from([torch.float64, torch.half, torch.bfloat16]))
@pytest.mark.compiled
def test_images_of_other_dtypes_are_refused(problem, dtype: torch.dtype, device) -> None:
    there = moved({**problem, "images": problem["images"].to(dtype)}, device)
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=f"keep_windows: images must be float32, got {name}"):
        keep_windows(**there)


def test_kept_pixels_keep_their_bits(device: torch.device) -> None:
    patterns = torch.tensor([0x7FC12345, 0x7F800001, -1, -0x80000000, 1, 0x7F800000], device=device)
    images = patterns.to(torch.int32).view(torch.float32).reshape(1, 1, 2, 3)
    place = torch.tensor([[1, 2]], device=device)
    assert same_bits(keep_windows(images, place, (2, 3), fill=0.5), images)


def test_places_wrap_at_any_integer(device: torch.device) -> None:
    images = noise(2, 3, 7, 9).to(device)
    ends = [2**63 - 1, -(2**63), -1, 0]
    places = torch.tensor([[y, x] for y in ends for x in ends], device=device)
    within = torch.tensor([[y % 7, x % 9] for y in ends for x in ends], device=device)
    got = keep_windows(images, places, (3, 4), fill=0.5)
    assert same_bits(got, keep_windows(images, within, (3, 4), fill=0.5))
    assert same_bits(got, keep_windows_reference(images, places, (3, 4), fill=0.5))


@pytest.mark.parametrize(
    ("height", "width", "steps"), [(6, 2, (1, 10)), (2, 10, (6, 1)), (2, 3, (6, 10))]
)
def test_over_all_places_every_pixel_is_kept_as_often(height, width, steps, device) -> None:
    """What the certificates count on: bands and blocks treat no pixel differently."""
    places = torch.cartesian_prod(torch.arange(steps[0]), torch.arange(steps[1])).to(device)
    kept = keep_windows(torch.ones(1, 1, 6, 10, device=device), places, (height, width), fill=0.0)
    assert torch.equal(
        kept.sum(0)[0].cpu(), torch.full((6, 10), float(height * width * len(places) / 60))
    )


@pytest.mark.parametrize("width", [1664, 1667])
@pytest.mark.parametrize("offset", [0, 1])
def test_results_larger_than_a_cache(width: int, offset: int, device, with_threads) -> None:
    images = noise(1, 1, 1700, width).to(device).expand(3, 1, -1, -1)
    places = torch.tensor([[1600, width - 30]], device=device)
    expected = keep_windows_reference(images, places, (300, 70), fill=0.5)
    for threads in (1, 2, 5):
        with_threads(threads)
        memory = torch.empty(expected.numel() + offset, device=device)
        buffer = memory[offset:].view(expected.shape)  # not always at a whole cache line
        assert same_bits(keep_windows(images, places, (300, 70), fill=0.5, out=buffer), expected)


def test_threads_do_not_matter(with_threads) -> None:
    images, places, results = noise(2, 3, 400, 500), noise(3, 2) * 1000, []
    for threads in (1, 2, 5):
        with_threads(threads)
        leaf = images.clone().requires_grad_()
        kept = keep_windows(leaf, places.long(), (130, 470), fill=0.5)
        kept.backward(noise(*kept.shape, seed=1))
        results.append((kept.detach(), leaf.grad))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.cuda
@every_device
@given(problem=problems(), seed=st.integers(0, 99))
def test_cuda_agrees_with_the_cpu_to_the_bit(problem, seed: int, device: torch.device) -> None:
    results = []
    for where in (torch.device("cpu"), device):
        there = moved(problem, where)
        leaf = there["images"].detach().requires_grad_()
        kept = keep_windows(**{**there, "images": leaf})
        kept.backward(noise(*kept.shape, seed=seed).to(where))
        results.append((kept, leaf.grad))
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


def test_gradients_of_gradients() -> None:
    places = torch.tensor([[2, 3], [-1, 4], [2, 2]])

    def kept(images: Tensor) -> Tensor:
        return keep_windows_reference(images, places, (3, 2), fill=0.5)

    exact = noise(2, 2, 5, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(kept, (exact,))
    assert torch.autograd.gradgradcheck(kept, (exact,))
    seconds = []
    for op in (keep_windows, keep_windows_reference):
        leaf = noise(2, 2, 5, 6).requires_grad_()
        cubes = op(leaf, places, (3, 2), fill=0.5).pow(3).sum()
        (first,) = torch.autograd.grad(cubes, leaf, create_graph=True)
        first.square().sum().backward()
        seconds.append(leaf.grad)
    torch.testing.assert_close(*seconds)
    assert seconds[0].any()


@pytest.mark.parametrize("into", [False, True])
def test_the_second_derivative_is_the_adjoint_s_adjoint(into: bool, device) -> None:
    """Of the gradient by what was fed back: windows of what is fed forward, and 0 in the rest."""
    places = torch.tensor([[2, 3], [-1, 4], [2, 2]], device=device)
    images = noise(2, 2, 5, 6).to(device).requires_grad_()
    upstream = noise(6, 2, 5, 6, seed=1).to(device).requires_grad_()
    out = torch.empty_like(upstream, requires_grad=False) if into else None
    kept = keep_windows(images, places, (3, 2), fill=0.5, out=out)
    (first,) = torch.autograd.grad(kept, images, upstream, create_graph=True)
    weights = noise(2, 2, 5, 6, seed=2).to(device)
    (second,) = torch.autograd.grad(first, upstream, weights)
    assert same_bits(second, keep_windows_reference(weights, places, (3, 2), fill=0.0))


def test_autograd_sees_that_out_is_written() -> None:
    weight, buffer = torch.ones(1, 1, 4, 4, requires_grad=True), torch.ones(1, 1, 4, 4)
    loss = (weight * buffer).sum()
    place = torch.tensor([[0, 0]])
    keep_windows(torch.zeros(1, 1, 4, 4), place, (2, 2), fill=0.0, out=buffer)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("into", [False, True])
@pytest.mark.compiled
def test_autograd_sees_that_places_have_changed(into: bool) -> None:
    leaf, place = noise(1, 1, 4, 4).requires_grad_(), torch.tensor([[0, 0]])
    out = torch.empty(1, 1, 4, 4) if into else None
    kept = keep_windows(leaf, place, (2, 2), fill=0.0, out=out)
    place += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.sum().backward()


def test_a_reused_buffer_keeps_no_history() -> None:
    leaf, buffer = noise(1, 1, 4, 5).requires_grad_(), torch.empty(2, 1, 4, 5)
    places = torch.tensor([[0, 0], [1, 4]])
    for _ in range(3):
        kept = keep_windows(leaf, places, (2, 2), fill=0.0, out=buffer)
        assert not buffer.requires_grad
        kept.sum().backward()
    assert torch.equal(
        leaf.grad,
        3 * keep_windows(torch.ones(1, 1, 4, 5), places, (2, 2), fill=0.0).sum(0, keepdim=True),
    )


@pytest.mark.compiled
def test_it_compiles_into_one_graph(device: torch.device) -> None:
    weight = noise(2, 3, 3, 3).to(device)

    def loss(images: Tensor, places: Tensor) -> Tensor:
        kept = keep_windows(images, places, (4, 5), fill=0.5)
        return torch.nn.functional.conv2d(kept, weight).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for shape, windows in (((2, 3, 9, 8), 3), ((1, 3, 11, 8), 1), ((3, 3, 6, 7), 2)):
        gradients = []
        for function in (loss, compiled):
            leaf = noise(*shape).to(device).requires_grad_()
            places = (noise(windows, 2, seed=3) * 20).long().to(device)
            function(leaf, places).backward()
            gradients.append(leaf.grad)
        torch.testing.assert_close(*gradients)


@pytest.mark.compiled
def test_a_compiled_function_follows_the_choice_of_the_twins() -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        graphs.append(str(graph.code))
        return graph

    images, places = noise(1, 1, 4, 4), torch.tensor([[1, 1]])
    compiled = torch.compile(
        lambda i: keep_windows(i, places, (2, 2), fill=0.5), fullgraph=True, backend=backend
    )
    expected = keep_windows(images, places, (2, 2), fill=0.5)
    assert torch.equal(compiled(images), expected)
    with reference():
        assert torch.equal(compiled(images), expected)
    assert torch.equal(compiled(images), expected)
    assert ["pycc.keep_windows" in graph for graph in graphs] == [True, False]


@pytest.mark.parametrize("view", [*VIEWS, lambda t: t.to(memory_format=torch.channels_last)])
def test_views_are_read_right(view, device: torch.device) -> None:
    images = view(noise(2, 3, 9, 8).to(device))
    places = torch.tensor([[1, 2], [8, 7]], device=device)
    colour = noise(3, seed=2).to(device)
    expected = keep_windows_reference(plain(images), places, (4, 3), fill=colour)
    assert same_bits(keep_windows(images, places, (4, 3), fill=colour), expected)
    if view in VIEWS:
        seen, tinted = view(places), view(colour)
        expected = keep_windows_reference(plain(images), plain(seen), (4, 3), fill=plain(tinted))
        assert same_bits(keep_windows(images, seen, (4, 3), fill=tinted), expected)
