"""pycc: how a crowd counter fails, and how to make it fail less.

Attacks counters with adversarial patches; the compiled kernels are reached through ``pycc.ops``.
"""

__version__ = "0.1.0"
