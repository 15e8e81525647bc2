"""Masked counts and bounds: what every patch is promised, tried with many contaminations."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from support.tensors import noise
from torch import Tensor

from pycc.defense.capping import Caps, additive_bounds, capped_maps
from pycc.defense.masking import masked_bounds, masked_maps
from pycc.defense.windows import check_maps, window_of, window_sums
from pycc.ops import max_pair_sum

SHAPE = (9, 12)
WINDOWS = [(3, 4), (5, 5), (1, 1), (1, 12), (6, 8), (9, 12)]
SHARES = [0.0, 0.3, 0.9, 1.5, 8.0]
TRIALS = 240
"""Of each kind, window, allowance and map: 5 x 6 x 5 x 3 x 240 = 108,000 in all."""
NEAR = 1e-6


def base(kind: int) -> Tensor:
    """[h,w] float32: noise, a few heads, and heads on one side."""
    cells = noise(*SHAPE, seed=kind)
    if kind == 1:
        cells = torch.where(cells > 0.9, cells, 0.0)
    if kind == 2:
        cells = cells**6 * torch.linspace(0.0, 3.0, SHAPE[1])
    return cells


def allowance_of(maps: Tensor, window: tuple[int, int], share: float) -> float:
    return share * float(window_sums(maps, window).max())


def inside(places: Tensor, window: tuple[int, int]) -> Tensor:
    """[T,h,w] bool: the cells of the windows at places [T,2]."""
    rows, cols = torch.arange(SHAPE[0])[:, None], torch.arange(SHAPE[1])
    top, left = places[:, 0, None, None], places[:, 1, None, None]
    down = (rows >= top) & (rows < top + window[0])
    return down & (cols >= left) & (cols < left + window[1])


def random_places(count: int, window: tuple[int, int], seed: int) -> Tensor:
    room = torch.tensor([n - m + 1 for n, m in zip(SHAPE, window, strict=True)])
    return (noise(count, 2, seed=seed).double() * room).long()


def beside_the_next_fullest(cells: Tensor, window: tuple[int, int], hit: Tensor) -> Tensor:
    """[T,h,w] bool: the attacked cells in the fullest window of what is left; where it has none,
    the attacked cell that is next to it."""
    left = torch.where(hit, 0.0, cells.double())
    sums = window_sums(left, window)
    place = sums.flatten(1).argmax(1)
    corner = torch.stack((place // sums.shape[2], place % sums.shape[2]), 1)
    shared = hit & inside(corner, window)
    rows, cols = torch.arange(SHAPE[0])[:, None], torch.arange(SHAPE[1])
    y, x = corner[:, 0, None, None], corner[:, 1, None, None]
    away = torch.where(hit, (rows - y).abs() + (cols - x).abs(), 10**6)
    nearest = away == away.amin((1, 2), keepdim=True)
    return torch.where(shared.any(2).any(1)[:, None, None], shared, nearest)


def contaminated(
    cells: Tensor, window: tuple[int, int], kind: str, scale: float, seed: int
) -> Tensor:
    """[TRIALS,h,w] float64: other cells, none negative, in one random window of each."""
    hit = inside(random_places(TRIALS, window, seed), window)
    content = noise(TRIALS, *SHAPE, seed=seed + 1).double()
    strength = 4.0 * noise(TRIALS, 1, 1, seed=seed + 2).double() ** 2
    if kind == "erased":
        content = torch.zeros_like(content)
    if kind == "random":  # about as much as an allowance in all
        content = content * strength * 2.0 * (scale + 0.1) / (window[0] * window[1])
    if kind == "sparse":
        content = torch.where(content > 0.8, content * strength, 0.0)
    if kind == "spike":
        sum_of_each = (content * hit).amax((1, 2), keepdim=True)
        content = torch.where(content == sum_of_each, 1e4 * strength, 0.0)
    if kind == "overlapping":
        some = beside_the_next_fullest(cells, window, hit)
        spread = some.sum((1, 2), keepdim=True)
        content = some * strength * (scale + 0.1) / spread
    return torch.where(hit, content, cells.double())


def masked_count(maps: Tensor, window: tuple[int, int], allowance: float) -> Tensor:
    return masked_maps(maps, window, allowance).double().sum((1, 2))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("share", [*SHARES, math.inf])
def test_a_masked_map_sums_to_the_masked_count(window, share: float) -> None:
    maps = torch.stack([base(kind) for kind in range(3)]).double()
    allowance = math.inf if share == math.inf else allowance_of(maps, window, share)
    most = window_sums(maps, window).amax((1, 2))
    expected = maps.sum((1, 2)) - (most - allowance).clamp(min=0.0)
    got = masked_maps(maps, window, allowance)
    torch.testing.assert_close(got.sum((1, 2)), expected, rtol=1e-12, atol=1e-12)
    assert ((got >= 0) & (got <= maps)).all()


def test_a_masked_map_is_differentiable() -> None:
    # Without ties: the fullest window stays the same under small changes.
    maps = torch.stack([base(0), base(2)]).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: masked_maps(x, (3, 4), 1.5), maps)
    # A cell of the masked window counts no more: the count is S - S_W + allowance.
    count = masked_maps(maps[:1], (3, 4), 0.5).sum()
    (gradient,) = torch.autograd.grad(count, maps)
    sums = window_sums(maps[:1], (3, 4))
    place = int(sums.argmax())
    corner = torch.tensor([[place // sums.shape[2], place % sums.shape[2]]])
    expected = (~inside(corner, (3, 4))).double()[0]
    torch.testing.assert_close(gradient[0], expected, rtol=0.0, atol=1e-12)
    nothing = torch.zeros(1, *SHAPE, requires_grad=True)
    masked_maps(nothing, (3, 4), 0.0).sum().backward()
    assert nothing.grad is not None
    assert nothing.grad.isfinite().all()


KINDS = ["erased", "random", "sparse", "spike", "overlapping"]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_contamination_leaves_the_bounds_of_masking(kind: str, window) -> None:
    for seed, (number, share) in enumerate(itertools.product(range(3), SHARES)):
        cells = base(number)
        allowance = allowance_of(cells[None], window, share)
        bounds = masked_bounds(cells[None], window, allowance)
        attacked = contaminated(cells, window, kind, allowance, 10 * seed)
        assert (attacked >= 0).all()
        count = masked_count(attacked, window, allowance)
        room = NEAR * float(attacked.sum((1, 2)).max())
        assert (count >= bounds.low - room).all()
        assert (count <= bounds.high + room).all()


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("share", SHARES)
def test_erasing_one_window_attains_the_lower_bound(window, share: float) -> None:
    maps = torch.stack([base(kind) for kind in range(3)])
    allowance = allowance_of(maps, window, share)
    _, places = max_pair_sum(maps, window, allowance)
    erased = torch.where(inside(places[:, 0], window), 0.0, maps.double())
    low = masked_bounds(maps, window, allowance).low
    torch.testing.assert_close(masked_count(erased, window, allowance), low, rtol=0.0, atol=NEAR)


def test_the_upper_bound_of_masking_is_attained() -> None:
    """In the emptiest window the attacker holds what the allowance leaves him, and nobody else."""
    maps = torch.zeros(1, *SHAPE)
    maps[0, 0, 0] = 1.0
    for allowance in (1.0, 2.5):
        attacked = maps.double().clone()
        attacked[0, 6, 6] = 100.0
        high = masked_bounds(maps, (3, 4), allowance).high
        count = masked_count(attacked, (3, 4), allowance)
        torch.testing.assert_close(count, high, rtol=0.0, atol=1e-9)


def test_bounds_of_masking_refuse_what_they_do_not_hold_for() -> None:
    with pytest.raises(ValueError, match="maps must be finite and at least 0"):
        masked_bounds(torch.full((1, 4, 5), -0.1), (2, 2), 0.0)
    with pytest.raises(ValueError, match="allowance must be within"):
        masked_bounds(torch.ones(1, 4, 5), (2, 2), -1.0)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("share", [0.3, 0.9, 8.0])
def test_gradients_of_bounds_are_those_of_the_windows_that_attain_them(window, share) -> None:
    """The values are the same bits as without gradients; a lower bound of 0 has none."""
    maps = torch.stack([base(0), base(2)]).requires_grad_()
    allowance = allowance_of(maps.detach(), window, share)
    bounds = masked_bounds(maps, window, allowance)
    plain = masked_bounds(maps.detach(), window, allowance)
    assert torch.equal(bounds.low, plain.low)
    assert torch.equal(bounds.high, plain.high)
    assert not plain.low.requires_grad
    (low,) = torch.autograd.grad(bounds.low.sum(), maps)
    (high,) = torch.autograd.grad(bounds.high.sum(), maps)
    # Both are sums of the cells that are kept, up to a constant.
    assert {*low.unique().tolist(), *high.unique().tolist()} <= {0.0, 1.0}
    kept = (low * maps.detach()).double().sum((1, 2))
    excess = kept - plain.low  # what the allowance leaves of the second window
    alone = (excess.abs() < 1e-4) | (plain.low == 0)
    assert (alone | ((excess + allowance).abs() < 1e-4)).all()
    expected = (high * maps.detach()).double().sum((1, 2)) + allowance
    torch.testing.assert_close(expected, plain.high, rtol=1e-6, atol=1e-6)
    assert low[plain.low == 0].abs().sum() == 0


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("patches", [1, 2])
def test_no_contamination_leaves_the_bounds_of_capped_counts(window, patches: int) -> None:
    for number in range(3):
        caps = base(number) + 0.5 * noise(*SHAPE, seed=9)  # each cell has its own
        cells = base(number)
        bounds = additive_bounds(cells[None], window, Caps(caps), patches=patches)
        for seed in range(5):
            attacked = cells.double().expand(TRIALS, *SHAPE)
            for patch in range(patches):
                hit = inside(random_places(TRIALS, window, 10 * seed + patch), window)
                share = noise(TRIALS, *SHAPE, seed=10 * seed + patch + 5).double()
                ends = noise(TRIALS, 1, 1, seed=seed)
                share = torch.where(ends < 0.3, 0.0, torch.where(ends > 0.7, 1.0, share))
                attacked = torch.where(hit, share * caps, attacked)
            count = attacked.sum((1, 2))
            assert (count >= bounds.low - NEAR).all()
            assert (count <= bounds.high + NEAR).all()


@pytest.mark.parametrize("window", WINDOWS)
def test_bounds_of_capped_counts_are_attained(window) -> None:
    maps = torch.stack([base(kind) for kind in range(3)])
    low, high = (
        getattr(additive_bounds(maps, window, Caps(3.5)), side).tolist() for side in ("low", "high")
    )
    corners = itertools.product(*(range(n - m + 1) for n, m in zip(SHAPE, window, strict=True)))
    hit = inside(torch.tensor(list(corners)), window)
    for n, cells in enumerate(maps.double()):
        assert low[n] == pytest.approx(float(torch.where(hit, 0.0, cells).sum((1, 2)).min()))
        assert high[n] == pytest.approx(float(torch.where(hit, 3.5, cells).sum((1, 2)).max()))


@pytest.mark.parametrize("side", [1, 2, 3, 7])
def test_blocks_that_hold_their_caps_bound_from_above_and_below(side: int) -> None:
    """Of blocks by hand, for every window, all that the bounds allow for; and one that attains it.

    Where cells have no caps of their own, a patch fills every block that it meets.
    """
    caps = Caps(None, 1.0, side)
    cells = 0.6 * base(0)
    kept = capped_maps(cells[None], caps)[0].double()
    window = WINDOWS[1]
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in SHAPE), indexing="ij")
    block = rows // side * 1000 + columns // side
    sums = {int(b): float(kept[block == b].sum()) for b in block.unique()}
    assert all(result <= 1.0 + 1e-5 for result in sums.values())
    assert side == 1 or max(sums.values()) > 0.99
    gained, lost = [], []
    for y in range(SHAPE[0] - window[0] + 1):
        for x in range(SHAPE[1] - window[1] + 1):
            inside_window = (slice(y, y + window[0]), slice(x, x + window[1]))
            met = {int(b) for b in block[inside_window].unique()}
            gained.append(sum(1.0 - sums[b] for b in met))
            lost.append(min(float(cells[inside_window].sum()), sum(sums[b] for b in met)))
    bounds = additive_bounds(cells[None], window, caps)
    total = float(kept.sum())
    assert float(bounds.high[0]) == pytest.approx(total + max(gained), rel=1e-6)
    assert float(bounds.low[0]) == pytest.approx(max(0.0, total - max(lost)), rel=1e-6, abs=1e-5)


@pytest.mark.parametrize("patches", [1, 2])
def test_no_contamination_leaves_the_bounds_of_capped_blocks(patches: int) -> None:
    for number in range(3):
        cells = base(number)
        for side, block in ((3, 4.0), (4, 1.0), (2, 100.0)):
            for cell in (None, 1.2, base(number) + 0.5 * noise(*SHAPE, seed=9)):
                caps = Caps(cell, block, side)
                window = WINDOWS[number % len(WINDOWS)]
                bounds = additive_bounds(cells[None], window, caps, patches=patches)
                attacked = cells.expand(TRIALS, *SHAPE)
                for patch in range(patches):
                    hit = inside(random_places(TRIALS, window, 10 * number + patch), window)
                    ends = noise(TRIALS, 1, 1, seed=number + patch)
                    content = 3 * noise(TRIALS, *SHAPE, seed=10 * number + patch)
                    content = torch.where(ends < 0.3, 0.0, torch.where(ends > 0.7, 9.0, content))
                    attacked = torch.where(hit, content, attacked)
                count = capped_maps(attacked, caps).double().sum((1, 2))
                assert (count >= bounds.low - 1e-4).all()
                assert (count <= bounds.high + 1e-4).all()


@pytest.mark.parametrize("window", WINDOWS)
def test_window_sums_are_those_of_pooling(window) -> None:
    maps = torch.stack([base(kind) for kind in range(3)])
    expected = F.avg_pool2d(maps.double()[:, None], window, 1, divisor_override=1)[:, 0]
    torch.testing.assert_close(window_sums(maps, window), expected, rtol=1e-12, atol=1e-12)


def touched(first: int, patch: int, stride: int, field: int, rim: int, cells: int) -> list[int]:
    """The cells of an axis whose field has a pixel of the patch, one by one."""
    pixels = set(range(first, first + patch))
    seen = (range(i * stride - rim, i * stride - rim + field) for i in range(cells))
    return [i for i, field_of in enumerate(seen) if pixels & set(field_of)]


@pytest.mark.parametrize("stride", [1, 2, 3, 8])
@pytest.mark.parametrize("field", [1, 4, 8, 9, 21, 36])
@pytest.mark.parametrize("patch", [1, 2, 7, 16, 30])
def test_what_a_patch_touches_fits_into_the_window(patch: int, field: int, stride: int) -> None:
    counter = SimpleNamespace(stride=stride, receptive_field=field)
    shape = (64, 90)
    for up in (0, 1):  # maps that leave out a rest of the image, or that count it as a cell
        cells = tuple((size + up * (stride - 1)) // stride for size in shape)
        window = window_of(counter, patch, shape, cells)
        seen = max(field, stride)  # a cell answers for its own pixels at least
        for axis, rim in itertools.product(
            (0, 1), {(seen - stride) // 2, (seen - stride + 1) // 2}
        ):
            spans = [0]
            for first in range(shape[axis] - patch + 1):
                hit = touched(first, patch, stride, seen, rim, cells[axis])
                if hit:
                    spans.append(hit[-1] - hit[0] + 1)
            assert max(spans) <= window[axis]
            if (seen - stride) % 2 == 0 and axis == 1:
                assert max(spans) == window[axis]  # no window would do that is smaller


@pytest.mark.parametrize(
    ("field", "patch", "message"),
    [
        (None, 8, "must have a bounded receptive field, got none"),
        (9, 65, "must fit into the image of 64x90, got 65"),
        (9, 0, "at least 1, got 0"),
        (9, True, "a whole number, got True"),
        (9, 8.0, r"a whole number, got 8\.0"),
    ],
)
def test_no_window_holds_what_has_no_bound(field, patch, message: str) -> None:
    counter = SimpleNamespace(stride=8, receptive_field=field)
    with pytest.raises((TypeError, ValueError), match=f"certify: .*{message}"):
        window_of(counter, patch, (64, 90), (8, 11))


@pytest.mark.parametrize("cell", [-0.25, math.nan, math.inf])
def test_maps_with_other_than_people_are_refused(cell: float) -> None:
    density = noise(2, 1, 4, 5)
    assert torch.equal(check_maps("certify", density), density[:, 0])
    density[1, 0, 2, 3] = cell
    with pytest.raises(ValueError, match=r"certify: .*must (not be negative|be finite)"):
        check_maps("certify", density)
