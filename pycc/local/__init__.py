"""Evaluate a counter only in the cells that a change of a few pixels can affect, exactly.

Attacks, defenses and certificates evaluate the same counter on the same image many times, with
different content in one small box. ``Local`` computes the changed cells from that box alone.
"""

from pycc.local.box import Box, aligned, influence
from pycc.local.last_density import LastDensityCache
from pycc.local.local import Local, TracedGraph

__all__ = ["Box", "LastDensityCache", "Local", "TracedGraph", "aligned", "influence"]
