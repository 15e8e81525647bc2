"""The compiled module, and the choice between its kernels and the pure-torch twins."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

import pycc

_HOW_TO_BUILD = (
    "build it with `pip install .` in the source folder (needs a C++ compiler), or run the "
    "pure-torch twins with `with pycc.ops.reference():` or PYCC_OPS=reference"
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
    PasteSizes: Callable[..., object]
    Steps: Callable[..., object]
    SumSizes: Callable[..., object]
    WindowSizes: Callable[..., object]
    kernels: Mapping[str, tuple[Callable[..., None], tuple[type | str, ...]]]


class Parameter(NamedTuple):
    """One parameter of a kernel, deduced from its C++ type by ``csrc/bind/bind.h``."""

    accepts: type
    """``Tensor``, or the type of a number, an enumeration or a class of sizes."""
    dtype: torch.dtype | None = None
    """dtype of a tensor, which must be contiguous and on the device of the call."""
    optional: bool = False
    """Whether a tensor may be None."""

    @staticmethod
    def of(kind: type | str) -> Parameter:
        """Make the parameter of one of the kinds that ``csrc/bind/bind.h`` lists."""
        if isinstance(kind, type):
            return Parameter(kind)
        dtype: torch.dtype = getattr(torch, kind.removesuffix("?"))
        return Parameter(Tensor, dtype, kind.endswith("?"))

    def describe(self, device: torch.device) -> str:
        """Describe the expected argument, for an error message."""
        if self.dtype is None:
            return f"of type {self.accepts.__name__}"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"a contiguous {dtype} tensor on {device}{' or None' if self.optional else ''}"


Kernel = tuple[Callable[..., None], tuple[Parameter, ...]]


def load() -> tuple[Compiled | None, str]:
    """Import the compiled module; return it, or None and why it cannot be used."""
    try:
        import _pycc
    except ImportError as error:
        return None, f"pycc: the compiled module is missing ({error}); {_HOW_TO_BUILD}"
    if _pycc.version != pycc.__version__:
        return None, (
            f"pycc: the compiled module is of version {_pycc.version}, the Python package of "
            f"{pycc.__version__}; {_HOW_TO_BUILD}"
        )
    if not hasattr(_pycc, "kernels"):  # built from an earlier checkout of the same version
        return None, f"pycc: the compiled module is older than the package; {_HOW_TO_BUILD}"
    return _pycc, ""


def _kernels_of(compiled: Compiled | None) -> dict[str, Kernel]:
    if compiled is None:
        return {}
    return {
        name: (function, tuple(Parameter.of(kind) for kind in kinds))
        for name, (function, kinds) in compiled.kernels.items()
    }


def reference_in_environment() -> bool:
    """Whether PYCC_OPS asks for the twins; ValueError for a value that it cannot have."""
    choice = os.environ.get("PYCC_OPS", "")
    if choice not in ("", "compiled", "reference"):
        raise ValueError(f"PYCC_OPS must be compiled or reference, got {choice!r}")
    return choice == "reference"


_module, _why_missing = load()
kernels = _kernels_of(_module)
_at_start: bool = reference_in_environment()


class _Choice(threading.local):
    """Whether this thread runs the twins; torch.compile recompiles when it changes.

    The flag is an instance attribute because torch.compile guards those, but neither class
    attributes nor context variables.
    """

    def __init__(self) -> None:
        self.reference = _at_start


_choice = _Choice()


def use_reference() -> bool:
    """Whether this thread runs the pure-torch twins."""
    return _choice.reference


@contextlib.contextmanager
def reference() -> Iterator[None]:
    """Run the pure-torch twins of all ops instead of the compiled kernels, inside the block.

    It affects the calling thread only, and may be nested. The twins give the same results (bit
    for bit for indices and masks, to rounding for arithmetic), run without the compiled module and
    are slower; some also take float64.

    Example:
        >>> import torch
        >>> from pycc import ops
        >>> with ops.reference():
        ...     ops.topk_overlap(torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 3.0]]), 1)
        tensor([0])
    """
    before = _choice.reference
    _choice.reference = True
    try:
        yield
    finally:
        _choice.reference = before


def module() -> Compiled:
    """Return the compiled module; raise ImportError if it is missing."""
    if _module is None:
        raise ImportError(_why_missing)
    return _module


def run(op: str, device: torch.device, *arguments: object) -> None:
    """Run the compiled ``op`` on ``device``, with tensors, numbers and sizes in the kernel's order.

    The kernel's last argument is added here: the number of threads on the CPU, the current stream
    of the device on CUDA. The tensors stay alive until the kernel has run or is queued.

    Raises:
        ImportError, ValueError: the module is missing, or was not built for the device.
        TypeError: an argument of another type than the kernel's parameter; no kernel has run.
    """
    compiled = module()
    if device.type == "cpu":
        call(op, device, (*arguments, torch.get_num_threads()))
    elif device.type != "cuda":
        raise ValueError(f"{op}: tensors must be on cpu or cuda, got {device.type}")
    elif compiled.cuda is None:
        raise ValueError(
            f"{op}: a tensor is on {device}, but pycc was built without CUDA; rebuild where nvcc "
            "is found (PYCC_CUDA=ON), or use the twins with `with pycc.ops.reference():`"
        )
    else:
        with torch.cuda.device(device):
            stream: int = torch.cuda.current_stream(device).cuda_stream
            call(op, device, (*arguments, stream))


def call(op: str, device: torch.device, arguments: tuple[object, ...]) -> None:
    """Check the arguments against the kernel's parameters and pass tensors as addresses."""
    kernel, parameters = kernels[f"{op}_{device.type}"]
    if len(arguments) != len(parameters):
        wanted, got = len(parameters) - 1, len(arguments) - 1
        raise TypeError(
            f"{op}: the kernel takes {wanted} arguments before its threads or stream, got {got}"
        )
    passed: list[object] = []
    for argument, (accepts, dtype, optional) in zip(arguments, parameters, strict=True):
        if dtype is None:
            fits = type(argument) is accepts
            passed.append(argument)
        elif isinstance(argument, Tensor):
            fits = (
                argument.dtype is dtype and argument.device == device and argument.is_contiguous()
            )
            passed.append(argument.data_ptr() if fits else None)
        else:
            fits = optional and argument is None
            passed.append(0)
        if not fits:
            position = len(passed)
            expected = parameters[position - 1].describe(device)
            raise TypeError(
                f"{op}: argument {position} of the kernel must be {expected}, "
                f"got {_described(argument)}"
            )
    kernel(*passed)


