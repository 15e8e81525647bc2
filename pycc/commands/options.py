"""Options NAME=VALUE on the command line: of a chosen kind, as fields of its dataclass."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, TypeVar

from pycc.registry import nearest
from pycc.settings import misfit

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
        hint = hints[field]
        if isinstance(value, str) and misfit(hint, value) and misfit(hint, [value]) is None:
            value = [value]  # a single name stands for a list of one
        expected = misfit(hint, value)
        if expected is not None:
            raise ValueError(f"{flag}: {field} must be {expected}, got {value!r}")
        values[field] = value
    return kind(**values)


@contextmanager
def naming_option() -> Iterator[None]:
    """Raise ValueError for an option of a counter that its call does not take."""
    try:
        yield
    except TypeError as error:
        raise ValueError(f"--option: {error}") from None
