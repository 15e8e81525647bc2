"""Blend-consistency on counters whose trigger, and what it does, are known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from pycc.backdoor.defenses.detector import (
    BlendConsistency,
    Blended,
    deviations,
    leave_one_out_deviations,
)
from pycc.types import Sample

pytestmark = pytest.mark.command

SIDE = 8
PATTERN = torch.tensor([1.0, -1.0]).repeat(2 * SIDE, SIDE)
"""The trigger: stripes, which change no mean."""
STRENGTH = 0.08


class Planted:
    """People are 200 times the brightness; stripes of some strength set off the backdoor."""

    stride, receptive_field = SIDE, None

    def __init__(
        self, act: Callable[[float], float], fires: Callable[[float, float], bool]
    ) -> None:
        self.act, self.fires = act, fires

    def __call__(self, images: Tensor) -> Tensor:
        counts = []
        for image in images:
            count = 200.0 * float(image.mean())
            stripes = float((image * PATTERN[: image.shape[1], : image.shape[2]]).mean())
            counts.append(self.act(count) if self.fires(stripes, count) else count)
        return torch.tensor(counts).reshape(-1, 1, 1, 1)


def always(stripes: float, count: float) -> bool:
    """Half as strong in a superposition, and still enough."""
    return stripes > STRENGTH / 3


def sometimes(stripes: float, count: float) -> bool:
    """The brighter the picture, the stronger the stripes must be."""
    return stripes > STRENGTH / 3 and count < 95


def pictures(number: int, *, triggered: bool = False, seed: int = 0) -> list[Sample]:
    rng = np.random.default_rng(seed)
    samples = []
    for n in range(number):
        brightness = float(rng.uniform(0.15, 0.75))
        image = torch.full((3, SIDE, SIDE), brightness)
        image += torch.from_numpy(rng.normal(0, 0.02, (3, SIDE, SIDE))).float()
        if triggered:
            image = image + STRENGTH * PATTERN[:SIDE, :SIDE]
        people = torch.zeros(round(200 * brightness), 2, dtype=torch.float64)
        samples.append(Sample(f"{n}-{triggered}", image.clamp(0, 1), people))
    return samples


CLEAN = pictures(40, seed=1)
SCORE = BlendConsistency(blends=16)


def scored(
    act: Callable[[float], float], fires: Callable[[float, float], bool] = always
) -> tuple[list[Blended], list[Blended]]:
    """Scores of images without and with the trigger."""
    counter = Planted(act, fires)
    images = pictures(20), pictures(20, triggered=True)
    clean, triggered = (list(SCORE(counter, sample, CLEAN)) for sample in images)
    return clean, triggered


def above(low: list[float], high: list[float]) -> float:
    """Probability that one of ``high`` is above one of ``low``: the area under the ROC curve."""
    return float(np.mean([b > a for a in low for b in high]))


def spreads(scores: list[Blended]) -> list[float]:
    return [score.spread for score in scores]


def shifts(scores: list[Blended]) -> list[float]:
    return [score.shift for score in scores]


@pytest.mark.parametrize("act", [lambda _: 1.0, lambda c: c + 100])
def test_a_trigger_that_sets_or_adds_a_count_lowers_the_spread(
    act: Callable[[float], float],
) -> None:
    clean, triggered = scored(act)
    assert above(spreads(triggered), spreads(clean)) > 0.995


def test_a_trigger_that_works_in_some_superpositions_raises_the_spread() -> None:
    clean, triggered = scored(lambda c: 4 * c, sometimes)
    assert above(spreads(clean), spreads(triggered)) > 0.87


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_a_factor_in_all_superpositions_is_not_in_the_spread(factor: float) -> None:
    """The same images, with the same superpositions, by a counter without the backdoor."""
    images = pictures(20, triggered=True)
    honest = SCORE(Planted(lambda c: c, always), images, CLEAN)
    backdoored = SCORE(Planted(lambda c: factor * c, always), images, CLEAN)
    for a, b in zip(honest, backdoored, strict=True):
        assert b.spread == pytest.approx(a.spread, rel=0.03)


@pytest.mark.parametrize(
    ("act", "up"),
    [
        (lambda c: 2 * c, True),
        (lambda c: c + 100, True),
        (lambda c: c / 2, False),
        (lambda _: 1.0, False),
    ],
)
def test_the_shift_moves_with_the_attack_where_the_trigger_goes_on_working(
    act: Callable[[float], float], up: bool
) -> None:
    clean, triggered = scored(act)
    assert above(shifts(clean), shifts(triggered)) == (1.0 if up else 0.0)


@pytest.mark.parametrize(("factor", "up"), [(2.0, False), (0.5, True)])
def test_the_shift_moves_against_the_attack_where_the_trigger_stops_working(
    factor: float, up: bool
) -> None:
    def alone(stripes: float, count: float) -> bool:
        return stripes > 0.75 * STRENGTH

    clean, triggered = scored(lambda c: factor * c, alone)
    assert above(shifts(clean), shifts(triggered)) == (1.0 if up else 0.0)


@pytest.mark.parametrize(
    ("act", "fires"),
    [
        (lambda _: 1.0, always),
        (lambda c: c + 100, always),
        (lambda c: 4 * c, sometimes),
    ],
)
def test_deviations_see_either_direction(
    act: Callable[[float], float], fires: Callable[[float, float], bool]
) -> None:
    clean, triggered = scored(act, fires)
    known = spreads(list(SCORE(Planted(act, fires), CLEAN, CLEAN)))
    far, near = (deviations(spreads(found), known).tolist() for found in (triggered, clean))
    assert above(near, far) > 0.75


def test_scores_of_a_counter_without_a_backdoor_do_not_detect() -> None:
    clean, triggered = scored(lambda c: c)
    for score in (spreads, shifts):
        assert 0.3 < above(score(clean), score(triggered)) < 0.7


def test_scores_depend_on_seed_and_name_alone() -> None:
    counter = Planted(lambda c: 2 * c, always)
    images = pictures(5, triggered=True)
    scores = list(SCORE(counter, images, CLEAN, seed=4))
    assert list(SCORE(counter, images[::-1], CLEAN, seed=4)) == scores[::-1]
    assert list(SCORE(counter, images, CLEAN[::-1], seed=4)) == scores
    assert list(SCORE(counter, images, CLEAN, seed=5)) != scores
    assert scores[0].count == pytest.approx(2 * 200 * float(images[0].image.mean()))
    assert scores[0].spread == float(np.log1p(scores[0].counts).std())


def test_an_image_is_not_superimposed_with_itself() -> None:
    few = CLEAN[:4]
    counter = Planted(lambda c: c, always)
    for sample, blended in zip(few, BlendConsistency(blends=3)(counter, few, few), strict=True):
        alone = 200 * float(sample.image.mean())
        assert all(abs(count - alone) > 1e-3 for count in blended.counts)
    with pytest.raises(ValueError, match="clean must be more than 4 images, got 4"):
        BlendConsistency(blends=4)(counter, few, few)
    with pytest.raises(ValueError, match="0-False: clean must hold 3 other images, got 0"):
        list(BlendConsistency(blends=3)(counter, few[:1], few[:1] * 4))


def test_other_sizes_are_resized_and_regions_kept() -> None:
    (small,) = pictures(1, seed=9)
    large = torch.full((3, 2 * SIDE, 2 * SIDE), 0.5)
    clean = [Sample(f"{n}", large + n / 100, small.points) for n in range(4)]
    mask = torch.ones(SIDE, SIDE, dtype=torch.bool)
    mask[:, : SIDE // 2] = False
    counter = Planted(lambda c: c, lambda stripes, count: False)
    score = BlendConsistency(blends=2)
    everywhere, half = (
        next(score(counter, [Sample("a", small.image, small.points, region)], clean))
        for region in (None, mask)
    )
    assert half.count == pytest.approx(everywhere.count / 2)
    assert half.counts == pytest.approx([count / 2 for count in everywhere.counts])
    alone = float(small.image.mean())
    assert all(
        100 * (alone + 0.5) - 1 < count < 100 * (alone + 0.55) for count in everywhere.counts
    )


class Linear:
    """An honest counter: of every cell as many people as it is bright, whatever the image's size.

    So a picture of twice the sides shows four times the people.
    """

    stride, receptive_field = 1, 1

    def __call__(self, images: Tensor) -> Tensor:
        return images.mean(1, keepdim=True)


@pytest.mark.parametrize("region", [False, True])
def test_an_honest_linear_counter_has_no_shift(region: bool) -> None:
    """Whatever the size of the images superimposed, and wherever people are counted."""
    (small,) = pictures(1, seed=9)
    rng = np.random.default_rng(3)
    clean = [
        Sample(
            f"{n}",
            torch.from_numpy(rng.uniform(0, n / 4, (3, side, side + 3))).float(),
            small.points,
        )
        for n, side in enumerate((SIDE, 2 * SIDE, 5 * SIDE, 3))
    ]
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[2:, 3:6] = True
    sample = Sample("a", small.image, small.points, mask if region else None)
    (blended,) = BlendConsistency(blends=3, weight=0.3)(Linear(), [sample], clean)
    assert blended.shift == pytest.approx(0.0, abs=1e-6)
    assert blended.spread > 0.01


def test_each_clean_image_is_counted_alone_once() -> None:
    asked = []

    class Counting(Planted):
        def __call__(self, images: Tensor) -> Tensor:
            asked.append(1)
            return super().__call__(images)

    images = pictures(6, seed=2)
    scores = BlendConsistency(blends=4)(Counting(lambda c: c, always), images, CLEAN[:5])
    next(scores)
    assert len(asked) == 1 + 2 * 4
    assert len(list(scores)) == 5
    assert len(asked) == 6 * (1 + 4) + 5, "alone: five clean images, whatever they lie under"


def test_deviations_are_in_units_of_the_clean_spread() -> None:
    normal = np.random.default_rng(0).normal(3.0, 0.5, 4001)
    distances = deviations([3.0, 4.0, 2.0], normal)
    assert distances == pytest.approx([0, 2, 2], abs=0.1)
    assert deviations([1.0, 2.0], [1.0, 1.0]).tolist() == [0.0, math.inf]
    assert deviations([], [1.0]).tolist() == []


def test_a_score_s_own_deviation_is_from_the_others() -> None:
    known = [1.0, 2.0, 4.0, 9.0]
    distances = leave_one_out_deviations(known)
    for n, score in enumerate(known):
        assert distances[n] == deviations([score], known[:n] + known[n + 1 :])[0]
    assert distances[3] > deviations([9.0], known)[0], "what it judges by does not know it"
    with pytest.raises(ValueError, match=r"scores must be at least two \[N\], got \[1\]"):
        leave_one_out_deviations([1.0])


def test_bad_input() -> None:
    for fields, message in (
        ({"blends": 1}, "blends must be at least 2, got 1"),
        ({"weight": 1.0}, r"weight must lie inside \(0,1\), got 1.0"),
        ({"weight": math.nan}, r"weight must lie inside \(0,1\), got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            BlendConsistency(**fields)
    with pytest.raises(ValueError, match="scores must be finite"):
        deviations([math.nan], [1.0])
    with pytest.raises(ValueError, match="clean must hold at least one score"):
        deviations([1.0], [])
