"""Top-K overlap of two maps: how many cells are among the K largest of both.

Theorem 1 of Wu et al. (APAM, arXiv 2104.10868) bounds the overlap R of the maps of two ablations
that keep the same k of d entries, of an image and of its twin with a patch of n entries: for every
i in [0, k], C(n,k)/C(d,k) <= Pr(R = i) <= C(d-n,k)/C(d,k). It is not sound. A counter whose map
ignores the image has R = K always: Pr(R = K) = 1 is above the upper bound (of n, k > 0), and the
other probabilities, which are 0, are below the lower one where n >= k. The proof takes overlap K
and untouched entries for equivalent, where the second implies the first only; its (13) has <= where
>= holds, as a patch changes n entries at most; and it confuses the k entries that are kept with the
K cells that are compared.

What is true: with probability C(d-n,k)/C(d,k) or more (``exp(log_probability_untouched(d, n, k))``)
no entry that differs is kept. The ablations are then identical and R = K, for any counter that is a
function of its input. Hence Pr(R = K) and E[R]/K are at least C(d-n,k)/C(d,k). Of counts this says
nothing beyond that: a map multiplied by 10 has the same overlap.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pycc.ops import _check, _native

_OP = "topk_overlap"
_MAX_CELLS = (1 << 32) - 1
"""A cell's place in the order is 64 bits: 32 of its value, 32 of its index."""


def _checked(a: Tensor, b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The maps as [N, cells], both dense."""
    rows = []
    for name, value in (("a", a), ("b", b)):
        tensor = _check.is_tensor(_OP, name, value, "[N,...]")
        if tensor.ndim == 0:
            raise ValueError(f"{_OP}: {name} must be [N,...], got []")
        _check.typed(_OP, name, tensor, torch.float32)
        _check.on_device(_OP, name, tensor, a.device, "a")
        _check.not_meta(_OP, name, tensor)
        rows.append(tensor.detach())
    if a.shape != b.shape:
        raise ValueError(f"{_OP}: b must be {list(a.shape)} like a, got {list(b.shape)}")
    cells = math.prod(a.shape[1:])
    if cells > _MAX_CELLS:
        raise ValueError(f"{_OP}: a must have fewer than 2^32 cells a row, got {cells}")
    _check.integer(_OP, "k", k, 0, cells)
    first, second = (
        _check.raw(
            _OP, name, row.reshape(len(row), cells), torch.float32, (None, cells), row.device
        )
        for name, row in zip(("a", "b"), rows, strict=True)
    )
    return first, second


def topk_overlap(a: Tensor, b: Tensor, k: int) -> Tensor:
    """How many cells are among the ``k`` largest of both maps, exactly.

    It depends on the order of the cells alone: a map multiplied by 10 has the same overlap, so
    that the overlap says nothing of the count. What it says of a patch, and what it does not: see
    the module.

    Args:
        a: [N,...] float32; each of the N maps is all that follows the first axis, flattened
            ([N] has one cell a map), of fewer than 2^32 cells.
        b: the maps to compare with, of the same shape and on the same device.
        k: how many of the largest cells of each map, 0 to the number of its cells.

    Returns:
        [N] int64, each within [max(0, 2 k - cells), k]. Of equal cells those with the lower flat
        index come first. NaN is larger than everything and equal to NaN; -0.0 equals 0.0. Not
        differentiable.

    Raises:
        ValueError: maps of another dtype (cast them), of different shapes, on different devices or
            too large; k out of range.
        TypeError: no tensor, or k no integer.

    Source: the top-K overlap of the certificate that comes with APAM (Wu et al., arXiv 2104.10868),
    with ties settled.
    """
    if _native.use_reference():
        return topk_overlap_reference(a, b, k)
    first, second = _checked(a, b, k)
    overlap = torch.empty(len(first), dtype=torch.int64, device=first.device)
    _native.run(_OP, first.device, overlap, first, second, *first.shape, k)
    return overlap


def topk_overlap_reference(a: Tensor, b: Tensor, k: int) -> Tensor:
    """The twin of :func:`topk_overlap` in pure torch: two stable sorts."""
    first, second = (_canonical(rows) for rows in _checked(a, b, k))
    among_first, among_second = (_largest(rows, k) for rows in (first, second))
    return (among_first & among_second).sum(1)


def _canonical(rows: Tensor) -> Tensor:
    """One zero and one NaN: a sort by bits, which devices may use, tells them apart."""
    return torch.where(rows == 0, 0.0, torch.where(rows.isnan(), float("nan"), rows))


def _largest(rows: Tensor, k: int) -> Tensor:
    """Which cells are among the k largest; the stable sort leaves equal ones in their order."""
    order = torch.sort(rows, dim=1, descending=True, stable=True).indices
    return torch.zeros_like(rows, dtype=torch.bool).scatter_(1, order[:, :k], True)
