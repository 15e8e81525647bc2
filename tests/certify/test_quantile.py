"""Coverage of the quantile certificate where the truth is known, and what breaks it."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import gamma
from support.wilson import below, not_below

from pycc.certify.laws import exposure, sampling_error
from pycc.certify.quantile import estimate_interval, quantile_bounds

ALPHA = 0.1
LAW = gamma(4.0, scale=50.0)
"""Of the counts of an image's ablations."""


def worst_quantiles(q: float, moved: float) -> tuple[float, float]:
    """The least and largest q-quantile of a law from which a mass was moved to either end."""
    return float(LAW.ppf(q - moved)), float(LAW.ppf(q + moved))


def tails(n: int, p: float) -> list[Fraction]:
    """P(Binomial(n, p) >= j) for j = 0 to n, exactly."""
    exact = Fraction(p)
    terms = [math.comb(n, i) * exact**i * (1 - exact) ** (n - i) for i in range(n + 1)]
    return [sum(terms[j:], Fraction(0)) for j in range(n + 1)]


@pytest.mark.parametrize("n", [8, 20, 61])
@pytest.mark.parametrize(("q", "moved"), [(0.5, 0.0), (0.5, 0.2), (0.3, 0.05), (0.5, 0.499)])
def test_the_order_statistics_of_the_specification(n: int, q: float, moved: float) -> None:
    # BinCDF(j - 1) is 1 - P(Binomial >= j).
    alpha, upper, lower = 0.05, tails(n, q + moved), tails(n, q - moved)
    high = [j for j in range(1, n + 1) if 1 - upper[j] >= 1 - Fraction(alpha) / 2]
    low = [j for j in range(1, n + 1) if lower[j] >= 1 - Fraction(alpha) / 2]
    interval = quantile_bounds(np.arange(1.0, n + 1), moved, q=q, alpha=alpha)
    assert interval.high == (high[0] if high else math.inf)
    assert interval.low == (low[-1] if low else 0.0)
    assert interval.count == math.ceil(Fraction(str(q)) * n)
    assert interval.count in interval


@pytest.mark.parametrize(("n", "q", "moved"), [(200, 0.5, 0.1), (501, 0.5, 0.31), (300, 0.3, 0.1)])
def test_it_covers_the_worst_allowed_laws(n: int, q: float, moved: float) -> None:
    trials, rng = 4000, np.random.default_rng(n)
    low, high = worst_quantiles(q, moved)
    results = [
        quantile_bounds(LAW.rvs(n, random_state=rng), moved, q=q, alpha=ALPHA)
        for _ in range(trials)
    ]
    # Each end must hold with 1 - alpha / 2, both together with 1 - alpha.
    assert not_below(sum(low in i for i in results), trials, 1 - ALPHA / 2)
    assert not_below(sum(high in i for i in results), trials, 1 - ALPHA / 2)
    both = sum(low in i and high in i for i in results)
    assert not_below(both, trials, 1 - ALPHA)
    assert both < trials  # not by being far too wide


def test_a_delta_that_is_too_small_does_not_cover() -> None:
    trials, rng = 2000, np.random.default_rng(0)
    _, high = worst_quantiles(0.5, 0.2)
    draws = LAW.rvs((trials, 200), random_state=rng)
    hits = sum(high in quantile_bounds(drawn, 0.1, alpha=ALPHA) for drawn in draws)
    assert below(hits, trials, 1 - ALPHA)


class Toy:
    """A counter of 5 x 5 pixels in colour of which k are shown, all of whose draws are known.

    It counts what is shown, and where it sees the patch, in a corner, a million.
    """

    side, patch, k = 5, 1, 8

    def __init__(self) -> None:
        rng = np.random.default_rng(7)
        self.pixels = rng.gamma(2.0, 3.0, self.side**2)
        subsets = itertools.combinations(range(self.side**2), self.k)
        self.every = np.fromiter(itertools.chain.from_iterable(subsets), np.int64)
        self.every = self.every.reshape(-1, self.k)
        self.clean = self.pixels[self.every].sum(1)
        self.hit = (self.every == 0).any(1)

    def law(self, content: float) -> np.ndarray:
        """Counts of all draws of the image whose patch has a content, sorted."""
        return np.sort(np.where(self.hit, content, self.clean))


@pytest.fixture(scope="module")
def toy() -> Toy:
    return Toy()


def lower_quantile(ordered: np.ndarray, q: float) -> float:
    return float(ordered[math.ceil(q * len(ordered)) - 1])


def test_a_counter_under_attack_whose_law_is_enumerated(toy: Toy) -> None:
    moved = exposure((toy.side, toy.side), patch_size=toy.patch, k=toy.k)
    assert moved == pytest.approx(toy.hit.mean(), rel=1e-12)
    attacked = [lower_quantile(toy.law(content), 0.5) for content in (0.0, 1e6)]
    trials, rng = 4000, np.random.default_rng(1)
    draws = toy.clean[rng.integers(0, len(toy.clean), (trials, 300))]
    results = [quantile_bounds(drawn, moved, alpha=ALPHA) for drawn in draws]
    hits = sum(all(count in interval for count in attacked) for interval in results)
    assert not_below(hits, trials, 1 - ALPHA)


