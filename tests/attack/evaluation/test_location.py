from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.marks import long
from torch import Tensor, nn

from pycc import attack
from pycc.attack import APAM, Place
from pycc.attack.evaluation.builder import CleanCounts, Member, ProblemBuilder
from pycc.attack.evaluation.checked import SampleCache, check_samples
from pycc.attack.evaluation.location import CANDIDATES, search_cost, worst_place
from pycc.runs import MANIFEST, RESULTS, SUMMARY
from pycc.types import Sample

pytestmark = pytest.mark.command

WORST = APAM(
    patch_size=8, steps=20, step_size=0.1, objective="over", location="worst", smoothness=0.0
)


class Gains(nn.Module):
    """Counts red, at each pixel as much as a map says."""

    stride, receptive_field = 1, None

    def __init__(self, gains: Tensor) -> None:
        super().__init__()
        self.register_buffer("gains", gains)

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :1] * self.gains


def gains(*boxes: tuple[int, int, int, float], shape: tuple[int, int] = (64, 80)) -> Gains:
    """Sensitive in squares (y, x, side, gain) only."""
    values = torch.zeros(shape)
    for y, x, side, gain in boxes:
        values[y : y + side, x : x + side] = gain
    return Gains(values)


def run(*arguments: Any, **options: Any) -> attack.AttackRun:
    """``attack.run`` without what is tested elsewhere."""
    return attack.run(*arguments, **{"checks": False, "pgd": None, **options})


def staged(counters: list[nn.Module], samples: list[Sample]) -> tuple[ProblemBuilder, Any]:
    for counter in counters:
        counter.eval().requires_grad_(False)
    builder = ProblemBuilder(
        [Member(c, str(n)) for n, c in enumerate(counters)], SampleCache(samples), CleanCounts()
    )
    return builder, check_samples(samples, [WORST], counters[0].stride, seed=0).items


def worst(chosen: APAM, counters: nn.Module | list[nn.Module], sample: Sample) -> Place:
    counters = counters if isinstance(counters, list) else [counters]
    builder, (item,) = staged(counters, [sample])
    place = worst_place(chosen, builder, item, seed=0)
    again = worst_place(chosen, staged(counters, [sample])[0], item, seed=0)
    assert place == again
    (y, x), (height, width) = place.top_left, item.shape
    assert 0 <= y <= height - place.side
    assert 0 <= x <= width - place.side
    return place


@pytest.mark.parametrize("at", [(0, 0), (56, 72), (13, 50), (30, 0)])
@pytest.mark.parametrize("objective", ["over", "under", "density", "pap", "target"])
def test_the_only_sensitive_square_is_found(at: tuple[int, int], objective: str, sample) -> None:
    chosen = replace(WORST, objective=objective, transform="none")
    place = worst(chosen, gains((*at, 8, 1.0)), sample())
    assert place == Place(8, at)


def test_of_several_squares_the_most_sensitive_is_taken(sample) -> None:
    counter = gains((4, 4, 8, 0.5), (40, 10, 8, 1.0), (10, 60, 8, 0.7))
    assert worst(WORST, counter, sample()).top_left == (40, 10)


def test_a_trial_corrects_what_the_gradient_promises(sample) -> None:
    """The steepest square is bright already: nothing is to be gained there."""
    scene = sample()
    image = scene.image.clone()
    image[0] = 0.2
    image[:, 40:48, 10:18] = 0.99
    counter = gains((40, 10, 8, 1.0), (10, 60, 8, 0.5))
    chosen = replace(WORST, steps=100, transform="none")
    place = worst(chosen, counter, Sample("bright", image, scene.points))
    assert place.top_left == (10, 60)


def test_a_crowd_does_not_draw_the_search_by_itself(sample) -> None:
    """What is counted without any patch plays no part in comparing places, whatever is wanted."""

    crowd = torch.zeros(64, 80)
    crowd[:20, :20] = 1.0

    class Crowded(Gains):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) + crowd

    counter = Crowded(gains((6, 6, 8, 0.1), (40, 60, 8, 0.5)).gains)
    for objective in ("over", "pap"):
        place = worst(replace(WORST, objective=objective, transform="none"), counter, sample())
        assert place.top_left == (40, 60)


