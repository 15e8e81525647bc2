"""Checks of models' options, and the format of wrong values in messages."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Real


def shown(value: object) -> str:
    """Format a wrong value for a message: on one line, and shortened."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


def is_number(value: object) -> bool:
    """Return whether a value is a real number and not a bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def known(names: Iterable[object]) -> str:
    """Format names for a message."""
    return " or ".join(repr(name) for name in names)


def choice(model: str, option: str, value: object, names: Iterable[object]) -> None:
    """Raise ValueError unless ``value`` is one of ``names``, with the same type."""
    listed = list(names)
    if not any(type(value) is type(name) and value == name for name in listed):
        raise ValueError(f"{model}: {option} must be {known(listed)}, got {shown(value)}")
