"""Attack, defend and certify crowd counters.

The packages are ``pycc.models`` (counters), ``pycc.data`` (annotated images), ``pycc.attack``
(adversarial patches), ``pycc.defense``, ``pycc.certify`` (intervals that no patch can push a count
out of), ``pycc.train``, ``pycc.backdoor`` (poisoned training data), ``pycc.metrics``,
``pycc.report``, ``pycc.runs``, ``pycc.local`` and ``pycc.ops`` (compiled kernels).
"""

__all__: list[str] = []

__version__ = "0.1.0"
