"""Rules for layers that read a neighbourhood: convolutions, pooling, enlarging, padding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pycc.local import thin
from pycc.local.box import Box
from pycc.local.linear import affected_shares
from pycc.local.program import Field, Program, UnchangedError, UnsupportedError, embedding
from pycc.local.rules import RULES, rule

aten = torch.ops.aten


def _reached(
    start: int, stop: int, size: int, kernel: int, stride: int, padding: int, dilation: int
) -> tuple[int, int]:
    """Return the outputs [first, last) of a sliding window that depend on inputs [start, stop)."""
    first = -(-(start + padding - dilation * (kernel - 1)) // stride)
    last = (stop - 1 + padding) // stride + 1
    return max(0, first), min(size, last)


def _slide(
    box: Box,
    shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Box, Box]:
    """Return the outputs on a grid of ``shape`` that depend on ``box``, and all that they read."""
    ends = [
        _reached(*limits, shape[axis], kernel[axis], stride[axis], padding[axis], dilation[axis])
        for axis, limits in enumerate(((box.top, box.bottom), (box.left, box.right)))
    ]
    seen = [
        (
            first * stride[axis] - padding[axis],
            (last - 1) * stride[axis] - padding[axis] + dilation[axis] * (kernel[axis] - 1) + 1,
        )
        for axis, (first, last) in enumerate(ends)
    ]
    outputs = Box(ends[0][0], ends[1][0], ends[0][1], ends[1][1])
    if outputs.empty:
        raise UnchangedError("nothing changes")
    return outputs, Box(seen[0][0], seen[1][0], seen[0][1], seen[1][1])


def _two(values: Any) -> list[int]:
    """Return an option for each of two axes; one value serves both."""
    numbers = [values] if isinstance(values, int) else list(values)
    return numbers * 2 if len(numbers) == 1 else numbers


@rule(aten.convolution)
def _convolution(
    program: Program,
    target: Any,
    x: Field,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Field:
    if weight.ndim != 4 or x.clean.ndim != 4:
        raise UnsupportedError(f"{target}: not of an image")
    options = stride, padding, dilation, transposed, output_padding, groups
    if groups == 1 and not transposed and _mostly_unchanged(x.parts, x.box):
        with suppress(UnchangedError):  # of one part: the parts together may still change
            return _convolution_of_parts(program, target, x.parts, weight, bias, *options)
    clean = target(x.clean, weight, bias, *options)
    stride, padding, dilation = _two(stride), _two(padding), _two(dilation)
    if transposed:
        return _transposed(program, clean, x, weight, bias, stride, padding, dilation, groups)
    box, seen = _slide(x.box, clean.shape[-2:], weight.shape[2:], stride, padding, dilation)
    part = embedding(x, seen)
    if groups == 1 and stride == dilation == [1, 1] and weight.shape[1] <= thin.MOST_CHANNELS:
        convolve = thin.convolution(weight, bias)
        return program.add(clean, box, lambda values: convolve(part(values)), x)

    def compute(values: Tensor) -> Tensor:
        return functional.conv2d(
            part(values), weight, bias, stride=stride, dilation=dilation, groups=groups
        )

    return program.add(clean, box, compute, x)


def _mostly_unchanged(parts: Sequence[Field], box: Box) -> bool:
    """Whether the parts of a joined field change in at most three quarters of its box."""
    changed = sum(part.clean.shape[1] * math.prod(part.box.shape) for part in parts)
    joined = sum(part.clean.shape[1] for part in parts) * math.prod(box.shape)
    return len(parts) > 1 and 4 * changed <= 3 * joined


def _convolution_of_parts(
    program: Program,
    target: Any,
    parts: Sequence[Field],
    weight: Tensor,
    bias: Tensor | None,
    *options: Any,
) -> Field:
    """Convolve joined channels part by part, each where it changes, and add the results."""
    total: Field | None = None
    first = 0
    for part in parts:
        last = first + part.clean.shape[1]
        term = _convolution(program, target, part, weight[:, first:last], bias, *options)
        total = term if total is None else RULES[aten.add](program, aten.add.Tensor, total, term)
        first, bias = last, None
    assert total is not None
    return total


def _transposed(
    program: Program,
    clean: Tensor,
    x: Field,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Field:
    """Apply a transposed convolution: input i affects outputs i·s − p … i·s − p + d·(k − 1)."""
    reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if any(s > r + 1 for s, r in zip(stride, reach, strict=True)):
        raise UnsupportedError("a transposed convolution that leaves gaps")
    limits = ((x.box.top, x.box.bottom), (x.box.left, x.box.right))
    ends, sources, offsets = [], [], []
    for axis, (start, stop) in enumerate(limits):
        s, p = stride[axis], padding[axis]
        first = max(0, start * s - p)
        last = min(clean.shape[-2 + axis], (stop - 1) * s - p + reach[axis] + 1)
        low = -(-(first + p - reach[axis]) // s)
        high = (last - 1 + p) // s + 1
        ends.append((first, last))
        sources.append((low, high))
        offsets.append(first - (low * s - p))
    box = Box(ends[0][0], ends[1][0], ends[0][1], ends[1][1])
    if box.empty:
        raise UnchangedError("nothing changes")
    part = embedding(x, Box(sources[0][0], sources[1][0], sources[0][1], sources[1][1]))
    inner = Box(0, 0, *box.shape).moved(*offsets)

    def compute(values: Tensor) -> Tensor:
        spread = functional.conv_transpose2d(
            part(values), weight, bias, stride=stride, dilation=dilation, groups=groups
        )
        return spread[..., *inner.slices]

    return program.add(clean, box, compute, x)


@rule(aten.max_pool2d_with_indices, aten.max_pool2d)
def _max_pool(
    program: Program,
    target: Any,
    x: Field,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Any:
    result = target(x.clean, kernel, stride, padding, dilation, ceil_mode)
    clean = result if isinstance(result, Tensor) else result[0]
    sizes, apart, around = _two(kernel), _two(stride or kernel), _two(dilation)
    box, seen = _slide(x.box, clean.shape[-2:], sizes, apart, _two(padding), around)
    part = embedding(x, seen, float("-inf"))

    def compute(values: Tensor) -> Tensor:
        return functional.max_pool2d(part(values), sizes, apart, dilation=around)

    pooled = program.add(clean, box, compute, x)
    return pooled if isinstance(result, Tensor) else [pooled, None]


@rule(aten.avg_pool2d)
def _average_pool(
    program: Program,
    target: Any,
    x: Field,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Field:
    fixed = count_include_pad or divisor_override is not None
    if ceil_mode or (any(_two(padding)) and not fixed):
        raise UnsupportedError(f"{target}: windows that count fewer pixels at the border")
    clean = target(x.clean, kernel, stride, padding, False, count_include_pad, divisor_override)
    sizes, apart = _two(kernel), _two(stride or kernel)
    box, seen = _slide(x.box, clean.shape[-2:], sizes, apart, _two(padding), (1, 1))
    part = embedding(x, seen)

    def compute(values: Tensor) -> Tensor:
        return functional.avg_pool2d(part(values), sizes, apart, divisor_override=divisor_override)

    return program.add(clean, box, compute, x)


@rule(aten.upsample_nearest2d, aten._upsample_nearest_exact2d)
def _nearest(program: Program, target: Any, x: Field, *args: Any, **kwargs: Any) -> Field:
    clean = target(x.clean, *args, **kwargs)
    height, width = x.shape
    down, across = max(1, clean.shape[-2] // height), max(1, clean.shape[-1] // width)

    def enlarged(values: Tensor) -> Tensor:
        return values.repeat_interleave(down, -2).repeat_interleave(across, -1)

    # Which input is nearest depends on rounding and on the recorded scale: test it on indices.
    rows, columns = torch.arange(height).to(x.clean), torch.arange(width).to(x.clean)
    places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None]
    if not torch.equal(target(places, *args, **kwargs), enlarged(places)):
        raise UnsupportedError(f"{target}: not enlarged by a whole number")
    box = Box(x.box.top * down, x.box.left * across, x.box.bottom * down, x.box.right * across)
    return program.add(clean, box, enlarged, x)


@rule(aten.upsample_bilinear2d)
def _bilinear(
    program: Program, target: Any, x: Field, size: Sequence[int], corners: bool, *scales: Any
) -> Field:
    if x.clean.ndim != 4 or size is None or len(scales) not in (0, 2):
        raise UnsupportedError(f"{target}: with other options")
    limits = ((x.box.top, x.box.bottom), (x.box.left, x.box.right))
    shares, ends, sources = [], [], []
    for axis, (start, stop) in enumerate(limits):
        out, wide, scale = size[axis], x.shape[axis], scales[axis] if scales else None
        enlarged = partial(
            target, output_size=[out, wide], align_corners=corners, scales_h=scale, scales_w=None
        )
        share, reached, read = affected_shares(enlarged, wide, start, stop, x.clean)
        shares.append(share)
        ends.append(reached)
        sources.append(read)
    part = embedding(x, Box(sources[0][0], sources[1][0], sources[0][1], sources[1][1]))
    down, across = shares

    def compute(values: Tensor) -> Tensor:
        enlarged: Tensor = down @ (part(values) @ across.T)
        return enlarged

    box = Box(ends[0][0], ends[1][0], ends[0][1], ends[1][1])
    return program.add(target(x.clean, size, corners, *scales), box, compute, x)


@rule(aten.constant_pad_nd)
def _padded(
    program: Program, target: Any, x: Field, margins: Sequence[int], value: float = 0
) -> Field:
    if len(margins) > 4 or any(margin < 0 for margin in margins):
        raise UnsupportedError(f"{target}: cut off, or padded along another axis")
    clean = target(x.clean, margins, value)
    across, down = (*margins, 0, 0, 0)[0], (*margins, 0, 0, 0)[2]
    return program.add(clean, x.box.moved(down, across), lambda values: values, x)
