from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pycc import attack
from pycc.attack import APAM, OptimisedPatches, Problem, Universal
from pycc.attack.evaluation.builder import CleanCounts, Member, ProblemBuilder
from pycc.attack.evaluation.checked import SampleCache, check_samples
from pycc.attack.tracker import LOOKS
from pycc.data import quantize
from pycc.types import Sample

pytestmark = pytest.mark.command

QUICK: dict[str, Any] = {
    "patch_size": 16,
    "step_size": 0.15,
    "decay": "cosine",
    "objective": "over",
}


class Linear(nn.Module):
    """A map whose count grows with red and falls with green, and does not see blue."""

    stride, receptive_field = 1, 1

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :1] - 0.5 * images[:, 1:2] + 0 * images[:, 2:]


def run(*arguments: Any, **options: Any) -> attack.AttackRun:
    """``attack.run`` without what is tested elsewhere."""
    return attack.run(*arguments, **{"checks": False, "pgd": None, **options})


def problem_of(
    chosen: APAM, counter: nn.Module, samples: list[Sample], numbers: list[int]
) -> Problem:
    """One problem of the samples with these numbers, which they keep."""
    counter.eval().requires_grad_(False)
    checked = check_samples(samples, [chosen], 4, seed=0)
    items = [checked.items[number] for number in numbers]
    places = [chosen.place(item.shape, seed=0, image=item.index) for item in items]
    return ProblemBuilder([Member(counter)], SampleCache(samples), CleanCounts()).problem(
        chosen, items, places
    )


def trained(chosen: Universal, problems: list[Problem], seed: int = 0) -> OptimisedPatches:
    making = [lambda problem=problem: problem for problem in problems]
    return chosen.train(making, seed=seed, step_done=lambda _: None)


def stored(folder: Path, files: list[str]) -> list[np.ndarray]:
    return [np.asarray(Image.open(folder / "patches" / f"{file}.png")) for file in files]


@pytest.fixture
def train(sample) -> list[Sample]:
    return [sample(number) for number in range(10, 14)]


@pytest.mark.long
@pytest.mark.parametrize("location", ["centre", "random", "moving"])
def test_one_patch_for_all_which_only_training_images_shape(
    location: str, tmp_path: Path, tiny, sample, train
) -> None:
    chosen = Universal(**QUICK, steps=6, location=location)
    tests = [sample(0), sample(1), sample(2, shape=(60, 72))]
    others = [sample(3), sample(4), sample(2)]
    seen = []
    for name, held_out, learned in (
        ("first", tests, train), ("tests", others, train), ("train", tests, train[:2]),
    ):  # fmt: skip
        done = run(tiny(), held_out, chosen, train=learned, out=tmp_path / name)
        records = [r for r in done.run.records if r["condition"] == "universal"]
        assert [r["index"] for r in records] == [0, 1, 2]
        if location != "centre":
            assert len({tuple(r["top_left"]) for r in records}) == 3
        patches = stored(tmp_path / name, [r["file"] for r in records])
        assert all(np.array_equal(patches[0], patch) for patch in patches)
        assert all(r["loss_history"] == records[0]["loss_history"] for r in records)
        seen.append(patches[0])
    assert np.array_equal(seen[0], seen[1])
    assert not np.array_equal(seen[0], seen[2])


def test_the_counts_are_those_of_the_patch_in_the_test_images(tmp_path: Path, tiny, sample, train):
    counter = tiny().eval()
    tests = [sample(0), sample(1)]
    done = run(counter, tests, Universal(**QUICK, steps=3), train=train, out=tmp_path / "run")
    for record in done.run.records:
        if record["condition"] == "universal":
            (patch,) = stored(tmp_path / "run", [record["file"]])
            image = quantize(tests[record["index"]].image)
            image[:, 24:40, 32:48] = torch.from_numpy(patch.copy()).permute(2, 0, 1) / 255
            with torch.no_grad():
                assert record["count"] == pytest.approx(float(counter(image[None]).sum()), rel=1e-5)


