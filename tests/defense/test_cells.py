"""Clamped cells and the masked window."""

from __future__ import annotations

import pytest
import torch
from support.toys import Plain, Signed, Tiny, Whole, pictures
from torch import Tensor

from pycc.defense import clipped, masked, tiled
from pycc.local import Box, Local


def test_clipped_to_zero_and_above() -> None:
    images = pictures(number=3)
    with torch.no_grad():
        raw = Signed()(images)
        assert float(raw.min()) < 0
        reduced = clipped(Signed())(images)
        assert torch.equal(reduced, raw.clamp(min=0))
        cap = float(raw.max()) / 2
        capped = clipped(Signed(), caps=cap)(images)
        assert torch.equal(capped, raw.clamp(0, cap))
        assert float(capped.max()) == pytest.approx(cap)
    assert clipped(Signed()).stride == 2
    assert clipped(Signed()).receptive_field == 8
    assert clipped(Whole()).receptive_field is None


@pytest.mark.parametrize("caps", [0.1, 0.2, 0.3])
def test_rounding_does_not_exceed_caps(caps: float) -> None:
    """The float32 next to each lies above."""
    with torch.no_grad():
        most = float(clipped(flat(2.0), caps)(pictures()).max())
    assert caps * (1 - 2e-7) < most <= caps


def flat(value: float) -> Plain:
    """A counter of equal cells."""

    class Flat(Plain):
        def __call__(self, images: Tensor) -> Tensor:
            return super().__call__(images) * 0 + value

    return Flat()


@pytest.mark.parametrize("caps", [0.0, -1.0, float("inf"), float("nan")])
def test_bad_caps(caps: float) -> None:
    with pytest.raises(ValueError, match="caps: must be a number of people above 0, or None, got"):
        clipped(Tiny(), caps)


def test_caps_for_each_cell_and_for_blocks() -> None:
    images = pictures((20, 24), 2)
    with torch.no_grad():
        raw = Signed()(images)
        caps = torch.rand(raw.shape[2:], generator=torch.Generator().manual_seed(1)) + 0.01
        reduced = clipped(Signed(), caps)(images)
        assert torch.equal(reduced, torch.minimum(raw.clamp(min=0), caps))
        cap = float(clipped(Signed())(images).sum()) / 200
        blocks = clipped(Signed(), block_cap=cap, block=4)(images)
        kept = raw.clamp(min=0)
        for y in range(0, raw.shape[2], 4):
            for x in range(0, raw.shape[3], 4):
                part = (..., slice(y, y + 4), slice(x, x + 4))
                wanted = kept[part].sum((1, 2, 3)).clamp(max=cap)
                torch.testing.assert_close(blocks[part].sum((1, 2, 3)), wanted)
        assert float(blocks.sum()) < 0.9 * float(kept.sum())
    # Counted elsewhere, a window meets other caps: no field is promised.
    assert clipped(Signed(), caps).receptive_field is None
    assert clipped(Signed(), block_cap=1.0).receptive_field is None
    with pytest.raises(ValueError, match="expected maps of 10x12 cells, got 10x10"):
        clipped(Signed(), caps)(pictures((20, 20)))


@pytest.mark.parametrize(
    ("caps", "options", "error", "message"),
    [
        (torch.zeros(3, 4), {}, ValueError, "above 0, finite, in every cell"),
        (torch.ones(3), {}, ValueError, r"numbers \[h,w\], got torch.float32 \[3\]"),
        (torch.ones(3, 4, dtype=torch.int64), {}, ValueError, "got torch.int64"),
        (None, {"block_cap": 0.0}, ValueError, "that of a block must be a number of people"),
        (
            None,
            {"block_cap": 1.0, "block": 0},
            ValueError,
            "side of a block must be at least 1, got 0",
        ),
        (None, {"block_cap": 1.0, "block": 2.5}, TypeError, "must be a whole number, got 2.5"),
    ],
)
def test_bad_caps_of_cells_and_blocks(caps, options, error, message: str) -> None:
    with pytest.raises(error, match=message):
        clipped(Tiny(), caps, **options)


def test_counters_that_differ_in_one_cap_differ() -> None:
    caps = torch.ones(100, 100)
    other = caps.clone()
    other[50, 50] = 2.0
    assert repr(clipped(Tiny(), caps).defense) == repr(clipped(Tiny(), caps.clone()).defense)
    assert repr(clipped(Tiny(), caps).defense) != repr(clipped(Tiny(), other).defense)