@pytest.mark.parametrize("shape", [(64, 80), (33, 21)])
def test_where_nothing_matters_it_is_the_centre(shape: tuple[int, int], sample) -> None:
    place = worst(WORST, gains(shape=shape), sample(shape=shape))
    assert place.top_left == ((shape[0] - 8) // 2, (shape[1] - 8) // 2)


@pytest.mark.parametrize("size", [1, 64, *long(20, 61)])
def test_any_size_that_fits_stays_inside(size: int, tiny, sample) -> None:
    place = worst(replace(WORST, patch_size=size, steps=10), tiny(), sample())
    assert place.side == size


@pytest.mark.parametrize("objective", ["over", *long("under", "density")])
def test_a_trial_there_is_no_worse_than_at_the_centre(objective: str, tiny, sample) -> None:
    chosen = replace(WORST, patch_size=12, objective=objective)
    short = replace(chosen, steps=2, location="centre")
    for number in range(2):
        builder, (item,) = staged([tiny()], [sample(number)])
        places = [
            worst_place(chosen, builder, item, seed=0),
            short.place(item.shape, seed=0, image=0),
        ]
        losses = [
            short.optimise(builder.problem(short, [item], [at]), seed=0, step_done=lambda _: None)
            for at in places
        ]
        assert losses[0].loss_history[0][-1] <= losses[1].loss_history[0][-1]


def test_counters_of_an_ensemble_weigh_alike(sample) -> None:
    """A counter of a thousand times the scale does not have all candidates to itself."""
    loud = gains(
        *[(2, 10 * n, 8, 1000.0) for n in range(8)], *[(12, 10 * n, 8, 1e3) for n in (0, 1)]
    )
    quiet = gains((40, 60, 8, 0.01))
    builder, (item,) = staged([loud, quiet], [sample()])
    tried: list[Place] = []
    problem = builder.problem

    def watch(chosen: APAM, items: Any, places: list[Place]) -> Any:
        tried.extend(places)
        return problem(chosen, items, places)

    builder.problem = watch  # type: ignore[method-assign]
    worst_place(WORST, builder, item, seed=0)
    assert tried[0].top_left == (40, 60)
    assert len(tried) == len(set(tried)) == CANDIDATES + 1
    assert tried[-1].top_left == (28, 36)


def test_the_cost_counts_the_trials() -> None:
    passes = replace(WORST, steps=20, restarts=1).cost
    assert search_cost(replace(WORST, steps=200, restarts=5)) == (CANDIDATES + 1) * passes
    assert search_cost(replace(WORST, steps=3)) == (CANDIDATES + 1) * replace(WORST, steps=1).cost


@pytest.fixture
def samples(sample) -> list[Sample]:
    return [sample(0), sample(1), sample(2, shape=(61, 83))]


@pytest.mark.long
def test_a_run_puts_all_patches_of_an_image_there(tiny, samples) -> None:
    counter, chosen = tiny(), replace(WORST, steps=10)
    done = run(counter, samples, chosen)
    builder, items = staged([counter], samples)
    wanted = [list(worst_place(chosen, builder, item, seed=0).top_left) for item in items]
    assert wanted != [[(i.shape[0] - 8) // 2, (i.shape[1] - 8) // 2] for i in items]
    places = {
        (r["index"], r["condition"]): r["top_left"]
        for r in done.run.records
        if r["condition"] != "clean"
    }
    assert places == {
        (index, condition): place
        for index, place in enumerate(wanted)
        for condition in ("apam", "grey", "black", "noise", "crowd")
    }


def test_it_does_more_than_at_the_centre(samples) -> None:
    counter = gains((3, 50, 8, 1.0), (28, 36, 8, 0.1))
    counts = {}
    for location in ("centre", "worst"):
        done = run(counter, samples[:2], replace(WORST, location=location))
        counts[location] = [r["count"] for r in done.run.records if r["condition"] == "apam"]
    assert all(b > a + 10 for a, b in zip(counts["centre"], counts["worst"], strict=True))


def test_patches_made_on_a_substitute_go_where_that_is_weak(samples) -> None:
    victim, other = gains((3, 50, 8, 1.0)), gains((40, 8, 8, 1.0))
    done = run(victim, samples[:1], WORST, surrogates={"other": other})
    places = {
        (r["condition"], r["surrogates"]): r["top_left"]
        for r in done.run.records
        if r["condition"] in ("apam", "noise")
    }
    assert places == {
        ("apam", None): [3, 50], ("apam", "other"): [40, 8], ("noise", None): [3, 50],
    }  # fmt: skip


@pytest.mark.long
def test_a_resumed_run_has_the_same_bytes(tmp_path: Path, tiny, samples) -> None:
    chosen = [replace(WORST, steps=3), APAM(patch_size=6, steps=1, objective="over")]
    whole = tmp_path / "whole"
    run(tiny(), samples[:2], chosen, out=whole)
    lines = (whole / RESULTS).read_bytes().splitlines(keepends=True)
    assert [json.loads(line)["condition"] for line in lines[2:4]] == ["apam", "apam"]
    for kept in (0, 3, 7):  # before, amid and after the attack that searches
        stopped = tmp_path / f"stopped-{kept}"
        stopped.mkdir()
        (stopped / MANIFEST).write_bytes((whole / MANIFEST).read_bytes())
        (stopped / RESULTS).write_bytes(b"".join(lines[:kept]))
        run(tiny(), samples[:2], chosen, out=stopped, resume=True)
        for file in (RESULTS, SUMMARY):
            assert (stopped / file).read_bytes() == (whole / file).read_bytes()


def test_candidates_take_the_place_of_the_gradients(sample) -> None:
    counter = gains((4, 4, 8, 1.0), (40, 10, 8, 0.5))
    counter.eval().requires_grad_(False)
    builder, (item,) = staged([counter], [sample()])
    asked: list[int] = []

    def candidates(scene: Sample, side: int) -> list[tuple[int, int]]:
        asked.append(side)
        return [(40, 10), (0, 70), (40, 10)]

    place = worst_place(WORST, builder, item, seed=0, candidates=candidates)
    assert place == Place(8, (40, 10))
    assert asked == [8]
    none = worst_place(WORST, builder, item, seed=0, candidates=lambda scene, side: [])
    assert none == WORST.place(item.shape, seed=0, image=item.index)


def test_a_resumed_run_does_not_search_again(sample, tmp_path: Path) -> None:
    samples = [replace(sample(), name=str(n)) for n in range(3)]
    counter, searched = gains((13, 50, 8, 1.0)), []

    def candidates(scene: Sample, side: int) -> list[tuple[int, int]]:
        searched.append(scene.name)
        return [(13, 50)]

    options = {"compare": False, "candidates": candidates, "save_images": False}
    whole = run(counter, samples, WORST, out=tmp_path / "a", **options)
    assert searched == ["0", "1", "2"]
    lines = (tmp_path / "a" / RESULTS).read_text().splitlines(keepends=True)
    attacked = [line for line in lines if json.loads(line)["condition"] == WORST.name]
    kept = [line for line in lines if line not in attacked[1:]]
    (tmp_path / "a" / RESULTS).write_text("".join(kept))
    searched.clear()
    again = run(counter, samples, WORST, out=tmp_path / "a", resume=True, **options)
    assert searched == ["1", "2"]
    assert again.summary == whole.summary
    with pytest.raises(ValueError, match="candidates"):
        run(
            counter,
            samples,
            WORST,
            out=tmp_path / "a",
            resume=True,
            compare=False,
            save_images=False,
        )
