"""Shares, bands, densities, ROC curves, and the summary of an experiment."""

from __future__ import annotations

import itertools
import json
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from pycc.backdoor.evaluation.measures import KEY, record
from pycc.backdoor.evaluation.summary import curves, distributions, summarise
from pycc.metrics.backdoor import row
from pycc.metrics.detection import roc
from pycc.metrics.rates import accuracy, accurate, bands, kde, ratios, success
from pycc.metrics.shares import Share, difference, share, wilson
from pycc.runs import Run


@pytest.mark.parametrize(("successes", "total"), [(0, 7), (7, 7), (3, 10), (216, 316), (1, 1)])
def test_wilson_is_scipys(successes: int, total: int) -> None:
    expected = binomtest(successes, total).proportion_ci(0.95, method="wilson")
    low, high = wilson(successes, total)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert low >= 0
    assert high <= 1


def test_wilson_of_nothing_knows_nothing_and_bad_input_is_refused() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert share([]) == Share(None, 0.0, 1.0, 0, 0)
    with pytest.raises(ValueError, match=r"wilson: successes must be within 0…3, got 4"):
        wilson(4, 3)
    with pytest.raises(ValueError, match=r"level must be within \(0, 1\), got 1"):
        wilson(1, 3, level=1.0)


def answers(both: int, first: int, second: int, neither: int) -> tuple[list[int], list[int]]:
    a = [1] * (both + first) + [0] * (second + neither)
    return a, [1] * both + [0] * first + [1] * second + [0] * neither


def test_the_paired_difference_is_newcombes() -> None:
    """His example of 1998: 36, 12, 2, 0 of 50 pairs."""
    interval = difference(*answers(36, 12, 2, 0))
    assert interval.value == pytest.approx(0.2)
    assert (interval.low, interval.high) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    back = difference(*answers(36, 2, 12, 0))
    assert (back.low, back.high) == pytest.approx((-interval.high, -interval.low))


def test_the_paired_difference_covers() -> None:
    rng = np.random.default_rng(0)
    cells = [0.1, 0.5, 0.05, 0.35]
    covered = 0
    for _ in range(400):
        interval = difference(*answers(*rng.multinomial(60, cells).tolist()))
        covered += interval.low <= cells[1] - cells[2] <= interval.high
    assert covered / 400 >= 0.92


def test_a_certain_difference_stays_within_one() -> None:
    interval = difference([1] * 30, [0] * 30)
    assert (interval.value, interval.high) == (1.0, 1.0)
    assert 0.8 < interval.low < 1
    with pytest.raises(ValueError, match=r"difference: .* got \[0\] and \[0\]"):
        difference([], [])


def test_images_without_heads_stand_apart() -> None:
    r = ratios([5.0, 0.4, 12.0], [10, 0, 10])
    assert r.values.tolist() == [0.5, 1.2]
    assert r.headless.tolist() == [0.4]
    assert accuracy(ratios([1.0], [0])).value is None


