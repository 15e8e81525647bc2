from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tensors import VIEWS, every_device, plain, views
from torch import Tensor

from pycc.ops import _native, keep_windows, mask_hits, mask_hits_reference, reference
from pycc.random import Stream

WORD_EDGES = [1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129]


def pixels(count: int, size: int, shape: tuple[int, int], *, seed: int = 0) -> Tensor:
    return torch.from_numpy(Stream(seed, "kept").integers(shape[0] * shape[1], (count, size)))


def as_masks(kept: list[Tensor], shape: tuple[int, int]) -> Tensor:
    masks = torch.zeros(len(kept), shape[0] * shape[1], dtype=torch.bool)
    for mask, indices in zip(masks, kept, strict=True):
        mask[indices] = True
    return masks.reshape(-1, *shape) if len(kept) else masks.reshape(0, *shape)


def by_hand(masks: Tensor, patch: tuple[int, int]) -> list[int]:
    """Every window of every mask, through sums over rectangles."""
    sums = np.pad(masks.numpy().cumsum(1).cumsum(2), ((0, 0), (1, 0), (1, 0)))
    (high, wide), (height, width) = patch, masks.shape[1:]
    inside = (
        sums[:, high:, wide:]
        - sums[:, : height - high + 1, wide:]
        - sums[:, high:, : width - wide + 1]
        + sums[:, : height - high + 1, : width - wide + 1]
    )
    touched = (inside > 0).sum(0)
    place = np.unravel_index(touched.argmax(), touched.shape)
    return [int(touched.max()), *(int(at) for at in place)]


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[Tensor], tuple[int, int], tuple[int, int]]:
    side = st.integers(1, 12) | st.sampled_from(WORD_EDGES)
    shape = (draw(st.integers(1, 12)), draw(side))
    if draw(st.booleans()):
        shape = (shape[1], shape[0])
    patch = tuple(draw(st.integers(1, side) | st.just(side)) for side in shape)
    count = draw(st.integers(0, 9) | st.sampled_from([15, 16, 31, 32, 33]))
    stream = Stream(draw(st.integers(0, 2**32)), "hits")
    most = draw(st.sampled_from([1, 4, 40]))
    sizes = stream.integers(most + 1, count).tolist()
    kept = [torch.from_numpy(stream.integers(shape[0] * shape[1], k)) for k in sizes]
    return kept, shape, patch


@pytest.mark.long
@settings(every_device, max_examples=200)
@given(problem=problems(), data=st.data())
def test_all_forms_count_every_window(problem, data, device: torch.device) -> None:
    sets, shape, patch = problem
    kept = [data.draw(views(pixels)) for pixels in sets]
    masks = data.draw(views(as_masks(sets, shape)))
    same_size = [row[:1] for row in sets if len(row)]
    stacked = data.draw(views(torch.stack(same_size or [torch.empty(0, dtype=torch.int64)])))
    for op in (mask_hits, mask_hits_reference):
        for form in (kept, tuple(kept)):
            there = type(form)(pixels.to(device) for pixels in form)
            expected = by_hand(as_masks([plain(pixels) for pixels in kept], shape), patch)
            assert op(there, shape, patch).tolist() == expected
        assert op(masks.to(device), shape, patch).tolist() == by_hand(plain(masks), patch)
        expected = by_hand(as_masks(list(plain(stacked)), shape), patch)
        assert op(stacked.to(device), shape, patch).tolist() == expected


OTHERS = [torch.int32, torch.int16, torch.uint8, torch.float32, torch.float64, torch.half]


@every_device
@given(problem=problems(), dtype=st.sampled_from(OTHERS), form=st.sampled_from([0, 1, 2]))
def test_other_dtypes_are_refused(problem, dtype: torch.dtype, form: int, device) -> None:
    sets, shape, patch = problem
    masks = as_masks(sets, shape).to(device, dtype)
    kept = (masks, masks.flatten(1), [masks.flatten()])[form]
    for op in (mask_hits, mask_hits_reference):
        with pytest.raises(ValueError, match=r"mask_hits: kept.* must be int64.*, got [a-z]+\d"):
            op(kept, shape, patch)


@pytest.mark.parametrize("width", WORD_EDGES)
@pytest.mark.parametrize("wide", [1, 2, 63, 64, 65, 66, 129])
def test_windows_around_the_width_of_a_word(width: int, wide: int, device: torch.device) -> None:
    shape, patch = (5, width), (2, min(wide, width))
    kept = pixels(40, 2, shape, seed=width)
    got = mask_hits(kept.to(device), shape, patch)
    assert got.tolist() == by_hand(as_masks(list(kept), shape), patch)
    assert got.dtype == torch.int64
    assert got.device.type == device.type


