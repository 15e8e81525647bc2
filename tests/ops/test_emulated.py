"""The CUDA kernels on the CPU, in a build with PYCC_CUDA=HOST: the same bits as the CPU kernels.

Threads and blocks come in random order, grids are capped, and shared memory holds junk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from pycc import ops
from pycc.ops import _native
from pycc.ops.keep_windows import keep_windows
from pycc.random import Stream

pytestmark = pytest.mark.skipif(
    not hasattr(_native._loaded.module, "emulate"), reason="built without PYCC_CUDA=HOST"
)

SEEDS = [(0, 0), (1, 0), (2, 1), (3, 3)]
"""Seeds of the emulation, and the most blocks along an axis of a grid; 0 is no limit."""


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(Stream(seed, "emulated").uniform(size=shape)).float()


def whole(*shape: int, end: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(Stream(seed, "emulated places").integers(end, shape))


def forward_and_backward(
    op: Callable[..., Tensor], *inputs: Tensor, **options: object
) -> tuple[Tensor, ...]:
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    with torch.enable_grad():
        result = op(*leaves, **options)
        result.backward(noise(*result.shape, seed=9))
    return (result.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None))


def ablated() -> tuple[Tensor, ...]:
    many = forward_and_backward(ops.ablate, noise(2, 3, 13, 21), k=100, seed=4, fill=0.5, draws=3)
    elements = ops.ablate(noise(1, 3, 9, 10), 200, seed=1, fill=0.1, unit="element")
    return (*many, elements, ops.ablation_indices(1500, 1400, seed=2))


def sigmas() -> tuple[Tensor, ...]:
    points = 100 * noise(600, 2).double()
    return (ops.adaptive_sigma(points), ops.adaptive_sigma(points[:5], neighbours=8))


def deformed() -> tuple[Tensor, ...]:
    x, offset = noise(2, 37, 6, 7), 6 * noise(2, 18, 6, 7, seed=1) - 3
    return forward_and_backward(ops.deform_conv, x, offset, noise(5, 37, 3, 3, seed=2))


def densities() -> tuple[Tensor, ...]:
    points = torch.tensor([90.0, 75.0]) * noise(300, 2).double()
    sigma = 1 + 8 * noise(300, seed=1).double()
    return tuple(
        ops.density_map(points, width, (75, 90), boundary=boundary, stride=stride)
        for width, boundary, stride in ((sigma, "reflect", 1), (4.0, "clip", 4),
                                        (sigma, "renormalize", 2))
    )  # fmt: skip


def kept() -> tuple[Tensor, ...]:
    places = whole(300, 2, end=40)
    wide = forward_and_backward(
        lambda images: keep_windows(images, places[:5], (7, 9), fill=0.5), noise(2, 3, 21, 36)
    )
    odd = forward_and_backward(
        lambda images: keep_windows(images, places, (3, 9), fill=0.5), noise(1, 1, 9, 35)
    )
    return wide + odd


def probabilities() -> tuple[Tensor, ...]:
    n = torch.arange(400)
    return tuple(
        log(1000, n, 300, rounding=rounding)
        for log in (ops.log_probability_untouched, ops.log_probability_inside)
        for rounding in ("down", "nearest", "up")
    )


def hits() -> tuple[Tensor, ...]:
    sets = [whole(40, end=33 * 70, seed=seed) for seed in range(9)]
    masks = noise(9, 33, 70) > 0.97
    return tuple(ops.mask_hits(given, (33, 70), (5, 6)) for given in (sets, masks))


def window_sums() -> tuple[Tensor, ...]:
    maps = noise(2, 23, 41)
    wide = noise(1, 5, 3300)  # beyond shared memory
    return (
        *ops.max_window_sum(maps, (5, 8)), *ops.max_window_sum(maps, (7, 11)),
        *ops.max_window_sum(wide, (3, 77)), *ops.max_pair_sum(maps, (5, 8), 3.0),
    )  # fmt: skip


def pairs() -> tuple[Tensor, ...]:
    generator = Stream(3, "emulated pairs")
    rows, columns, high, wide = 9, 11, 6, 7
    cells = torch.from_numpy(generator.integers(2**40, (28, 30)))
    table = torch.nn.functional.pad(cells.cumsum(0).cumsum(1), (1, 0, 1, 0))

    def spans(count: int) -> Tensor:
        numbers = torch.from_numpy(generator.integers(3, (count, count)))
        apart = (torch.arange(count)[:, None] - torch.arange(count)).abs() > 4
        return torch.where(apart, -1, numbers)

    guesses = torch.from_numpy(generator.integers(2**40, (rows, 3, columns, 3)))
    starts = 2 * torch.arange(rows), 2 * torch.arange(columns)
    problem = ops.WindowPairs(table, guesses, *starts, spans(rows), spans(columns), (high, wide))
    return tuple(ops.pair_extremes(problem))


def pasted() -> tuple[Tensor, ...]:
    images, patch, places = noise(3, 3, 31, 40), noise(3, 9, 12, seed=1), whole(3, 2, end=30)
    angle = torch.tensor([0.0, 0.7, -2.0])
    shared = forward_and_backward(
        lambda images, patch: ops.paste_patch(
            images, patch, top_left=places, angle=angle, zoom=1.3, brightness=0.1
        ),
        images, patch,
    )  # fmt: skip
    own = forward_and_backward(
        lambda images, patch: ops.paste_patch(
            images, patch, top_left=places, sampling="nested", angle=angle, zoom=0.8,
            mask=noise(9, 12) > 0.2,
        ),
        images, noise(3, 3, 9, 12, seed=2),
    )  # fmt: skip
    return shared + own


def overlaps() -> tuple[Tensor, ...]:
    a, b = noise(3, 2003), (noise(3, 2003, seed=1) * 6).floor()
    return tuple(ops.topk_overlap(a, b, k) for k in (1, 45, 2003))


CASES = [
    ablated, sigmas, deformed, densities, kept, probabilities, hits, window_sums, pairs, pasted,
    overlaps,
]  # fmt: skip


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, int], None]]:
    """Run CUDA kernels on the CPU from now on, in an order and with a limit of blocks."""
    emulate = _native.module().emulate

    def start(seed: int, most_blocks: int) -> None:
        monkeypatch.setattr(_native, "_emulated", True)
        emulate(seed, most_blocks)

    monkeypatch.setattr(_native, "_emulated", False)
    yield start
    emulate(0, 0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_cuda_kernels_give_the_bits_of_the_cpu_kernels(
    case: Callable[[], tuple[Tensor, ...]], emulated: Callable[[int, int], None]
) -> None:
    expected = case()
    for seed, most_blocks in SEEDS:
        emulated(seed, most_blocks)
        for number, (got, wanted) in enumerate(zip(case(), expected, strict=True)):
            assert got.dtype == wanted.dtype
            if case is densities:  # promised to 1e-6, the others to the bit
                assert torch.allclose(got, wanted, rtol=1e-6, atol=1e-9), (number, seed)
            else:
                assert torch.equal(got, wanted), (number, seed, int((got != wanted).sum()))


def test_a_kernel_that_needs_too_much_shared_memory_is_refused(
    emulated: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    emulated(0, 0)
    monkeypatch.setattr(_native.module(), "max_shared_width", 10**6)  # the wide map's rows too
    with pytest.raises(RuntimeError, match=r"max_window_sum rows: .* at most 49152"):
        ops.max_window_sum(noise(1, 5, 3300), (3, 77))
