from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tensors import INF, NAN, every_device, noise, same_bits, views
from torch import Tensor
from torch.nn import functional

from pycc.ops import deform_conv, deform_conv_reference, reference

OPS = [deform_conv, deform_conv_reference]
NAMES = ("x", "offset", "weight")
Problem = dict[str, Tensor]


def problem(
    count: int = 2, channels: int = 3, height: int = 6, width: int = 5, outputs: int = 2, seed=0
) -> Problem:
    """Offsets up to three cells each way."""
    return {
        "x": noise(count, channels, height, width, seed=seed) - 0.4,
        "offset": 6.0 * noise(count, 18, height, width, seed=seed + 1) - 3.0,
        "weight": noise(outputs, channels, 3, 3, seed=seed + 2) - 0.4,
    }


def on(arguments: Problem, device: torch.device | str) -> Problem:
    return {name: tensor.to(device) for name, tensor in arguments.items()}


def with_gradients(op: Callable[..., Tensor], arguments: Problem) -> list[Tensor]:
    """What ``op`` returns, and the gradients of x, offset and weight."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in arguments.items()}
    result = op(**leaves)
    upstream = (noise(*result.shape, seed=7) - 0.5).to(result.device, result.dtype)
    return [result.detach(), *torch.autograd.grad(result, list(leaves.values()), upstream)]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    sides = [draw(st.integers(0, most)) for most in (2, 35, 5, 6, 3)]
    made = problem(*sides, seed=draw(st.integers(0, 2**32)))
    offset = made["offset"].view(-1)
    if draw(st.booleans()):
        offset.mul_(2.0).round_().div_(2.0)  # whole positions, among them the border itself
    if len(offset):
        extremes = (INF, -INF, 1e30, -1e30, -0.0, 1e-30, -1e-30, 2.0**31, -(2.0**63))
        for place in draw(st.lists(st.integers(0, len(offset) - 1), max_size=4)):
            offset[place] = draw(st.sampled_from(extremes))
    return {name: draw(views(tensor)) for name, tensor in made.items()}


@every_device
@given(arguments=problems())
def test_kernel_and_twin_agree_in_value_and_gradient(arguments: Problem, device) -> None:
    """Both add up in float64 and round once."""
    arguments = on(arguments, device)
    results = [with_gradients(op, arguments) for op in OPS]
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("case", range(3))
def test_it_is_the_published_layer(fixture, op, case: int, device: torch.device) -> None:
    numbers = fixture("deform")
    leaves = [
        torch.from_numpy(numbers[f"{name}_{case}"]).to(device).requires_grad_() for name in NAMES
    ]
    result = op(*leaves)
    result.backward(torch.from_numpy(numbers[f"grad_out_{case}"]).to(device))
    computed = {"out": result.detach()}
    computed |= {f"grad_{name}": leaf.grad for name, leaf in zip(NAMES, leaves, strict=True)}
    for name, tensor in computed.items():
        published = numbers[f"{name}_{case}"]
        difference = np.abs(tensor.cpu().numpy() - published).max()
        assert difference <= 1e-6 * np.abs(published).max(), name


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("channels", [1, 31, 32, 33, 100])
def test_without_offsets_it_is_the_ordinary_convolution(op, channels: int, device) -> None:
    arguments = on({**problem(channels=channels), "offset": torch.zeros(2, 18, 6, 5)}, device)

    def ordinary(x: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
        return functional.conv2d(x.double(), weight.double(), padding=1).float() + 0 * offset.sum()

    got, expected = with_gradients(op, arguments), with_gradients(ordinary, arguments)
    for index in (0, 1, 3):  # all but the offset's gradient
        torch.testing.assert_close(got[index], expected[index], rtol=1e-6, atol=1e-9)


def read(op: Callable[..., Tensor], x: Tensor, row: float, column: float) -> float:
    """What the middle tap of the first cell reads at (row, column) of x [H,W]."""
    offset = torch.zeros(1, 18, *x.shape)
    offset[0, 8], offset[0, 9] = row, column
    weight = torch.zeros(1, 1, 3, 3)
    weight[0, 0, 1, 1] = 1.0
    return float(op(x[None, None], offset, weight)[0, 0, 0, 0])


@pytest.mark.parametrize("op", OPS)
def test_what_is_read_at_the_border(op) -> None:
    x = 10.0 * torch.arange(1.0, 5.0)[:, None] + torch.arange(1.0, 4.0)  # 4 rows, 3 columns
    below_one, below_four = (float(np.nextafter(np.float32(n), np.float32(0))) for n in (1, 4))
    assert read(op, x, 0.25, 0.5) == 10.0 * 1.25 + 1.5  # inside: linear in both
    assert read(op, x, -0.5, 0.0) == 0.0  # nothing, not one half
    assert read(op, x, -1e-30, 0.0) == 0.0
    assert read(op, x, -below_one, 1.0) == 0.0
    for row in (3.0, 3.25, 3.5, below_four):  # the last row in full
        assert read(op, x, row, 1.0) == 42.0
    assert read(op, x, 3.5, 0.5) == 41.5  # the other axis goes on interpolating
    assert read(op, x, 4.0, 1.0) == 0.0
    assert read(op, x, 1.0, 2.75) == 23.0
    assert read(op, x, 1.0, -0.25) == read(op, x, 1.0, 3.0) == 0.0
    assert read(op, x[:1], 0.0, 0.5) == 11.5  # a single row is its own last
    assert read(op, x[:1], 0.5, 0.5) == 11.5


@pytest.mark.parametrize("op", OPS)
def test_taps_are_interleaved_rows_first(op) -> None:
    """Tap 3i + j is offset by channels 2k (down) and 2k + 1 (right)."""
    x = torch.arange(49.0).view(1, 1, 7, 7)
    for k in range(9):
        offset, weight = torch.zeros(1, 18, 7, 7), torch.zeros(1, 1, 3, 3)
        offset[:, 2 * k], offset[:, 2 * k + 1] = 1.0, -1.0
        weight.view(-1)[k] = 1.0
        assert op(x, offset, weight)[0, 0, 3, 3] == x[0, 0, 3 + k // 3, 1 + k % 3]


@pytest.mark.parametrize("op", OPS)
def test_gradients_of_replaced_positions(op) -> None:
    x = (torch.arange(1.0, 5.0)[:, None] ** 2 * torch.arange(1.0, 4.0))[None, None]
    for row, column, down, right in (
        (0.25, 1.0, (4 - 1) * 2.0, 1.75),  # at a whole column, towards the next
        (3.5, 0.5, 0.0, 16.0),  # replaced in one axis: the other keeps its own
        (3.0, 0.5, -16 * 1.5, 16.0),  # the border itself is not replaced; beyond it is 0
        (-0.5, 0.5, 0.0, 0.0),
        (1e30, 0.5, 0.0, 0.0),
    ):
        offset = torch.zeros(1, 18, 4, 3)
        offset[0, 8, 0, 0], offset[0, 9, 0, 0] = row, column
        offset.requires_grad_()
        weight = torch.zeros(1, 1, 3, 3)
        weight[0, 0, 1, 1] = 1.0
        op(x, offset, weight)[0, 0, 0, 0].backward()
        assert offset.grad[0, 8:10, 0, 0].tolist() == [down, right], (row, column)


@pytest.mark.parametrize("op", OPS)
def test_offsets_that_are_no_number(op, device: torch.device) -> None:
    """NaN must not look like an empty scene; infinity is off the map. Neither reads memory."""
    arguments = on(problem(), device)
    for value in (INF, -INF, 1e30, -1e30, 3e38):
        offset = torch.full_like(arguments["offset"], value)
        results = with_gradients(op, {**arguments, "offset": offset})
        assert not any(result.any() for result in results)
    arguments["offset"][0, 5, 2, 3] = NAN  # to the right, of tap 2
    out, grad_x, grad_offset, grad_weight = with_gradients(op, arguments)
    assert out.isnan().nonzero().tolist() == [[0, o, 2, 3] for o in range(2)]
    assert grad_x.isfinite().all()
    assert grad_offset.isfinite().all()
    assert not grad_offset[0, 4:6, 2, 3].any()
    lost = torch.zeros(2, 3, 9, dtype=torch.bool, device=device)
    lost[..., 2] = True
    assert torch.equal(grad_weight.flatten(2).isnan(), lost)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("value", [NAN, INF])
def test_a_neighbour_of_weight_zero_counts_for_nothing(op, value: float, device) -> None:
    arguments = on({**problem(), "offset": torch.zeros(2, 18, 6, 5)}, device)
    arguments["x"][1, 2, 3, 2] = value
    bad = ~op(**arguments).isfinite()
    expected = torch.zeros_like(bad)
    expected[1, :, 2:5, 1:4] = True
    assert torch.equal(bad, expected)


def test_gradcheck_of_the_twin() -> None:
    arguments = problem(2, 2, 4, 3, 2, seed=3)
    leaves = [tensor.double().requires_grad_() for tensor in arguments.values()]
    position = leaves[1].detach()
    assert (position - position.round()).abs().min() > 1e-5  # no kink within the step
    assert torch.autograd.gradcheck(deform_conv_reference, leaves)


@pytest.mark.compiled
def test_the_kernel_takes_float32_and_the_twin_float64_too() -> None:
    double = {name: tensor.double() for name, tensor in problem().items()}
    exact = deform_conv_reference(**double)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(deform_conv(**problem()).double(), exact, rtol=1e-6, atol=1e-9)
    with pytest.raises(ValueError, match="deform_conv: x must be float32, got float64"):
        deform_conv(**double)
    with reference():
        assert same_bits(deform_conv(**double), exact)


def test_threads_do_not_matter(with_threads) -> None:
    arguments, results = problem(2, 70, 24, 23, 2), []
    for threads in (1, 2, 5):
        with_threads(threads)
        results.append(with_gradients(deform_conv, arguments))
    for other in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.cuda
@given(arguments=problems())
@every_device
def test_cuda_agrees_with_the_cpu_to_the_bit(arguments: Problem, device: torch.device) -> None:
    expected, got = (with_gradients(deform_conv, on(arguments, where)) for where in ("cpu", device))
    assert all(same_bits(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.compiled
def test_only_the_gradients_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen network's kernels need none, and the backward of each is a kernel of its own."""
    ran: list[str] = []
    run = deform_conv.__globals__["_native"].run

    def watched(op: str, *others: object) -> None:
        ran.append(op)
        run(op, *others)

    monkeypatch.setattr("pycc.ops._native.run", watched)
    for name in NAMES:
        arguments = problem()
        arguments[name].requires_grad_()
        deform_conv(**arguments).sum().backward()
        assert ran == ["deform_conv", f"deform_conv_grad_{name}"]
        ran.clear()


