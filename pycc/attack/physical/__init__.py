"""Attacks in the physical world: printed patches and photographs."""

from pycc.attack.physical.photo import (
    PhotoRow,
    PhotoRun,
    PhotoSummary,
    photo_table,
    photographed,
)
from pycc.attack.physical.printing import Kit, print_kit

__all__ = [
    "Kit",
    "PhotoRow",
    "PhotoRun",
    "PhotoSummary",
    "photo_table",
    "photographed",
    "print_kit",
]
