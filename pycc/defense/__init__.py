"""Defenses against patches: each wraps a counter and returns a counter that a patch changes less.

A defended counter is a ``Counter`` again, so that every attack runs on every defense, and defenses
nest: ``masked(clipped(counter), patch_size=81, allowance=12.0)``.
"""

from pycc.defense.ablation import ablated, banded, blocked
from pycc.defense.alarmed import alarmed
from pycc.defense.base import Defended, DefendedModule, Defense
from pycc.defense.cells import clipped, masked
from pycc.defense.completed import CompletionModel, completed
from pycc.defense.mixture import mixed
from pycc.defense.tiles import tiled
from pycc.defense.two_mask import two_mask

__all__ = [
    "CompletionModel",
    "Defended",
    "DefendedModule",
    "Defense",
    "ablated",
    "alarmed",
    "banded",
    "blocked",
    "clipped",
    "completed",
    "masked",
    "mixed",
    "tiled",
    "two_mask",
]
