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
