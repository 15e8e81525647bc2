"""JSON values as frozen dataclasses: what a run folder holds is checked before it is shown."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


def parsed(kind: type[T], value: object, where: str) -> T:
    """A frozen dataclass from a JSON object; fields of the object that it lacks are ignored.

    Types of fields may be ``int``, ``float``, ``str``, ``bool``, ``object`` (anything), dataclasses
    of these, ``tuple``, ``Mapping`` and ``dict`` of these, and any of them ``| None``. A field
    ``int | float`` holds a float.

    Args:
        kind: the dataclass.
        value: the JSON value.
        where: what the value is, for the error.

    Raises:
        ValueError: a value of another type, or a missing field without default.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Count:
    ...     image: str
    ...     count: float
    ...     truth: int | None = None
    >>> parsed(Count, {"image": "street", "count": 3, "seconds": 1.5}, "line 1")
    Count(image='street', count=3.0, truth=None)
    >>> parsed(Count, {"image": "street"}, "line 1")
    Traceback (most recent call last):
    ...
    ValueError: line 1: expected a field 'count', got none
    """
    if not isinstance(value, Mapping):
        raise _unexpected("a JSON object", value, where)
    arguments: dict[str, Any] = {}
    hints: dict[str, Any] = _hints(kind)  # type: ignore[arg-type]  # a class is hashable
    for entry in fields(kind):  # type: ignore[arg-type]
        if entry.name in value:
            inner = f"{where}, {entry.name}"
            arguments[entry.name] = _value(hints[entry.name], value[entry.name], inner)
        elif entry.default is MISSING and entry.default_factory is MISSING:
            raise ValueError(f"{where}: expected a field {entry.name!r}, got none")
    return kind(**arguments)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _value(kind: Any, value: object, where: str) -> object:
    """The value as a field of this type holds it; ValueError for one of another type."""
    if kind is object:
        return value
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        (wanted,) = set(inner) - {type(None)} - ({int} if float in inner else set())
        return None if value is None else _value(wanted, value, where)
    if origin is tuple:
        return _tuple(inner, value, where)
    if origin in (Mapping, dict):
        if not isinstance(value, Mapping):
            raise _unexpected("a JSON object", value, where)
        return {name: _value(inner[1], item, where) for name, item in value.items()}
    if is_dataclass(kind):
        return parsed(typing.cast("type[Any]", kind), value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _unexpected({int: "a whole number", float: "a number"}.get(kind, "a text"
                          if kind is str else "true or false"), value, where)  # fmt: skip
    return value


def _tuple(inner: tuple[Any, ...], value: object, where: str) -> tuple[object, ...]:
    if not isinstance(value, list):
        raise _unexpected("a list", value, where)
    if inner[-1] is Ellipsis:
        return tuple(_value(inner[0], item, where) for item in value)
    if len(inner) != len(value):
        raise _unexpected(f"{len(inner)} values", value, where)
    return tuple(_value(kind, item, where) for kind, item in zip(inner, value, strict=True))


def _unexpected(wanted: str, value: object, where: str) -> ValueError:
    text = json.dumps(value)
    return ValueError(f"{where}: expected {wanted}, got {text[:40]}{'…' * (len(text) > 40)}")