@pytest.mark.parametrize("count", [1, 2, 3, 6, 7, 8, 13, 14, 15, 16, 63, 64, 255, 256, 257, 1000])
def test_every_number_of_sets_can_be_counted(count: int, device: torch.device) -> None:
    """All sets hold the last pixel, all but one the first: the counters carry to the end."""
    kept = torch.tensor([[0, 34]] * (count - 1) + [[34, 34]], device=device)
    assert mask_hits(kept, (5, 7), (2, 3)).tolist() == [count, 3, 4]
    if count > 1:
        assert mask_hits(kept[:, :1].contiguous()[:-1], (5, 7), 1).tolist() == [count - 1, 0, 0]


def test_the_first_of_equal_windows_is_returned(device: torch.device) -> None:
    kept = torch.tensor([[3 * 70 + 66], [3 * 70 + 66], [70 + 69], [70 + 69]], device=device)
    assert mask_hits(kept, (6, 70), 1).tolist() == [2, 1, 69]
    assert mask_hits(kept, (6, 70), (3, 2)).tolist() == [2, 0, 68]
    assert mask_hits(kept, (6, 70), (3, 4)).tolist() == [4, 1, 66]
    assert mask_hits(kept, (6, 70), (6, 70)).tolist() == [4, 0, 0]


@pytest.mark.parametrize("patch", [1, 5, 20, 40])
@pytest.mark.parametrize("band", [1, 4, 9])
def test_bands_at_every_place(band: int, patch: int, device: torch.device) -> None:
    """A patch of side p touches p + b - 1 of the W bands of width b: the certificate's share."""
    width = 70
    places = torch.stack([torch.zeros(width, dtype=torch.int64), torch.arange(width)], dim=1)
    ones = torch.ones(1, 1, 40, width, device=device)
    bands = keep_windows(ones, places.to(device), (40, band), fill=0.0)[:, 0] > 0
    got = mask_hits(bands, (40, width), patch)
    assert got.tolist() == [min(patch + band - 1, width), 0, 0]


@pytest.mark.parametrize("patch", [(1, 1), (3, 5), (9, 11)])
def test_single_pixels_everywhere(patch: tuple[int, int], device: torch.device) -> None:
    kept = torch.randperm(9 * 11)[:, None].to(device)
    assert mask_hits(kept, (9, 11), patch).tolist() == [patch[0] * patch[1], 0, 0]


def test_nothing_is_touched_where_nothing_is_kept(device: torch.device) -> None:
    empty = torch.empty(0, dtype=torch.int64, device=device)
    for op in (mask_hits, mask_hits_reference):
        assert op([], (4, 5), 2).tolist() == [0, 0, 0]
        assert op([empty, empty], (4, 5), 2).tolist() == [0, 0, 0]
        assert op(empty.reshape(3, 0), (4, 5), (4, 5)).tolist() == [0, 0, 0]
        assert op(empty.reshape(0, 3), (4, 5), 2).tolist() == [0, 0, 0]
        assert op(torch.zeros(0, 4, 5, dtype=torch.bool, device=device), (4, 5), 2).sum() == 0
        assert op([empty, empty + 0], (4, 5), 2).device.type == device.type


@pytest.mark.long
def test_a_real_size(device: torch.device) -> None:
    shape = (768, 1024)
    kept = pixels(60, 45, shape)
    expected = by_hand(as_masks(list(kept), shape), (163, 163))
    assert mask_hits(kept.to(device), shape, 163).tolist() == expected
    assert mask_hits(as_masks(list(kept), shape).to(device), shape, 163).tolist() == expected


def test_threads_and_order_do_not_matter(with_threads) -> None:
    shape = (300, 400)
    kept, results = pixels(100, 30, shape), set()
    doubled = torch.cat([kept, kept[:, :7]], dim=1)[:, torch.randperm(37)]
    for threads in (1, 2, 3, 7):
        with_threads(threads)
        for form in (kept, doubled, kept.flip(0), list(doubled), as_masks(list(kept), shape)):
            results.add(tuple(mask_hits(form, shape, (31, 50)).tolist()))
    assert results == {tuple(by_hand(as_masks(list(kept), shape), (31, 50)))}


@pytest.mark.parametrize("view", VIEWS)
def test_views_are_read_right(view, device: torch.device) -> None:
    shape = (12, 70)
    kept = pixels(20, 6, shape).to(device)
    masks = as_masks(list(kept.cpu()), shape).to(device)
    for form in (view(kept), view(masks)):
        expected = mask_hits_reference(plain(form), shape, 4)
        assert torch.equal(mask_hits(form, shape, 4), expected)
    rows = [view(row) for row in kept]
    expected = mask_hits_reference([plain(row) for row in rows], shape, 4)
    assert torch.equal(mask_hits(rows, shape, 4), expected)


def test_batches_on_cuda(device: torch.device, monkeypatch) -> None:
    monkeypatch.setitem(mask_hits.__globals__, "_SCRATCH", 3 * 8 * 61)  # a few sets at a time
    shape = (30, 100)
    kept = [row[: m % 5] for m, row in enumerate(pixels(50, 5, shape))]
    expected = by_hand(as_masks(kept, shape), (7, 9))
    assert mask_hits([row.to(device) for row in kept], shape, (7, 9)).tolist() == expected
    assert mask_hits(as_masks(kept, shape).to(device), shape, (7, 9)).tolist() == expected


