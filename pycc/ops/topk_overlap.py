"""Top-K overlap of two maps: the number of cells that are among the K largest of both.

Theorem 1 of Wu et al. (APAM, arXiv 2104.10868) is about an image, the same image with a patch of n
entries, and ablations of both that keep the same k of d entries. It bounds the overlap R of the
counter's two maps: for every i in [0, k], C(n,k)/C(d,k) <= Pr(R = i) <= C(d-n,k)/C(d,k). The
theorem is not sound. A counter whose map ignores the image always has R = K: Pr(R = K) = 1 exceeds
the upper bound (for n, k > 0), and the other probabilities, which are 0, are below the lower bound
if n >= k. The proof treats overlap K and untouched entries as equivalent, but only the second
implies the first; its (13) has <= where >= holds, since a patch changes at most n entries; and it
confuses the k kept entries with the K compared cells.

The sound statement: with probability at least C(d-n,k)/C(d,k) (computed as
``exp(log_probability_untouched(d, n, k))``) no differing entry is kept. The ablations are then
identical and R = K, for any counter that is a function of its input. Hence Pr(R = K) and E[R]/K are
at least C(d-n,k)/C(d,k). This does not bound counts: a map multiplied by 10 has the same overlap.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pycc.ops import _check, _native

_OP = "topk_overlap"
_MAX_CELLS = (1 << 32) - 1
"""The kernel sorts cells by 64-bit keys: 32 bits of the value, 32 bits of the index."""


def _checked(a: Tensor, b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the maps as contiguous [N,cells] tensors."""
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
        raise ValueError(f"{_OP}: a must have fewer than 2^32 cells per row, got {cells}")
    _check.integer(_OP, "k", k, 0, cells)
    first, second = (
        _check.raw(
            _OP, name, row.reshape(len(row), cells), torch.float32, (None, cells), row.device
        )
        for name, row in zip(("a", "b"), rows, strict=True)
    )
    return first, second


def topk_overlap(a: Tensor, b: Tensor, k: int) -> Tensor:
    """Count the cells that are among the ``k`` largest of both maps, exactly.

    The result depends on the order of the cells alone: a map multiplied by 10 has the same overlap,
    so that the overlap does not bound the count. The module's docstring states what it proves about
    a patch.

    Args:
        a: [N,...] float32; each of the N maps is flattened after the first axis ([N] has one cell
            per map) and has fewer than 2^32 cells.
        b: the maps to compare with, of the same shape and on the same device.
        k: number of largest cells of each map to compare, 0 to the number of its cells.

    Returns:
        [N] int64, each within [max(0, 2 k - cells), k]. Of equal cells, those with the lower flat
        index come first. NaN is larger than everything and equal to NaN; -0.0 equals 0.0. Not
        differentiable.

    Raises:
        ValueError: maps of another dtype (cast them), of different shapes, on different devices or
            too large; k out of range.
        TypeError: a or b is not a tensor, or k not an integer.

    Source:
        The top-K overlap of the certificate published with APAM (Wu et al., arXiv 2104.10868), with
        a rule for ties added.

    Example:
        >>> import torch
        >>> from pycc import ops
        >>> a, b = torch.tensor([[4.0, 3.0, 2.0, 1.0]]), torch.tensor([[4.0, 1.0, 2.0, 3.0]])
        >>> ops.topk_overlap(a, b, 2), ops.topk_overlap(a, 10 * a, 2)
        (tensor([1]), tensor([2]))
    """
    if _native.use_reference():
        return topk_overlap_reference(a, b, k)
    first, second = _checked(a, b, k)
    overlap = torch.empty(len(first), dtype=torch.int64, device=first.device)
    _native.run(_OP, first.device, overlap, first, second, *first.shape, k)
    return overlap


def topk_overlap_reference(a: Tensor, b: Tensor, k: int) -> Tensor:
    """Compute :func:`topk_overlap` in pure torch by two stable sorts, O(cells log cells) per map.

    Example:
        >>> import torch
        >>> from pycc import ops
        >>> ops.topk_overlap_reference(torch.zeros(1, 9), torch.zeros(1, 9), 4)
        tensor([4])
    """
    first, second = (_canonical(rows) for rows in _checked(a, b, k))
    among_first, among_second = (_largest(rows, k) for rows in (first, second))
    return (among_first & among_second).sum(1)


def _canonical(rows: Tensor) -> Tensor:
    """Map zeros and NaNs to one representation each: a sort by bits would order them."""
    return torch.where(rows == 0, 0.0, torch.where(rows.isnan(), float("nan"), rows))


def _largest(rows: Tensor, k: int) -> Tensor:
    """Mark the k largest cells of each row; the stable sort keeps the order of equal cells."""
    order = torch.sort(rows, dim=1, descending=True, stable=True).indices
    return torch.zeros_like(rows, dtype=torch.bool).scatter_(1, order[:, :k], True)
