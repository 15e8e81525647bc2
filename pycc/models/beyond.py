"""Cells beyond an image, of networks whose grid is coarser than the image's last pixels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def folded(density: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Add the people of cells beyond an image to its last row and column.

    ``density`` [N,1,h,w] may have more cells than the ⌈height/stride⌉ x ⌈width/stride⌉ of an image
    of so many pixels. So map and image keep their relation, and the count is the network's.

    >>> import torch
    >>> folded(torch.ones(1, 1, 2, 4), 5, 7, 4)[0, 0].tolist()
    [[1.0, 3.0], [1.0, 3.0]]
    """
    return _folded(_folded(density, -(-height // stride), 2), -(-width // stride), 3)


def _folded(density: Tensor, cells: int, axis: int) -> Tensor:
    """Add what lies behind ``cells`` rows (axis 2) or columns (axis 3) to the last of them."""
    surplus = density.shape[axis] - cells
    if surplus <= 0:
        return density
    kept, beyond = density.narrow(axis, 0, cells), density.narrow(axis, cells, surplus)
    before = [0, 0] * (3 - axis) + [cells - 1, 0]
    folded: Tensor = kept + functional.pad(beyond.sum(axis, keepdim=True), before)
    return folded
