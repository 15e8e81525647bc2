from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
from support.exact import ratio

from pycc.certify.laws import exposure, sampling_error
from pycc.ops import reference


@pytest.mark.parametrize("patch", [1, 20, 81, 163])
@pytest.mark.parametrize("k", [1, 45, 1000])
@pytest.mark.parametrize("patches", [1, 3])
def test_of_pixels_it_is_a_proven_upper_bound(patch: int, k: int, patches: int) -> None:
    exact = 1 - ratio(768 * 1024, patches * patch * patch, k)
    for size in ((768, 1024), 768 * 1024):
        result = Fraction(exposure(size, patch_size=patch, k=k, patches=patches))
        assert exact <= result <= exact * (1 + Fraction(1, 10**11))


def test_of_array_entries_a_patch_holds_one_a_channel() -> None:
    exact = 1 - ratio(3 * 700 * 1024, 3 * 400, 45)
    result = exposure((700, 1024), patch_size=20, k=45, channels=3)
    assert exact <= Fraction(result)
    assert result == pytest.approx(1 - 0.975194, abs=1e-6)  # Table 3 of the paper


@pytest.mark.parametrize("wrap", [True, False])
def test_of_bands_and_blocks_it_is_the_share_of_places_that_touch(wrap: bool) -> None:
    def touched(length: int, patch: int, width: int, at: int) -> int:
        places = range(length if wrap else length - width + 1)
        inside = set(range(at, at + patch))
        return sum(bool(inside & {(s + i) % length for i in range(width)}) for s in places)

    for (h, w), p, b in itertools.product([(6, 9), (7, 7), (9, 5)], (1, 2, 5), (1, 2, 4, 5)):
        most = [max(touched(side, p, b, at) for at in range(side - p + 1)) for side in (h, w)]
        places = [side if wrap else side - b + 1 for side in (h, w)]
        band, exact = (
            Fraction(exposure((h, w), patch_size=p, band=b, wrap=wrap)),
            Fraction(most[1], places[1]),
        )
        assert exact <= band <= exact * (1 + Fraction(1, 10**15))
        block = Fraction(exposure((h, w), patch_size=p, block=b, wrap=wrap))
        exact = Fraction(most[0] * most[1], places[0] * places[1])
        assert exact <= block <= exact * (1 + Fraction(1, 10**15))


def test_the_formulas_of_the_field() -> None:
    assert exposure((768, 1024), patch_size=81, band=20) == (81 + 19) / 1024
    assert exposure(1024, patch_size=81, band=20) == (81 + 19) / 1024
    assert exposure((768, 1024), patch_size=81, band=20, patches=2) == 200 / 1024
    assert exposure((768, 1024), patch_size=81, band=20, wrap=False) == pytest.approx(
        100 / 1005, rel=1e-15
    )
    assert exposure((768, 1024), patch_size=81, block=60) == pytest.approx(
        140**2 / (768 * 1024), rel=1e-15
    )
    assert exposure((768, 1024), patch_size=700, band=500, patches=2) == 1.0


def test_it_rises_with_what_is_kept_and_with_the_patch() -> None:
    by_k = [exposure((64, 64), patch_size=8, k=k) for k in range(0, 4097, 64)]
    assert by_k == sorted(by_k)
    assert by_k[0] == 0.0
    assert by_k[-1] == 1.0
    for kind in ({"k": 45}, {"band": 7}, {"block": 7}):
        by_patch = [exposure((64, 64), patch_size=p, **kind) for p in range(1, 65)]
        assert by_patch == sorted(by_patch)
        by_patches = [exposure((64, 64), patch_size=8, patches=j, **kind) for j in range(1, 80)]
        assert by_patches == sorted(by_patches)
        assert by_patches[-1] == 1.0


def test_the_twins_give_the_same() -> None:
    with reference():
        twin = exposure((768, 1024), patch_size=81, k=45)
    assert twin == exposure((768, 1024), patch_size=81, k=45)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 4, "band": 2}, "exactly one of k, band and block"),
        ({}, "exactly one of k, band and block"),
        ({"k": 65}, r"k must be within \[0, 64\], got 65"),
        ({"k": -1}, "k must be"),
        ({"band": 0}, "band must be"),
        ({"band": 9}, r"band must be within \[1, 8\]"),
        ({"block": 9}, "block must be"),
        ({"k": 4, "patch": 9}, "patch_size must fit into the image"),
        ({"band": 4, "patch": 9}, "patch_size must fit into the image"),
        ({"k": 4, "patch": 0}, "patch_size must be at least 1"),
        ({"k": 4, "patches": 0}, "patches must be"),
        ({"band": 4, "channels": 3}, "channels is for k only"),
        ({"block": 4, "size": 64}, "size must be"),
        ({"k": 4, "size": (8, 8, 3)}, "size must be"),
        ({"k": 4, "size": 64, "patch": 9}, "patch_size must fit into the image"),
    ],
)
def test_bad_input(arguments: dict, message: str) -> None:
    size, patch = arguments.pop("size", (8, 8)), arguments.pop("patch", 2)
    with pytest.raises(ValueError, match=message):
        exposure(size, patch_size=patch, **arguments)


def test_what_a_sample_misses() -> None:
    assert sampling_error(1000, 0.001) == math.sqrt(math.log(2000) / 2000)
    assert sampling_error(1000, 0.001) == pytest.approx(0.061648, abs=1e-6)
    with pytest.raises(ValueError, match="draws must be"):
        sampling_error(0, 0.001)
    with pytest.raises(ValueError, match="beta must be inside"):
        sampling_error(10, 0.0)


def test_bad_types() -> None:
    for arguments in ({"k": 4.5}, {"band": True}, {"k": 4, "patches": 1.0}):
        with pytest.raises(TypeError, match="must be a whole number"):
            exposure((8, 8), patch_size=2, **arguments)
