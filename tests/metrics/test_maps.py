import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycc import metrics


def test_game_by_hand() -> None:
    """8x8 pixels, cells of 2: heads in three quarters, people predicted in two."""
    points = [(1.0, 1.0), (2.5, 0.5), (6.0, 1.0), (7.9, 7.9)]
    density = np.zeros((4, 4))
    density[0, 0], density[3, 3] = 3.0, 0.5
    assert metrics.game(points, density, (8, 8), level=0) == pytest.approx(0.5)
    # Quarters: |3 − 2|, |0 − 1|, 0, |0.5 − 1|.
    assert metrics.game(points, density, (8, 8), level=1) == pytest.approx(2.5)
    # Cells: |3 − 1| in the first, 1, 1, |0.5 − 1|.
    assert metrics.game(points, density, (8, 8), level=2) == pytest.approx(4.5)


def test_game_divides_a_cell_that_a_border_crosses() -> None:
    """Three cells side by side, cut at the middle of the second and at half height.

    8 people left, 4 right; the upper and lower regions have half of them each.
    """
    density = np.array([[4.0, 8.0, 0.0]])
    assert metrics.game([], density, (12, 12), level=1) == pytest.approx(12.0)
    assert metrics.game([(1.0, 1.0)], density, (12, 12), level=1) == pytest.approx(11.0)
    right = [(7.0, 1.0)] * 3 + [(7.0, 11.0)]
    assert metrics.game(right, density, (12, 12), level=1) == pytest.approx(4 + 4 + 1 + 1)


def test_game_knows_where_cells_end() -> None:
    """At stride 8 a map of 2 cells covers 16 of 20 pixels; its half is at 10, not at 8."""
    density = np.array([[8.0, 16.0]])
    head = [(9.0, 4.0)]
    by_stride = metrics.game(head, density, (8, 20), level=1, stride=8)
    assert by_stride == pytest.approx(abs(8 + 16 * 2 / 8 - 1) + 16 * 6 / 8)
    assert metrics.game(head, density, (8, 20), level=1) == pytest.approx(7.0 + 16.0)
    kept = metrics.game(head, [[8.0, 16.0, 4.0]], (8, 20), level=1, stride=8)
    assert kept == pytest.approx(abs(8 + 16 * 2 / 8 - 1) + 16 * 6 / 8 + 4.0)


def test_game_puts_heads_outside_into_the_nearest_region() -> None:
    density = np.ones((2, 2))
    corners = [(-1.0, -1e30), (4.0, 0.0), (0.0, 4.0), (1e30, 9.0)]
    assert metrics.game(corners, density, (4, 4), level=1) == 0.0