def test_a_batchs_gradient_is_the_sum_of_its_images(tiny, train) -> None:
    for location in ("centre", "random", "moving"):
        chosen = Universal(**QUICK, location=location, eot_samples=2)
        patch = chosen.start([0], 16, 0)
        counter = tiny()
        parts = [
            chosen.batch_gradient(problem_of(chosen, counter, train, [number]), patch, 0, 3, 1)
            for number in range(4)
        ]
        whole = problem_of(chosen, counter, train, [0, 1, 2, 3]) if location == "centre" else None
        if whole is not None:
            gradient = chosen.batch_gradient(whole, patch, 0, 3, 1)
            expected = torch.stack(parts).sum(0)
            assert torch.allclose(gradient, expected, atol=1e-5 * float(expected.abs().max()))
        assert len({tuple(part.flatten().tolist()) for part in parts}) == 4


def test_a_moving_batch_is_the_sum_over_its_new_places(tiny, train) -> None:
    chosen = Universal(**QUICK, location="moving")
    counter, patch = tiny(), chosen.start([0], 16, 0)
    alike = problem_of(chosen, counter, train, [0])
    # All images as one batch from the same box: their places of a step differ all the same.
    whole = Problem(alike.regions, (0, 1, 2), 16, moved=None, shapes=[(64, 80)] * 3)
    places: list[tuple[int, int]] = []

    def moved(at) -> list[Problem]:
        places.extend(place.top_left for place in at)
        checked = check_samples(train, [chosen], 4, seed=0)
        stage = ProblemBuilder([Member(counter)], SampleCache(train), CleanCounts())
        return stage.moved(chosen, checked.items[:3], at)

    whole.moved = moved
    checked = chosen.batch_gradient(whole, patch, 0, 5, 0)
    assert len(set(places)) == 3
    assert all(0 <= y <= 64 - 16 and 0 <= x <= 80 - 16 for y, x in places)
    singles = [
        chosen.batch_gradient(problem_of(chosen, counter, train, [number]), patch, 0, 5, 0)
        for number in range(3)
    ]
    expected = torch.stack(singles).sum(0)
    assert torch.allclose(checked, expected, atol=1e-5 * float(expected.abs().max()))


def test_batches_come_in_an_order_that_seed_and_restart_draw(tiny, train, monkeypatch) -> None:
    seen: list[int] = []
    chosen = Universal(patch_size=8, steps=12, restarts=2)
    problems = [problem_of(chosen, tiny(), train, [number]) for number in range(4)]

    def watch(self, problem, patch, seed, step, restart):
        seen.append(problem.index[0])
        return torch.zeros(1, 3, 8, 8)

    monkeypatch.setattr(Universal, "batch_gradient", watch)
    orders = []
    for seed in (0, 0, 1):
        seen.clear()
        trained(chosen, problems, seed)
        orders.append(list(seen))
    assert orders[0] == orders[1] != orders[2]
    passes = [tuple(orders[0][start : start + 4]) for start in range(0, 24, 4)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in passes)
    assert len(set(passes)) > 3
    assert passes[:3] != passes[3:]


