"""Argument checks, made before any address is passed to a kernel.

Every function takes ``op`` and ``name``, the op and the argument that its error names.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad


def is_tensor(op: str, name: str, value: object, expected: str) -> Tensor:
    """Return ``value`` if it is a dense tensor; else raise TypeError or ValueError."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor {expected}, got {type(value).__name__}")
    if value.is_nested:
        raise ValueError(f"{op}: {name} must be a dense tensor {expected}, got a nested tensor")
    if value.layout != torch.strided:
        raise ValueError(f"{op}: {name} must be a dense tensor {expected}, got {value.layout}")
    return value


def shaped(op: str, name: str, value: object, expected: str, sizes: Sequence[int | None]) -> Tensor:
    """Return ``value`` if it is a tensor of the given sizes (None: any size)."""
    tensor = is_tensor(op, name, value, expected)
    fits = tensor.ndim == len(sizes) and all(
        want is None or have == want for have, want in zip(tensor.shape, sizes, strict=True)
    )
    if not fits:
        raise ValueError(f"{op}: {name} must be {expected}, got {list(tensor.shape)}")
    return tensor


def typed(op: str, name: str, tensor: Tensor, *dtypes: torch.dtype) -> Tensor:
    """Return ``tensor`` if its dtype is one of ``dtypes``; else raise ValueError."""
    if tensor.dtype not in dtypes:
        expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        got = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(f"{op}: {name} must be {expected}, got {got}")
    return tensor


def on_device(op: str, name: str, tensor: Tensor, device: torch.device, other: str) -> Tensor:
    """Return ``tensor`` if it is on ``device``, the device of ``other``; else raise ValueError."""
    if tensor.device != device:
        raise ValueError(
            f"{op}: {name} must be on the device of {other} ({device}), got {tensor.device}"
        )
    return tensor


def same_device(op: str, *arguments: object) -> None:
    """Raise ValueError unless all tensors are on one device; for the fake (shape) kernels."""
    devices = {argument.device for argument in arguments if isinstance(argument, Tensor)}
    if len(devices) > 1:
        listed = " and ".join(sorted(str(device) for device in devices))
        raise ValueError(f"{op}: tensors must be on one device, got {listed}")


def device(op: str, value: object) -> torch.device:
    """Return ``value`` as an available CPU or CUDA device."""
    if not isinstance(value, str | torch.device):
        raise TypeError(f"{op}: device must be a name, got {type(value).__name__}")
    try:
        named = torch.device(value)
    except RuntimeError:
        named = torch.device("meta")
    if named.type not in ("cpu", "cuda"):
        raise ValueError(f"{op}: device must be cpu or cuda, got {str(value)!r}")
    if named.type == "cuda" and (named.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"{op}: device {value} does not exist: {torch.cuda.device_count()} CUDA devices"
        )
    return named


def reverse_only(op: str, *tensors: Tensor) -> None:
    """Raise ValueError if a tensor has a tangent: kernels support reverse mode only."""
    if forward_ad._current_level < 0:
        return
    unpack = forward_ad.unpack_dual
    if any(unpack(tensor).tangent is not None for tensor in tensors):  # type: ignore[no-untyped-call]
        raise ValueError(
            f"{op}: forward-mode derivatives are not supported; use reverse mode (backward)"
        )


def choice(op: str, name: str, value: str, choices: Sequence[str]) -> int:
    """Return the index of the string ``value`` in ``choices``."""
    if not isinstance(value, str):
        raise TypeError(f"{op}: {name} must be a string, got {type(value).__name__}")
    if value not in choices:
        known = ", ".join(repr(known) for known in choices)
        raise ValueError(f"{op}: {name} must be one of {known}, got {value!r}")
    return list(choices).index(value)


def integer(op: str, name: str, value: object, low: int, high: int) -> int:
    """Return ``value`` as an int within [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{op}: {name} must be an int, got {type(value).__name__}")
    number = int(value)
    if not low <= number <= high:
        raise ValueError(f"{op}: {name} must be within [{low}, {high}], got {number}")
    return number


def number(op: str, name: str, value: object, low: float, high: float) -> float:
    """Return ``value`` as a float within [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"{op}: {name} must be a number, got {type(value).__name__}")
    if isinstance(value, np.complexfloating) or not low <= value <= high:
        raise ValueError(f"{op}: {name} must be within [{low:g}, {high:g}], got {value}")
    return float(value)


def number_each(
    op: str, name: str, value: object, count: int, low: float, high: float, device: torch.device
) -> Tensor:
    """Return ``value``, a number or [count], as float64 [count] on ``device``.

    Raises ValueError for values outside [low, high].
    """
    if not isinstance(value, Tensor):
        single = number(op, name, value, low, high)
        return torch.full((count,), single, dtype=torch.float64, device=device)
    shaped(op, name, value, f"a number or [{count}]", (count,))
    typed(op, name, value, torch.float32, torch.float64)
    here = not_meta(op, name, value).detach().to(device, torch.float64)
    least, most = extremes(here)
    if count and not (low <= least and most <= high):
        raise ValueError(
            f"{op}: {name} must be finite and within [{low:g}, {high:g}], got {least:g} to {most:g}"
        )
    return here


def extremes(tensor: Tensor) -> tuple[float, float]:
    """Return the smallest and largest value: NaN if any value is NaN, 0 and 0 if there are none."""
    if tensor.numel() == 0:
        return 0.0, 0.0
    least, most = torch.aminmax(tensor)
    return least.item(), most.item()


