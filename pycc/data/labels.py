"""Which labels of an annotation are people."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable
from pathlib import Path

_PEOPLE = (
    frozenset(("head", "heads")),
    frozenset(("human", "humans", "pedestrian", "pedestrians", "people", "person", "persons")),
)
"""Labels of heads and of whole people. If an annotation has both, each head is one person."""


def counted_labels(path: Path, labels: Iterable[str]) -> Collection[str]:
    """Return the labels whose shapes are heads.

    A single label is that of the heads, whatever its name. Among several, ``head`` counts, or else
    ``person`` and its synonyms; a warning names the others. If none of them has such a name, all
    count, and a warning names them.

    >>> with warnings.catch_warnings(action="ignore"):
    ...     counted_labels(Path("street.json"), ["person", "car", "person"])
    {'person'}
    """
    used = set(labels)
    if len(used) <= 1:
        return used
    for names in _PEOPLE:
        chosen = {label for label in used if label.strip().lower() in names}
        if chosen and chosen != used:
            warnings.warn(
                f"{path}: counts the label {_joined(chosen)}; left out {_joined(used - chosen)}",
                stacklevel=3,
            )
        if chosen:
            return chosen
    warnings.warn(f"{path}: counts all labels as heads: {_joined(used)}", stacklevel=3)
    return used


def _joined(labels: Iterable[str]) -> str:
    return ", ".join(repr(label) for label in sorted(labels))
