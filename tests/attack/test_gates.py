"""Each gate passes where it should and fails where what it guards is broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pycc import attack
from pycc.attack import APAM, PGD, gates
from pycc.attack.base import Best, Found
from pycc.attack.gates import Results
from pycc.attack.scenes import Problem

SIZES = (6, 12)
ATTACKS = [APAM(size=size, objective="over") for size in SIZES]


def record(condition: str, size: Any, count: float, **more: Any) -> dict[str, Any]:
    area = 0.0 if size is None else size**2 / 4096
    return {
        "index": 0, "condition": condition, "size": size, "source": None, "victim": None,
        "seed": 0, "truth": 10, "count": count, "area": area, **more,
    }  # fmt: skip


def results(*records: dict[str, Any], chosen: list[APAM] = ATTACKS) -> Results:
    return Results([record("none", None, 10.0), *records], chosen)


def path(*losses: float) -> list[float]:
    return list(losses)


CASES: dict[str, tuple[Callable[[Results], gates.Gate], list[dict], str]] = {
    "grows": (gates.area, [record("apam", 6, 20.0), record("apam", 12, 30.0)], "pass"),
    "shrinks": (gates.area, [record("apam", 6, 30.0), record("apam", 12, 20.0)], "fail"),
    "within tolerance": (
        gates.area, [record("apam", 6, 110.0), record("apam", 12, 108.5)], "pass",
    ),
    "less than nothing": (gates.area, [record("apam", 6, 5.0), record("apam", 12, 9.0)], "fail"),
    "one size": (gates.area, [record("apam", 6, 20.0)], "not applicable"),
    "beats": (gates.beats_baselines, [record("noise", 6, 19.0), record("apam", 6, 20.0)], "pass"),
    "beaten": (
        gates.beats_baselines,
        [record("noise", 6, 9.0), record("crowd", 6, 21.0), record("apam", 6, 20.0)],
        "fail",
    ),
    "alone": (gates.beats_baselines, [record("apam", 6, 20.0)], "not applicable"),
    "white": (
        gates.beats_transfer,
        [record("apam", 6, 20.0), record("apam", 6, 15.0, source="other")],
        "pass",
    ),
    "black": (
        gates.beats_transfer,
        [record("apam", 6, 20.0), record("apam", 6, 25.0, source="other")],
        "fail",
    ),
    "no transfer": (gates.beats_transfer, [record("apam", 6, 20.0)], "not applicable"),
    "gradient": (gates.gradient_everywhere, [record("apam", 6, 20.0, zero=0.1)], "pass"),
    "masked": (gates.gradient_everywhere, [record("apam", 6, 20.0, zero=0.9)], "fail"),
    "no gradient": (gates.gradient_everywhere, [record("apam", 6, 20.0)], "not applicable"),
    "plateau": (
        gates.plateau, [record("apam", 6, 20.0, path=path(0, *[-10.0] * 20))], "pass",
    ),
    "slope": (
        gates.plateau, [record("apam", 6, 20.0, path=[-float(k) for k in range(21)])], "fail",
    ),
    "flat": (gates.plateau, [record("apam", 6, 20.0, path=path(*[0.0] * 21))], "not applicable"),
    "kept": (gates.rounding, [record("apam", 6, 20.0, unrounded=10.1)], "pass"),
    "lost": (gates.rounding, [record("apam", 6, 20.0, unrounded=15.0)], "fail"),
    "seeds": (gates.seeds, [record("apam", 6, 20.0, seed=n) for n in range(3)], "pass"),
    "few seeds": (gates.seeds, [record("apam", 6, 20.0, seed=n) for n in range(2)], "fail"),
    "one seed": (gates.seeds, [record("apam", 6, 20.0)], "not applicable"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_verdicts(case: str) -> None:
    gate, records, verdict = CASES[case]
    found = gate(results(*records))
    assert found.verdict == verdict, found
    assert found.figure


def test_under_counts_the_other_way() -> None:
    chosen = [APAM(size=size, objective="under") for size in SIZES]
    found = gates.area(results(record("apam", 6, 8.0), record("apam", 12, 4.0), chosen=chosen))
    assert found.verdict == "pass"
    found = gates.area(results(record("apam", 6, 12.0), record("apam", 12, 14.0), chosen=chosen))
    assert found.verdict == "fail"


# Whole runs


def outcome(done: Any) -> dict[str, str]:
    return {gate["name"]: gate["verdict"] for gate in done.summary["gates"]}


STRONG = {"steps": 80, "step_size": 0.25, "decay": "cosine", "smoothness": 0.0, "transform": "none"}


@pytest.mark.parametrize("objective", ["over", "under", "target", "pap"])
def test_a_sound_attack_passes(objective: str, tiny, sample, tmp_path: Path) -> None:
    wanted = {"factor": 2.0} if objective == "target" else {}
    chosen = [APAM(size=size, objective=objective, **STRONG, **wanted) for size in (8, 20)]
    done = attack.run(chosen, tiny(), [sample(0), sample(1)], pgd=PGD(steps=2), out=tmp_path / "r")
    found = outcome(done)
    assert len(found) == 14
    assert {name for name, verdict in found.items() if verdict == "fail"} == set()
    assert (tmp_path / "r" / "gates.json").exists()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_planted_weakness_is_found_by_attacks_and_missed_by_broken_ones(sign: float) -> None:
    from pycc.attack.probes import Planted, planted

    objective = "over" if sign > 0 else "under"

    class Fake:
        def __init__(self, one: attack.PatchAttack) -> None:
            self.attacks, self.seeds = (one,), (0,)

    for one, verdict in (
        (APAM(objective=objective, **STRONG), "pass"),
        (APAM(objective=objective, **{**STRONG, "steps": 1, "step_size": 0.01}), "fail"),
        (attack.Query(objective=objective, steps=1000), "pass"),
    ):
        gate = planted(Fake(one), results())  # type: ignore[arg-type]
        assert gate.verdict == verdict, (one, gate)
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    assert torch.allclose(Planted(sign)(red), torch.full((1, 1, 2, 2), 2.0 + sign))


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


def test_a_misleading_gradient_is_told(tiny, sample) -> None:
    chosen = APAM(size=12, objective="over", **{**STRONG, "steps": 4})
    done = attack.run(chosen, Stepped(tiny()), [sample(0)], pgd=None)
    assert outcome(done)["gradient agrees with finite differences"] == "fail"


def test_a_gradient_that_is_missing_is_told(tiny, sample) -> None:
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

    chosen = APAM(size=12, objective="over", **{**STRONG, "steps": 4})
    found = outcome(attack.run(chosen, Half(), [sample(0)], pgd=None))
    assert found["gradient reaches the patch"] == "fail"
    assert found["gradient agrees with finite differences"] == "fail"


@dataclass(frozen=True)
class Lazy(APAM):
    """An attack that does not do anything with its gradient."""

    def optimise(self, problem: Problem, *, seed: int, step_done: Callable[[int], None]) -> Found:
        best = Best(self, problem)
        best.look(torch.full((len(problem), 3, problem.side, problem.side), 0.5))
        for step in range(self.steps):
            best.note()
            step_done(step + 1)
        return best.found()


def test_an_attack_that_does_nothing_is_told(tiny, sample) -> None:
    chosen = Lazy(size=12, objective="over", steps=20, transform="none", smoothness=0.0)
    found = outcome(attack.run(chosen, tiny(), [sample(0), sample(1), sample(2)], pgd=None))
    assert found["beats patches that nobody optimised"] == "fail"
    assert found["finds a planted weakness"] == "fail"


def test_an_attack_that_stops_early_has_not_converged(tiny, sample) -> None:
    chosen = APAM(size=20, objective="over", steps=20, transform="none", smoothness=0.0)
    found = outcome(attack.run(chosen, tiny(), [sample(0)], pgd=None))
    assert found["loss on a plateau"] == "fail"
    assert found["twice the steps bring little"] == "fail"


def test_a_counter_that_changes_meanwhile_is_told(tiny, sample) -> None:
    class Drifting(tiny):  # type: ignore[misc]
        def forward(self, images: Tensor) -> Tensor:
            with torch.no_grad():
                self.net[7].bias.add_(1e-4)
            cells: Tensor = super().forward(images)
            return cells

    chosen = APAM(size=12, objective="over", **{**STRONG, "steps": 4})
    found = outcome(attack.run(chosen, Drifting(), [sample(0)], pgd=None))
    assert found["the counter stays as it was"] == "fail"


def test_no_gates_without_attack_or_if_not_asked_for(tiny, sample) -> None:
    assert "gates" not in attack.run((), tiny(), [sample(0)]).summary
    plain = attack.run(ATTACKS[0], tiny(), [sample(0)], gates=False, pgd=None)
    assert "gates" not in plain.summary


def test_a_patch_that_reaches_no_cell_of_the_region_is_no_weak_attack(tiny, sample) -> None:
    chosen = APAM(
        size=6, objective="over", location="given", top_left=(0, 0), **{**STRONG, "steps": 4}
    )
    found = outcome(attack.run(chosen, tiny(), [sample(0, region=True)], pgd=None))
    for name in ("beats patches that nobody optimised", "gradient reaches the patch",
                 "loss on a plateau", "survives 8-bit PNG"):  # fmt: skip
        assert found[name] == "not applicable"


def test_a_counter_that_cannot_be_had_in_float64_ends_no_run(tiny, sample) -> None:
    class Single(tiny):  # type: ignore[misc]
        def forward(self, images: Tensor) -> Tensor:
            cells: Tensor = super().forward(images.float())
            return cells

    chosen = APAM(size=12, objective="over", **{**STRONG, "steps": 4})
    done = attack.run(chosen, Single(), [sample(0)], pgd=None)
    assert outcome(done)["gradient agrees with finite differences"] == "not applicable"


def test_a_part_in_train_mode_is_told(tiny, sample) -> None:
    class Restless(tiny):  # type: ignore[misc]
        def forward(self, images: Tensor) -> Tensor:
            self.net[6].p = 0.0  # so that train mode changes nothing else
            self.net[6].train()
            cells: Tensor = super().forward(images)
            return cells

    chosen = APAM(size=12, objective="over", **{**STRONG, "steps": 4})
    done = attack.run(chosen, Restless(), [sample(0)], pgd=None)
    assert outcome(done)["the counter stays as it was"] == "fail"


def test_twice_the_same_attack_in_one_run_is_judged_apart(tiny, sample) -> None:
    """A query attack beside APAM: areas are compared within each."""
    chosen = [
        kind(size=size, objective="over", **more)
        for kind, more in ((APAM, STRONG), (attack.Query, {"steps": 30}))
        for size in (8, 16)
    ]
    found = outcome(attack.run(chosen, tiny(), [sample(0), sample(1)], pgd=None))
    assert found["harm grows with area"] == "pass"


def test_restarts_that_hide_a_slope_do_not_hide_it() -> None:
    slope, flat = [-float(k) for k in range(21)], [-1.0] * 21
    found = gates.plateau(results(record("apam", 6, 20.0, path=slope + flat)))
    assert found.verdict == "fail"
    found = gates.plateau(results(record("apam", 6, 20.0, path=[*flat, 0.0, *([-30.0] * 20)])))
    assert found.verdict == "pass"