@pytest.mark.cuda
def test_cuda_skips_what_is_no_pixel() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    kept = torch.tensor([[5, -1], [20, 5], [2**63 - 1, -(2**63)]], device="cuda")
    for op in (mask_hits, mask_hits_reference):
        assert op(kept, (4, 5), 1).tolist() == [2, 1, 0]


def test_reference_runs_the_twin(monkeypatch) -> None:
    monkeypatch.setattr(_native, "kernels", {})
    with reference():
        assert mask_hits(torch.tensor([[3]]), (2, 3), 1).tolist() == [1, 1, 0]


KEPT = torch.tensor([[0, 5], [19, 3]])
MASKS = torch.zeros(2, 4, 5, dtype=torch.bool)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"kept": 3},
            TypeError,
            r"kept must be a tensor \[M,k\] int64 or \[M,H,W\] bool, or a list",
        ),
        ({"kept": KEPT.numpy()}, TypeError, "kept must be a tensor .*, got ndarray"),
        ({"kept": KEPT.int()}, ValueError, "kept must be int64 or bool, got int32"),
        ({"kept": KEPT.float()}, ValueError, "kept must be int64 or bool, got float32"),
        ({"kept": KEPT[0]}, ValueError, r"kept must be \[M,k\] int64 .*, got \[2\]"),
        ({"kept": KEPT[None]}, ValueError, r"kept must be \[M,k\] int64 .*, got \[1, 2, 2\]"),
        ({"kept": KEPT + 1}, ValueError, r"kept must be within \[0, 20\), .* got 1 to 20"),
        ({"kept": KEPT - 1}, ValueError, r"kept must be within \[0, 20\), .* got -1 to 18"),
        ({"kept": [KEPT[0], KEPT[1] + 1]}, ValueError, r"kept must be within \[0, 20\)"),
        ({"kept": KEPT.to("meta")}, ValueError, "kept must hold values"),
        ({"kept": MASKS.to("meta")}, ValueError, "kept must hold values"),
        ({"kept": MASKS[0]}, ValueError, r"kept must be \[M,4,5\] for bool masks, got \[4, 5\]"),
        (
            {"kept": MASKS.transpose(1, 2)},
            ValueError,
            r"kept must be \[M,4,5\] .*, got \[2, 5, 4\]",
        ),
        ({"kept": MASKS.byte()}, ValueError, "kept must be int64 or bool, got uint8"),
        ({"kept": [[0, 5]]}, TypeError, r"kept\[0\] must be a tensor \[k\] int64, got list"),
        ({"kept": [KEPT[0], KEPT]}, ValueError, r"kept\[1\] must be \[k\] int64, got \[2, 2\]"),
        ({"kept": [torch.tensor([])]}, ValueError, r"kept\[0\] must be int64, got float32"),
        (
            {"kept": [KEPT[0], KEPT[0].to("meta")]},
            ValueError,
            r"kept\[1\] must be on the device of kept\[0\] \(cpu\), got meta",
        ),
        ({"kept": [KEPT[0].to("meta")]}, ValueError, r"kept\[0\] must hold values"),
        ({"shape": 4}, TypeError, r"shape must be \(H, W\), got int"),
        ({"shape": (4, 5, 1)}, ValueError, r"shape must be \(H, W\), got \[4, 5, 1\]"),
        ({"shape": (0, 5)}, ValueError, r"shape must be within \[1, .*\], got 0"),
        ({"shape": (4, 2**20 + 1)}, ValueError, r"shape\[1\] must be within \[0, 1048576\]"),
        ({"shape": (2**30, 2**30)}, ValueError, r"shape\[0\] must be within \[0, 1048576\]"),
        (
            {"shape": (2**20, 2**12 + 1)},
            ValueError,
            r"shape must have at most 2\^32 pixels, got 1048576 x 4097",
        ),
        ({"shape": (4.0, 5)}, TypeError, r"shape\[0\] must be an int, got float"),
        ({"patch": 0}, ValueError, r"patch must be within \(1, 1\) and \(4, 5\), got \[0, 0\]"),
        ({"patch": 5}, ValueError, r"patch must be within \(1, 1\) and \(4, 5\), got \[5, 5\]"),
        ({"patch": (4, 6)}, ValueError, r"patch must be within .*, got \[4, 6\]"),
        ({"patch": -1}, ValueError, r"patch\[0\] must be within"),
        ({"patch": 2.0}, TypeError, r"patch\[0\] must be an int, got float"),
        ({"patch": (1, 2, 3)}, ValueError, r"patch must be p or \(ph, pw\), got \[1, 2, 3\]"),
        ({"patch": "all"}, TypeError, r"patch\[0\] must be an int, got str"),
    ],
)
@pytest.mark.parametrize("op", [mask_hits, mask_hits_reference])
def test_bad_arguments(op, change, error, message) -> None:
    arguments = {"kept": KEPT, "shape": (4, 5), "patch": 2, **change}
    with pytest.raises(error, match=f"mask_hits: {message}"):
        op(**arguments)
