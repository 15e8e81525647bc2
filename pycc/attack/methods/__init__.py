"""The attacks: one file per method."""

from pycc.attack.methods.apam import APAM
from pycc.attack.methods.inner import InnerAttack
from pycc.attack.methods.pgd import PGD
from pycc.attack.methods.query import Query
from pycc.attack.methods.universal import Universal

__all__ = ["APAM", "PGD", "InnerAttack", "Query", "Universal"]
