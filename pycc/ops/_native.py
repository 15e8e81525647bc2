"""The compiled module, and the choice between it and the pure-torch twins."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch

import pycc

_HOW_TO_BUILD = (
    "build it with `pip install .` in the source folder (needs a C++ compiler), or ask for the "
    "pure-torch twins with `with pycc.ops.reference():` or PYCC_OPS=reference"
)


def _load() -> tuple[ModuleType | None, str]:
    try:
        import _pycc
    except ImportError as error:
        return None, f"pycc: the compiled module is missing ({error}); {_HOW_TO_BUILD}"
    if _pycc.version != pycc.__version__:
        return None, (
            f"pycc: the compiled module is of version {_pycc.version}, the Python package of "
            f"{pycc.__version__}; {_HOW_TO_BUILD}"
        )
    return _pycc, ""


_module, _why_missing = _load()
_reference = os.environ.get("PYCC_OPS", "") == "reference"


def use_reference() -> bool:
    """Whether the pure-torch twins have been asked for."""
    return _reference


@contextlib.contextmanager
def reference() -> Iterator[None]:
    """Run the pure-torch twins of all ops instead of the compiled kernels, inside the block."""
    global _reference
    before, _reference = _reference, True
    try:
        yield
    finally:
        _reference = before


def kernel(op: str, device: torch.device) -> Any:
    """The compiled function of ``op`` for ``device``; ImportError or ValueError if not there."""
    if _module is None:
        raise ImportError(_why_missing)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"{op}: tensors must be on cpu or cuda, got {device.type}")
    if device.type == "cuda" and _module.cuda is None:
        raise ValueError(
            f"{op}: a tensor is on {device}, but pycc was built without CUDA; rebuild where nvcc "
            "is found (PYCC_CUDA=ON), or use the twins with `with pycc.ops.reference():`"
        )
    return getattr(_module, f"{op}_{device.type}")


def launch(device: torch.device) -> int:
    """Last argument of a kernel: the number of threads on the CPU, the current stream on CUDA."""
    if device.type == "cuda":
        return int(torch.cuda.current_stream(device).cuda_stream)
    return torch.get_num_threads()


def module() -> Any:
    """The compiled module; ImportError if it is not there."""
    if _module is None:
        raise ImportError(_why_missing)
    return _module


def info() -> dict[str, str | int | bool | None]:
    """What is compiled and what runs: version, compiler, flags, SIMD clones, CUDA or not."""
    facts: dict[str, str | int | bool | None] = {
        "compiled": _module is not None,
        "running": "reference" if _reference else "compiled",
        "threads": torch.get_num_threads(),
    }
    for name in ("version", "compiler", "flags", "simd", "cuda"):
        facts[name] = getattr(_module, name, None)
    return facts
