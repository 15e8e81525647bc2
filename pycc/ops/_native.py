"""The compiled module, and the choice between its kernels and the pure-torch twins."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pycc._compiled import Ablation, Compiled, HitSizes, Loaded, load

__all__ = [
    "Ablation",
    "HitSizes",
    "info",
    "kind_of",
    "module",
    "reference",
    "run",
    "use_reference",
]


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


def _kernels_of(compiled: Compiled | None) -> dict[str, Kernel]:
    if compiled is None:
        return {}
    return {
        name: (function, tuple(Parameter.of(kind) for kind in kinds))
        for name, (function, kinds) in compiled.kernels.items()
    }


def reference_at_start(loaded: Loaded) -> bool:
    """Whether the twins run by default; warns if they do so without having been requested."""
    choice = os.environ.get("PYCC_OPS", "")
    if choice not in ("", "compiled", "reference", "emulated"):
        raise ValueError(f"PYCC_OPS must be compiled, reference or emulated, got {choice!r}")
    if choice == "emulated" and not hasattr(loaded.module, "emulate"):
        raise ValueError("PYCC_OPS=emulated needs a build of pycc with PYCC_CUDA=HOST")
    if choice == "" and not loaded.built:
        warnings.warn(f"{loaded.missing}", stacklevel=2)
        return True
    return choice == "reference"


_loaded = load()
kernels = _kernels_of(_loaded.module)
_at_start: bool = reference_at_start(_loaded)
_emulated: bool = os.environ.get("PYCC_OPS") == "emulated"


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
    if _loaded.module is None:
        raise ImportError(_loaded.missing)
    return _loaded.module


def kind_of(device: torch.device) -> str:
    """Return the kind of the kernels that run on a device, ``cpu`` or ``cuda``.

    With PYCC_OPS=emulated, the CUDA kernels of a build with PYCC_CUDA=HOST run on the CPU.
    """
    return "cuda" if _emulated and device.type == "cpu" else device.type


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
        last = 0 if _emulated else torch.get_num_threads()  # the only stream, or the threads
        call(op, device, (*arguments, last))
    elif device.type != "cuda":
        raise ValueError(f"{op}: tensors must be on cpu or cuda, got {device.type}")
    elif compiled.cuda is None or hasattr(compiled, "emulate"):
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
    kernel, parameters = kernels[f"{op}_{kind_of(device)}"]
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
        ``compiled`` (whether the module was loaded), ``missing`` (why it was not, or None),
        ``running`` (``compiled`` or ``reference``, in this thread), ``threads`` (of CPU kernels),
        and of the module ``version``, ``compiler``, ``flags``, ``simd`` (the SIMD clones) and
        ``cuda`` (the CUDA version); each of the last five is None if the module is missing,
        ``cuda`` also if it was built without CUDA.

    Example:
        >>> from pycc import ops
        >>> [name for name in ops.info() if name not in ("compiler", "flags")]
        ['compiled', 'missing', 'running', 'threads', 'version', 'simd', 'cuda']
    """
    facts: dict[str, str | int | bool | None] = {
        "compiled": _loaded.module is not None,
        "missing": _loaded.missing,
        "running": "reference" if use_reference() else "compiled",
        "threads": torch.get_num_threads(),
    }
    for name in ("version", "compiler", "flags", "simd", "cuda"):
        facts[name] = getattr(_loaded.module, name, None)
    return facts
