"""Argument checks that all packages share, and the wording of their messages."""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import UnionType

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "TOLERANCE",
    "check_image",
    "check_images",
    "check_type",
    "check_values",
    "check_whole",
    "lacks_memory",
    "naming",
    "one_line",
    "unchecked",
]

_NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "not enough memory", "bad_alloc",
              "out of memory")  # fmt: skip
TOLERANCE = 1e-3
"""How far a value may lie outside [0,1]; resizing and rounding exceed the range by less."""


def check_image(op: str, image: Tensor) -> None:
    """Check that an image is a float tensor [3,H,W], RGB in [0,1].

    TypeError if it is not a tensor, ValueError otherwise; both name ``op``.

    >>> check_image("count", torch.zeros(1, 4, 4))
    Traceback (most recent call last):
    ...
    ValueError: count: image must be [3,H,W] (RGB in [0,1]), got [1, 4, 4]
    """
    _check(op, "image", image, 3, "[3,H,W]")


def check_images(op: str, images: Tensor) -> None:
    """Check that images are a float tensor [N,3,H,W], RGB in [0,1].

    TypeError if they are not a tensor, ValueError otherwise; both name ``op``.

    >>> check_images("count", torch.zeros(2, 3, 4, 4))
    """
    _check(op, "images", images, 4, "[N,3,H,W]")


def check_values(op: str, argument: str, values: Tensor) -> None:
    """Check that the values of a tensor of any shape lie in [0,1], up to ``TOLERANCE``.

    It reads the memory once: about 0.1 % of the time that MCNN takes for the same image. ValueError
    that names ``op`` and ``argument``, the range that came and its likely cause, also for NaN and
    infinity. TypeError if it is not a tensor. Nothing is checked inside ``unchecked``, or for
    tensors without values (on the meta device, or while torch compiles or exports).

    >>> check_values("count", "image", torch.tensor([0.0, 255.0]))
    Traceback (most recent call last):
    ...
    ValueError: count: image must hold RGB values of [0,1], got 0…255: 8-bit levels, divide by 255
    """
    if not isinstance(values, Tensor):
        raise TypeError(f"{op}: {argument} must be a tensor, got {type(values).__name__}")
    without = values.is_meta or torch.compiler.is_compiling() or not _CHECKED.get()
    if without or not values.numel():
        return
    low, high = map(float, torch.aminmax(values.detach()))
    if low >= -TOLERANCE and high <= 1.0 + TOLERANCE:
        return
    raise ValueError(
        f"{op}: {argument} must hold RGB values of [0,1], got {_likely_cause(low, high)}"
    )


def check_type(
    op: str, argument: str, value: object, kind: type | UnionType, expected: str
) -> None:
    """Raise TypeError, naming ``op`` and ``argument``, unless a value is of a type.

    >>> check_type("train", "config", {"epochs": 2}, int, "a TrainConfig")
    Traceback (most recent call last):
    ...
    TypeError: train: config must be a TrainConfig, got dict
    """
    if isinstance(value, kind):
        return
    got = type(value).__name__
    if isinstance(value, type):
        got = f"the class {value.__name__}"
    elif isinstance(value, str | None):
        got = repr(value)
    raise TypeError(f"{op}: {argument} must be {expected}, got {got}")


def check_whole(op: str, name: str, value: object, least: int, most: float = math.inf) -> int:
    """Return ``value`` as an int if it is a whole number within [least, most].

    TypeError for another type (a bool too), ValueError for a number out of range; both name ``op``
    and ``name``.

    >>> check_whole("ablated", "draws", 0, 1)
    Traceback (most recent call last):
    ...
    ValueError: ablated: draws must be at least 1, got 0
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{op}: {name} must be a whole number, got {value!r}")
    number = int(value)
    if not least <= number <= most:
        limits = f"at least {least}" if most == math.inf else f"within [{least}, {most}]"
        raise ValueError(f"{op}: {name} must be {limits}, got {number}")
    return number


_CHECKED: ContextVar[bool] = ContextVar("checked", default=True)


@contextmanager
def unchecked() -> Iterator[None]:
    """Skip the check of image values inside the block.

    For counters that are called only to record their layers, whose images have no values to read,
    and for images that leave [0,1] on purpose.

    >>> with unchecked():
    ...     check_values("count", "image", torch.tensor([300.0]))
    """
    token = _CHECKED.set(False)
    try:
        yield
    finally:
        _CHECKED.reset(token)


@contextmanager
def naming(name: str, shape: Sequence[int] = ()) -> Iterator[None]:
    """Add the name of the current image to an exception that leaves the block.

    The name is added as a note (``BaseException.add_note``). ``shape`` is the image's size (..., H,
    W). So an out-of-memory error, which does not know of images, is reported with the image that
    caused it. Of nested blocks the innermost adds its name.

    >>> try:
    ...     with naming("street", (3, 480, 640)):
    ...         raise MemoryError
    ... except MemoryError as error:
    ...     error.__notes__
    ['image street of 480x640 pixels']
    """
    try:
        yield
    except Exception as error:
        if not getattr(error, "__notes__", None):
            size = f" of {shape[-2]}x{shape[-1]} pixels" if shape else ""
            error.add_note(f"image {name.removeprefix('image ')}{size}")
        raise


def one_line(error: BaseException) -> str:
    """Format an exception's message as part of another: on one line, and shortened.

    >>> one_line(RuntimeError("a layer\\n  is missing")), one_line(KeyboardInterrupt())
    ('a layer is missing', 'KeyboardInterrupt')
    """
    text = " ".join(str(error).split())
    return text[:160] if text else type(error).__name__


def lacks_memory(error: BaseException) -> bool:
    """Return whether an exception means that memory ran out.

    Besides MemoryError it may be a RuntimeError of torch on the CPU, an OSError of the system with
    its error number, or an OSError of Pillow's decoders without one.

    >>> lacks_memory(MemoryError()), lacks_memory(ValueError("out of memory"))
    (True, False)
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError | OSError) and any(words in text for words in _NO_MEMORY)
    )


def _likely_cause(low: float, high: float) -> str:
    if not (math.isfinite(low) and math.isfinite(high)):
        return "NaN or infinity"
    span = f"{low:.4g}…{high:.4g}"
    if low < -TOLERANCE:
        return (
            f"{span}: already normalised? Counters normalise by themselves; undo it (x * std + "
            "mean), or (x + 1) / 2 for a range of [-1,1]"
        )
    if high <= 2.0:
        return f"{span}: clamp what an edit has pushed out"
    if high <= 255.0 * (1 + TOLERANCE):
        return f"{span}: 8-bit levels, divide by 255"
    return f"{span}: 16-bit levels? Divide by the largest possible value, such as 65535"


def _check(op: str, argument: str, values: Tensor, ndim: int, shape: str) -> None:
    if not isinstance(values, Tensor):
        raise TypeError(f"{op}: {argument} must be a tensor, got {type(values).__name__}")
    if values.ndim != ndim or values.shape[-3] != 3 or not values.numel():
        raise ValueError(
            f"{op}: {argument} must be {shape} (RGB in [0,1]), got {list(values.shape)}"
        )
    if not values.is_floating_point():
        raise ValueError(
            f"{op}: {argument} must be floats (RGB in [0,1]), got {values.dtype}: convert with "
            ".float() / 255"
        )
    check_values(op, argument, values)
