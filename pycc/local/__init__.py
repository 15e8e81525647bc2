"""A counter evaluated only where a change of its image can be felt, exactly.

Attacks, defenses and certificates ask the same counter about the same image again and again, with
other content in one small box. ``Local`` answers from that box alone.
"""

from pycc.local.box import Box, aligned, influence
from pycc.local.last_density import LastDensityCache
from pycc.local.local import Local, TracedGraph

__all__ = ["Box", "LastDensityCache", "Local", "TracedGraph", "aligned", "influence"]
