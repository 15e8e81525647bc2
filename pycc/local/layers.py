"""Rules for how a change spreads through a network, one for each kind of layer.

A rule takes the arguments of a layer, of which some tensors change inside a box. It determines the
box in which the layer's result changes, and a function that computes this part from the changed
parts of the arguments. A convolution, for example, is computed from the changed pixels and the
unchanged ones around them that its kernel also reads. A rule raises UnsupportedError if it is not
certain to be exact.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pycc.local import thin
from pycc.local.box import Box
from pycc.local.linear import affected_shares
from pycc.local.program import Field, Program, UnchangedError, UnsupportedError, embedding

aten = torch.ops.aten

Rule = Callable[..., Any]
"""(program, target, *args, **kwargs) -> Field or a sequence of fields."""

RULES: dict[Any, Rule] = {}
"""The rules by operator; a rule serves all overloads of its operator."""


def _rule(*operators: Any) -> Callable[[Rule], Rule]:
    """Register a rule of layers with one changing argument, the first."""

    def add(rule: Rule) -> Rule:
        def sure(program: Program, target: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
            others = (*args, *kwargs.values())
            if not isinstance(x, Field) or any(isinstance(value, Field) for value in others):
                raise UnsupportedError(f"{target}: a change among the options")
            return rule(program, target, x, *args, **kwargs)

        RULES.update(dict.fromkeys(operators, sure))
        return rule

    return add


def _rule_of_many(*operators: Any) -> Callable[[Rule], Rule]:
    """Register a rule of layers with one or several changing arguments."""

    def add(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(operators, rule))
        return rule

    return add


# Pointwise layers


@_rule_of_many(
    *(aten.relu, aten.relu6, aten.leaky_relu, aten.elu, aten.gelu, aten.silu, aten.mish),
    *(aten.sigmoid, aten.tanh, aten.softplus, aten.hardtanh, aten.hardswish, aten.hardsigmoid),
    *(aten.clamp, aten.clamp_min, aten.clamp_max, aten.minimum, aten.maximum, aten.abs, aten.neg),
    *(aten.exp, aten.log, aten.sqrt, aten.rsqrt, aten.reciprocal, aten.pow, aten.square),
    *(aten.add, aten.sub, aten.rsub, aten.mul, aten.div, aten.where, aten.clone, aten.detach),
    *(aten.alias, aten._to_copy, aten._prelu_kernel, aten.lerp, aten.gt, aten.ge, aten.lt, aten.le),
)
def _pointwise(program: Program, target: Any, *args: Any, **kwargs: Any) -> Field:
    if any(isinstance(value, (Field, Tensor)) for value in kwargs.values()):
        raise UnsupportedError(f"{target}: a tensor among the options")
    fields = [value for value in args if isinstance(value, Field)]
    clean = target(*_clean(args), **kwargs)
    if not fields or not isinstance(clean, Tensor):
        raise UnsupportedError(f"{target}: expected one tensor as the result")
    _check_broadcast(target, args, clean)
    box = _union(fields)
    parts = [embedding(field, box) for field in fields]
    cut = [_cropped(value, box) if isinstance(value, Tensor) else value for value in args]
    places = [place for place, value in enumerate(args) if isinstance(value, Field)]

    def compute(*values: Tensor) -> Tensor:
        filled = list(cut)
        for place, part, value in zip(places, parts, values, strict=True):
            filled[place] = part(value)
        result: Tensor = target(*filled, **kwargs)
        return result

    return program.add(clean, box, compute, *fields)


def _clean(args: Sequence[Any]) -> list[Any]:
    return [value.clean if isinstance(value, Field) else value for value in args]


def _union(fields: Sequence[Field]) -> Box:
    box = fields[0].box
    for field in fields[1:]:
        box = box.union(field.box)
    return box


def _check_broadcast(target: Any, args: Sequence[Any], clean: Tensor) -> None:
    """Refuse broadcasting that moves the batch axis or the axes of the grid."""
    for value in args:
        if isinstance(value, Field):
            same = value.clean.ndim == clean.ndim >= 3 and value.shape == clean.shape[-2:]
            if not same or len(value.clean) != len(clean):
                raise UnsupportedError(f"{target}: fields of different shapes")
        elif isinstance(value, Tensor) and (
            value.ndim > clean.ndim or (value.ndim == clean.ndim and len(value) != 1)
        ):
            raise UnsupportedError(f"{target}: a constant that differs among the images")


def _cropped(constant: Tensor, box: Box) -> Tensor:
    """Return the part of a constant that broadcasts to a box."""
    if constant.ndim >= 1 and constant.shape[-1] > 1:
        constant = constant[..., box.left : box.right]
    if constant.ndim >= 2 and constant.shape[-2] > 1:
        constant = constant[..., box.top : box.bottom, :]
    return constant


@_rule(aten._native_batch_norm_legit_no_training, aten.native_batch_norm, aten.cudnn_batch_norm)
def _batch_norm(program: Program, target: Any, x: Field, *args: Any) -> list[Field | None]:
    weight, bias, mean, variance, *rest = args
    if target.overloadpacket is not aten._native_batch_norm_legit_no_training and rest[0]:
        raise UnsupportedError(f"{target}: statistics of the batch")
    if x.clean.ndim != 4 or mean is None or variance is None:
        raise UnsupportedError(f"{target}: channels along another axis, or without statistics")
    epsilon = rest[-1]

    def compute(values: Tensor) -> Tensor:
        return functional.batch_norm(values, mean, variance, weight, bias, eps=epsilon)

    return [program.add(compute(x.clean), x.box, compute, x), None, None, None]


@_rule(aten.zeros_like, aten.ones_like, aten.new_zeros, aten.new_ones, aten.new_full)
def _constant(program: Program, target: Any, x: Field, *args: Any, **kwargs: Any) -> Tensor:
    """Return a tensor of the layer's own, which depends on no value of ``x``."""
    constant: Tensor = target(x.clean[:1], *args, **kwargs)
    return constant


