"""Every op on a stream of its own, without waiting, and with the same results everywhere.

On the CPU, where nothing is queued, the same tests compare the kernels with their twins.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import torch
from support.tensors import noise, same_bits
from torch import Tensor

from pycc.ops import (
    WindowPairs,
    ablate,
    ablation_indices,
    adaptive_sigma,
    deform_conv,
    density_map,
    keep_windows,
    largest_untouched,
    log_probability_inside,
    log_probability_untouched,
    mask_hits,
    max_pair_sum,
    max_window_sum,
    pair_extremes,
    paste_patch,
    reference,
    topk_overlap,
)

Results = tuple[Tensor, ...]


@dataclass
class Case:
    name: str
    inputs: dict[str, Tensor]
    run: Callable[..., Results]
    waits: bool = False  # reads values, as its documentation says
    options: dict[str, float] = field(default_factory=lambda: {"rtol": 0.0, "atol": 0.0})
    """How far results may be from those of other devices and of the twins."""


def with_gradients(op: Callable[..., Tensor], *names: str) -> Callable[..., Results]:
    """``op`` of the inputs, with its gradients by those of these names."""

    def run(upstream: Tensor, **inputs: Tensor) -> Results:
        leaves = {name: inputs[name].detach().requires_grad_() for name in names}
        result = op(**{**inputs, **leaves})
        return result, *torch.autograd.grad(result, list(leaves.values()), upstream)

    return run


def pixels(count: int, size: int) -> Tensor:
    return (noise(count, size, seed=3) * 40 * 70).long()


def pairs_of(cells: Tensor, guesses: Tensor) -> WindowPairs:
    """Windows of 9x20 cells that are all near."""
    table = torch.nn.functional.pad(cells.cumsum(0).cumsum(1), (1, 0, 1, 0))
    rows, columns = (7 * torch.arange(count, device=cells.device) for count in (4, 5))
    near = (starts.new_zeros(len(starts), len(starts)) for starts in (rows, columns))
    return WindowPairs(table, guesses, rows, columns, *near, (9, 20))


IMAGES, WINDOWS = noise(2, 3, 40, 70), (noise(5, 2, seed=1) * 99).long()
PLACES = torch.tensor([[3, 4], [-2, 50]])
PATCH = noise(3, 12, 9, seed=2)
MAPS, OTHERS = noise(3, 40, 70), noise(3, 40, 70, seed=1)
D, N, K = (torch.tensor(sizes) for sizes in ([10**6, 900, 50], [1200, 30, 7], [45, 100, 9]))
POINTS = noise(50, 2, seed=4) * 60
ROUGHLY = {"rtol": 1e-5, "atol": 1e-6}

CASES = [
    Case(
        f"ablate {unit}",
        {"images": IMAGES, "fill": noise(3), "upstream": noise(6, 3, 40, 70, seed=5)},
        with_gradients(
            lambda images, fill, unit=unit: ablate(
                images, 700, seed=3, fill=fill, draws=3, unit=unit
            ),
            "images",
        ),
        options={"rtol": 0.0, "atol": 1e-6},  # a gradient is a sum over draws
    )
    for unit in ("pixel", "element")
]
CASES += [
    Case(
        "keep_windows",
        {
            "images": IMAGES,
            "top_left": WINDOWS,
            "fill": noise(3),
            "upstream": noise(10, 3, 40, 70, seed=6),
        },
        with_gradients(
            lambda images, top_left, fill: keep_windows(images, top_left, (9, 50), fill=fill),
            "images",
        ),
    ),
    Case(
        "deform_conv",
        {
            "x": noise(2, 35, 12, 9),
            "offset": 4.0 * noise(2, 18, 12, 9, seed=1) - 2.0,
            "weight": noise(2, 35, 3, 3, seed=2),
            "upstream": noise(2, 2, 12, 9, seed=5),
        },
        with_gradients(deform_conv, "x", "offset", "weight"),
        options=ROUGHLY,
    ),
    Case("topk_overlap", {"a": MAPS, "b": OTHERS}, lambda a, b: (topk_overlap(a, b, 300),)),
    Case("max_window_sum", {"maps": MAPS}, lambda maps: max_window_sum(maps, (9, 20))),
    Case(
        "max_pair_sum",
        {"maps": MAPS},
        lambda maps: max_pair_sum(maps, (9, 20), 3.0),
        waits=True,
    ),
    Case(
        "pair_extremes",
        {"cells": (MAPS[0] * 2**30).long(), "guesses": (noise(4, 1, 5, 1) * 2**30).long()},
        lambda cells, guesses: pair_extremes(pairs_of(cells, guesses)),
        waits=True,
    ),
    *(
        Case(
            f"{op.__name__} {rounding}",
            {"d": D, "n": N, "k": K},
            lambda d, n, k, op=op, rounding=rounding: (op(d, n, k, rounding=rounding),),
        )
        for op in (log_probability_untouched, log_probability_inside)
        for rounding in ("down", "nearest", "up")
    ),
    Case(
        "largest_untouched",
        {"d": D, "k": K, "probability": torch.tensor([0.5, 0.9, 0.01]).double()},
        lambda d, k, probability: (largest_untouched(d, k, probability),),
        waits=True,
    ),
    Case(
        "mask_hits of a tensor",
        {"kept": pixels(30, 20)},
        lambda kept: (mask_hits(kept, (40, 70), (5, 9)),),
    ),
    Case(
        "mask_hits of a list",
        {"first": pixels(1, 60)[0], "second": pixels(2, 70)[1]},
        lambda first, second: (mask_hits([first, second], (40, 70), (5, 9)),),
    ),
    Case(
        "mask_hits of masks",
        {"masks": noise(30, 40, 70) > 0.98},
        lambda masks: (mask_hits(masks, (40, 70), (5, 9)),),
    ),
    Case(
        "paste_patch",
        {
            "images": IMAGES,
            "patch": PATCH,
            "top_left": PLACES,
            "angle": torch.tensor([20.0, -50.0]),
            "upstream": noise(2, 3, 40, 70, seed=5),
        },
        with_gradients(paste_patch, "images", "patch"),
        waits=True,
        options=ROUGHLY,
    ),
    Case(
        "density_map",
        {"points": POINTS, "sigma": noise(50) + 2.0},
        lambda points, sigma: (density_map(points, sigma, (60, 60)),),
        waits=True,
        options=ROUGHLY,
    ),
    Case(
        "adaptive_sigma", {"points": POINTS}, lambda points: (adaptive_sigma(points),), waits=True
    ),
]
QUEUED = [case for case in CASES if not case.waits]
EXACT_ON_CUDA = (
    "ablate",
    "keep_windows",
    "adaptive_sigma",
    "deform_conv",
)  # beside those exact everywhere


def named(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def moved(inputs: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in inputs.items()}


def expected_of(case: Case, device: torch.device) -> Results:
    """What the CPU gives: the twin for the CPU itself."""
    with reference() if device.type == "cpu" else contextlib.nullcontext():
        return case.run(**case.inputs)


def check(case: Case, got: Results, device: torch.device) -> None:
    expected = expected_of(case, device)
    for result, wanted in zip(got, expected, strict=True):
        assert result.device.type == device.type
        torch.testing.assert_close(result.detach().cpu(), wanted.detach(), **case.options)
    if device.type == "cuda" and case.name.startswith(EXACT_ON_CUDA):
        pairs = zip(got, expected, strict=True)
        assert all(same_bits(result, wanted) for result, wanted in pairs)


@contextlib.contextmanager
def refusing_to_wait(device: torch.device) -> Iterator[None]:
    if device.type == "cpu":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextlib.contextmanager
def busy_stream(device: torch.device) -> Iterator[None]:
    """A stream that what is queued inside runs on, behind a kernel of about 0.1 s."""
    if device.type == "cpu":
        yield
        return
    torch.cuda.synchronize(device)
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # cycles
        yield
    stream.synchronize()


@named(CASES)
def test_results_and_gradients_are_those_of_the_cpu(case: Case, device: torch.device) -> None:
    check(case, case.run(**moved(case.inputs, device)), device)


@named(QUEUED)
def test_nothing_waits_for_the_device(case: Case, device: torch.device) -> None:
    inputs = moved(case.inputs, device)
    with refusing_to_wait(device):
        got = case.run(**inputs)
    check(case, got, device)


def test_waiting_would_be_noticed(device: torch.device) -> None:
    if device.type == "cpu":
        pytest.skip("there is nothing to wait for")
    with refusing_to_wait(device), pytest.raises(RuntimeError, match="synchroniz"):
        torch.ones(1, device=device).item()


@named(CASES)
def test_it_runs_on_the_current_stream(case: Case, device: torch.device) -> None:
    """What it reads is written just before, by what is queued on the same stream."""
    right = moved(case.inputs, device)
    inputs = {name: torch.ones_like(value) for name, value in right.items()}
    stale = [result.cpu() for result in case.run(**inputs)]
    with busy_stream(device):
        for name, value in inputs.items():
            value.copy_(right[name])
        got = case.run(**inputs)
    check(case, got, device)
    differ = [not torch.equal(a, b.cpu()) for a, b in zip(stale, got, strict=True)]
    assert all(differ), "read too early, the inputs would give the same"


@pytest.mark.parametrize("share", [0.01, 0.9])
def test_indices_are_drawn_on_the_current_stream(share: float, device: torch.device) -> None:
    """Their memory was written just before, so that a kernel on another stream comes too early."""
    k = int(share * 10**6)
    with busy_stream(device):
        torch.full((k,), -1, device=device)  # the allocator gives this memory out again
        with refusing_to_wait(device):
            got = ablation_indices(10**6, k, seed=1, draw=2, device=device)
    with reference() if device.type == "cpu" else contextlib.nullcontext():
        expected = ablation_indices(10**6, k, seed=1, draw=2)
    assert torch.equal(got.cpu(), expected)
