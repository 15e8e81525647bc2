from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pycc.attack import patch as patches


@pytest.mark.parametrize(
    ("side", "pixels"), [(20, 197), (33, 613), (64, 2821), (81, 4513), (163, 19577)]
)
def test_published_discs(side: int, pixels: int) -> None:
    assert int(patches.disc(side).sum()) == pixels


def test_a_disc_of_nothing_is_refused() -> None:
    assert int(patches.disc(4).sum()) == 1
    with pytest.raises(ValueError, match="at least 4 pixels, got 3"):
        patches.disc(3)


def test_published_sizes() -> None:
    assert [patches.side_in_pixels(s, 1024) for s in (0.02, 0.04, 0.08, 0.16)] == [20, 40, 81, 163]
    assert patches.side_in_pixels(163, 300) == 163
    assert patches.side_in_pixels(0.29, 100) == 29, "0.29 * 100 is below 29 in floating point"


def test_centre() -> None:
    assert patches.centre((480, 640), 102) == (189, 269)


def test_anywhere_reaches_every_place_and_no_other() -> None:
    places = {patches.anywhere((5, 4), 3, seed=1, image=i) for i in range(200)}
    assert places == {(y, x) for y in range(3) for x in range(2)}
    assert patches.anywhere((3, 3), 3, seed=1, image=0) == (0, 0)


def test_noise_is_keyed() -> None:
    def noise(seed: int, purpose: str, image: int) -> torch.Tensor:
        return patches.noise(12, seed=seed, purpose=purpose, image=image)

    first = noise(0, "init", 3)
    assert first.shape == (3, 12, 12)
    assert torch.equal(first, noise(0, "init", 3))
    for other in (noise(1, "init", 3), noise(0, "noise", 3), noise(0, "init", 4)):
        assert not torch.equal(first, other)
    assert 0 <= float(first.min()) < 0.1 < 0.9 < float(first.max()) < 1


def test_beta_makes_noise_smooth() -> None:
    mask = torch.ones(40, 40)
    rough, smooth = (
        patches.noise(40, seed=0, purpose="init", image=0, beta=beta)[None] for beta in (1.0, 0.25)
    )
    assert smooth.shape == rough.shape
    assert float(patches.roughness(smooth, mask)) < 0.2 * float(patches.roughness(rough, mask))
    constant = patches.noise(40, seed=0, purpose="init", image=0, beta=0.01)[None]
    assert float(patches.roughness(constant, mask)) < 1e-9


@settings(max_examples=30)
@given(st.integers(4, 12), st.sampled_from(patches.shapes.names()), st.integers(0, 99))
def test_roughness_by_definition(side: int, shape: str, seed: int) -> None:
    patch = torch.from_numpy(patches.Stream(seed, "test").uniform(size=(2, 3, side, side)))
    mask = patches.shapes[shape](side)
    expected = torch.zeros(2, dtype=torch.float64)
    for y in range(side):
        for x in range(side):
            for v, u in ((y + 1, x), (y, x + 1)):
                if v < side and u < side and mask[y, x] and mask[v, u]:
                    expected += ((patch[:, :, y, x] - patch[:, :, v, u]) ** 2).sum(1)
    assert torch.allclose(patches.roughness(patch, mask), expected)


def test_roughness_ignores_what_is_outside_the_mask() -> None:
    mask = patches.disc(20)
    patch = torch.where(mask > 0, 0.5, torch.rand(1, 3, 20, 20))
    assert float(patches.roughness(patch, mask)) == 0
