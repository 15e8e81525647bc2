"""Attacks on a count: adversarial patches, optimised against any counter.

An attack such as ``APAM`` is a dataclass whose fields are the command's flags. Called on images it
returns attacked images, patches and counts; ``run`` applies attacks to a data set and measures them
beside baselines that are not optimised; ``transfer`` tries patches made on one counter on others.
``preset`` makes an attack with settings that go together. A new attack is a subclass of
``PatchAttack``, registered in ``attacks``.
"""

from pycc.attack.base import PatchAttack, attacks
from pycc.attack.engine import run, transfer
from pycc.attack.methods import APAM, PGD, InnerAttack, Query, Universal
from pycc.attack.objective import Aim, Objective, objectives
from pycc.attack.optimiser import optimisers
from pycc.attack.patch import Place
from pycc.attack.presets import Preset, preset, presets
from pycc.attack.problem import AttackedRegion, Problem, combinations
from pycc.attack.result import AttackResult, AttackRow, AttackRun
from pycc.attack.tracker import BestTracker, OptimisedPatches, look_at
from pycc.attack.transform import transforms

__all__ = [
    "APAM",
    "PGD",
    "Aim",
    "AttackResult",
    "AttackRow",
    "AttackRun",
    "AttackedRegion",
    "BestTracker",
    "InnerAttack",
    "Objective",
    "OptimisedPatches",
    "PatchAttack",
    "Place",
    "Preset",
    "Problem",
    "Query",
    "Universal",
    "attacks",
    "combinations",
    "look_at",
    "objectives",
    "optimisers",
    "preset",
    "presets",
    "run",
    "transfer",
    "transforms",
]
