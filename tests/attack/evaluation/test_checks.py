"""Each check passes where it should and fails where what it guards is broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from support.marks import long
from torch import Tensor, nn

from pycc import attack, models
from pycc.attack import APAM, PGD
from pycc.attack.evaluation.checks import Results
from pycc.attack.evaluation.result_checks import (
    RESULT_CHECKS,
    area,
    beats_baselines,
    beats_transfer,
    gradient_everywhere,
    plateau,
    rounding,
    seeds,
)
from pycc.attack.problem import Problem
from pycc.attack.tracker import BestTracker, OptimisedPatches, look_at
from pycc.report import Check

pytestmark = pytest.mark.command

SIZES = (6, 12)
ATTACKS = [APAM(patch_size=size, objective="over") for size in SIZES]


def record(condition: str, size: Any, count: float, **more: Any) -> dict[str, Any]:
    area = 0.0 if size is None else size**2 / 4096
    return {
        "index": 0, "condition": condition, "patch_size": size, "surrogates": None, "victim": None,
        "seed": 0, "truth": 10, "count": count, "area": area, **more,
    }  # fmt: skip


def results(*records: dict[str, Any], chosen: list[APAM] = ATTACKS) -> Results:
    return Results([record("clean", None, 10.0), *records], chosen)


def path(*losses: float) -> list[float]:
    return list(losses)


CASES: dict[str, tuple[Callable[[Results], Check], list[dict], str]] = {
    "grows": (area, [record("apam", 6, 20.0), record("apam", 12, 30.0)], "pass"),
    "shrinks": (area, [record("apam", 6, 30.0), record("apam", 12, 20.0)], "fail"),
    "within tolerance": (
        area, [record("apam", 6, 110.0), record("apam", 12, 108.5)], "pass",
    ),
    "less than nothing": (area, [record("apam", 6, 5.0), record("apam", 12, 9.0)], "fail"),
    "one size": (area, [record("apam", 6, 20.0)], "not applicable"),
    "never anything": (area, [record("apam", 6, 10.0), record("apam", 12, 10.0)], "fail"),
    "nothing at first": (
        area, [record("apam", 6, 10.0), record("apam", 12, 11.0)], "pass",
    ),
    "one size on two counters": (
        area,
        [
            record("apam", 6, 20.0), record("clean", None, 10.0, victim="b"),
            record("apam", 6, 20.0, victim="b", surrogates="b"),
        ],
        "not applicable",
    ),
    "beats": (beats_baselines, [record("noise", 6, 19.0), record("apam", 6, 20.0)], "pass"),
    "beaten": (
        beats_baselines,
        [record("noise", 6, 9.0), record("crowd", 6, 21.0), record("apam", 6, 20.0)],
        "fail",
    ),
    "as bad as grey": (
        beats_baselines, [record("grey", 6, 10.0), record("apam", 6, 10.0)], "fail",
    ),
    "alone": (beats_baselines, [record("apam", 6, 20.0)], "not applicable"),
    "white": (
        beats_transfer,
        [record("apam", 6, 20.0), record("apam", 6, 15.0, surrogates="other")],
        "pass",
    ),
    "black": (
        beats_transfer,
        [record("apam", 6, 20.0), record("apam", 6, 25.0, surrogates="other")],
        "fail",
    ),
    "nothing transferred and nothing done": (
        beats_transfer,
        [record("apam", 6, 10.0), record("apam", 6, 10.0, surrogates="other")],
        "fail",
    ),
    "no transfer": (beats_transfer, [record("apam", 6, 20.0)], "not applicable"),
    "gradient": (gradient_everywhere, [record("apam", 6, 20.0, zero_gradient=0.1)], "pass"),
    "masked": (gradient_everywhere, [record("apam", 6, 20.0, zero_gradient=0.9)], "fail"),
    "one size masked": (
        gradient_everywhere,
        [record("apam", 6, 20.0, zero_gradient=1.0), record("apam", 12, 30.0, zero_gradient=0.0)],
        "fail",
    ),
    "one counter masked": (
        gradient_everywhere,
        [
            record("apam", 6, 20.0, zero_gradient=0.0),
            record("apam", 6, 20.0, zero_gradient=1.0, surrogates="other"),
        ],
        "fail",
    ),
    "no gradient": (gradient_everywhere, [record("apam", 6, 20.0)], "not applicable"),
    "plateau": (
        plateau, [record("apam", 6, 20.0, loss_history=path(0, *[-10.0] * 20))], "pass",
    ),
    "slope": (
        plateau, [record("apam", 6, 20.0, loss_history=[-float(k) for k in range(21)])], "fail",
    ),
    "flat": (plateau, [record("apam", 6, 20.0, loss_history=path(*[0.0] * 21))], "fail"),
    "flat on one counter": (
        plateau,
        [
            record("apam", 6, 20.0, loss_history=path(0, *[-10.0] * 20)),
            record("apam", 6, 20.0, loss_history=path(*[0.0] * 21), surrogates="other"),
        ],
        "fail",
    ),
    "risen in the end, where the penalty fell": (
        plateau, [record("apam", 6, 20.0, loss_history=path(0, *[-10.0] * 19, -9.9))], "pass",
    ),
    "kept": (rounding, [record("apam", 6, 20.0, unrounded=10.1)], "pass"),
    "lost": (rounding, [record("apam", 6, 20.0, unrounded=15.0)], "fail"),
    "nothing to lose": (rounding, [record("apam", 6, 10.0, unrounded=0.0)], "fail"),
    "seeds": (seeds, [record("apam", 6, 20.0, seed=n) for n in range(3)], "pass"),
    "few seeds": (seeds, [record("apam", 6, 20.0, seed=n) for n in range(2)], "fail"),
    "one seed": (seeds, [record("apam", 6, 20.0)], "not applicable"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_verdicts(case: str) -> None:
    check, records, verdict = CASES[case]
    result = check(results(*records))
    assert result.verdict == verdict, result
    assert result.figure


def test_under_counts_the_other_way() -> None:
    chosen = [APAM(patch_size=size, objective="under") for size in SIZES]
    result = area(results(record("apam", 6, 8.0), record("apam", 12, 4.0), chosen=chosen))
    assert result.verdict == "pass"
    result = area(results(record("apam", 6, 12.0), record("apam", 12, 14.0), chosen=chosen))
    assert result.verdict == "fail"


def test_without_steps_no_loss_is_expected_to_fall() -> None:
    result = plateau(
        results(
            record("apam", 6, 20.0, loss_history=path(*[0.0] * 21)),
            chosen=[APAM(patch_size=6, steps=0)],
        )
    )
    assert result.verdict == "not applicable"


@pytest.mark.parametrize("check", RESULT_CHECKS)
def test_nobody_can_be_hidden_where_nobody_is_counted(
    check: Callable[[Results], Check],
) -> None:
    """Objective ``under`` and a clean count of 0: no weak attack, but a gradient is still due."""
    chosen = [APAM(patch_size=size, objective="under") for size in SIZES]
    facts = {"loss_history": path(*[0.0] * 21), "zero_gradient": 1.0, "unrounded": 0.0}
    rows = [record("apam", size, 0.0, **facts) for size in SIZES]
    rows += [record("grey", size, 0.0) for size in SIZES]
    result = check(Results([record("clean", None, 0.0), *rows], chosen))
    expected = "fail" if check is gradient_everywhere else "not applicable"
    assert result.verdict == expected, result


# Whole runs


def outcome(done: Any) -> dict[str, str]:
    return {check.name: check.verdict for check in done.checks}


STRONG = {"steps": 80, "step_size": 0.25, "decay": "cosine", "smoothness": 0.0, "transform": "none"}


@pytest.mark.parametrize("objective", ["over", *long("under", "target", "pap")])
def test_a_sound_attack_passes(objective: str, tiny, sample, tmp_path: Path) -> None:
    wanted = {"factor": 2.0} if objective == "target" else {}
    chosen = [APAM(patch_size=size, objective=objective, **STRONG, **wanted) for size in (8, 20)]
    done = attack.run(tiny(), [sample(0), sample(1)], chosen, pgd=PGD(steps=2), out=tmp_path / "r")
    verdicts = outcome(done)
    assert len(verdicts) == 16
    assert {name for name, verdict in verdicts.items() if verdict == "fail"} == set()
    assert (tmp_path / "r" / "checks.json").exists()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_planted_weakness_is_found_by_attacks_and_missed_by_broken_ones(sign: float) -> None:
    from pycc.attack.evaluation.counter_checks import Planted, planted

    objective = "over" if sign > 0 else "under"

    class Fake:
        def __init__(self, chosen: attack.PatchAttack) -> None:
            self.attacks, self.seeds = (chosen,), (0,)

    for chosen, verdict in (
        (APAM(objective=objective, **STRONG), "pass"),
        (APAM(objective=objective, **{**STRONG, "steps": 1, "step_size": 0.01}), "fail"),
        (attack.Query(objective=objective, steps=1000), "pass"),
    ):
        check = planted(Fake(chosen), results())  # type: ignore[arg-type]
        assert check.verdict == verdict, (chosen, check)
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    assert torch.allclose(Planted(sign)(red), torch.full((1, 1, 2, 2), 2.0 + sign))


def silenced(tiny: Callable[..., nn.Module]) -> nn.Module:
    """Whose last layer sees nothing."""
    counter = tiny()
    counter.net[7].weight.data.zero_()  # type: ignore[index,union-attr]
    return counter


def stepwise(tiny: Callable[..., nn.Module]) -> nn.Module:
    """Whose input is rounded: the loss moves, but has no gradient."""
    return models.wrap(
        tiny(), preprocess=lambda x: (x * 4).round() / 4, stride=4, receptive_field=20
    )


WITHOUT_GRADIENT = {
    "gradient reaches the patch", "gradient agrees with finite differences",
    "an image-sized patch reaches the target", "white-box beats random search",
    "beats baseline patches", "loss on a plateau",
}  # fmt: skip


@pytest.mark.parametrize("objective", ["over", "density", *long("under", "target")])
@pytest.mark.parametrize("kind", [silenced, stepwise])
def test_a_counter_without_gradient_is_reported(kind: Any, objective: str, tiny, sample) -> None:
    """Though the penalty on the patch's roughness, which is on by default, has a gradient."""
    strong = {"steps": 20, "step_size": 0.25, "decay": "cosine"}
    chosen = [APAM(patch_size=size, objective=objective, **strong) for size in (8, 16)]
    assert chosen[0].smoothness > 0
    done = attack.run(kind(tiny), [sample(0), sample(1)], chosen, pgd=None)
    failed = {name for name, verdict in outcome(done).items() if verdict == "fail"}
    if kind is silenced:
        nothing = {
            "attack gain grows with area",
            "survives 8-bit PNG",
            "twice the steps bring little",
        }
        assert failed == WITHOUT_GRADIENT | nothing
    else:  # whose loss falls by chance where the patch is smoothed
        assert failed >= WITHOUT_GRADIENT - {"white-box beats random search"}
    figures = {check.name: check.figure for check in done.checks}
    assert figures["gradient reaches the patch"].startswith("100.0% of the pixels have none")
    assert "exactly 0" in figures["gradient agrees with finite differences"]
    assert (
        ", attack gain 0.0, which must be above 0"
        in figures["an image-sized patch reaches the target"]
    )