@pytest.mark.compiled
def test_it_compiles_into_one_graph() -> None:
    def loss(x: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
        return deform_conv(x, offset, weight).square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results = []
    for function in (loss, compiled):
        leaves = [tensor.requires_grad_() for tensor in problem().values()]
        total = function(*leaves)
        results.append([total.detach(), *torch.autograd.grad(total, leaves)])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.compiled
def test_channels_last_in_and_out(op) -> None:
    arguments = problem(2, 5, 6, 7, 3)
    last = {
        name: tensor.contiguous(memory_format=torch.channels_last)
        for name, tensor in arguments.items()
    }
    results = [with_gradients(op, inputs) for inputs in (arguments, last)]
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))
    if op is deform_conv:
        for result in (*results[0], *results[1]):
            assert result.is_contiguous(memory_format=torch.channels_last)


def test_a_large_sum_is_rounded_once() -> None:
    """2^24 + 1 is no float32: summed in float32, the ones would vanish."""
    x = torch.ones(1, 65, 1, 1)
    x[0, 0] = 2.0**24
    weight = torch.zeros(1, 65, 3, 3)
    weight[..., 1, 1] = 1.0
    assert deform_conv(x, torch.zeros(1, 18, 1, 1), weight).item() == 2.0**24 + 64
    assert math.isinf(deform_conv(x * 1e38, torch.zeros(1, 18, 1, 1), weight).item())
