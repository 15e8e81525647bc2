from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import gamma
from support.wilson import below, not_below

from pycc.certify.laws import sampling_error
from pycc.certify.mean import mean_bounds

CAP = 400.0
LAW = gamma(4.0, scale=25.0)


def worst_means(moved: float) -> tuple[float, float]:
    """Least and largest mean of a law from which a mass was moved to 0 and to the cap."""
    levels = (np.arange(200_000) + 0.5) / 200_000
    values = np.minimum(LAW.ppf(levels), CAP)
    low = values[levels < 1 - moved].sum() / len(levels)
    return float(low), float(values[levels > moved].sum() / len(levels) + moved * CAP)


def clipped(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    return np.minimum(LAW.rvs(shape, random_state=rng), CAP)


def test_the_extreme_mass_is_what_moves() -> None:
    counts, n = np.array([10.0, 20.0, 30.0, 40.0]), 4
    error = sampling_error(n, 0.9)
    mass = 0.2 + error
    interval = mean_bounds(counts, 0.2, cap=100.0, alpha=0.9)
    assert 0.5 < mass < 0.75  # two counts go, and a part of the third
    left = 1 - mass
    assert interval.low == pytest.approx(min(left, 0.25) * 10 + max(left - 0.25, 0.0) * 20)
    assert interval.high == pytest.approx(0.25 * 40 + (left - 0.25) * 30 + mass * 100)
    assert interval.count == 25.0
    assert (interval.method, interval.deterministic) == ("mean", False)
    assert interval.confidence == pytest.approx(0.1)


def test_no_law_within_the_mass_leaves_it() -> None:
    rng = np.random.default_rng(0)
    for n, moved in ((50, 0.0), (50, 0.3), (400, 0.1), (400, 0.5)):
        counts = clipped((n,), rng)
        interval = mean_bounds(counts, moved, cap=CAP, alpha=0.5)
        many = math.floor((moved + sampling_error(n, 0.5)) * n)
        attacked = np.tile(np.sort(counts), (5000, 1))
        touched = np.argsort(rng.random(attacked.shape), axis=1)[:, :many]
        touched[0], touched[1] = np.arange(many), np.arange(n - many, n)
        content = rng.choice([0.0, CAP, CAP / 3], touched.shape)
        content[0], content[1] = CAP, 0.0
        np.put_along_axis(attacked, touched, content, 1)
        means = attacked.mean(1)
        assert interval.low <= means.min()
        assert means.max() <= interval.high
        # The two extremes come within what less than one count can do.
        assert interval.high - means[0] <= CAP / n * (1 + 1e-9)
        assert means[1] - interval.low <= CAP / n * (1 + 1e-9)


def test_it_covers_the_worst_allowed_laws() -> None:
    trials, n, moved, rng = 2000, 300, 0.15, np.random.default_rng(1)
    low, high = worst_means(moved)
    hits = 0
    for counts in clipped((trials, n), rng):
        result = mean_bounds(counts, moved, cap=CAP, alpha=0.1)
        hits += low in result and high in result
    assert not_below(hits, trials, 0.9)


def test_a_delta_that_is_too_small_does_not_cover() -> None:
    trials, rng = 200, np.random.default_rng(2)
    _, high = worst_means(0.3)
    draws = clipped((trials, 2000), rng)
    hits = sum(high in mean_bounds(counts, 0.2, cap=CAP, alpha=0.1) for counts in draws)
    assert below(hits, trials, 0.9)


def test_an_estimate_from_few_draws_needs_its_own_error() -> None:
    trials, n, m, moved, rng = 1000, 3000, 20, 0.1, np.random.default_rng(3)
    covered = without = 0
    for _ in range(trials):
        counts, level = clipped((n,), rng), rng.random(m)
        attacked = np.where(level < moved, CAP, np.minimum(LAW.ppf(level), CAP)).mean()
        interval = mean_bounds(counts, moved, cap=CAP, alpha=0.05, draws=m, beta=0.05)
        covered += attacked in interval
        without += attacked in mean_bounds(counts, moved, cap=CAP, alpha=0.05)
        assert interval.method == "mean-estimate"
        assert interval.confidence == pytest.approx(0.9)
    assert not_below(covered, trials, 0.9)
    assert below(without, trials, 0.9)


def test_it_lies_inside_the_simple_interval() -> None:
    rng = np.random.default_rng(4)
    for n, moved in itertools.product((1, 10, 500), (0.0, 0.1, 0.6, 1.0)):
        counts = clipped((n,), rng)
        tight = mean_bounds(counts, moved, cap=CAP)
        simple = mean_bounds(counts, moved, cap=CAP, simple=True)
        assert simple.low <= tight.low + 1e-9 <= tight.high <= simple.high + 2e-9
        mass = moved + sampling_error(n, 0.001)
        assert simple.high == pytest.approx(min(CAP, counts.mean() + CAP * min(mass, 1.0)))
        assert simple.low == pytest.approx(max(0.0, counts.mean() - CAP * min(mass, 1.0)))


def test_all_images_at_once_share_alpha() -> None:
    counts = clipped((500,), np.random.default_rng(5))
    shared = mean_bounds(counts, 0.1, cap=CAP, alpha=0.1, images=20)
    single = mean_bounds(counts, 0.1, cap=CAP, alpha=0.005)
    assert (shared.low, shared.high) == (single.low, single.high)
    assert shared.confidence == 0.9


def test_it_widens_with_delta_until_it_is_vacuous() -> None:
    counts = clipped((500,), np.random.default_rng(6))
    widths = [mean_bounds(counts, moved, cap=CAP).width for moved in np.linspace(0, 1, 41)]
    assert widths == sorted(widths)
    interval = mean_bounds(counts, 1.0, cap=CAP)
    assert (interval.low, interval.high, interval.vacuous) == (0.0, CAP, True)
    assert "which allows [0, cap]" in interval.reason
    assert mean_bounds(counts, 0.1, cap=CAP).reason is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"counts": []}, "counts must be"),
        ({"counts": [-1.0]}, "not negative"),
        ({"counts": [5.0, 11.0]}, "counts must be clipped to cap = 10, got 11"),
        ({"cap": 0.0}, "cap must be finite and above 0"),
        ({"cap": math.inf}, "cap must be finite and above 0"),
        ({"exposure": -0.1}, "exposure must be"),
        ({"alpha": 1.0}, "alpha must be inside"),
        ({"images": 0}, "images must be"),
        ({"draws": 0}, "draws must be"),
        ({"draws": 5, "alpha": 0.5, "beta": 0.5}, r"alpha \+ beta must be below 1"),
    ],
)
def test_bad_input(arguments: dict, message: str) -> None:
    given = {"counts": [5.0, 6.0], "exposure": 0.1, "cap": 10.0, **arguments}
    with pytest.raises(ValueError, match=message):
        mean_bounds(**given)