def test_restarts_and_universal_patches_that_do_nothing_are_told(tiny, sample) -> None:
    options = {"patch_size": 8, "objective": "over", "steps": 2}
    done = attack.run(silenced(tiny), [sample(0)], APAM(**options, restarts=2), pgd=None)
    assert outcome(done)["restarts bring no loss"] == "fail"
    train = [sample(1), sample(2)]
    chosen = attack.Universal(**options)
    done = attack.run(silenced(tiny), [sample(0)], chosen, train=train, pgd=None)
    assert outcome(done)["per-image beats universal"] == "fail"
    assert outcome(done)["gradient reaches the patch"] == "fail"
    assert outcome(done)["loss on a plateau"] == "fail"


def test_differences_are_taken_where_a_patch_can_change_something(tiny, sample) -> None:
    """Of two images the smaller one has its region of interest elsewhere."""
    chosen = APAM(
        patch_size=6, objective="over", location="given", top_left=(0, 0), **{**STRONG, "steps": 4}
    )
    two = [sample(0, region=True), sample(1, (80, 88))]
    verdicts = outcome(attack.run(tiny(), two, chosen, pgd=None))
    assert verdicts["gradient agrees with finite differences"] == "pass"
    verdicts = outcome(attack.run(tiny(), two[:1], chosen, pgd=None))
    assert verdicts["gradient agrees with finite differences"] == "not applicable"


