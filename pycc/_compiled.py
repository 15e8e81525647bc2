"""The compiled module ``_pycc``, or the reason why there is none.

This file alone imports it. It imports no torch, so that ``pycc --version`` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import NamedTuple, Protocol

import pycc

HOW_TO_BUILD = (
    "build it with `pip install .` in the source folder (needs a C++ compiler), or run the "
    "pure-torch twins with `with pycc.ops.reference():` or PYCC_OPS=reference"
)
WITHOUT = (
    "pycc was installed without its compiled kernels: their slower pure-torch twins run "
    "(`PYCC_OPS=compiled pip install .` in the source folder builds the kernels or says why it "
    "cannot; PYCC_OPS=reference silences this)"
)


class Ablation(Protocol):
    """The class of sizes of ``csrc/ops/ablate.h``."""

    @property
    def words(self) -> int:
        """Number of 32-bit words in the bitmap of a row."""


class HitSizes(Protocol):
    """The class of sizes of ``csrc/ops/mask_hits.h``."""

    @property
    def scratch_words(self) -> int:
        """Number of 64-bit words of one of the two scratch buffers that a set needs on CUDA."""


class Compiled(Protocol):
    """The attributes of the compiled module. Its classes take all fields by keyword."""

    version: str
    compiler: str
    flags: str
    simd: str
    cuda: str | None
    max_neighbours: int
    max_population: int
    max_shared_width: int
    head_axes_bytes: int
    best_window_bytes: int
    window_pair_bytes: int
    Boundary: type[Enum]
    Event: type[Enum]
    Rounding: type[Enum]
    Sampling: type[Enum]
    Ablation: Callable[..., Ablation]
    DeformSizes: Callable[..., object]
    HitSizes: Callable[..., HitSizes]
    PairSizes: Callable[..., object]
    PasteSizes: Callable[..., object]
    Steps: Callable[..., object]
    SumSizes: Callable[..., object]
    WindowSizes: Callable[..., object]
    kernels: Mapping[str, tuple[Callable[..., None], tuple[type | str, ...]]]


class Loaded(NamedTuple):
    """The outcome of loading the compiled module."""

    module: Compiled | None
    """None if it is missing or does not fit to the package."""
    missing: str | None = None
    """Why there is no module."""
    built: bool = True
    """False if pycc was installed without it; True also for a module that does not load."""


def load() -> Loaded:
    """Import the compiled module and compare its version with the package's."""
    try:
        import _pycc
    except ModuleNotFoundError:
        return Loaded(None, WITHOUT, built=False)
    except ImportError as error:
        return Loaded(None, f"pycc: the compiled module cannot be loaded ({error}); {HOW_TO_BUILD}")
    if _pycc.version != pycc.__version__:
        return Loaded(
            None,
            f"pycc: the compiled module is of version {_pycc.version}, the Python package of "
            f"{pycc.__version__}; {HOW_TO_BUILD}",
        )
    if not hasattr(_pycc, "kernels"):  # built from an earlier checkout of the same version
        return Loaded(None, f"pycc: the compiled module is older than the package; {HOW_TO_BUILD}")
    return Loaded(_pycc)


def version() -> str:
    """The version of pycc and what its kernels are compiled for, or why they are missing."""
    module, missing, _ = load()
    if module is None:
        return f"pycc {pycc.__version__}\n{missing}"
    cuda = "without CUDA" if module.cuda is None else f"with CUDA {module.cuda}"
    return f"pycc {pycc.__version__}\nkernels compiled by {module.compiler}, {module.simd}, {cuda}"
