from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from pycc.certify.paper import (
    ENTRIES,
    PATCH_SIZES,
    RETAINED,
    counterexample,
    expected_overlap,
    probability_inside,
    probability_untouched,
    table_3,
)
from pycc.ops import ablate, topk_overlap

UNTOUCHED = ("0.9752", "0.9043", "0.6611", "0.1827")
INSIDE = ("1.7265e-147", "4.0071e-120", "1.7745e-92", "3.9698e-65")
"""As printed in arXiv 2104.10868."""


def exactly(patch: int) -> tuple[Fraction, Fraction]:
    n, every = 3 * patch**2, math.comb(ENTRIES, RETAINED)
    return (
        Fraction(math.comb(ENTRIES - n, RETAINED), every),
        Fraction(math.comb(n, RETAINED), every),
    )


def cut_off(value: float) -> str:
    digits, exponent = f"{value:.12e}".split("e")
    return f"{digits[:6]}e{exponent}"


def test_table_3_to_every_published_digit() -> None:
    assert ENTRIES == 3 * 1024 * 700
    rows = table_3()
    assert tuple(row.patch_size for row in rows) == PATCH_SIZES
    assert tuple(f"{row.untouched:.4f}" for row in rows) == UNTOUCHED
    assert tuple(cut_off(row.inside) for row in rows) == INSIDE


@pytest.mark.parametrize("row", table_3(), ids=lambda row: str(row.patch_size))
def test_table_3_against_exact_integers(row) -> None:
    untouched, inside = exactly(row.patch_size)
    assert abs(Fraction(row.untouched) / untouched - 1) < Fraction(1, 10**12)
    assert abs(Fraction(row.inside) / inside - 1) < Fraction(1, 10**12)


def test_other_sizes_of_the_table() -> None:
    (row,) = table_3((20,), d=1024 * 700, channels=1)
    assert row.untouched == pytest.approx(0.975193, abs=1e-6)


def test_small_probabilities_exactly() -> None:
    for d in range(14):
        for n in range(d + 1):
            for k in range(d + 1):
                every = math.comb(d, k)
                untouched = Fraction(math.comb(d - n, k), every)
                inside = Fraction(math.comb(n, k), every)
                assert probability_untouched(d, n, k) == pytest.approx(float(untouched), rel=1e-12)
                assert probability_inside(d, n, k) == pytest.approx(float(inside), rel=1e-12)
                bound = Fraction(expected_overlap(d, n, k))
                assert untouched * (1 - Fraction(1, 10**12)) <= bound <= untouched


def test_the_bound_on_the_expected_overlap_is_never_too_large_and_monotone() -> None:
    for patch_size in PATCH_SIZES:
        bound, (exact, _) = (
            expected_overlap(ENTRIES, 3 * patch_size**2, RETAINED),
            exactly(patch_size),
        )
        assert exact * (1 - Fraction(1, 10**11)) <= Fraction(bound) <= exact
    by_n = [expected_overlap(1000, n, 20) for n in range(0, 1001, 50)]
    by_k = [expected_overlap(1000, 100, k) for k in range(0, 1001, 50)]
    assert by_n == sorted(by_n, reverse=True)
    assert by_k == sorted(by_k, reverse=True)
    assert (by_n[0], by_n[-1]) == (by_k[0], by_k[-1]) == (1.0, 0.0)


def test_the_expected_overlap_holds_for_a_counter_that_the_patch_turns_around() -> None:
    """It is reached: whenever the patch is seen, the map's other half is the larger one."""
    draws, (d, n, k) = 5_000, (3 * 144, 3 * 9, 10)
    clean = torch.full((1, 3, 12, 12), 0.5)
    attacked = clean.clone()
    attacked[:, :, :3, :3] = 1.0

    def density(images: torch.Tensor) -> torch.Tensor:
        cells = torch.arange(16.0).expand(len(images), 16)
        return torch.where((images.amax((1, 2, 3)) > 0.9)[:, None], -cells, cells)

    maps = [
        density(ablate(image, k, seed=1, fill=0.0, draws=draws, unit="element"))
        for image in (clean, attacked)
    ]
    share = topk_overlap(*maps, 8).double().mean() / 8
    bound = expected_overlap(d, n, k)
    assert float(share) == pytest.approx(bound, abs=4 * math.sqrt(0.25 / draws))


def test_theorem_1_does_not_hold() -> None:
    result = counterexample()
    assert result.upper == pytest.approx(float(Fraction(math.comb(720, 8), math.comb(768, 8))))
    assert result.lower == pytest.approx(float(Fraction(math.comb(48, 8), math.comb(768, 8))))
    assert result.full == 1.0 > result.upper
    assert result.rarest == 0.0 < result.lower
    # What is claimed instead holds there.
    assert result.full >= expected_overlap(768, 48, 8)


def test_the_overlap_is_blind_to_scale() -> None:
    result = counterexample(draws=200, seed=5)
    assert result.scaled_overlap == 1.0
    assert result.scaled_clean == pytest.approx(12.0)
    assert result.scaled_attacked == pytest.approx(120.0)


@pytest.mark.parametrize("sizes", [(10, 11, 2), (10, 2, 11), (10, -1, 2), (-1, 0, 0)])
def test_bad_sizes(sizes: tuple[int, int, int]) -> None:
    for function in (probability_untouched, probability_inside, expected_overlap):
        with pytest.raises(ValueError, match="log_probability"):
            function(*sizes)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="0 <= n <= d"):
        table_3((900,))  # more entries than the image has
    with pytest.raises(ValueError, match="patch_size must be at least 1"):
        table_3((0,))
    with pytest.raises(ValueError, match="0 <= k <= d"):
        table_3(k=ENTRIES + 1)
    with pytest.raises(ValueError, match="draws must be"):
        counterexample(draws=0)


def test_the_published_area_shares_are_of_another_size() -> None:
    shares = np.array(PATCH_SIZES) ** 2 / (1024 * 700) * 100
    assert shares == pytest.approx([0.056, 0.223, 0.915, 3.707], abs=6e-4)