def test_the_best_for_all_training_images_is_kept(tiny, train) -> None:
    """Long steps around a target: the last patch is not the best."""
    chosen = Universal(patch_size=12, steps=15, step_size=0.5, momentum=0.0, objective="target",
                       target_count=25.0, restarts=2, smoothness=0.0)  # fmt: skip
    problems = [problem_of(chosen, tiny(), train, numbers) for numbers in ([0, 1, 2], [3])]
    steps: list[int] = []
    making = [lambda problem=problem: problem for problem in problems]
    optimised = chosen.train(making, seed=0, step_done=steps.append)
    assert steps == list(range(1, 31))
    (path,) = optimised.loss_history
    assert len(path) == 2 * (LOOKS + 1)
    ends = path[: LOOKS + 1], path[LOOKS + 1 :]
    assert all(list(end) == sorted(end, reverse=True) for end in ends)
    assert optimised.patches.shape == (1, 3, 12, 12)
    assert torch.equal(optimised.patches, quantize(optimised.patches))
    mask = chosen.patch_mask(12)
    losses = [
        chosen.objective_loss(p, optimised.patches.expand(len(p), -1, -1, -1), mask).sum()
        for p in problems
    ]
    # The mean over images, not over batches of different sizes.
    assert min(path) == pytest.approx(float(sum(losses)) / 4, rel=1e-5)
    assert min(path) < path[0]
    fewer = Universal(patch_size=12, steps=0, objective="target", target_count=25.0, smoothness=0.0)
    (first,) = trained(fewer, problems).loss_history
    assert first[-1] == path[0]


def test_the_optimum_of_a_linear_counter_is_reached(train) -> None:
    chosen = Universal(patch_size=8, steps=12, step_size=0.2, objective="over", transform="none",
                       smoothness=0.0)  # fmt: skip
    problems = [problem_of(chosen, Linear(), train, numbers) for numbers in ([0, 1], [2, 3])]
    patch = trained(chosen, problems).patches
    assert torch.all(patch[:, 0] == 1)
    assert torch.all(patch[:, 1] == 0)


def test_it_beats_noise_on_scenes_it_has_not_seen(tiny, sample, train) -> None:
    tests = [sample(number) for number in range(4)]
    done = run(tiny(), tests, Universal(**QUICK, steps=20), train=train)
    counts = {(r["index"], r["condition"]): r["count"] for r in done.run.records}
    for index in range(4):
        best = max(counts[index, rival] for rival in ("clean", "grey", "black", "noise", "crowd"))
        assert counts[index, "universal"] > best + 0.2 * abs(best - counts[index, "clean"])


def test_what_fits_one_image_serves_it_better_than_what_serves_all(tiny, sample, train) -> None:
    options = {**QUICK, "steps": 20, "smoothness": 0.0, "transform": "none"}
    per_image, all_of_them = APAM(**options), Universal(**options)
    problem = problem_of(per_image, tiny(), train, [0, 1, 2, 3])
    each = per_image.optimise(problem, seed=0, step_done=lambda _: None)
    shared = trained(all_of_them, [problem])
    assert sum(path[-1] for path in each.loss_history) / 4 < shared.loss_history[0][-1]


def test_a_run_needs_training_images_and_one_size(tiny, sample, train) -> None:
    with pytest.raises(ValueError, match="a universal attack needs training images, got none"):
        run(tiny(), [sample()], Universal(patch_size=8, steps=1))
    with pytest.raises(ValueError, match="training images are for a universal attack"):
        run(tiny(), [sample()], APAM(patch_size=8, steps=1), train=train)
    wide = [sample(20), sample(21, shape=(64, 120))]
    for tests, learned in ((wide, train), ([sample(22)], wide)):
        with pytest.raises(ValueError, match=r"got patch_size 0.2, .* 16 to 24"):
            run(tiny(), tests, Universal(patch_size=0.2, steps=1), train=learned)
    done = run(tiny(), [sample(22)], Universal(patch_size=0.2, steps=1), train=train)
    assert {r["side"] for r in done.run.records if r["condition"] == "universal"} == {16}


def test_a_search_for_the_worst_place_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Universal: location must be .*, got 'worst'"):
        Universal(location="worst")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_counter_of_nonsense_is_told(value: float, train) -> None:
    chosen = Universal(patch_size=8, steps=0)
    problem = problem_of(chosen, Linear(), train, [0])
    problem.regions[0].local.clean.fill_(value)
    with pytest.raises(ValueError, match="Universal: the loss must be finite"):
        trained(chosen, [problem])
