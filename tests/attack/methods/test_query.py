from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pycc.attack import APAM, OptimisedPatches, Problem, Query, run
from pycc.attack.evaluation.builder import CleanCounts, Member, ProblemBuilder
from pycc.attack.evaluation.checked import SampleCache, check_samples
from pycc.attack.tracker import LOOKS
from pycc.data import quantize, save_image
from pycc.types import Sample

pytestmark = pytest.mark.command


class Linear(nn.Module):
    """A map whose count grows with red and falls with green, and does not see blue."""

    stride, receptive_field = 1, 1

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :1] - 0.5 * images[:, 1:2] + 0 * images[:, 2:]


class Steps:
    """No module, no gradient: rounds in NumPy, and refuses to be differentiated."""

    stride, receptive_field = 1, 1

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, images: Tensor) -> Tensor:
        assert not images.requires_grad
        assert not torch.is_grad_enabled()
        self.asked += len(images)
        return torch.from_numpy(np.round(4 * images.numpy())[:, :1] / 4)


def optimise(attack: Query | APAM, made: Problem, seed: int = 0) -> OptimisedPatches:
    return attack.optimise(made, seed=seed, step_done=lambda _: None)


def test_the_optimum_of_a_linear_counter_is_reached(sample, problem) -> None:
    attack = Query(patch_size=5, steps=700, objective="over")
    made = problem(attack, Linear(), [sample(), sample(1)])
    patch = optimise(attack, made).patches
    best = torch.zeros(2, 3, 5, 5)
    best[:, 0] = 1.0
    added, most = (made.added(p, attack.patch_mask(5)) for p in (patch, best))
    none = made.added(optimise(Query(patch_size=5, steps=0), made).patches, attack.patch_mask(5))
    assert torch.all(most - added <= 0.1 * (most - none))
    assert torch.all(added <= most)


def test_no_gradient_is_asked_for(sample, problem) -> None:
    attack, counter = Query(patch_size=6, steps=60, objective="over"), Steps()
    made = problem(attack, counter, [sample()])
    counter.asked = 0
    optimised = optimise(attack, made)
    # The first patch, the queries, and the people that the best one adds.
    assert counter.asked == 62
    (path,) = optimised.loss_history
    assert path[-1] < path[0]
    assert optimised.zero_gradient == ()


def test_it_never_gets_worse_and_keeps_what_was_best(tiny, sample, problem) -> None:
    attack = Query(patch_size=12, steps=50, objective="over")
    made = problem(attack, tiny(), [sample(), sample(1)])
    steps: list[int] = []
    optimised = attack.optimise(made, seed=0, step_done=steps.append)
    assert steps == list(range(1, 51))
    judged = attack.objective_loss(made, optimised.patches, attack.patch_mask(12))
    for path, last in zip(optimised.loss_history, judged.tolist(), strict=True):
        assert len(path) == LOOKS + 1
        assert list(path) == sorted(path, reverse=True)
        assert path[-1] < path[0]
        assert last == pytest.approx(path[-1], abs=1e-5)
    fewer = optimise(Query(patch_size=12, steps=0, objective="over"), made)
    assert [path[-1] for path in fewer.loss_history] == [path[0] for path in optimised.loss_history]


def test_only_the_corners_of_the_colour_cube_are_used(tiny, sample, problem) -> None:
    attack = Query(patch_size=9, steps=30, objective="density")
    made = problem(attack, tiny(), [sample()])
    for steps in (0, 30):
        patch = optimise(Query(patch_size=9, steps=steps, objective="density"), made).patches
        assert torch.all((patch == 0) | (patch == 1))
    first = optimise(Query(patch_size=9, steps=0), made).patches
    assert torch.equal(first, first[:, :, :1].expand_as(first))  # vertical stripes
    assert len(first[0].flatten(1).unique(dim=1).T) > 1


def single(counter: object, samples: list[Sample], numbers: list[int], attack: Query) -> Problem:
    """A batch of some of the samples, which keep their numbers."""
    checked = check_samples(samples, [attack], 4, seed=0)
    items = [checked.items[number] for number in numbers]
    places = [attack.place(item.shape, seed=0, image=item.index) for item in items]
    return ProblemBuilder([Member(counter)], SampleCache(samples), CleanCounts()).problem(
        attack, items, places
    )


def test_results_depend_on_seed_and_image_and_not_on_the_batch(tiny, sample) -> None:
    attack, counter = Query(patch_size=8, steps=25, objective="over"), tiny().eval()
    samples = [sample(0), sample(0), sample(1)]
    samples[1] = Sample("twin", samples[0].image, samples[0].points)
    together = optimise(attack, single(counter, samples, [0, 1, 2], attack)).patches
    other_order = optimise(attack, single(counter, samples, [2, 0], attack)).patches
    alone = optimise(attack, single(counter, samples, [1], attack)).patches
    assert torch.equal(together[[2, 0]], other_order)
    assert torch.equal(together[1:2], alone)
    assert not torch.equal(together[0], together[1])  # twins draw other numbers
    again = optimise(attack, single(counter, samples, [1], attack), seed=1).patches
    assert not torch.equal(again, alone)


