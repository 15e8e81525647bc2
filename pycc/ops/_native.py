"""The compiled module, and the choice between it and the pure-torch twins."""

from __future__ import annotations

import contextlib
import os
import threading
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


def _asked_in_environment() -> bool:
    asked = os.environ.get("PYCC_OPS", "")
    if asked not in ("", "compiled", "reference"):
        raise ValueError(f"PYCC_OPS must be compiled or reference, got {asked!r}")
    return asked == "reference"


_module, _why_missing = _load()
_at_start: bool = _asked_in_environment()


class _Choice(threading.local):
    """What this thread runs; torch.compile traces it and compiles again where it has changed.

    It follows an attribute of the instance, neither a default of the class nor a context variable.
    """

    def __init__(self) -> None:
        self.reference = _at_start


_choice = _Choice()


def use_reference() -> bool:
    """Whether the pure-torch twins have been asked for, in this thread."""
    return _choice.reference


@contextlib.contextmanager
def reference() -> Iterator[None]:
    """Run the pure-torch twins of all ops instead of the compiled kernels, inside the block."""
    before = _choice.reference
    _choice.reference = True
    try:
        yield
    finally:
        _choice.reference = before


def run(op: str, device: torch.device, *arguments: Any) -> None:
    """Run the compiled ``op`` on ``device``; ImportError or ValueError where it is not there.

    The kernel's last argument is added here: the number of threads on the CPU, the current stream
    of the device on CUDA.
    """
    if _module is None:
        raise ImportError(_why_missing)
    if device.type == "cpu":
        getattr(_module, f"{op}_cpu")(*arguments, torch.get_num_threads())
    elif device.type != "cuda":
        raise ValueError(f"{op}: tensors must be on cpu or cuda, got {device.type}")
    elif _module.cuda is None:
        raise ValueError(
            f"{op}: a tensor is on {device}, but pycc was built without CUDA; rebuild where nvcc "
            "is found (PYCC_CUDA=ON), or use the twins with `with pycc.ops.reference():`"
        )
    else:
        with torch.cuda.device(device):
            stream = torch.cuda.current_stream(device).cuda_stream
            getattr(_module, f"{op}_cuda")(*arguments, stream)


def module() -> Any:
    """The compiled module; ImportError if it is not there."""
    if _module is None:
        raise ImportError(_why_missing)
    return _module


def info() -> dict[str, str | int | bool | None]:
    """What is compiled and what runs: version, compiler, flags, SIMD clones, CUDA or not."""
    facts: dict[str, str | int | bool | None] = {
        "compiled": _module is not None,
        "running": "reference" if use_reference() else "compiled",
        "threads": torch.get_num_threads(),
    }
    for name in ("version", "compiler", "flags", "simd", "cuda"):
        facts[name] = getattr(_module, name, None)
    return facts
