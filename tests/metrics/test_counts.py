import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycc import metrics

counts = st.lists(st.floats(0, 1e5), min_size=1, max_size=30)


def test_hand_computed() -> None:
    truth, predicted = [10, 20, 30], [13, 16, 30]
    assert metrics.mae(truth, predicted) == pytest.approx(7 / 3)
    assert metrics.rmse(truth, predicted) == pytest.approx((25 / 3) ** 0.5)
    assert metrics.bias(truth, predicted) == pytest.approx(-1 / 3)


def test_bias_is_signed_and_errors_are_symmetric() -> None:
    a, b = [5.0, 7.0], [9.0, 8.0]
    assert metrics.bias(a, b) == -metrics.bias(b, a) == 2.5
    assert metrics.mae(a, b) == metrics.mae(b, a)


@given(counts, st.randoms())
def test_inequalities(truth: list[float], random) -> None:
    predicted = [t + random.uniform(-50, 50) for t in truth]
    mae = metrics.mae(truth, predicted)
    assert abs(metrics.bias(truth, predicted)) <= mae * (1 + 1e-12)
    assert mae <= metrics.rmse(truth, predicted) * (1 + 1e-12) + 1e-150


def test_error_rate_is_measured_against_the_clean_prediction() -> None:
    rate = metrics.error_rate([100, 50], [150, 40])
    assert rate == metrics.ErrorRate(pytest.approx(35.0), 0)


def test_error_rate_excludes_and_counts_zero_predictions() -> None:
    assert metrics.error_rate([0, 10, 0], [5, 15, 0]) == metrics.ErrorRate(pytest.approx(50.0), 2)
    assert metrics.error_rate([0, 0], [5, 1]) == metrics.ErrorRate(None, 2)


def test_error_rate_of_a_negative_prediction_is_positive() -> None:
    assert metrics.error_rate([-4], [2]).percent == pytest.approx(150.0)


def test_float32_input_is_summed_in_float64() -> None:
    # 2**24 + 1 is not a float32: a float32 mean of many large values would lose the difference.
    truth = np.zeros(4096, np.float32)
    predicted = np.full(4096, 16777216, np.float32)
    assert metrics.mae(truth, predicted) == 16777216.0


@pytest.mark.parametrize("measure", [metrics.mae, metrics.rmse, metrics.bias, metrics.error_rate])
@pytest.mark.parametrize(
    ("first", "second"), [([], []), ([1], [1, 2]), ([[1]], [[1]]), ([1], [float("nan")])]
)
def test_bad_input(measure, first, second) -> None:
    with pytest.raises(ValueError, match=measure.__name__):
        measure(first, second)


def test_groups_weigh_by_their_own_images() -> None:
    found = metrics.mae_by_group([1, 2, 3, 10], [2, 2, 6, 4], ["b", "a", "b", "a"])
    assert found == {"a": 3.0, "b": 2.0}
    assert list(found) == ["b", "a"]
    with pytest.raises(ValueError, match="groups must be one per image, got 1 of 2"):
        metrics.mae_by_group([1, 2], [1, 2], ["a"])


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
        ([], [[1.0]], {"stride": 5}, "stride 5 does not make 1 cells of 16 pixels"),
        ([], [[1.0]], {"stride": 0}, "stride 0"),
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


def test_density_levels_of_the_mask_aware_paper() -> None:
    """1-300, 301-700, more; a bound belongs to the level below it."""
    truth = [1, 300, 301, 700, 701, 3000]
    predicted = [3, 296, 301, 690, 701, 2000]
    assert metrics.density_levels(truth, predicted, (0, 300, 700, np.inf)) == [
        metrics.DensityLevel(0.0, 300.0, 2, 3.0),
        metrics.DensityLevel(300.0, 700.0, 2, 5.0),
        metrics.DensityLevel(700.0, np.inf, 2, 500.0),
    ]
    empty = metrics.density_levels([0, 5], [1, 5], (0, 5, 10))
    assert empty == [metrics.DensityLevel(0, 5, 2, 0.5), metrics.DensityLevel(5, 10, 0, None)]


def test_density_levels_made_from_the_counts() -> None:
    truth, predicted = [40, 10, 20, 110, 30], [44, 11, 22, 100, 33]
    assert metrics.density_levels(truth, predicted, 2) == [
        metrics.DensityLevel(10, 30, 3, 2.0),
        metrics.DensityLevel(40, 110, 2, 7.0),
    ]
    assert metrics.density_levels(truth, predicted, 2, equal="width") == [
        metrics.DensityLevel(10, 60, 4, 2.5),
        metrics.DensityLevel(60, 110, 1, 10.0),
    ]


@given(counts, st.integers(1, 8), st.randoms())
def test_density_levels_lose_no_image(truth: list[float], number: int, random) -> None:
    predicted = [t + random.uniform(-50, 50) for t in truth]
    levels = metrics.density_levels(truth, predicted, min(number, len(truth)))
    assert sum(level.images for level in levels) == len(truth)
    assert max(level.images for level in levels) - min(level.images for level in levels) <= 1
    total = sum(level.mae * level.images for level in levels)
    assert total / len(truth) == pytest.approx(metrics.mae(truth, predicted))


@pytest.mark.parametrize(
    ("levels", "options", "message"),
    [
        (0, {}, "levels must be 1…3 for 3 images, got 0"),
        (4, {}, "levels must be 1…3 for 3 images, got 4"),
        (True, {}, "levels must be 1…3 for 3 images, got True"),
        ((0, 10, 10), {}, r"two or more, increasing, got \[0\.0, 10\.0, 10\.0\]"),
        ((7,), {}, "two or more, increasing"),
        ((0, 20), {}, r"contain all true counts \(1…30\), got 0…20"),
        ((2, 40), {}, r"contain all true counts \(1…30\), got 2…40"),
        (2, {"equal": "people"}, "equal must be 'images' or 'width', got 'people'"),
    ],
)
def test_bad_density_levels(levels, options, message) -> None:
    with pytest.raises(ValueError, match=f"density_levels: .*{message}"):
        metrics.density_levels([1, 2, 30], [1, 2, 30], levels, **options)
    with pytest.raises(ValueError, match="density_levels: truth and predicted"):
        metrics.density_levels([1], [1, 2], 1)
    with pytest.raises(ValueError, match="density_levels: bounds must be"):
        metrics.density_levels([5, 5], [5, 5], 2, equal="width")