def test_draws_with_replacement_are_of_another_law(toy: Toy) -> None:
    """Fewer pixels are shown: of the counter without replacement such draws say nothing."""
    moved, trials, rng = exposure((5, 5), patch_size=1, k=8), 1000, np.random.default_rng(2)
    truth = lower_quantile(toy.law(1e6), 0.5)
    kept = rng.integers(0, 25, (trials, 1000, toy.k))
    seen = np.zeros((trials, 1000, 25), bool)
    np.put_along_axis(seen, kept, True, 2)
    draws = seen @ toy.pixels
    hits = sum(truth in quantile_bounds(drawn, moved, alpha=ALPHA) for drawn in draws)
    assert below(hits, trials, 1 - ALPHA)


def test_pixels_drawn_for_each_channel_break_the_delta_of_pixels() -> None:
    """k of each channel's pixels show the patch about three times as often as k pixels."""
    d, k, trials, rng = 400, 20, 2000, np.random.default_rng(3)
    moved = exposure((20, 20), patch_size=2, k=k)
    once = 1 - moved
    really = 1 - once**3
    assert really > 2 * moved
    _, high = worst_quantiles(0.5, really - 1e-9)  # what the patch makes of the median
    draws = LAW.rvs((trials, 300), random_state=rng)
    hits = sum(high in quantile_bounds(drawn, moved, alpha=ALPHA) for drawn in draws)
    assert below(hits, trials, 1 - ALPHA)
    # The same number of array entries, drawn together, does obey a bound: that of entries.
    entries = exposure((20, 20), patch_size=2, k=3 * k, channels=3)
    assert entries > 1 - Fraction(math.comb(3 * d - 12, 3 * k), math.comb(3 * d, 3 * k))
    assert entries == pytest.approx(really, abs=0.01)
    hits = sum(high in quantile_bounds(drawn, entries, alpha=ALPHA) for drawn in draws)
    assert not_below(hits, trials, 1 - ALPHA)


def test_draws_that_choose_must_not_certify() -> None:
    """Of 30 settings of k, equal in truth, the one whose interval is lowest looks safe by luck."""
    trials, n, settings, moved = 400, 120, 30, 0.1
    rng = np.random.default_rng(4)
    _, high = worst_quantiles(0.5, moved)
    same = fresh = 0
    for _ in range(trials):
        draws = LAW.rvs((settings, n), random_state=rng)
        results = [quantile_bounds(drawn, moved, alpha=ALPHA) for drawn in draws]
        same += high in min(results, key=lambda interval: interval.high)
        again = LAW.rvs(n, random_state=rng)  # the chosen setting's, drawn anew
        fresh += high in quantile_bounds(again, moved, alpha=ALPHA)
    assert below(same, trials, 1 - ALPHA)
    assert not_below(fresh, trials, 1 - ALPHA)


def test_a_quantile_chosen_on_its_own_draws_is_not_certified() -> None:
    """Of many q, the one whose upper bound lies lowest against what training promised of it."""
    trials, n, moved, rng = 1000, 200, 0.05, np.random.default_rng(5)
    grid = np.linspace(0.1, 0.9, 17)
    promised = {q: worst_quantiles(q, moved)[1] for q in grid}
    same = fresh = 0
    for _ in range(trials):
        draws = LAW.rvs(n, random_state=rng)
        result = {q: quantile_bounds(draws, moved, q=q, alpha=ALPHA) for q in grid}
        chosen = min(grid, key=lambda q: result[q].high / promised[q])
        same += promised[chosen] in result[chosen]
        again = LAW.rvs(n, random_state=rng)
        fresh += promised[chosen] in quantile_bounds(again, moved, q=chosen, alpha=ALPHA)
    assert below(same, trials, 1 - ALPHA)
    assert not_below(fresh, trials, 1 - ALPHA)


def test_all_images_at_once_need_their_share_of_alpha() -> None:
    trials, images, n, moved = 300, 20, 200, 0.1
    rng = np.random.default_rng(6)
    low, high = worst_quantiles(0.5, moved)
    alone = together = 0
    for _ in range(trials):
        draws = LAW.rvs((images, n), random_state=rng)
        each = [quantile_bounds(drawn, moved, alpha=ALPHA) for drawn in draws]
        shared = [quantile_bounds(drawn, moved, alpha=ALPHA, images=images) for drawn in draws]
        alone += all(low in i and high in i for i in each)
        together += all(low in i and high in i for i in shared)
    assert below(alone, trials, 1 - ALPHA)
    assert not_below(together, trials, 1 - ALPHA)


