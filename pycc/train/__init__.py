"""Training: one trainer for every counter, and the recipes that make counters robust."""

from pycc.train.loop import fit
from pycc.train.plan import Plan, origin_of, resolved
from pycc.train.step import Adversary, NotFiniteError

__all__ = ["Adversary", "NotFiniteError", "Plan", "fit", "origin_of", "resolved"]