@pytest.mark.parametrize(
    ("counts", "truth", "message"),
    [
        ([1.0], [1, 2], r"of one length, got \[1\] and \[2\]"),
        ([math.nan], [1], r"counts must be finite, got \[nan\]"),
        ([1.0], [-1], r"truth must be whole numbers from 0 on, got \[-1\.\]"),
        ([1.0], [1.5], r"truth must be whole numbers from 0 on, got \[1\.5\]"),
    ],
)
def test_bad_counts_are_refused(counts: list[float], truth: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ratios(counts, truth)


@pytest.mark.parametrize("truth", [10, 30, 70, 110, 1230])
def test_edges_are_exact(truth: int) -> None:
    """At the edge and one representable number to either side, for counts a quotient misjudges."""

    def at(tenths: int, step: float) -> Any:
        edge = float(truth * tenths // 10)
        return ratios([math.nextafter(edge, step) if step else edge], [truth])

    up, down = math.inf, -math.inf
    assert accuracy(at(11, 0)).successes == 1
    assert accuracy(at(11, up)).successes == 0
    assert accuracy(at(9, 0)).successes == 1
    assert accuracy(at(9, down)).successes == 0
    assert success(at(11, 0), True).successes == 1
    assert success(at(11, down), True).successes == 0
    assert success(at(9, 0), False).successes == 1
    assert success(at(9, up), False).successes == 0

    def band(r: Any, raises: bool) -> int:
        return [band is not None and band.successes for band in bands(r, raises)].index(1)

    for edge, below, above in ((13, 0, 1), (15, 1, 2), (20, 2, 3)):
        assert band(at(edge, 0), True) == above
        assert band(at(edge, down), True) == below
    for edge, below, above in ((7, 1, 0), (5, 2, 1)):
        assert band(at(edge, 0), False) == below
        assert band(at(edge, up), False) == above


def test_a_rounded_quotient_would_misjudge() -> None:
    """Decided on the count and the truth, not on their quotient or its distance from 1."""
    assert 3.9 * 10 >= 13 * 3
    assert 3.9 / 3 >= 1.3
    assert Fraction(3.9) < Fraction(39, 10), "the number that is written 3.9 lies below"
    assert [band.successes for band in bands(ratios([3.9], [3]), True) if band] == [1, 0, 0, 0]
    assert abs(9 / 10 - 1) < 0.1, "the distance would lose the image from every band"
    assert success(ratios([9.0], [10]), False).successes == 1
    assert bands(ratios([9.0], [10]), False)[0].successes == 1


@given(
    st.lists(st.tuples(st.integers(-40, 400), st.sampled_from([1, 10, 20, 64])), max_size=30),
    st.booleans(),
)
def test_bands_add_up(pairs: list[tuple[int, int]], raises: bool) -> None:
    """Counts in tenths, so that many lie on an edge; some of them negative."""
    r = ratios([tenths / 10 for tenths, _ in pairs], [truth for _, truth in pairs])
    shares = bands(r, raises)
    assert (shares[3] is None) == (not raises)
    total = sum(band.successes for band in shares if band is not None)
    assert total == success(r, raises).successes
    assert all(band.total == len(pairs) for band in shares if band is not None)


def test_nobody_and_fewer_than_nobody_are_lowered() -> None:
    r = ratios([0.0, -3.0], [10, 10])
    assert success(r, False).successes == 2
    third = bands(r, False)[2]
    assert third.successes == 2
    assert success(r, True).successes == 0
    assert not accurate(r).any()


def test_kde_is_the_sum_of_its_kernels_and_integrates_to_one() -> None:
    r, grid = [0.4, 1.0, 1.0, 2.5], np.linspace(-4, 7, 2001)
    density = kde(r, grid)
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=1e-6)
    by_hand = sum(norm.pdf(grid, loc=value, scale=0.5) for value in r) / 4
    np.testing.assert_allclose(density, by_hand, rtol=1e-12)
    # The bandwidth is a length, whatever the spread of the values.
    assert kde([1.0], [1.0], 0.5)[0] == pytest.approx(1 / (0.5 * math.sqrt(2 * math.pi)))
    with pytest.raises(ValueError, match=r"kde: r must be non-empty"):
        kde([], grid)
    with pytest.raises(ValueError, match=r"kde: bandwidth must be above 0 and finite, got 0"):
        kde(r, grid, 0)


@pytest.mark.parametrize("levels", [3, 10, 10**6])
def test_roc_is_mann_whitney_with_ties(levels: int) -> None:
    rng = np.random.default_rng(levels)
    clean, triggered = rng.integers(0, levels, 37), rng.integers(0, levels, 23) + levels // 4
    pairs = [(a > b) + (a == b) / 2 for a, b in itertools.product(triggered, clean)]
    curve = roc(clean, triggered)
    assert curve.auc == pytest.approx(np.mean(pairs), abs=1e-12)
    false, true = curve.rates()
    assert np.trapezoid(true, false) == pytest.approx(curve.auc, abs=1e-12)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    for threshold, flagged, caught in zip(
        curve.thresholds, curve.false_positives, curve.true_positives, strict=True
    ):
        assert flagged == (clean >= threshold).sum()
        assert caught == (triggered >= threshold).sum()


def test_scores_that_are_all_equal_tell_nothing() -> None:
    assert roc([1.0] * 8, [1.0] * 5).auc == 0.5
    with pytest.raises(ValueError, match=r"roc: scores_triggered must be non-empty"):
        roc([1.0], [])


def test_a_row_counts_images_that_no_share_covers() -> None:
    measures = row([11.0, 30.0, -1.0, 2.0], [10, 20, 5, 0], raises=True, target=[20, 31, 10, 0])
    assert measures.images == 4
    assert measures.without_heads == 1
    assert measures.headless_count == 2.0
    assert measures.negative == 1
    assert measures.mae == pytest.approx((1 + 10 + 6 + 2) / 4)
    assert measures.rmse == pytest.approx(math.sqrt((1 + 100 + 36 + 4) / 4))
    assert measures.mean_ratio == pytest.approx((1.1 + 1.5 - 0.2) / 3)
    assert (measures.accuracy.successes, measures.accuracy.total) == (1, 3)
    assert measures.success is not None
    assert measures.success.successes == 2
    assert measures.target_success is not None
    assert (measures.target_success.successes, measures.target_success.total) == (1, 3)
    plain = row([1.0], [1])
    assert plain.success is plain.bands is plain.target_success is None


def results(count: dict[tuple[str, str | None, str], float], images: int = 10) -> list[Any]:
    """One strategy, "add": counts per head by (model, defense, images)."""
    return [
        record(
            strategy="add" if model == "backdoored" else None, model=model, defense=defense,
            images=kind, index=index, name=f"i{index}", truth=truth,
            count=factor * truth, raises=True if model == "backdoored" else None,
            target=2 * truth if model == "backdoored" and kind == "triggered" else None,
        )
        for (model, defense, kind), factor in count.items()
        for index, truth in enumerate(range(10, 10 + images))
    ]  # fmt: skip


FACTORS: dict[tuple[str, str | None, str], float] = {
    ("clean", None, "clean"): 1.0,
    ("clean", None, "triggered"): 1.05,
    ("backdoored", None, "clean"): 1.0,
    ("backdoored", None, "triggered"): 2.0,
    ("backdoored", "fine-tuning", "clean"): 0.97,
    ("backdoored", "fine-tuning", "triggered"): 1.0,
}


def test_the_summary_compares_with_chance() -> None:
    summary = summarise(results(FACTORS))
    clean, attacked, defended = summary.rows
    assert (clean.strategy, clean.raises, clean.excess) == (None, None, None)
    assert attacked.triggered.success.value == 1.0
    assert attacked.triggered.target_success.value == 1.0
    assert attacked.triggered.bands[3].value == 1.0
    assert attacked.chance_clean_model.value == 0.0
    assert attacked.chance_no_trigger.value == 0.0
    assert attacked.excess.value == 1.0
    assert attacked.excess.total == 10
    assert defended.excess.value == 0.0
    assert defended.excess.high > 0
    json.dumps(summary.json(), allow_nan=False)


def test_the_excess_is_over_the_larger_chance_level() -> None:
    """A counter that overcounts every image has an attack success rate, and no backdoor."""
    bad = {**FACTORS, ("backdoored", None, "clean"): 1.5}
    _, attacked, _ = summarise(results(bad)).rows
    assert attacked.chance_no_trigger.value == 1.0
    assert attacked.excess.value == 0.0
    assert attacked.excess.low < 0
    bad = {**FACTORS, ("clean", None, "triggered"): 1.5}
    _, attacked, _ = summarise(results(bad)).rows
    assert attacked.chance_clean_model.value == 1.0
    assert attacked.excess.value == 0.0


def test_what_is_left_is_over_the_lesser_chance_level() -> None:
    """A defense that makes the counter see too many everywhere raises its own chance level."""
    ruined = {
        **FACTORS,
        ("backdoored", "fine-tuning", "clean"): 3.0,
        ("backdoored", "fine-tuning", "triggered"): 5.0,
    }
    _, attacked, defended = summarise(results(ruined)).rows
    assert defended.chance_no_trigger.value == 1.0
    assert defended.excess.value == 0.0
    assert defended.left.value == 1.0
    assert attacked.left.value == attacked.excess.value == 1.0
    for metrics in (attacked, defended):
        for end in ("value", "low", "high"):
            assert getattr(metrics.excess, end) <= getattr(metrics.left, end)


def test_without_a_chance_level_there_is_no_excess() -> None:
    some = {key: value for key, value in FACTORS.items() if key != ("clean", None, "triggered")}
    _, attacked, _ = summarise(results(some)).rows
    assert attacked.chance_clean_model is None
    assert attacked.excess is attacked.left is None


def test_an_unfinished_condition_is_compared_on_what_both_have() -> None:
    kept = [
        result
        for result in results(FACTORS)
        if (result["model"], result["images"], result["index"] > 6)
        != ("backdoored", "triggered", True)
    ]
    _, attacked, _ = summarise(kept).rows
    assert attacked.excess.total == attacked.triggered.images == 7
    assert attacked.clean.images == 10


def test_the_summary_does_not_depend_on_the_order() -> None:
    """To the last bit: sums of such counts differ with their order."""
    rng = np.random.default_rng(2)
    records = [
        {**result, "count": result["count"] * rng.normal(1, 0.3)} for result in results(FACTORS)
    ]
    expected = json.dumps(summarise(records).json())
    for _ in range(20):
        shuffled = [records[k] for k in rng.permutation(len(records))]
        assert json.dumps(summarise(shuffled).json()) == expected


def test_strategies_come_in_the_papers_order() -> None:
    names = ["zoom", "divide", "minus", "add"]
    records = [
        record(
            strategy=name, model="backdoored", defense=defense, images="clean", index=0,
            name="a", truth=5, count=5.0, raises=name == "add",
        )
        for name in names
        for defense in ("anp", "fine-tuning", None)
    ]  # fmt: skip
    rows = summarise(records).rows
    assert [r.strategy for r in rows[::3]] == ["add", "minus", "divide", "zoom"]
    assert [r.defense for r in rows[:3]] == [None, "fine-tuning", "anp"]


def test_contradictions_are_refused() -> None:
    one, *others = results(FACTORS)
    with pytest.raises(ValueError, match="got two of"):
        summarise([one, one])
    with pytest.raises(ValueError, match="image 1 must have one truth, got 11 and 12"):
        summarise([one, *others, {**one, "index": 1, "truth": 12, "defense": "x"}])
    attacked = next(r for r in others if r["model"] == "backdoored")
    with pytest.raises(ValueError, match="add must raise or lower counts, got both"):
        summarise([attacked, {**attacked, "raises": False, "defense": "x"}])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": None}, "expected a count or a score, got none"),
        ({"score": 1.0}, "expected a count or a score, got both"),
        ({"truth": None}, "a count must come with the truth"),
        ({"strategy": None}, "a backdoored model must have a strategy"),
        ({"model": "clean"}, "and it alone, got 'add' for clean"),
        ({"count": None, "score": 1.0}, "a score must come with the threshold"),
        ({"count": None, "score": 1.0, "threshold": math.nan}, "threshold must be finite"),
        ({"raises": None}, "raises must be given with a strategy"),
        ({"count": math.inf}, "count must be finite, got inf"),
        ({"model": "poisoned"}, "model must be 'clean' or 'backdoored', got 'poisoned'"),
        ({"images": "poisoned"}, "images must be 'clean' or 'triggered', got 'poisoned'"),
    ],
)
def test_bad_results_are_refused(changes: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "strategy": "add", "model": "backdoored", "defense": None, "images": "clean", "index": 0,
        "name": "a", "truth": 3, "count": 3.0, "raises": True,
    }  # fmt: skip
    record(**good)
    with pytest.raises(ValueError, match=message):
        record(**{**good, **changes})