def test_an_estimate_needs_its_own_error() -> None:
    trials, n, m, moved, beta = 2000, 2000, 60, 0.1, 0.1
    rng = np.random.default_rng(8)
    covered = without = 0
    for _ in range(trials):
        drawn = LAW.rvs(n, random_state=rng)
        level = np.sort(rng.random(m))  # draws of the law whose least mass was moved to the top
        attacked = np.where(level < moved, 1e6, LAW.ppf(level))
        estimate = float(np.median(attacked))
        covered += estimate in estimate_interval(drawn, moved, draws=m, alpha=ALPHA, beta=beta)
        without += estimate in quantile_bounds(drawn, moved, alpha=ALPHA)
    assert not_below(covered, trials, 1 - ALPHA - beta)
    assert below(without, trials, 1 - ALPHA - beta)


def test_an_estimate_is_a_quantile_with_a_larger_delta() -> None:
    drawn = LAW.rvs(1000, random_state=0)
    interval = estimate_interval(drawn, 0.1, draws=500, alpha=0.01, beta=0.02)
    wider = quantile_bounds(drawn, 0.1 + sampling_error(500, 0.02), alpha=0.01)
    assert (interval.low, interval.high) == (wider.low, wider.high)
    assert interval.method == "quantile-estimate"
    assert interval.confidence == pytest.approx(0.97)
    shared = estimate_interval(drawn, 0.1, draws=500, alpha=0.01, beta=0.02, images=4)
    wider = quantile_bounds(drawn, 0.1 + sampling_error(500, 0.005), alpha=0.01, images=4)
    assert (shared.low, shared.high) == (wider.low, wider.high)


def test_it_widens_with_delta_and_narrows_with_alpha() -> None:
    drawn = LAW.rvs(1000, random_state=1)
    steps = [quantile_bounds(drawn, moved) for moved in np.linspace(0.0, 0.6, 61)]
    for narrow, other in itertools.pairwise(steps):
        assert other.low <= narrow.low
        assert other.high >= narrow.high
    levels = [quantile_bounds(drawn, 0.1, alpha=a).width for a in (0.5, 0.1, 0.01, 1e-4, 1e-8)]
    assert levels == sorted(levels)
    shared = quantile_bounds(drawn, 0.1, alpha=0.1, images=100)
    single = quantile_bounds(drawn, 0.1, alpha=0.001)
    assert (shared.low, shared.high) == (single.low, single.high)
    assert shared.confidence == 0.9


def test_each_side_abstains_for_its_own_reason() -> None:
    drawn = LAW.rvs(1000, random_state=2)
    interval = quantile_bounds(drawn, 0.0)
    assert not interval.vacuous
    assert interval.reason is None
    assert (interval.method, interval.deterministic, interval.confidence) == (
        "quantile",
        False,
        0.999,
    )
    for moved in (0.5, 0.7, 1.0):
        interval = quantile_bounds(drawn, moved)
        assert (interval.low, interval.high, interval.vacuous) == (0.0, math.inf, True)
        assert "unbounded below: a patch may move" in interval.reason
        assert "unbounded above: a patch may move" in interval.reason
    interval = quantile_bounds(drawn, 0.3, q=0.25)
    assert (interval.low, interval.vacuous) == (0.0, False)
    assert interval.high < math.inf
    assert "unbounded below" in interval.reason
    assert "above" not in interval.reason
    interval = quantile_bounds(drawn[:8], 0.0)
    assert interval.vacuous
    assert "8 draws are too few" in interval.reason
    interval = quantile_bounds(np.zeros(1000), 0.1, q=0.9)
    assert (interval.low, interval.high, interval.vacuous) == (0.0, math.inf, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"counts": []}, r"counts must be \[n\] and not empty, got \[0\]"),
        ({"counts": [[1.0], [2.0]]}, r"got \[2, 1\]"),
        ({"counts": [1.0, -0.5]}, "not negative, got -0.5"),
        ({"counts": [1.0, math.inf]}, "finite"),
        ({"exposure": 1.5}, r"exposure must be within \[0, 1\], got 1.5"),
        ({"exposure": math.nan}, "exposure must be"),
        ({"q": 0.0}, r"q must be inside \(0, 1\)"),
        ({"q": 1.0}, "q must be"),
        ({"alpha": 0.0}, r"alpha must be inside \(0, 1\), got 0"),
        ({"alpha": 1.0}, "alpha must be"),
        ({"alpha": -0.1}, "alpha must be"),
        ({"images": 0}, "images must be"),
    ],
)
def test_bad_input(arguments: dict, message: str) -> None:
    given = {"counts": [1.0, 2.0, 3.0], "exposure": 0.1, **arguments}
    with pytest.raises(ValueError, match=message):
        quantile_bounds(**given)
    with pytest.raises(ValueError, match=message):
        estimate_interval(**given, draws=10)


def test_bad_input_of_an_estimate() -> None:
    with pytest.raises(ValueError, match="draws must be at least 1"):
        estimate_interval([1.0], 0.1, draws=0)
    with pytest.raises(ValueError, match="beta must be inside"):
        estimate_interval([1.0], 0.1, draws=10, beta=1.0)
    with pytest.raises(ValueError, match=r"alpha \+ beta must be below 1"):
        estimate_interval([1.0], 0.1, draws=10, alpha=0.6, beta=0.4)
