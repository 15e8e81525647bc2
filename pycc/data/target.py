"""Layouts that data sets can be written in; each format registers its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pycc.registry import Registry


@dataclass(frozen=True)
class Picture:
    """An image file that was written, and its heads."""

    file: Path
    height: int
    width: int
    points: list[list[float]]
    """[x, y] of each head, in pixels."""


@dataclass(frozen=True)
class Target:
    """A layout that can be written."""

    folder: str
    """Path of the folder of a {split}."""
    image: str
    """Path of a sample's image in it, by {name} or {number} (from 1), without suffix."""
    points: str = ""
    """Path of a sample's points in it, by {name} or {number}; "" without a file per image."""
    write: Callable[[Path, Picture], None] | None = None
    """Writes the file of a sample's points."""
    table: str = ""
    """Path, from the top, of the file of all images of a {split}; "" without one."""
    write_table: Callable[[Path, Sequence[Picture]], None] | None = None
    """Writes it."""
    kept: frozenset[str] | None = None
    """Suffixes of image files that its readers accept; None for all that pycc opens."""


targets: Registry[Target] = Registry("layout to export")
"""The layouts that can be written."""