@given(st.integers(0, 2**32 - 1), st.sampled_from([None, 4]))
def test_game_starts_at_the_error_of_the_count_and_never_falls(seed, stride) -> None:
    generator = np.random.Generator(np.random.PCG64(seed))
    height, width = generator.integers(4, 60, 2).tolist()
    points = generator.random((int(generator.integers(0, 30)), 2)) * (width, height)
    density = generator.normal(size=(height // 4, width // 4))
    found = [
        metrics.game(points, density, (height, width), level=level, stride=stride)
        for level in range(5)
    ]
    assert found[0] == pytest.approx(metrics.mae([len(points)], [density.sum()]))
    assert all(b >= a - 1e-9 for a, b in itertools.pairwise(found))
    assert found[-1] <= len(points) + np.abs(density).sum() + 1e-9


@pytest.mark.parametrize(
    ("points", "density", "options", "message"),
    [
        ([1.0, 2.0], [[1.0]], {}, r"points must be \[M,2\] \(x, y\), got \[2\]"),
        ([[1.0, np.nan]], [[1.0]], {}, "points must be finite"),
        ([], [1.0], {}, r"predicted must be a map \[h,w\], got \[1\]"),
        ([], [[np.inf]], {}, "predicted must be finite"),
        ([], [[1.0]], {"level": -1}, "level must be an integer in 0…10, got -1"),
        ([], [[1.0]], {"level": True}, "level must be an integer in 0…10, got True"),
        (
            [],
            [[1.0]],
            {"stride": 5},
            "an image of 16x16 pixels has 3x3 to 4x4 cells",
        ),
        ([], [[1.0]], {"stride": 0}, "stride must be at least 1, got 0"),
        ([], [[1.0]], {"shape": (0, 8)}, "shape must be positive, got 0 x 8"),
    ],
)
def test_bad_game(points, density, options, message) -> None:
    with pytest.raises(ValueError, match=f"game: {message}"):
        metrics.game(points, density, **{"shape": (16, 16), "level": 0, **options})


def test_psnr_by_hand() -> None:
    truth, predicted = np.array([[0.0, 2.0]]), np.array([[0.0, 1.0]])
    # L = 2, mean squared error 1/2: 10 log10(4 / 0.5).
    assert metrics.psnr(truth, predicted) == pytest.approx(10 * np.log10(8))
    assert metrics.psnr(truth, predicted, data_range=1) == pytest.approx(10 * np.log10(2))
    assert metrics.psnr(truth, truth) == np.inf


def test_ssim_of_constant_maps_is_their_luminance() -> None:
    truth, predicted = np.full((11, 13), 2.0), np.full((11, 13), 1.0)
    expected = (2 * 1 * 0.5 + 1e-4) / (1 + 0.25 + 1e-4)
    assert metrics.ssim(truth, predicted) == pytest.approx(expected, rel=1e-12)


def test_ssim_is_the_formula_written_out() -> None:
    """One window at a time, with weighted means over its 121 cells."""
    generator = np.random.Generator(np.random.PCG64(3))
    x, y = generator.random((2, 13, 12))
    distance = np.arange(11) - 5.0
    weights = np.exp(-(distance[:, None] ** 2 + distance**2) / (2 * 1.5**2))
    weights /= weights.sum()
    found = []
    for row in range(3):
        for column in range(2):
            a, b = x[row : row + 11, column : column + 11], y[row : row + 11, column : column + 11]
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            spread = (weights * ((a - mean_a) ** 2 + (b - mean_b) ** 2)).sum()
            shared = (weights * (a - mean_a) * (b - mean_b)).sum()
            found.append(
                (2 * mean_a * mean_b + 0.015**2)
                * (2 * shared + 0.045**2)
                / ((mean_a**2 + mean_b**2 + 0.015**2) * (spread + 0.045**2))
            )
    assert metrics.ssim(x, y, data_range=1.5) == pytest.approx(np.mean(found), rel=1e-12)


@given(st.integers(0, 2**32 - 1))
def test_identities_of_maps(seed) -> None:
    generator = np.random.Generator(np.random.PCG64(seed))
    x, y = generator.random((2, 16, 20))
    assert metrics.ssim(x, x) == 1.0
    assert -1 <= metrics.ssim(x, y) < 1
    assert metrics.ssim(x, y, data_range=1) == pytest.approx(metrics.ssim(y, x, data_range=1))
    # A unit of people is no scale: both measures are relative to the true maximum.
    for measure in (metrics.ssim, metrics.psnr):
        assert measure(1e-3 * x, 1e-3 * y) == pytest.approx(measure(x, y))
    noisier = x + 2 * (y - x)
    assert metrics.psnr(x, y) == pytest.approx(metrics.psnr(x, noisier) + 20 * np.log10(2))


@pytest.mark.parametrize("measure", [metrics.psnr, metrics.ssim])
def test_bad_maps(measure) -> None:
    good = np.ones((11, 11))
    cases = [
        (good, good[1:], {}, r"one shape, got \[11, 11\] and \[10, 11\]"),
        (good[0], good[0], {}, r"truth must be a map \[h,w\], got \[11\]"),
        (good, good * np.nan, {}, "predicted must be finite"),
        (0 * good, good, {}, "truth's maximum, its data range, must be positive .* got 0"),
        (good, good, {"data_range": -1}, "data_range must be positive and finite, got -1"),
    ]
    for truth, predicted, options, message in cases:
        with pytest.raises(ValueError, match=f"{measure.__name__}: .*{message}"):
            measure(truth, predicted, **options)
    assert measure(0 * good, good, data_range=1) <= 0.01  # an empty scene, if a range is given
    with pytest.raises(ValueError, match="ssim: maps must be at least 11x11, got 10x11"):
        metrics.ssim(good[1:], good[1:])
