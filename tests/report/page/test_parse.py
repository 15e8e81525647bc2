"""JSON values as dataclasses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from pycc.report.page.parse import parsed


@dataclass(frozen=True)
class Inner:
    low: float


@dataclass(frozen=True)
class Outer:
    name: str
    size: int
    done: bool
    place: tuple[int, int]
    inner: Inner | None
    rows: tuple[Inner, ...] = ()
    groups: Mapping[str, float] = field(default_factory=dict)
    other: object = None


GOOD = {"name": "a", "size": 3, "done": True, "place": [1, 2], "inner": {"low": 1}}


def test_values_become_fields() -> None:
    value = {**GOOD, "rows": [{"low": 0.5, "more": 1}], "groups": {"a": 1}, "other": [None]}
    outer = parsed(Outer, value, "file")
    assert outer == Outer("a", 3, True, (1, 2), Inner(1.0), (Inner(0.5),), {"a": 1.0}, [None])
    assert parsed(Outer, {**GOOD, "inner": None}, "file").inner is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": 1}, "file, name: expected a text, got 1"),
        ({"size": True}, "file, size: expected a whole number, got true"),
        ({"size": 1.5}, "file, size: expected a whole number, got 1.5"),
        ({"done": 0}, "file, done: expected true or false, got 0"),
        ({"place": [1]}, "file, place: expected 2 values, got [1]"),
        ({"place": "12"}, 'file, place: expected a list, got "12"'),
        ({"inner": {}}, "file, inner: expected a field 'low', got none"),
        ({"name": ["x" * 60]}, f'file, name: expected a text, got ["{"x" * 38}…'),
        ({"inner": {"low": "x"}}, 'file, inner, low: expected a number, got "x"'),
        ({"rows": [3]}, "file, rows: expected a JSON object, got 3"),
        ({"groups": []}, "file, groups: expected a JSON object, got []"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(change: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        parsed(Outer, {**GOOD, **change}, "file")