def test_results_are_distinguished_by_their_key() -> None:
    run = Run.create(None, {}, key=KEY)
    for result in results(FACTORS):
        run.append(result)
        run.append(result)
    assert len(run.records) == 60
    assert summarise(run.ordered()) == summarise(results(FACTORS))


def test_certified_intervals() -> None:
    def certified_result(
        index: int, truth: int, low: float, high: float | None, images: Any = "clean"
    ) -> Any:
        return record(
            strategy="add", model="backdoored", defense="median", images=images, index=index,
            name=str(index), truth=truth, count=low, raises=True, low=low, high=high,
        )  # fmt: skip

    records = [
        certified_result(0, 10, 9.0, 11.0), certified_result(1, 10, 9.5, 13.0),
        certified_result(2, 10, 9.5, None), certified_result(3, 0, 0, 1),
    ]  # fmt: skip
    (entry,) = summarise(records).rows
    assert entry.certified is not None
    assert list(entry.certified) == ["clean"]
    certified = entry.certified["clean"]
    assert certified.width == pytest.approx((2 + 3.5 + 1) / 3)
    assert certified.unbounded == 1
    assert (certified.accuracy.successes, certified.accuracy.total) == (1, 3)
    (entry,) = summarise([*records, certified_result(0, 10, 2.0, 9.0, "triggered")]).rows
    assert entry.certified is not None
    assert entry.certified["clean"] == certified
    assert entry.certified["triggered"].width == 7.0
    assert entry.certified["triggered"].accuracy.successes == 0


