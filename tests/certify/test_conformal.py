"""Coverage of the number of people, under attack, and what breaks it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support.wilson import below, not_below

from pycc.certify.conformal import RECEIVED, conformal, conformal_margin
from pycc.certify.fixed import fixed_ablations_bounds
from pycc.certify.quantile import estimate_interval, quantile_bounds
from pycc.defense.masking import masked_bounds, masked_maps
from pycc.types import Interval

EPSILON = 0.1
REACH = 30.0
"""By how many people a patch moves the toy counter at most."""


def additive(count: float, reach: float = REACH) -> Interval:
    return Interval(max(0.0, count - reach), count + reach, "additive", True, 1.0, count)


def scenes(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """People, and the prediction of a counter that errs more where there are more."""
    people = rng.gamma(2.0, 150.0, shape).round()
    return people, np.maximum(0.0, people * rng.normal(1.0, 0.2, shape) + rng.normal(5, 9, shape))


def attacked(people: np.ndarray, counts: np.ndarray, reach: float = REACH) -> np.ndarray:
    """The patch moves each count away from the truth as far as it can."""
    return np.maximum(0.0, counts + reach * np.where(counts >= people, 1.0, -1.0))


def coverage(rng: np.random.Generator, trials: int, interval, residuals=None) -> int:
    """How often the interval from the attacked image holds the number of people."""
    hits = 0
    for _ in range(trials):
        people, counts = scenes(rng, (100,))
        errors = np.abs(people - counts)[1:] if residuals is None else residuals(people, counts)[1:]
        received = attacked(people[:1], counts[:1])[0]
        hits += people[0] in interval(float(received), conformal_margin(errors, EPSILON))
    return hits


def full(count: float, quantile: float) -> Interval:
    return conformal(additive(count), quantile, EPSILON)


def test_it_covers_the_people_in_attacked_scenes() -> None:
    trials = 4000
    hits = coverage(np.random.default_rng(0), trials, full)
    assert not_below(hits, trials, 1 - EPSILON)
    assert hits < trials


def test_it_is_sharp_without_an_attack() -> None:
    """With no patch and no room for one, 90 of 100 are covered and not many more."""
    rng, trials, hits = np.random.default_rng(1), 4000, 0
    for _ in range(trials):
        people, counts = scenes(rng, (100,))
        quantile = conformal_margin(np.abs(people - counts)[1:], EPSILON)
        hits += people[0] in conformal(additive(float(counts[0]), 0.0), quantile, EPSILON)
    assert not_below(hits, trials, 1 - EPSILON)
    assert below(hits, trials, 1 - EPSILON + 0.03)


def test_the_reach_of_the_patch_must_be_in_the_interval() -> None:
    hits = coverage(
        np.random.default_rng(2),
        1000,
        lambda count, quantile: conformal(additive(count, 0.0), quantile, EPSILON),
    )
    assert below(hits, 1000, 1 - EPSILON)


def test_the_certificate_alone_does_not_cover_the_people() -> None:
    hits = coverage(np.random.default_rng(3), 1000, lambda count, _: additive(count))
    assert below(hits, 1000, 1 - EPSILON)


def test_residuals_of_another_predictor_break_it() -> None:
    hits = coverage(
        np.random.default_rng(4), 1000, full, lambda people, counts: np.abs(people - counts) / 20
    )
    assert below(hits, 1000, 1 - EPSILON)


def test_calibration_on_other_scenes_breaks_it() -> None:
    def sparse(people: np.ndarray, counts: np.ndarray) -> np.ndarray:
        return np.abs(people - counts)[np.argsort(people)[: len(people) // 5]]

    hits = coverage(np.random.default_rng(5), 1000, full, sparse)
    assert below(hits, 1000, 1 - EPSILON)


def test_with_draws_the_errors_add_up() -> None:
    trials, moved, alpha, beta, m, n = 400, 0.05, 0.05, 0.05, 300, 800
    rng, hits = np.random.default_rng(6), 0
    for _ in range(trials):
        people = rng.gamma(3.0, 60.0, 40).round()
        skill = rng.normal(1.0, 0.15, 40)[:, None]  # how the counter sees each scene
        clean = people[:, None] * skill * rng.gamma(9.0, 1 / 9.0, (40, m))
        quantile = conformal_margin(np.abs(people - np.median(clean, axis=1))[1:], EPSILON)
        received = people[0] * skill[0] * rng.gamma(9.0, 1 / 9.0, n)
        far = 1e6 if skill[0] >= 1 else 0.0
        received[rng.random(n) < moved] = far  # the patch is seen in so many draws
        interval = estimate_interval(received, moved, draws=m, alpha=alpha, beta=beta)
        bounds = conformal(interval, quantile, EPSILON)
        assert bounds.confidence == pytest.approx(0.8)
        hits += people[0] in bounds
    assert not_below(hits, trials, 1 - EPSILON - alpha - beta)


def test_the_masked_count_may_be_bounded_from_the_received_image() -> None:
    """Clean and attacked image are each other's in one patch: the statement can be turned round."""
    generator = torch.Generator().manual_seed(0)
    window, trials = (3, 2), 4000
    clean = torch.rand((trials, 7, 6), generator=generator) ** 3
    received = clean.clone()
    for row in range(trials):
        top = int(torch.randint(0, 5, (), generator=generator))
        left = int(torch.randint(0, 5, (), generator=generator))
        content = torch.rand(window, generator=generator) * 10.0 ** (row % 4 - 2)
        received[row, top : top + 3, left : left + 2] = content * (row % 3 > 0)
    for allowance in (0.0, 1.0, 5.0):
        count = masked_maps(clean, window, allowance).double().sum((1, 2))
        bounds = masked_bounds(received, window, allowance)
        assert (bounds.low - 1e-5 <= count).all()
        assert (count <= bounds.high + 1e-5).all()