# Layers that mix channels only


@_rule(aten.unbind, aten.split, aten.split_with_sizes, aten.chunk)
def _parts(program: Program, target: Any, x: Field, *args: Any, **kwargs: Any) -> list[Field]:
    place = 0 if target.overloadpacket is aten.unbind else 1
    _check_channel(target, x, kwargs.get("dim", args[place] if len(args) > place else 0))
    pieces = target(x.clean, *args, **kwargs)

    def part(number: int) -> Callable[[Tensor], Tensor]:
        return lambda values: target(values, *args, **kwargs)[number]

    return [program.add(piece, x.box, part(n), x) for n, piece in enumerate(pieces)]


@_rule(aten.select, aten.unsqueeze, aten.squeeze, aten.sum, aten.mean, aten.amax, aten.amin)
@_rule(aten._softmax, aten._log_softmax)
def _one_channel_axis(program: Program, target: Any, x: Field, *args: Any, **kwargs: Any) -> Field:
    dims = args[0] if args else None
    dims = dims if isinstance(dims, (list, tuple)) else [dims]
    if not dims:
        raise UnsupportedError(f"{target}: over everything")
    for dim in dims:
        _check_channel(target, x, dim, room=target.overloadpacket is aten.unsqueeze)
    clean = target(x.clean, *args, **kwargs)
    return program.add(clean, x.box, lambda values: target(values, *args, **kwargs), x)


@_rule(aten.linalg_vector_norm)
def _norm(
    program: Program,
    target: Any,
    x: Field,
    order: float = 2,
    dim: Sequence[int] | None = None,
    *args: Any,
    **kwargs: Any,
) -> Field:
    if not dim:
        raise UnsupportedError(f"{target}: over everything")
    for axis in dim:
        _check_channel(target, x, axis)

    def compute(values: Tensor) -> Tensor:
        norm: Tensor = target(values, order, dim, *args, **kwargs)
        return norm

    return program.add(compute(x.clean), x.box, compute, x)