def test_queries_of_a_counter_without_autograd_are_judged(sample) -> None:
    class Plain:
        stride, receptive_field = 4, 4

        def __call__(self, images: Tensor) -> Tensor:
            cells = nn.functional.avg_pool2d(images.detach()[:, :1], 4)
            return cells

    chosen = attack.Query(patch_size=8, objective="over", steps=30)
    verdicts = outcome(attack.run(Plain(), [sample(0)], chosen, pgd=None))
    for name in ("an image-sized patch reaches the target", "white-box beats random search",
                 "gradient reaches the patch"):  # fmt: skip
        assert verdicts[name] == "not applicable"
    assert verdicts["the same image has the same count"] == "pass"


class Stepped(nn.Module):
    """A counter that rounds what it sees: its gradient says nothing of its steps."""

    stride, receptive_field = 4, 20

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        rounded = (images * 4).round() / 4
        cells: Tensor = self.inner(images + (rounded - images).detach())
        return cells


def test_a_misleading_gradient_is_reported(tiny, sample) -> None:
    chosen = APAM(patch_size=12, objective="over", **{**STRONG, "steps": 4})
    done = attack.run(Stepped(tiny()), [sample(0)], chosen, pgd=None)
    assert outcome(done)["gradient agrees with finite differences"] == "fail"


