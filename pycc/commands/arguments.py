"""Values in unparsed arguments, such as an earlier run, before it is known which flags exist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["argument", "earlier_manifest", "earlier_run"]


def argument(argv: Sequence[str], name: str) -> str | None:
    """The value of the flag ``name`` in unparsed arguments, the last if there are several.

    >>> argument(["--attack", "apam", "--attack=query"], "--attack")
    'query'
    """
    value = None
    for at, text in enumerate(argv):
        if text == name and at + 1 < len(argv):
            value = argv[at + 1]
        elif text.startswith(f"{name}="):
            value = text.partition("=")[2]
    return value


def earlier_run(argv: Sequence[str]) -> tuple[str, str] | None:
    """The flag that names an earlier run, to resume it or to take its settings, and its folder.

    >>> earlier_run(["--like", "runs/a", "--seed", "1"])
    ('--like', 'runs/a')
    """
    for name in ("--resume", "--like"):
        path = argument(argv, name)
        if path is not None:
            return name, path
    return None


def earlier_manifest(argv: Sequence[str]) -> Mapping[str, Any]:
    """The manifest of the earlier run that arguments name; empty if there is none to be read.

    A folder without a run is refused later, by the command.
    """
    named = earlier_run(argv)
    if named is None:
        return {}
    from pycc import runs  # which imports torch

    try:
        return runs.read_manifest(named[1])
    except ValueError:
        return {}
