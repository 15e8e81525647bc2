"""Attacks on a count: adversarial patches, optimised against any counter.

``APAM`` and its siblings are dataclasses whose fields are the command's flags; ``run`` applies
them to a counter and samples and measures what they do, beside patches that nobody optimised;
``transfer`` tries patches made on one counter on others.
"""

from pycc.attack.apam import APAM
from pycc.attack.base import Found, PatchAttack, attacks
from pycc.attack.engine import run, transfer
from pycc.attack.inner import InnerAttack
from pycc.attack.objective import objectives
from pycc.attack.optimiser import optimisers
from pycc.attack.patch import Place
from pycc.attack.pgd import PGD
from pycc.attack.query import Query
from pycc.attack.scenes import Problem, Scenes, combinations
from pycc.attack.transform import transforms
from pycc.attack.universal import Universal

__all__ = [
    "APAM",
    "PGD",
    "Found",
    "InnerAttack",
    "PatchAttack",
    "Place",
    "Problem",
    "Query",
    "Scenes",
    "Universal",
    "attacks",
    "combinations",
    "objectives",
    "optimisers",
    "run",
    "transfer",
    "transforms",
]