def test_the_painted_area_halves_when_it_should() -> None:
    """Square attack (arXiv 1912.00049): of 10,000 queries, at 10, 50, 200, 500, 1000, ..."""
    attack = Query(share=0.5)
    at = [0, 10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000]
    for halvings, start in enumerate(at):
        end = [*at, 10_000][halvings + 1]
        for query in (start + 1, end):
            area = attack.edge(4096, query / 10_000) ** 2 / 4096**2
            assert area == pytest.approx(0.5 * 0.5**halvings, rel=1e-2)
    assert attack.edge(3, 1.0) == 1
    assert Query(share=1.0).edge(40, 0.0) == 40


@pytest.mark.parametrize("side", [1, 2, 7])
def test_squares_reach_every_pixel_and_stay_inside(side, sample, problem, monkeypatch) -> None:
    attack = Query(patch_size=side, steps=200, objective="over", share=0.9)
    made = problem(attack, Linear(), [sample()])
    seen: list[Tensor] = []
    objective_loss = Query.objective_loss

    def watch(self, problem, patch, mask):
        seen.append(patch.clone())
        return objective_loss(self, problem, patch, mask)

    monkeypatch.setattr(Query, "objective_loss", watch)
    optimise(attack, made)
    changed = (torch.cat(seen) != seen[0]).any(1).any(0)
    assert torch.all(changed)
    # A step changes no more than one square of the patch that was best.
    best, lows = seen[0], []
    for step, asked in enumerate(seen[1:], start=1):
        rows, columns = (asked != best).any(1)[0].nonzero(as_tuple=True)
        edge = attack.edge(side, step / 200)
        if len(rows):
            assert max(rows.max() - rows.min(), columns.max() - columns.min()) < edge
        lows.append(float(objective_loss(attack, made, asked, attack.patch_mask(side))))
        if lows[-1] < float(objective_loss(attack, made, best, attack.patch_mask(side))):
            best = asked
    assert min(lows) == float(objective_loss(attack, made, best, attack.patch_mask(side)))


def test_it_starts_from_a_picture(tmp_path: Path, sample, problem) -> None:
    picture = torch.full((3, 20, 20), 0.2)
    picture[1] = 0.6
    save_image(tmp_path / "green.png", picture)
    attack = Query(patch_size=10, steps=0, init=str(tmp_path / "green.png"))
    made = problem(attack, Linear(), [sample()])
    assert torch.equal(optimise(attack, made).patches[0], quantize(picture)[:, :10, :10])


@pytest.mark.parametrize("objective", ["over", "under", "target"])
def test_gradients_do_better_than_as_many_queries(objective, tiny, sample, problem) -> None:
    """A white-box attack that does not has a broken gradient."""
    options = {"patch_size": 20, "objective": objective}
    if objective == "target":
        options["target_count"] = 1.0
    made = problem(Query(**options), tiny(), [sample(n) for n in range(3)])
    query = optimise(Query(**options, steps=40), made)
    white = optimise(
        APAM(**options, steps=40, step_size=0.15, decay="cosine", transform="none", smoothness=0.0),
        made,
    )
    for weaker, stronger in zip(query.loss_history, white.loss_history, strict=True):
        assert stronger[-1] <= weaker[-1]


def test_a_disc_is_evaluated_as_a_disc(sample, problem) -> None:
    attack = Query(patch_size=9, steps=120, objective="over", shape="disc")
    made = problem(attack, Linear(), [sample()])
    optimised = optimise(attack, made)
    mask = attack.patch_mask(9)
    y, x = made.regions[0].top_left[0].tolist()
    under = made.regions[0].pixels[0, :, y : y + 9, x : x + 9]
    change = (optimised.patches[0] - under) * mask
    assert float(optimised.unrounded[0]) == pytest.approx(
        float(change[0].sum() - 0.5 * change[1].sum()), abs=1e-4
    )
    assert float(change[0].sum()) > 0.8 * float(((1 - under[0]) * mask).sum())


def test_it_runs_beside_the_baselines(tiny, sample) -> None:
    attack = Query(patch_size=10, steps=20, objective="over")
    done = run(tiny(), [sample(), sample(1)], attack, pgd=None, checks=False)
    counts = {(r["index"], r["condition"]): r["count"] for r in done.run.records}
    assert {condition for _, condition in counts} == {
        "clean", "grey", "black", "noise", "crowd", "query",
    }  # fmt: skip
    for index in (0, 1):
        assert counts[index, "query"] > max(counts[index, c] for c in ("noise", "grey", "clean"))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"share": 0.0}, r"share must be in \(0,1\], got 0.0"),
        ({"share": 1.01}, r"share must be in \(0,1\]"),
        ({"share": math.nan}, r"share must be in \(0,1\]"),
        ({"location": "worst"}, "Query: location must be a fixed place, got 'worst'"),
        ({"location": "moving"}, "Query: location must be a fixed place, got 'moving'"),
        ({"steps": -1}, "steps must be at least 0"),
        ({"patch_size": 0}, "size must be"),
    ],
)
def test_bad_fields(fields: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Query(**fields)
