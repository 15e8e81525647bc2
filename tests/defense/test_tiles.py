"""Tiles know nothing of each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.toys import Plain, Tiny, Whole, pictures

from pycc.defense import clipped, tiled
from pycc.defense.windows import window_of
from pycc.local import Box, Local, aligned, influence


@pytest.mark.parametrize("counter", [Tiny(), Plain(), Whole()], ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("shape", [(16, 24), (19, 22), (17, 41), (8, 5), (6, 30)])
def test_each_cell_is_the_count_of_its_tile(shape: tuple[int, int], counter: Any) -> None:
    images = pictures(shape, 2)
    with torch.no_grad():
        result = tiled(counter, 8)(images)
        down, across = (size // 8 + (size % 8 >= 2) for size in shape)
        assert result.shape == (2, 1, down, across)
        for n in range(2):
            for y in range(down):
                for x in range(across):
                    tile = images[n : n + 1, :, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
                    wanted = float(counter(tile).sum())
                    assert float(result[n, 0, y, x]) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("counter", [Tiny(), Whole()], ids=lambda c: type(c).__name__)
def test_a_tile_changes_its_own_cell_only(counter: Any) -> None:
    image, defended = pictures((19, 27)), tiled(counter, 8)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        before = defended(image)
        for y in range(3):
            for x in range(4):
                changed = image.clone()
                part = changed[..., 8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
                part[:] = torch.rand(part.shape, generator=generator)
                moved = (defended(changed) != before)[0, 0]
                assert moved.nonzero().tolist() == [[y, x]]


def test_a_rest_too_small_is_not_counted() -> None:
    class Demanding(Tiny):
        minimum_side = 6

    image = pictures((21, 31))  # rests of 5 and 7 pixels
    with torch.no_grad():
        result = tiled(Demanding(), 8)(image)
        assert result.shape[2:] == (2, 4)
        changed = image.clone()
        changed[:, :, 16:] = 0.0
        assert torch.equal(tiled(Demanding(), 8)(changed), result)
    with pytest.raises(ValueError, match="tiled: tile must be at least the counter's 6 pixels"):
        tiled(Demanding(), 4)
    with pytest.raises(ValueError, match="tiled: images must be at least 6x6 pixels, got 5x9"):
        tiled(clipped(Demanding()), 8)(pictures((5, 9)))


@pytest.mark.parametrize("patch", [1, 2, 8, 9, 10, 16, 17])
def test_windows_of_certificates_hold_what_a_patch_touches(patch: int) -> None:
    """ceil((p - 1) / b) + 1 tiles an axis, attained."""
    counter = tiled(Whole(), 8)
    assert counter.stride == counter.receptive_field == 8
    window = window_of(counter, patch, (64, 64), (8, 8))
    assert window == (-(-(patch - 1) // 8) + 1,) * 2
    touched = {(place + patch - 1) // 8 - place // 8 + 1 for place in range(64 - patch + 1)}
    assert max(touched) == window[0]


@pytest.mark.parametrize("box", [Box(9, 30, 13, 33), Box(0, 0, 3, 3), Box(50, 41, 51, 45)])
def test_a_window_gives_what_the_image_gives(box: Box) -> None:
    counter, image = tiled(Whole().double(), 8), pictures((51, 45), dtype=torch.float64)
    changed = aligned(box, (51, 45), 8)
    window = influence(changed, (51, 45), stride=8, receptive_field=8)
    local = Local(counter, image[..., *window.slices], changed.moved(-window.top, -window.left))
    pixels = torch.zeros(1, 3, *changed.shape, dtype=torch.float64)
    changed_image = image.clone()
    changed_image[..., *changed.slices] = pixels
    with torch.no_grad():
        wanted = counter(changed_image)
        cells = local.cells.moved(window.top // 8, window.left // 8)
        torch.testing.assert_close(local(pixels), wanted[..., *cells.slices])
        change = float((local(pixels) - local.clean).sum())
        assert change == pytest.approx(float((wanted - counter(image)).sum()), rel=1e-9)


def test_gradient() -> None:
    image = pictures((11, 13), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(tiled(Tiny().double(), 4), image, fast_mode=True)


@pytest.mark.parametrize("tile", [3, 7])
def test_tiles_off_the_stride(tile: int) -> None:
    with pytest.raises(ValueError, match="tiled: tile must be a multiple of the stride 2, got"):
        tiled(Tiny(), tile)
