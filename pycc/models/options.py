"""Checks of models' options, and how messages quote what is wrong."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Real


def shown(value: object) -> str:
    """A wrong value as a message quotes it: on one line, and not all of a long one."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


def is_number(value: object) -> bool:
    """Whether a value is a real number; a bool is one to Python, but as an option a mistake."""
    return isinstance(value, Real) and not isinstance(value, bool)


def known(names: Iterable[object]) -> str:
    """Names as a message lists them."""
    return " or ".join(repr(name) for name in names)


def choice(model: str, option: str, value: object, names: Iterable[object]) -> None:
    """ValueError unless ``value`` is one of ``names``, of their very type."""
    listed = list(names)
    if not any(type(value) is type(name) and value == name for name in listed):
        raise ValueError(f"{model}: {option} must be {known(listed)}, got {shown(value)}")