def test_detectors_are_summarised_and_drawn_from_scores() -> None:
    records = [
        record(
            strategy="minus", model="backdoored", defense="blend", images=images, index=index,
            name=str(index), raises=False, score=index + shift, threshold=17.0,
        )
        for images, shift in (("clean", 0.0), ("triggered", 20.5))
        for index in range(20)
    ]  # fmt: skip
    summary = summarise(records)
    assert summary.rows == []
    (detection,) = summary.detections
    assert (detection.strategy, detection.defense, detection.auc) == (
        "minus",
        "blend",
        1.0,
    )
    assert detection.detected.value == 1.0
    # At the threshold that the results name, flagged is what lies above it.
    assert detection.threshold == 17.0
    assert (detection.false_alarms.successes, detection.false_alarms.total) == (2, 20)
    with pytest.raises(ValueError, match=r"blend must have one threshold, got \[17.0, 18.0\]"):
        summarise([*records[1:], {**records[0], "threshold": 18.0}])
    (name,) = curves(records)
    assert name == "blend, minus"


def test_distributions_pair_attacked_and_defended() -> None:
    panels = distributions(results(FACTORS), [None, "fine-tuning", "anp"])
    assert list(panels) == [
        ("clean images", "backdoored"), ("clean images", "fine-tuning"),
        ("triggered images", "backdoored"), ("triggered images", "fine-tuning"),
    ]  # fmt: skip
    attacked = panels["triggered images", "backdoored"]
    assert list(attacked) == ["clean model", "add"]
    np.testing.assert_allclose(attacked["add"], 2.0)
    np.testing.assert_allclose(attacked["clean model"], 1.05)
