"""The median of counters on disjoint parts: what m poisoned images can do, and what they touch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.scenes import QUICK, counter, scenes

from pycc.certify.poisoned import most_poisoned, partition_median, partitions
from pycc.runs import fingerprint
from pycc.train import fit
from pycc.types import Sample


def attacks(counts: list[float], poisoned: int) -> Iterator[list[float]]:
    """All ways to give up to ``poisoned`` counts other values: below, between, at and above all."""
    ordered = sorted(set(counts))
    between = [(a + b) / 2 for a, b in itertools.pairwise(ordered)]
    values = [0.0, *ordered, *between, ordered[-1] + 1e6]
    for touched in itertools.combinations(range(len(counts)), poisoned):
        for content in itertools.product(values, repeat=poisoned):
            attacked = list(counts)
            for place, value in zip(touched, content, strict=True):
                attacked[place] = value
            yield attacked


@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.integers(0, 2))
def test_no_change_of_m_counts_leaves_the_interval_and_some_reach_its_ends(
    people: list[int], poisoned: int
) -> None:
    counts = [float(value) for value in people]
    interval = partition_median(counts, poisoned=poisoned)
    assert interval.count == np.median(counts)
    if 2 * poisoned >= len(counts):
        assert (interval.low, interval.high, interval.vacuous) == (0.0, math.inf, True)
        return
    medians = [float(np.median(attacked)) for attacked in attacks(counts, poisoned)]
    assert all(value in interval for value in medians)
    assert (interval.low, interval.high) == (min(medians), max(medians))


def test_one_poisoned_image_more_leaves_it() -> None:
    counts = [10.0, 20.0, 30.0, 40.0, 50.0]
    for poisoned in range(2):
        interval = partition_median(counts, poisoned=poisoned)
        assert (interval.low, interval.high) == (counts[2 - poisoned], counts[2 + poisoned])
        more = [float(np.median(attacked)) for attacked in attacks(counts, poisoned + 1)]
        assert not all(value in interval for value in more)


@pytest.mark.parametrize("parts", range(1, 9))
def test_half_of_the_counters_is_too_much(parts: int) -> None:
    counts = np.arange(parts, dtype=float)
    for poisoned in range(2 * parts):
        interval = partition_median(counts, poisoned=poisoned)
        assert interval.vacuous == (poisoned >= parts / 2) == (poisoned > most_poisoned(parts))
        assert interval.deterministic
        assert interval.method == "partition-median"
        if interval.vacuous:
            assert interval.reason == (
                f"{poisoned} poisoned images can reach {min(poisoned, parts)} of {parts} counters, "
                "half or more"
            )


def test_bad_counts() -> None:
    for counts in ([], [[1.0]], [-1.0], [math.nan]):
        with pytest.raises(ValueError, match="partition_median: counts must be"):
            partition_median(counts, poisoned=1)
    with pytest.raises(ValueError, match="poisoned must be at least 0, got -1"):
        partition_median([1.0], poisoned=-1)
    with pytest.raises(TypeError, match="poisoned must be a whole number"):
        partition_median([1.0], poisoned=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="parts must be at least 1, got 0"):
        partitions([], 0, seed=0)


def pictures(number: int = 60) -> list[Sample]:
    generator = torch.Generator().manual_seed(5)
    return [
        Sample(
            f"image-{n}",
            torch.rand(3, 4, 6, generator=generator),
            torch.rand(n % 4, 2, generator=generator, dtype=torch.float64),
        )
        for n in range(number)
    ]


PARTS = 7


def contents(samples: list[Sample], seed: int = 3) -> list[list[tuple[bytes, bytes]]]:
    """What the counter of each part is trained on, in order; names have no part in it."""
    return [
        [(samples[i].image.numpy().tobytes(), samples[i].points.numpy().tobytes()) for i in part]
        for part in partitions(samples, PARTS, seed=seed)
    ]


def touched(before: list[Sample], after: list[Sample]) -> int:
    return sum(a != b for a, b in zip(contents(before), contents(after), strict=True))


def test_each_image_is_in_one_part_and_all_parts_are_used() -> None:
    result = partitions(pictures(), PARTS, seed=3)
    assert sorted(itertools.chain(*result)) == list(range(60))
    assert min(map(len, result)) > 0
    assert result != partitions(pictures(), PARTS, seed=4)


def test_insertions_removals_and_heads_touch_one_part_each() -> None:
    clean = pictures()
    for n in (0, 17, 59):
        duplicate = replace(clean[n], name="twin", image=1 - clean[n].image)
        for place in (0, 30, 60):
            assert touched(clean, [*clean[:place], duplicate, *clean[place:]]) == 1
        assert touched(clean, [*clean[:n], *clean[n + 1 :]]) == 1
        heads = replace(clean[n], points=torch.ones(9, 2, dtype=torch.float64))
        assert touched(clean, [*clean[:n], heads, *clean[n + 1 :]]) == 1


def test_a_changed_picture_touches_one_part_or_two() -> None:
    clean = pictures()
    seen = set()
    for n, sample in enumerate(clean):
        changed = replace(sample, image=1 - sample.image)
        seen.add(touched(clean, [*clean[:n], changed, *clean[n + 1 :]]))
    assert seen == {1, 2}


def test_names_and_order_touch_none() -> None:
    clean = pictures()
    renamed = [replace(sample, name=f"{hash(sample.name)}") for sample in clean]
    assert touched(clean, renamed) == 0
    assert touched(clean, clean[::-1]) == 0
    # A cut by position has not that property: hence the hash.
    by_position = [[s.name for s in clean[n::PARTS]] for n in range(PARTS)]
    shifted = [renamed[0], *clean]
    after = [[s.name for s in shifted[n::PARTS]] for n in range(PARTS)]
    assert sum(a != b for a, b in zip(by_position, after, strict=True)) == PARTS


def test_counters_trained_on_parts_stay_in_the_interval_of_the_clean_ones() -> None:
    """A counter that is the mean number of heads of its part, and duplicates with 1,000 heads."""
    clean = pictures()

    def predicted(samples: list[Sample]) -> np.ndarray:
        parts = partitions(samples, PARTS, seed=3)
        return np.array([np.mean([samples[i].count for i in part]) for part in parts])

    many = torch.ones(1000, 2, dtype=torch.float64)
    poison = [replace(s, name=f"{s.name}-p", image=s.image / 2, points=many) for s in clean[:9]]
    before = predicted(clean)
    moved = []
    for number in range(1, 10):
        counts = predicted([*clean, *poison[:number]])
        assert np.count_nonzero(counts != before) <= number
        moved.append(float(np.median(counts)))
        assert moved[-1] in partition_median(before, poisoned=number)
        assert float(np.median(before)) in partition_median(counts, poisoned=number)
    assert moved[-1] > 100 > moved[0]  # beyond half of the parts nothing holds


def trained(samples: list[Sample], out: Path) -> list[str | None]:
    """Fingerprints of the weights that each of three parts makes; None of one without images."""
    plan = replace(QUICK, epochs=2, batch=2, validation_share=0.0)
    prints: list[str | None] = []
    for part, indices in enumerate(partitions(samples, 3, seed=1)):
        if not indices:
            prints.append(None)
            continue
        model = counter()
        fit(model, [samples[index] for index in indices], plan, seed=0, out=out / str(part))
        prints.append(fingerprint(model.net.state_dict().items()))
    return prints


@pytest.mark.command
def test_one_image_changes_the_weights_of_one_counter_alone(tmp_path: Path) -> None:
    """From the images to the weights: names and order change none of them."""
    samples = scenes(6)
    before = trained(samples, tmp_path / "before")
    assert None not in before
    renamed = [replace(sample, name=f"other-{9 - n}") for n, sample in enumerate(samples)]
    assert trained(renamed[::-1], tmp_path / "renamed") == before
    more = scenes(9)[6:]
    for n, extra in enumerate([*more, replace(samples[2], name="again")]):
        after = trained([extra, *renamed[::-1]], tmp_path / f"inserted-{n}")
        assert sum(a != b for a, b in zip(after, before, strict=True)) == 1