def pair(op: str, name: str, value: object, expected: str, high: int) -> tuple[int, int]:
    """Return ``value`` as two ints within [0, high]."""
    if not isinstance(value, tuple | list | np.ndarray):  # torch.Size is a tuple
        raise TypeError(f"{op}: {name} must be {expected}, got {type(value).__name__}")
    if len(value) != 2:
        raise ValueError(f"{op}: {name} must be {expected}, got {list(value)}")
    first, second = (integer(op, f"{name}[{i}]", part, 0, high) for i, part in enumerate(value))
    return first, second


def fill(op: str, value: object, channels: int, device: torch.device) -> Tensor:
    """Return ``value``, a finite number or float32 [channels] on ``device``, as float32 [channels].

    The values of a tensor are not checked, because reading them would synchronise with the device.
    """
    if not isinstance(value, Tensor):
        most = torch.finfo(torch.float32).max
        single = number(op, "fill", value, -most, most)
        return torch.full((channels,), single, dtype=torch.float32, device=device)
    shaped(op, "fill", value, f"a number or [{channels}], one per channel", (channels,))
    typed(op, "fill", value, torch.float32)
    on_device(op, "fill", value, device, "images")
    if value.requires_grad:
        raise ValueError(f"{op}: fill must not require a gradient")
    return value


MAX_COORDINATE = 2.0**30


def points(op: str, value: object) -> Tensor:
    """Return head annotations [N,2] (x, y) if they are float32 or float64, within ±2^30 pixels."""
    tensor = shaped(op, "points", value, "[N,2] (x, y)", (None, 2))
    typed(op, "points", tensor, torch.float32, torch.float64)
    not_meta(op, "points", tensor)
    least, most = extremes(tensor)
    if not (least >= -MAX_COORDINATE and most <= MAX_COORDINATE):
        raise ValueError(
            f"{op}: points must be finite and within ±2^30 pixels, got {least:g} to {most:g}"
        )
    return tensor.resolve_neg()


def not_meta(op: str, name: str, tensor: Tensor) -> Tensor:
    """Return ``tensor`` if it holds values; raise ValueError for a meta tensor."""
    if tensor.is_meta:
        raise ValueError(f"{op}: {name} must hold values, got a meta tensor")
    return tensor


def raw(
    op: str,
    name: str,
    tensor: Tensor,
    dtype: torch.dtype,
    sizes: Sequence[int | None],
    device: torch.device,
) -> Tensor:
    """Return ``tensor`` contiguous and aligned, for a kernel; check dtype, sizes and device."""
    expected = str([size if size is not None else "any" for size in sizes])
    shaped(op, name, tensor, expected, sizes)
    typed(op, name, tensor, dtype)
    on_device(op, name, tensor, device, "the other tensors")
    plain = tensor.resolve_neg().contiguous()
    return plain if _aligned(plain) else plain.clone()


def _aligned(tensor: Tensor) -> bool:
    """Whether the address is a multiple of the element size; a view of a byte buffer may not be."""
    return tensor.data_ptr() % tensor.element_size() == 0


def overlap(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors may share memory."""
    if first.numel() == 0 or second.numel() == 0 or first.device != second.device:
        return False
    (begin, end), (low, high) = (_memory(tensor) for tensor in (first, second))
    return begin < high and low < end


def _memory(tensor: Tensor) -> tuple[int, int]:
    """Return the first address of a tensor's memory and the address after the last."""
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (reach + 1) * tensor.element_size()


def output(op: str, out: object, shape: Sequence[int], device: torch.device) -> Tensor:
    """Return ``out`` if a kernel may fill it: shape, float32, device, contiguous, no gradient."""
    tensor = shaped(op, "out", out, str(list(shape)), list(shape))
    typed(op, "out", tensor, torch.float32)
    on_device(op, "out", tensor, device, "the inputs")
    if not tensor.is_contiguous():
        raise ValueError(f"{op}: out must be contiguous, got strides {list(tensor.stride())}")
    if not _aligned(tensor):
        raise ValueError(f"{op}: out must begin at a multiple of 4 bytes, got {tensor.data_ptr()}")
    if tensor.is_neg():
        raise ValueError(f"{op}: out must hold its values, got a lazily negated view")
    if tensor.requires_grad:
        raise ValueError(f"{op}: out must not require a gradient")
    return tensor


def output_apart(
    op: str, out: object, shape: Sequence[int], device: torch.device, **reads: Tensor
) -> Tensor:
    """Check ``out`` like :func:`output`, and that it overlaps none of the inputs ``reads``."""
    tensor = output(op, out, shape, device)
    for name, read in reads.items():
        if overlap(tensor, read):
            raise ValueError(f"{op}: out must not overlap {name}")
    return tensor


def maps_and_window(op: str, maps: object, window: object) -> tuple[Tensor, int, int]:
    """Return maps [N,h,w] float32, contiguous, and the height and width of a window inside them."""
    tensor = shaped(op, "maps", maps, "[N,h,w]", (None,) * 3)
    typed(op, "maps", tensor, torch.float32)
    not_meta(op, "maps", tensor)
    sides = pair(op, "window", window, "(height, width)", 1 << 62)
    fitting = all(1 <= side <= size for side, size in zip(sides, tensor.shape[1:], strict=True))
    if not fitting:
        raise ValueError(
            f"{op}: window must be within [1, {tensor.shape[1]}] x [1, {tensor.shape[2]}], "
            f"so that it fits into the maps, got {sides}"
        )
    return raw(op, "maps", tensor.detach(), torch.float32, (None,) * 3, tensor.device), *sides
