"""Layers that are linear along each axis of the grid, as matrices of shares."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pycc.local.program import UnchangedError


def affected_shares(
    enlarge: Callable[[Tensor], Tensor], size: int, start: int, stop: int, like: Tensor
) -> tuple[Tensor, tuple[int, int], tuple[int, int]]:
    """Find what a change of the inputs [start, stop) of an axis of ``size`` affects.

    ``enlarge`` maps [1,1,size,size] to [1,1,out,size] along the axis alone. Returns the shares
    [outputs,inputs] that the affected outputs take of all inputs that they read, and these outputs
    and inputs as (first, one after the last). UnchangedError if no output is affected.

    >>> from torch.nn import functional
    >>> double = lambda x: functional.interpolate(x, size=(8, 4), mode="nearest")
    >>> shares, outputs, inputs = affected_shares(double, 4, 1, 2, torch.zeros(()))
    >>> shares.tolist(), outputs, inputs
    ([[1.0], [1.0]], (2, 4), (1, 2))
    """
    # The layer's own shares, whatever its rule: it enlarges the identity.
    shares = enlarge(torch.eye(size).to(like)[None, None])[0, 0]
    outputs = _ends(shares[:, start:stop].any(1))
    inputs = _ends(shares[slice(*outputs)].any(0))
    return shares[slice(*outputs), slice(*inputs)], outputs, inputs


def _ends(chosen: Tensor) -> tuple[int, int]:
    places = chosen.nonzero()
    if not len(places):
        raise UnchangedError("nothing changes")
    return int(places[0]), int(places[-1]) + 1
