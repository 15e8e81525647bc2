"""Random search beside the attack, and a counter beside itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pycc import attack
from pycc.attack import APAM, Query, Universal
from pycc.report import Check

pytestmark = pytest.mark.command

SEARCH, SAME = "white-box beats random search", "the same image has the same count"
QUICK: dict[str, Any] = {
    "patch_size": 12,
    "objective": "over",
    "step_size": 0.25,
    "decay": "cosine",
}


def judged(done: attack.AttackRun, name: str) -> Check:
    (check,) = [check for check in done.checks if check.name == name]
    return check


class Reversed(nn.Module):
    """A counter whose gradient points the other way."""

    stride, receptive_field = 4, 20

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        cells: Tensor = self.inner(2 * images.detach() - images)
        return cells


@pytest.mark.long
def test_a_gradient_that_leads_astray_loses_to_random_search(tiny, sample) -> None:
    chosen = APAM(**QUICK, steps=20)
    sound = judged(attack.run(tiny(), [sample(0)], chosen, pgd=None), SEARCH)
    assert sound.verdict == "pass", sound
    astray = judged(attack.run(Reversed(tiny()), [sample(0)], chosen, pgd=None), SEARCH)
    assert astray.verdict == "fail", astray


def test_a_patch_that_heeds_more_than_the_count_gets_a_second_chance(tiny, sample) -> None:
    """A tenth of the roughness weighs more than the few people that 12 pixels add."""
    chosen = APAM(**QUICK, steps=60, smoothness=0.1)
    check = judged(attack.run(tiny(), [sample(0)], chosen, pgd=None), SEARCH)
    assert check.verdict == "pass", check
    assert "without transform and penalty" in check.figure
    assert "people of 180 queries, on scene 0" in check.figure


@pytest.mark.long
def test_queries_are_bounded_and_made_on_the_smallest_image(tiny, sample, monkeypatch) -> None:
    asked = []
    optimise = Query.optimise

    def watch(self: Query, problem: Any, **options: Any) -> Any:
        asked.append((self, problem.index, problem.side))
        return optimise(self, problem, **options)

    monkeypatch.setattr(Query, "optimise", watch)
    monkeypatch.setattr("pycc.attack.evaluation.trial_checks.MOST_QUERIES", 20)
    two = [sample(0, (72, 88)), sample(1)]
    chosen = [
        APAM(**{**QUICK, "patch_size": 8}, steps=3, shape="disc", location="random"),
        APAM(**QUICK, steps=9, location="worst"),
    ]
    done = attack.run(tiny(), two, chosen, pgd=None)
    searches = [(query.steps, query.shape, index, side) for query, index, side in asked]
    assert searches == [(9, "disc", (1,), 8), (20, "square", (1,), 12)]
    assert "people of 9 and 20 queries, on scene 1" in judged(done, SEARCH).figure


@pytest.mark.parametrize(
    ("chosen", "more"),
    [
        (Query(patch_size=8, objective="over", steps=9), {}),
        (APAM(**QUICK, steps=0), {}),
        (APAM(**QUICK, steps=2, location="moving"), {}),
        (Universal(**QUICK, steps=2), {"train": [1]}),
    ],
    ids=["query", "no steps", "moving", "universal"],
)
def test_where_nothing_is_to_be_compared(chosen: Any, more: dict, tiny, sample) -> None:
    options = {name: [sample(number) for number in numbers] for name, numbers in more.items()}
    done = attack.run(tiny(), [sample(0)], chosen, pgd=None, **options)
    assert judged(done, SEARCH).verdict == "not applicable"


class Noisy(nn.Module):
    """Adds a little noise to what it counts."""

    stride, receptive_field = 4, 20

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        cells: Tensor = self.inner(images)
        return cells + 1e-5 * torch.rand_like(cells)


class Counting(Noisy):
    """Adds more with each call; keeps it where no state dict shows it."""

    calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        cells: Tensor = self.inner(images)
        return cells + 1e-6 * self.calls


class Learning(Noisy):
    """Normalises by what it is shown, and remembers it: one image has one count even so."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        cells: Tensor = self.inner(self.norm.train()(images))
        return cells


@pytest.mark.parametrize("kind", [Noisy, Counting, Learning])
def test_a_counter_with_a_memory_or_chance_is_told(kind: type[nn.Module], tiny, sample) -> None:
    chosen = APAM(**QUICK, steps=1)
    check = judged(attack.run(kind(tiny()), [sample(0)], chosen, pgd=None), SAME)
    assert check.verdict == "fail", check
    changes = "counting changes what the counter holds" in check.figure
    assert changes == (kind is Learning)
    assert ("the same bits" in check.figure) == (kind is Learning)


def test_every_counter_of_a_run_is_counted_twice(tiny, sample) -> None:
    chosen, other = APAM(**QUICK, steps=1), tiny()
    other.net[7].bias.data.add_(0.1)
    run = attack.run(tiny(), [sample(0)], chosen, pgd=None, surrogates={"other": other})
    assert judged(run, SAME).verdict == "pass"
    run = attack.run(tiny(), [sample(0)], chosen, pgd=None, surrogates={"other": Noisy(other)})
    assert judged(run, SAME).verdict == "fail"