def test_a_gradient_that_is_missing_is_reported(tiny, sample) -> None:
    class Half(nn.Module):
        """Lets the gradient through to the right quarter of the image only."""

        stride, receptive_field = 4, 20

        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny()

        def forward(self, images: Tensor) -> Tensor:
            columns = torch.arange(images.shape[-1], device=images.device)
            seen = (columns >= 0.75 * images.shape[-1]).to(images)
            cells: Tensor = self.inner(images * seen + (images * (1 - seen)).detach())
            return cells

    chosen = APAM(patch_size=12, objective="over", **{**STRONG, "steps": 4})
    verdicts = outcome(attack.run(Half(), [sample(0)], chosen, pgd=None))
    assert verdicts["gradient reaches the patch"] == "fail"
    assert verdicts["gradient agrees with finite differences"] == "fail"


@dataclass(frozen=True)
class Lazy(APAM):
    """An attack that does not do anything with its gradient."""

    def optimise(
        self, problem: Problem, *, seed: int, step_done: Callable[[int], None]
    ) -> OptimisedPatches:
        best = BestTracker(self, problem)
        best.look(torch.full((len(problem), 3, problem.side, problem.side), 0.5))
        for _ in look_at(self.steps):
            best.note()
        for step in range(self.steps):
            step_done(step + 1)
        return best.result()


def test_an_attack_that_does_nothing_is_reported(tiny, sample) -> None:
    chosen = Lazy(patch_size=12, objective="over", steps=20, transform="none", smoothness=0.0)
    verdicts = outcome(attack.run(tiny(), [sample(0), sample(1), sample(2)], chosen, pgd=None))
    assert verdicts["beats baseline patches"] == "fail"
    assert verdicts["finds a planted weakness"] == "fail"


def test_an_attack_that_stops_early_has_not_converged(tiny, sample) -> None:
    chosen = APAM(patch_size=20, objective="over", steps=20, transform="none", smoothness=0.0)
    verdicts = outcome(attack.run(tiny(), [sample(0)], chosen, pgd=None))
    assert verdicts["loss on a plateau"] == "fail"
    assert verdicts["twice the steps bring little"] == "fail"


