"""Rules for layers that work cell by cell, or on the channels of a cell."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pycc.local.box import Box
from pycc.local.program import Field, Program, UnsupportedError, embedding
from pycc.local.rules import clean_of, rule, rule_of_many, union_of

aten = torch.ops.aten


# Pointwise layers


@rule_of_many(
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
    clean = target(*clean_of(args), **kwargs)
    if not fields or not isinstance(clean, Tensor):
        raise UnsupportedError(f"{target}: expected one tensor as the result")
    _check_broadcast(target, args, clean)
    box = union_of(fields)
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


@rule(aten._native_batch_norm_legit_no_training, aten.native_batch_norm, aten.cudnn_batch_norm)
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


@rule(aten.zeros_like, aten.ones_like, aten.new_zeros, aten.new_ones, aten.new_full)
def _constant(program: Program, target: Any, x: Field, *args: Any, **kwargs: Any) -> Tensor:
    """Return a tensor of the layer's own, which depends on no value of ``x``."""
    constant: Tensor = target(x.clean[:1], *args, **kwargs)
    return constant


# Layers that mix channels only


@rule(aten.unbind, aten.split, aten.split_with_sizes, aten.chunk)
def _parts(program: Program, target: Any, x: Field, *args: Any, **kwargs: Any) -> list[Field]:
    place = 0 if target.overloadpacket is aten.unbind else 1
    _check_channel(target, x, kwargs.get("dim", args[place] if len(args) > place else 0))
    pieces = target(x.clean, *args, **kwargs)

    def part(number: int) -> Callable[[Tensor], Tensor]:
        return lambda values: target(values, *args, **kwargs)[number]

    return [program.add(piece, x.box, part(n), x) for n, piece in enumerate(pieces)]


@rule(aten.select, aten.unsqueeze, aten.squeeze, aten.sum, aten.mean, aten.amax, aten.amin)
@rule(aten._softmax, aten._log_softmax, aten.flip, aten.index_select)
def _one_channel_axis(program: Program, target: Any, x: Field, *args: Any, **kwargs: Any) -> Field:
    dims = args[0] if args else None
    dims = dims if isinstance(dims, (list, tuple)) else [dims]
    if not dims:
        raise UnsupportedError(f"{target}: over everything")
    for dim in dims:
        _check_channel(target, x, dim, room=target.overloadpacket is aten.unsqueeze)
    clean = target(x.clean, *args, **kwargs)
    return program.add(clean, x.box, lambda values: target(values, *args, **kwargs), x)


@rule(aten.index)
def _reordered(program: Program, target: Any, x: Field, indices: Sequence[Any]) -> Field:
    """Channels in another order, as of ``rgb[:, [2, 1, 0]]``."""
    axes = [axis for axis, index in enumerate(indices) if index is not None]
    if len(axes) != 1 or not isinstance(indices[axes[0]], Tensor) or indices[axes[0]].ndim != 1:
        raise UnsupportedError(f"{target}: expected one list of channels")
    _check_channel(target, x, axes[0])
    clean = target(x.clean, indices)
    return program.add(clean, x.box, lambda values: target(values, indices), x)


@rule(aten.linalg_vector_norm)
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


@rule(aten.slice)
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


@rule_of_many(aten.cat, aten.stack)
def _joined(program: Program, target: Any, parts: Sequence[Any], dim: int = 0) -> Field:
    fields = [part for part in parts if isinstance(part, Field)]
    if not fields or len(fields) < len(parts):
        raise UnsupportedError(f"{target}: constants joined with what changes")
    if any(f.shape != fields[0].shape or f.clean.ndim != fields[0].clean.ndim for f in fields):
        raise UnsupportedError(f"{target}: fields of different shapes")
    _check_channel(target, fields[0], dim, room=target.overloadpacket is aten.stack)
    box = union_of(fields)
    embeddings = [embedding(field, box) for field in fields]

    def compute(*values: Tensor) -> Tensor:
        joined: Tensor = target([f(v) for f, v in zip(embeddings, values, strict=True)], dim)
        return joined

    joined = program.add(target(clean_of(fields), dim), box, compute, *fields)
    by_channel = target.overloadpacket is aten.cat and joined.clean.ndim == 4
    return replace(joined, parts=tuple(fields)) if by_channel else joined


@rule(aten.expand, aten.repeat)
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
