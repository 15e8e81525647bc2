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
    result = metrics.mae_by_group([1, 2, 3, 10], [2, 2, 6, 4], ["b", "a", "b", "a"])
    assert result == {"a": 3.0, "b": 2.0}
    assert list(result) == ["b", "a"]
    with pytest.raises(ValueError, match="groups must be one per image, got 1 of 2"):
        metrics.mae_by_group([1, 2], [1, 2], ["a"])


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
