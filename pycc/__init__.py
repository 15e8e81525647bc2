"""pycc: measure how badly a crowd counter can fail, and make it fail less.

It attacks counters with adversarial patches and poisoned training data, defends them, and certifies
intervals that no patch can push a count out of. ``pycc.count`` counts; the packages ``attack``,
``certify``, ``train``, ``backdoor``, ``defense``, ``models`` and ``data`` do the rest, on compiled
kernels in ``pycc.ops``.
"""

__version__ = "0.1.0"  # before the imports: the kernels compare themselves with it

from pycc.counters import Count, count

__all__ = ["Count", "count"]