def _described(argument: object) -> str:
    if not isinstance(argument, Tensor):
        return type(argument).__name__
    dtype = str(argument.dtype).removeprefix("torch.")
    layout = "" if argument.is_contiguous() else f" with strides {list(argument.stride())}"
    return f"a {dtype} tensor on {argument.device}{layout}"


def info() -> dict[str, str | int | bool | None]:
    """Describe the compiled module and the choice of this thread.

    Returns:
        ``compiled`` (whether the module was loaded), ``running`` (``compiled`` or ``reference``, in
        this thread), ``threads`` (of CPU kernels), and of the module ``version``, ``compiler``,
        ``flags``, ``simd`` (the SIMD clones) and ``cuda`` (the CUDA version); each of the last five
        is None if the module is missing, ``cuda`` also if it was built without CUDA.

    Example:
        >>> from pycc import ops
        >>> sorted(ops.info())
        ['compiled', 'compiler', 'cuda', 'flags', 'running', 'simd', 'threads', 'version']
    """
    facts: dict[str, str | int | bool | None] = {
        "compiled": _module is not None,
        "running": "reference" if use_reference() else "compiled",
        "threads": torch.get_num_threads(),
    }
    for name in ("version", "compiler", "flags", "simd", "cuda"):
        facts[name] = getattr(_module, name, None)
    return facts