def test_calibrate_takes_the_rank_that_is_meant() -> None:
    residuals = np.random.default_rng(7).permutation(np.arange(1.0, 100.0))
    for epsilon, rank in ((0.1, 90), (0.05, 95), (0.3, 70), (0.7, 30), (0.01, 99), (0.55, 45)):
        assert conformal_margin(residuals, epsilon) == rank
    assert conformal_margin(residuals[:9].tolist(), 0.1) == residuals[:9].max()
    assert conformal_margin(residuals[:8], 0.1) == math.inf
    assert conformal_margin(residuals, 0.009) == math.inf
    assert conformal_margin(np.float32([3.0, 3.0, 3.0]), 0.5) == 3.0


def test_it_falls_as_epsilon_grows() -> None:
    residuals = np.random.default_rng(8).gamma(2.0, 20.0, 200)
    results = [conformal_margin(residuals, epsilon) for epsilon in np.linspace(0.001, 0.999, 200)]
    assert results == sorted(results, reverse=True)


def test_the_interval_is_widened_by_the_quantile() -> None:
    interval = conformal(Interval(40.0, 90.0, "additive", True, 1.0, 60.0), 15.0, 0.1)
    assert (interval.low, interval.high, interval.count) == (25.0, 105.0, 60.0)
    assert (interval.method, interval.deterministic) == ("conformal-additive", False)
    assert interval.confidence == pytest.approx(0.9)
    assert not interval.vacuous
    assert conformal(Interval(4.0, 90.0, "additive", True), 15.0, 0.1).low == 0.0


def test_abstentions_are_passed_on() -> None:
    for quantile in (5.0, math.inf):
        nothing = fixed_ablations_bounds([1.0, 2.0], 1)
        interval = conformal(nothing, quantile, 0.1)
        assert interval.vacuous
        assert interval.reason is not None
    interval = conformal(additive(100.0), math.inf, 0.1)
    assert (interval.low, interval.high, interval.vacuous) == (0.0, math.inf, True)
    assert "too few calibration images" in interval.reason
    half = Interval(50.0, math.inf, "quantile-estimate", False, 0.99, 60.0, False, "unbounded")
    interval = conformal(half, 10.0, 0.1)
    assert (interval.low, interval.high, interval.vacuous, interval.reason) == (
        40,
        math.inf,
        False,
        "unbounded",
    )
    assert conformal(half, 50.0, 0.1).vacuous


@pytest.mark.parametrize("method", ["masked", "two-mask", "anything"])
def test_what_holds_at_the_clean_image_is_refused_unless_marked(method: str) -> None:
    interval = Interval(40.0, 90.0, method, True)
    with pytest.raises(ValueError, match=f"{method} interval is stated for the clean image"):
        conformal(interval, 5.0, 0.1)
    assert conformal(interval, 5.0, 0.1, received=True).method == f"conformal-{method}"


def test_an_exact_quantile_is_refused_and_its_estimate_is_not() -> None:
    drawn = np.random.default_rng(9).gamma(4.0, 50.0, 2000)
    with pytest.raises(ValueError, match="take estimate_interval"):
        conformal(quantile_bounds(drawn, 0.1), 5.0, 0.1)
    interval = conformal(estimate_interval(drawn, 0.1, draws=2000), 5.0, 0.1)
    assert interval.confidence == pytest.approx(0.898)
    assert "quantile-estimate" in RECEIVED


@pytest.mark.parametrize("epsilon", [0.0, 1.0, -0.1, math.nan])
def test_bad_epsilon(epsilon: float) -> None:
    with pytest.raises(ValueError, match=r"epsilon must be inside \(0, 1\)"):
        conformal_margin([1.0], epsilon)
    with pytest.raises(ValueError, match=r"epsilon must be inside \(0, 1\)"):
        conformal(additive(10.0), 1.0, epsilon)


def test_bad_input() -> None:
    for residuals in ([], [[1.0]], [-1.0], [math.inf], [math.nan]):
        with pytest.raises(ValueError, match="conformal_margin: residuals must be"):
            conformal_margin(residuals, 0.1)
    for quantile in (-1.0, math.nan):
        with pytest.raises(ValueError, match="quantile must not be negative"):
            conformal(additive(10.0), quantile, 0.1)
    shaky = Interval(1.0, 2.0, "quantile-estimate", False, 0.1)
    with pytest.raises(ValueError, match="epsilon must be below the interval's"):
        conformal(shaky, 1.0, 0.2)
