"""Settings and their flags: listing, building from values, and what a manifest stores."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from pycc import attack, backdoor, certify, train
from pycc.settings import Options, build, flag, flags_of, group, misfit, values_of

known = ["a", "b"]


@dataclass(frozen=True)
class Inner:
    side: int | float = flag(0.5, "either")
    seed: int = flag(7, "hidden by the outer one")


@dataclass(frozen=True)
class Other:
    kind: str = flag("a", "which", choices=lambda: known)
    side: int | float = flag(0.5, "hidden by that of the group before, whose value it has")


@dataclass(frozen=True)
class Chosen(Inner):
    depth: int = flag(1, "of the chosen variant only")

    def __post_init__(self) -> None:
        if self.depth < 0:
            raise ValueError(f"depth must be at least 0, got {self.depth}")


@dataclass(frozen=True)
class Settings:
    place: tuple[int, int] | None = flag(None, "where")
    sizes: tuple[int, ...] = flag((1,), "several")
    option: Options = flag(help="named", factory=dict)
    seed: int = flag(0, "of all")
    inner: Inner = group(Inner, "inner")
    other: Other = group(Other, "other")


def test_flags_are_listed_once_in_order_and_the_first_wins() -> None:
    flags = {one.name: one for one in flags_of(Settings)}
    assert list(flags) == ["place", "sizes", "option", "seed", "side", "kind"]
    assert (flags["seed"].default, flags["seed"].title) == (0, "")
    assert (flags["side"].default, flags["side"].title) == (0.5, "inner")
    assert flags["side"].annotation == (int, float)
    assert flags["place"].annotation == tuple[int, int]
    assert flags["option"].default == {}


def test_a_variant_replaces_the_settings_of_a_group() -> None:
    variants = {"inner": Chosen}
    assert [one.name for one in flags_of(Settings, variants)][4:] == ["side", "depth", "kind"]
    settings = build(Settings, {"depth": 4, "side": 2}, variants)
    assert settings.inner == Chosen(side=2, depth=4)
    with pytest.raises(ValueError, match="depth must be at least 0, got -1"):
        build(Settings, {"depth": -1}, variants)
    assert build(Settings, {"depth": 4}).inner == Inner()


def test_values_survive_json() -> None:
    settings = build(Settings, {"place": [3, 4], "sizes": [5, 6], "seed": 2, "unknown": 1})
    assert (settings.place, settings.sizes, settings.seed) == ((3, 4), (5, 6), 2)
    assert settings.inner.seed == 7, "the outer flag hides that of the group"
    assert build(Settings, {"side": 2}).inner.side == build(Settings, {"side": 2}).other.side == 2
    values = values_of(settings)
    assert values == {
        "place": [3, 4], "sizes": [5, 6], "option": {}, "seed": 2, "side": 0.5, "kind": "a",
    }  # fmt: skip
    assert build(Settings, values) == settings


def test_choices_that_grow_are_those_of_the_moment() -> None:
    (kind,) = (one for one in flags_of(Settings) if one.name == "kind")
    with pytest.raises(ValueError, match=r"--kind: expected one of a, b, got 'cc'$"):
        kind.checked("cc")
    known.append("ccc")
    try:
        (kind,) = (one for one in flags_of(Settings) if one.name == "kind")
        assert kind.checked("ccc") == "ccc"
        with pytest.raises(ValueError, match=r"got 'cc'; did you mean 'ccc'\?"):
            kind.checked("cc")
        with pytest.raises(ValueError, match="got 'cc'"):
            kind.checked(["a", "cc"])
    finally:
        known.remove("ccc")
    assert kind.checked(None) is None, "an optional value that was not given"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: attack.APAM(patch_size="81"), "APAM: patch_size must be a number, got '81'"),
        (lambda: attack.APAM(steps=True), "APAM: steps must be a whole number, got True"),
        (lambda: attack.APAM(target_count="9"), "APAM: target_count must be a number or None"),
        (lambda: train.TrainConfig(epochs=2.5), "train: epochs must be a whole number or None, "),
        (lambda: train.TrainConfig(amp=1), "train: amp must be True or False, got 1"),
        (lambda: certify.Masked(allowance="2"), "Masked: allowance must be a number or None"),
        (lambda: backdoor.Noise(alpha=None), "Noise: alpha must be a number, got None"),
        (lambda: backdoor.Add(2.5), "add: amount must be a whole number, got 2.5"),
    ],
)
def test_fields_of_another_type_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
        make()


def test_numbers_of_numpy_are_numbers() -> None:
    made = attack.APAM(patch_size=np.int64(16), steps=np.int32(2), momentum=np.float32(0.5))
    assert (made.patch_size, made.steps, made.momentum) == (16, 2, 0.5)


def test_a_list_of_names_is_a_type_of_its_own() -> None:
    assert misfit(list[str] | None, ["a", "b"]) is None
    assert misfit(list[str] | None, ("a",)) is None
    assert misfit(list[str] | None, "a") == "a list of names or None"
    assert misfit(list[str], [1]) == "a list of names"
