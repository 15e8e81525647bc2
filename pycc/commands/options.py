"""Options NAME=VALUE on the command line: of a chosen kind, as fields of its dataclass."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, TypeVar

from pycc.registry import nearest

T = TypeVar("T")


def with_options(
    flag: str, name: str, kind: type[T], options: Mapping[str, object], **defaults: object
) -> T:
    """A dataclass made with ``options``, over ``defaults``.

    ValueError, naming the ``flag``, for a field that ``kind``, called ``name``, does not have, or
    of another type; and of the dataclass itself for a value out of range.
    """
    hints = typing.get_type_hints(kind)
    known = [entry.name for entry in fields(kind)]  # type: ignore[arg-type]
    values: dict[str, Any] = dict(defaults)
    for field, value in options.items():
        if field not in known:
            raise ValueError(
                f"{flag}: {name} has fields {', '.join(known)}, got {field!r}"
                f"{nearest(field, known)}"
            )
        values[field] = _typed(flag, field, hints[field], value)
    return kind(**values)


@contextmanager
def naming_option() -> Iterator[None]:
    """Raise ValueError for an option of a counter that its call does not take."""
    try:
        yield
    except TypeError as error:
        raise ValueError(f"--option: {error}") from None


def _typed(flag: str, name: str, hint: Any, value: object) -> object:
    """A value read from JSON as a field of that type; ValueError for another type."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = typing.get_args(hint) if union else (hint,)
    for kind in kinds:
        if kind is type(None) and value is None:
            return None
        if kind is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if kind in (bool, str) and isinstance(value, kind):
            return value
        if typing.get_origin(kind) is list:
            names = [value] if isinstance(value, str) else value
            if isinstance(names, list) and all(isinstance(text, str) for text in names):
                return names
    expected = " or ".join(_NAMES.get(kind, "a list of names") for kind in kinds if kind in _NAMES
                           or typing.get_origin(kind) is list)  # fmt: skip
    raise ValueError(f"{flag}: {name} must be {expected}, got {value!r}")


_NAMES: Mapping[type, str] = {
    int: "a whole number", float: "a number", bool: "true or false", str: "a text",
}  # fmt: skip