def test_a_counter_that_changes_meanwhile_is_reported(tiny, sample) -> None:
    class Drifting(tiny):  # type: ignore[misc]
        def forward(self, images: Tensor) -> Tensor:
            with torch.no_grad():
                self.net[7].bias.add_(1e-4)
            cells: Tensor = super().forward(images)
            return cells

    chosen = APAM(patch_size=12, objective="over", **{**STRONG, "steps": 4})
    verdicts = outcome(attack.run(Drifting(), [sample(0)], chosen, pgd=None))
    assert verdicts["the counter stays as it was"] == "fail"


def test_no_checks_without_attack_or_if_not_asked_for(tiny, sample) -> None:
    assert attack.run(tiny(), [sample(0)], ()).checks == ()
    plain = attack.run(tiny(), [sample(0)], ATTACKS[0], checks=False, pgd=None)
    assert plain.checks == ()
    assert "checks" not in plain.run.summary


def test_a_patch_that_reaches_no_cell_of_the_region_is_no_weak_attack(tiny, sample) -> None:
    chosen = APAM(
        patch_size=6, objective="over", location="given", top_left=(0, 0), **{**STRONG, "steps": 4}
    )
    verdicts = outcome(attack.run(tiny(), [sample(0, region=True)], chosen, pgd=None))
    for name in ("beats baseline patches", "gradient reaches the patch",
                 "loss on a plateau", "survives 8-bit PNG", "twice the steps bring little",
                 "gradient agrees with finite differences",
                 "white-box beats random search"):  # fmt: skip
        assert verdicts[name] == "not applicable"
    shared = attack.Universal(
        patch_size=6, objective="over", location="given", top_left=(0, 0), **{**STRONG, "steps": 4}
    )
    done = attack.run(
        tiny(), [sample(0, region=True)], shared, train=[sample(1, region=True)], pgd=None
    )
    verdicts = outcome(done)
    for name in ("beats baseline patches", "gradient reaches the patch",
                 "loss on a plateau", "per-image beats universal"):  # fmt: skip
        assert verdicts[name] == "not applicable"


def test_a_counter_that_cannot_be_had_in_float64_ends_no_run(tiny, sample) -> None:
    class Single(tiny):  # type: ignore[misc]
        def forward(self, images: Tensor) -> Tensor:
            cells: Tensor = super().forward(images.float())
            return cells

    chosen = APAM(patch_size=12, objective="over", **{**STRONG, "steps": 4})
    done = attack.run(Single(), [sample(0)], chosen, pgd=None)
    assert outcome(done)["gradient agrees with finite differences"] == "not applicable"


def test_a_part_in_train_mode_is_reported(tiny, sample) -> None:
    class Restless(tiny):  # type: ignore[misc]
        def forward(self, images: Tensor) -> Tensor:
            self.net[6].p = 0.0  # so that train mode changes nothing else
            self.net[6].train()
            cells: Tensor = super().forward(images)
            return cells

    chosen = APAM(patch_size=12, objective="over", **{**STRONG, "steps": 4})
    done = attack.run(Restless(), [sample(0)], chosen, pgd=None)
    assert outcome(done)["the counter stays as it was"] == "fail"


def test_twice_the_same_attack_in_one_run_is_judged_apart(tiny, sample) -> None:
    """A query attack beside APAM: areas are compared within each."""
    chosen = [
        kind(patch_size=size, objective="over", **more)
        for kind, more in ((APAM, {**STRONG, "steps": 20}), (attack.Query, {"steps": 30}))
        for size in (8, 16)
    ]
    verdicts = outcome(attack.run(tiny(), [sample(0), sample(1)], chosen, pgd=None))
    assert verdicts["attack gain grows with area"] == "pass"


def test_restarts_that_hide_a_slope_do_not_hide_it() -> None:
    slope, flat = [-float(k) for k in range(21)], [-1.0] * 21
    result = plateau(results(record("apam", 6, 20.0, loss_history=slope + flat)))
    assert result.verdict == "fail"
    result = plateau(results(record("apam", 6, 20.0, loss_history=[*flat, 0.0, *([-30.0] * 20)])))
    assert result.verdict == "pass"
