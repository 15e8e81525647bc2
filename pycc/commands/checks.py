"""Checks of flags that commands share, and the wording of their messages."""

from __future__ import annotations

from collections.abc import Collection

__all__ = ["check_beside", "check_least", "check_share"]


def check_least(name: str, value: int | None, least: int) -> None:
    """ValueError for a number below ``least``; None, a flag that was not given, is fine."""
    if value is not None and value < least:
        raise ValueError(f"{_shown(name)} must be at least {least}, got {value}")


def check_share(name: str, value: float) -> None:
    """ValueError for a share outside (0,1]."""
    if not 0 < value <= 1:
        raise ValueError(f"{_shown(name)} must lie in (0,1], got {value:g}")


def check_beside(
    given: Collection[str], names: Collection[str], needed: str, met: bool, got: str = "none"
) -> None:
    """ValueError for a flag that was given without another that it needs (``met`` is False).

    ``got`` is what was given in place of the one that is ``needed``.
    """
    for name in names:
        if name in given and not met:
            raise ValueError(f"{_shown(name)}: expected {needed} beside it, got {got}")


def _shown(name: str) -> str:
    return f"--{name.replace('_', '-')}"
