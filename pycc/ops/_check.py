"""Checks on arguments, before any pointer leaves Python."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def is_tensor(op: str, name: str, value: object, expected: str) -> Tensor:
    """``value`` as a tensor; TypeError otherwise."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor {expected}, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise ValueError(f"{op}: {name} must be a dense tensor {expected}, got {value.layout}")
    return value


def shaped(op: str, name: str, value: object, expected: str, sizes: Sequence[int | None]) -> Tensor:
    """``value`` as a tensor whose sizes are ``sizes`` (None: any)."""
    tensor = is_tensor(op, name, value, expected)
    fits = tensor.ndim == len(sizes) and all(
        want is None or have == want for have, want in zip(tensor.shape, sizes, strict=True)
    )
    if not fits:
        raise ValueError(f"{op}: {name} must be {expected}, got {list(tensor.shape)}")
    return tensor


def typed(op: str, name: str, tensor: Tensor, *dtypes: torch.dtype) -> Tensor:
    """``tensor``, whose dtype must be one of ``dtypes``."""
    if tensor.dtype not in dtypes:
        expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        got = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(f"{op}: {name} must be {expected}, got {got}")
    return tensor


def on_device(op: str, name: str, tensor: Tensor, device: torch.device, other: str) -> Tensor:
    """``tensor``, which must be on ``device``, that of ``other``."""
    if tensor.device != device:
        raise ValueError(
            f"{op}: {name} must be on the device of {other} ({device}), got {tensor.device}"
        )
    return tensor


def finite(op: str, name: str, tensor: Tensor) -> Tensor:
    """``tensor``, which must hold no NaN and no infinity."""
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{op}: {name} must be finite, got NaN or infinity")
    return tensor


def choice(op: str, name: str, value: str, choices: Sequence[str]) -> int:
    """The index of ``value`` among ``choices``."""
    if value not in choices:
        known = ", ".join(repr(known) for known in choices)
        raise ValueError(f"{op}: {name} must be one of {known}, got {value!r}")
    return list(choices).index(value)


def integer(op: str, name: str, value: object, low: int, high: int) -> int:
    """``value`` as an integer within [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{op}: {name} must be an int, got {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{op}: {name} must be within [{low}, {high}], got {value}")
    return value


def points(op: str, value: object) -> Tensor:
    """Head annotations [N,2] (x, y), float32 or float64 and finite."""
    tensor = shaped(op, "points", value, "[N,2] (x, y)", (None, 2))
    return finite(op, "points", typed(op, "points", tensor, torch.float32, torch.float64))


def output(op: str, out: object, shape: Sequence[int], device: torch.device) -> Tensor:
    """``out`` as a buffer that a kernel may fill: shape, float32, device, contiguous, no grad."""
    tensor = shaped(op, "out", out, str(list(shape)), list(shape))
    typed(op, "out", tensor, torch.float32)
    on_device(op, "out", tensor, device, "the inputs")
    if not tensor.is_contiguous():
        raise ValueError(f"{op}: out must be contiguous, got strides {list(tensor.stride())}")
    if tensor.requires_grad:
        raise ValueError(f"{op}: out must not require a gradient")
    return tensor
