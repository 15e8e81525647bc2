"""Every defended counter is a counter: its face, its modes, and attacks on it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.completions import model_of
from support.toys import Plain, Tiny, pictures, scene
from torch import nn

from pycc import attack, defense, ops
from pycc.counters import frozen, identity
from pycc.grid import reached_window
from pycc.types import Counter

DEFENSES: dict[str, Callable[[Any], Any]] = {
    "ablated": lambda c: defense.ablated(c, 400, draws=4, fill=0.5),
    "ablated elements": lambda c: defense.ablated(c, 900, draws=4, fill=0.5, unit="element"),
    "ablated median": lambda c: defense.ablated(c, 400, draws=5, fill=0.5, combine="median"),
    "banded": lambda c: defense.banded(c, 9, draws=4, fill=0.5),
    "banded median": lambda c: defense.banded(c, 30, draws=3, fill=0.5, combine="median"),
    "blocked": lambda c: defense.blocked(c, 20, draws=3, fill=0.5),
    "clipped": lambda c: defense.clipped(c, 0.4),
    "tiled": lambda c: defense.tiled(c, 8),
    "masked": lambda c: defense.masked(c, patch_size=6, allowance=40.0),
    "masked clipped": lambda c: defense.masked(defense.clipped(c), patch_size=6, allowance=40.0),
    "completed": lambda c: defense.completed(
        c, patch_size=6, completion=model_of(0, reached_window(6, c.stride, c.receptive_field))
    ),
    "alarmed": lambda c: defense.alarmed(
        c,
        patch_size=6,
        margin=0.5,
        completion=model_of(0, reached_window(6, c.stride, c.receptive_field)),
    ),
    "two_mask": lambda c: defense.two_mask(c, patch_size=4, masks=4, fill=0.5),
    "tiled, ablated": lambda c: defense.ablated(defense.tiled(c, 8), 500, draws=3, fill=0.5),
}
every = pytest.mark.parametrize("name", DEFENSES)


@every
@pytest.mark.parametrize("inner", [Tiny, Plain])
def test_face(name: str, inner: Callable[[], Any]) -> None:
    counter = DEFENSES[name](inner())
    assert isinstance(counter, Counter)
    assert isinstance(counter, nn.Module) == (inner is Tiny)
    images = pictures((32, 40), 2)
    with torch.no_grad():
        density = counter(images)
    stride = counter.stride
    assert density.shape == (2, 1, 32 // stride, 40 // stride)
    assert density.dtype == torch.float32
    assert counter.minimum_side == 2


@every
def test_modules_pass_through(name: str) -> None:
    inner = Tiny()
    counter = DEFENSES[name](inner)
    assert not any(part.training for part in counter.modules())
    assert [id(p) for p in counter.parameters()] == [id(p) for p in inner.parameters()]
    inner.train()
    with pytest.raises(ValueError, match="counter must be in eval mode, got one in train mode"):
        counter(pictures((32, 40)))
    with frozen(counter), torch.no_grad():
        assert not inner.training
        counter(pictures((32, 40)))
    assert inner.training


@every
def test_float64(name: str) -> None:
    counter, images = DEFENSES[name](Tiny()), pictures((32, 40))
    twin = copy.deepcopy(counter).double()
    with ops.reference(), torch.no_grad():
        result = twin(images.double())
        assert result.dtype == torch.float64
        torch.testing.assert_close(result.float(), counter(images), rtol=1e-4, atol=1e-6)


def test_identities_tell_settings_apart() -> None:
    counter = Tiny()
    made = [make(counter) for make in DEFENSES.values()]
    made += [defense.masked(counter, patch_size=6, allowance=41.0), defense.clipped(counter, 0.5)]
    made += [defense.tiled(counter, 16), defense.ablated(counter, 400, draws=4, fill=0.4)]
    assert len({identity(defended) for defended in [counter, *made]}) == len(made) + 1
    again = DEFENSES["masked"](Tiny())
    assert identity(again) == identity(made[list(DEFENSES).index("masked")])


def test_states_are_those_of_one_defense() -> None:
    first, second = defense.clipped(Tiny(), 0.5), defense.clipped(Tiny(), 0.4)
    assert isinstance(first, nn.Module)
    assert isinstance(second, nn.Module)
    with torch.no_grad():
        first.get_parameter("counter.net.0.weight").zero_()
    other = defense.clipped(Tiny(), 0.5)
    assert isinstance(other, nn.Module)
    other.load_state_dict(first.state_dict())
    assert not other.get_parameter("counter.net.0.weight").any()
    with pytest.raises(
        ValueError, match=r"clipped: the state must be that of Clipped\(caps=Caps\(0.4\)\)"
    ):
        second.load_state_dict(first.state_dict())


@every
def test_bad_images(name: str) -> None:
    counter = DEFENSES[name](Tiny())
    for images in (pictures()[0], pictures()[:, :2], pictures()[:0]):
        with pytest.raises(ValueError, match=r"^\w+: images must be \[N,3,H,W\]") as error:
            counter(images)
        assert "\n" not in str(error.value)


@pytest.mark.long
@every
def test_attacks_run_on_it(name: str) -> None:
    """The gradient reaches the patch, and the count rises above the clean one and grey's."""
    apam = attack.APAM(
        patch_size=10, steps=4, objective="over", transform="none", step_size=0.1, smoothness=0.0
    )
    # Looking up layers again and again takes longer than counting so few pixels without them.
    inner = Tiny(None) if name in ("blocked", "banded median") else Tiny()
    counter = DEFENSES[name](inner)
    run = attack.run(counter, [scene()], apam, pgd=None, checks=False, save_images=False)
    counts = {record["condition"]: record["count"] for record in run.run.records}
    assert counts["apam"] > counts["clean"]
    assert counts["apam"] >= counts["grey"]
    (zero,) = [
        record["zero_gradient"] for record in run.run.records if record["condition"] == "apam"
    ]
    assert zero < 1


def test_gates_agree_on_a_defended_counter() -> None:
    """Among them that the gradient agrees with finite differences in float64."""
    apam = attack.APAM(patch_size=10, steps=3, objective="over", transform="none", smoothness=0.0)
    counter = defense.ablated(defense.clipped(Tiny(), 0.5), 600, draws=3, fill=0.5)
    run = attack.run(counter, [scene()], apam, pgd=None, save_images=False)
    verdicts = {check.name: check.verdict for check in run.checks}
    assert verdicts["gradient agrees with finite differences"] == "pass"
    assert verdicts["the counter stays as it was"] == "pass"
