"""Attacks on a count: adversarial patches, optimised against any counter.

``APAM`` and its siblings are dataclasses whose fields are the command's flags; ``run`` applies
them to a counter and samples and measures what they do, beside patches that nobody optimised.
"""

from pycc.attack.apam import APAM
from pycc.attack.base import Attack, Scenes, attacks
from pycc.attack.engine import frozen, run
from pycc.attack.objective import objectives
from pycc.attack.window import Box, Place, influence

__all__ = [
    "APAM",
    "Attack",
    "Box",
    "Place",
    "Scenes",
    "attacks",
    "frozen",
    "influence",
    "objectives",
    "run",
]
