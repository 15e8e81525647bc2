"""pycc: measure how badly a crowd counter can fail, and make it fail less.

It attacks counters with adversarial patches and poisoned training data, defends them, and certifies
intervals that no patch can push a count out of. ``pycc.count`` counts; the packages ``attack``,
``certify``, ``train``, ``backdoor``, ``defense``, ``models`` and ``data`` do the rest, on compiled
kernels in ``pycc.ops``.
"""

import typing as _typing

__version__ = "0.1.0"  # the kernels compare themselves with it

if _typing.TYPE_CHECKING:
    from pycc.counters import Count, count

__all__ = ["Count", "count"]


def __getattr__(name: str) -> object:
    """Import what users call first, and with it torch, when it is used."""
    if name in __all__:
        from pycc import counters

        return getattr(counters, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