@pytest.mark.parametrize("allowance", [0.0, 0.5, 1e6])
@pytest.mark.parametrize("shape", [(20, 24), (41, 33)])
def test_masked_sum(shape: tuple[int, int], allowance: float) -> None:
    """Windows by hand: a patch of 5 pixels touches (5 + 2 + 2 * 3 - 1) / 2 = 6 cells of an axis."""
    images = pictures(shape, 3)
    with torch.no_grad():
        maps = Tiny()(images).double()
        reduced = masked(Tiny(), patch_size=5, allowance=allowance)(images).double()
    fullest = torch.tensor(
        [
            max(
                float(density[0, y : y + 6, x : x + 6].sum())
                for y in range(density.shape[1] - 5)
                for x in range(density.shape[2] - 5)
            )
            for density in maps
        ]
    )
    wanted = maps.sum((1, 2, 3)) - (fullest - allowance).clamp(min=0)
    torch.testing.assert_close(reduced.sum((1, 2, 3)), wanted, rtol=1e-6, atol=0)
    changed = (reduced - maps).abs() > 1e-9
    assert bool(changed.any()) == (allowance < float(fullest.max()))
    assert bool((reduced <= maps + 1e-9).all())


def test_masked_gradient() -> None:
    image = pictures((14, 16), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(
        masked(Tiny().double(), patch_size=3, allowance=0.2), image, fast_mode=True
    )
    assert torch.autograd.gradcheck(clipped(Signed().double(), 0.1), image, fast_mode=True)


def test_masked_geometry() -> None:
    counter = masked(clipped(Signed()), patch_size=5, allowance=1.0)
    assert counter.stride == 2
    assert counter.receptive_field is None
    assert float(counter(pictures()).detach().min()) >= 0


class Unwatched(Tiny):
    """With a bounded field, and a step that hides its layers."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * float(images.detach().isfinite().all())


@pytest.mark.parametrize("inner", [Tiny, Unwatched])
def test_masked_in_an_attack(inner: type[Tiny]) -> None:
    """The map after a change of one box is that of the whole changed image."""
    counter, box = masked(inner().double(), patch_size=6, allowance=5.0), Box(30, 31, 36, 38)
    images = pictures((64, 66), 2, dtype=torch.float64)
    pixels = pictures((6, 7), 4, dtype=torch.float64, seed=4)
    changed = images.repeat_interleave(2, 0)
    changed[..., *box.slices] = pixels
    with torch.no_grad():
        local = Local(counter, images, box)
        torch.testing.assert_close(local.clean, counter(images))
        torch.testing.assert_close(local(pixels), counter(changed))


def test_masked_on_tiles() -> None:
    """A patch of 9 pixels touches two tiles of 8 an axis: all but a rest of the windows."""
    image = pictures((24, 24))
    with torch.no_grad():
        tiles = tiled(Tiny(), 8)(image)[0, 0]
        reduced = masked(tiled(Whole(), 8), patch_size=9, allowance=0.0)
        assert reduced.stride == 8
        count = float(masked(tiled(Tiny(), 8), patch_size=9, allowance=0.0)(image).sum())
    windows = [float(tiles[y : y + 2, x : x + 2].sum()) for y in (0, 1) for x in (0, 1)]
    assert count == pytest.approx(float(tiles.sum()) - max(windows), rel=1e-6)


class Broken(Tiny):
    """Whose cells are no numbers."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) * float("nan")


def test_masked_refuses() -> None:
    with pytest.raises(ValueError, match="masked: counter must have a bounded receptive field"):
        masked(Whole(), patch_size=5, allowance=1.0)
    with pytest.raises(ValueError, match=r"masked: allowance must be at least 0, got -0\.1"):
        masked(Tiny(), patch_size=5, allowance=-0.1)
    with pytest.raises(ValueError, match="masked: patch_size must be at least 1, got 0"):
        masked(Tiny(), patch_size=0, allowance=1.0)
    with pytest.raises(ValueError, match="masked: cells must not be negative, got -"):
        masked(Signed(), patch_size=5, allowance=1.0)(pictures())
    with pytest.raises(ValueError, match="masked: the counter's map must be finite, got NaN"):
        masked(Broken(), patch_size=5, allowance=1.0)(pictures())
    with pytest.raises(ValueError, match=r"masked: patch_size must fit .* 20x24, got 21"):
        masked(Plain(), patch_size=21, allowance=1.0)(pictures())