@_rule(aten.slice)
def _slice(
    program: Program,
    target: Any,
    x: Field,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Field:
    # Along the batch axis, a recorded end is the batch size of the tracing run, not of this one.
    most = sys.maxsize if dim % x.clean.ndim == 0 else x.clean.shape[dim]
    if start in (None, 0) and step == 1 and (end is None or end >= most):
        return x
    if step == 1 and dim % x.clean.ndim >= x.clean.ndim - 2:
        return _cut_grid(program, target, x, dim, start, end)
    _check_channel(target, x, dim)

    def compute(values: Tensor) -> Tensor:
        part: Tensor = target(values, dim, start, end, step)
        return part

    return program.add(compute(x.clean), x.box, compute, x)


def _cut_grid(
    program: Program, target: Any, x: Field, dim: int, start: int | None, end: int | None
) -> Field:
    """Keep some rows or columns of the grid."""
    first, last, _ = slice(start, end).indices(x.clean.shape[dim])
    whole = Box(0, 0, *x.shape)
    rows = dim % x.clean.ndim == x.clean.ndim - 2
    kept = (
        replace(whole, top=first, bottom=last) if rows else replace(whole, left=first, right=last)
    )
    box = x.box.intersection(kept)
    inner = box.moved(-x.box.top, -x.box.left)
    cut = box.moved(-kept.top, -kept.left)
    clean = target(x.clean, dim, start, end)
    return program.add(clean, cut, lambda values: values[..., *inner.slices], x)


def _check_channel(target: Any, x: Field, dim: Any, *, room: bool = False) -> None:
    """Refuse the batch axis and the axes of the grid; ``room`` if the layer inserts the axis."""
    axes = x.clean.ndim + (1 if room else 0)
    if not isinstance(dim, int) or not 1 <= dim % axes < axes - 2:
        raise UnsupportedError(f"{target}: another axis than the channels'")


@_rule_of_many(aten.cat, aten.stack)
def _joined(program: Program, target: Any, parts: Sequence[Any], dim: int = 0) -> Field:
    fields = [part for part in parts if isinstance(part, Field)]
    if not fields or len(fields) < len(parts):
        raise UnsupportedError(f"{target}: constants joined with what changes")
    if any(f.shape != fields[0].shape or f.clean.ndim != fields[0].clean.ndim for f in fields):
        raise UnsupportedError(f"{target}: fields of different shapes")
    _check_channel(target, fields[0], dim, room=target.overloadpacket is aten.stack)
    box = _union(fields)
    embeddings = [embedding(field, box) for field in fields]

    def compute(*values: Tensor) -> Tensor:
        joined: Tensor = target([f(v) for f, v in zip(embeddings, values, strict=True)], dim)
        return joined

    joined = program.add(target(_clean(fields), dim), box, compute, *fields)
    by_channel = target.overloadpacket is aten.cat and joined.clean.ndim == 4
    return replace(joined, parts=tuple(fields)) if by_channel else joined


@_rule(aten.expand, aten.repeat)
def _repeated(program: Program, target: Any, x: Field, sizes: Sequence[int]) -> Field:
    """Repeat a single channel; ``sizes`` are those of the one image of the tracing run."""
    batch, height, width = (-1, 1), (-1, x.shape[0]), (-1, x.shape[1])
    kept = (batch, height, width) if target.overloadpacket is aten.expand else ((1,), (1,), (1,))
    if not len(sizes) == x.clean.ndim == 4 or x.clean.shape[1] != 1:
        raise UnsupportedError(f"{target}: more than one channel repeated")
    others = (sizes[0], sizes[2], sizes[3])
    if any(size not in known for size, known in zip(others, kept, strict=True)):
        raise UnsupportedError(f"{target}: another axis than the channels'")
    channels = sizes[1]

    def compute(values: Tensor) -> Tensor:
        return values.expand(-1, channels, -1, -1)

    return program.add(compute(x.clean), x.box, compute, x)


# Layers that read a neighbourhood


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


@_rule(aten.convolution)
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
        total = term if total is None else _pointwise(program, aten.add.Tensor, total, term)
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


@_rule(aten.max_pool2d_with_indices, aten.max_pool2d)
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


@_rule(aten.avg_pool2d)
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


@_rule(aten.upsample_nearest2d, aten._upsample_nearest_exact2d)
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


@_rule(aten.upsample_bilinear2d)
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


@_rule(aten.constant_pad_nd)
def _padded(
    program: Program, target: Any, x: Field, margins: Sequence[int], value: float = 0
) -> Field:
    if len(margins) > 4 or any(margin < 0 for margin in margins):
        raise UnsupportedError(f"{target}: cut off, or padded along another axis")
    clean = target(x.clean, margins, value)
    across, down = (*margins, 0, 0, 0)[0], (*margins, 0, 0, 0)[2]
    return program.add(clean, x.box.moved(down, across), lambda values: values, x)
