"""The bins of ZIP's counters: which numbers of heads in a block are one class, and their counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pycc.models.heads import whole_heads

Data = Literal["shanghaitech_a", "shanghaitech_b", "qnrf", "nwpu"]
BLOCKS: dict[Data, int] = {
    "shanghaitech_a": 16,
    "shanghaitech_b": 16,
    "qnrf": 32,
    "nwpu": 16,
}
"""The published side of a block, in pixels, of each data set."""
SIDES = (8, 16, 32)


@dataclass(frozen=True)
class Bins:
    """Bins of numbers of heads: bin 0 holds empty blocks.

    >>> bins = BINS["nwpu", 8]
    >>> bins.lowest, bins.centers
    ((0, 1, 2, 3, 4), (0.0, 1.0, 2.0, 3.0, 4.41511649))
    """

    lowest: tuple[int, ...]
    """The smallest number of heads of each bin; the last has no largest."""
    centers: tuple[float, ...]
    """The mean number of heads of the training set's blocks in each bin."""

    def of(self, target: Tensor) -> Tensor:
        """Return the bin of each value of ``target``, whole numbers of heads; int64, same shape.

        ValueError for a value that is not a number of heads (within 0.001).

        >>> BINS["shanghaitech_a", 16].of(torch.tensor([0.0, 10.0, 11.0, 12.0, 99.0])).tolist()
        [0, 10, 11, 11, 13]
        """
        heads = whole_heads("zip.loss", target)
        return torch.bucketize(heads, heads.new_tensor(self.lowest[1:]), right=True)


def _bins(lowest: tuple[int, ...], centers: tuple[float, ...]) -> Bins:
    """Make bins of single numbers below ``lowest``, which begin those with the ``centers``."""
    single = range(lowest[0])
    return Bins((*single, *lowest), (*map(float, single), *centers))


BINS: dict[tuple[Data, int], Bins] = {
    ("shanghaitech_a", 8): _bins((4,), (4.31551732,)),
    ("shanghaitech_a", 16): _bins((11, 13, 15), (11.3842437, 13.3731315, 16.2176183)),
    ("shanghaitech_a", 32): _bins(
        (20, 22, 24, 26, 28, 30, 33, 36, 39, 42, 46),
        (
            *(20.4584713, 22.4597508, 24.4527463, 26.4565054, 28.4635024, 30.8707789),
            *(33.9097971, 36.900056, 39.9751014, 43.2871181, 50.0655738),
        ),
    ),
    ("shanghaitech_b", 8): _bins((4,), (4.40967877,)),
    ("shanghaitech_b", 16): _bins((9,), (10.1830846,)),
    ("shanghaitech_b", 32): _bins(
        (15, 17, 19, 21, 24), (15.4299001, 17.4326602, 19.4404124, 21.8559301, 26.0384615)
    ),
    ("qnrf", 8): _bins((4,), (4.31607387,)),
    ("qnrf", 16): _bins((11, 13), (11.3598328, 14.7714066)),
    ("qnrf", 32): _bins(
        (11, 13, 15, 17, 19, 21, 24, 27, 30, 34),
        (
            *(11.4309851, 13.4325785, 15.4363027, 17.4379262, 19.4346368, 21.8313278),
            *(24.8496606, 27.871929, 31.2430702, 38.8572259),
        ),
    ),
    ("nwpu", 8): _bins((4,), (4.41511649,)),
    ("nwpu", 16): _bins((10,), (12.1610791,)),
    ("nwpu", 32): _bins(
        (10, 12, 14, 16, 18, 20, 23, 26, 29),
        (
            *(10.4302325, 12.4436512, 14.4479632, 16.448104, 18.4502052, 20.8808746),
            *(23.895608, 26.8828734, 36.8581421),
        ),
    ),
}
"""The published bins, by data set and side of a block."""


def data_of(centers: Tensor, block: int) -> Data | None:
    """Return the data set with these counts [1,n,1,1] of bins, or None.

    Of counts without values (on the meta device) the number decides; it is the same for all sets
    with blocks of 8. In half precision "shanghaitech_a" and "qnrf" are the same there.

    >>> data_of(torch.tensor([0.0, 1.0, 2.0, 3.0, 4.4151]).view(1, 5, 1, 1), 8)
    'nwpu'
    """
    near = {
        data: difference
        for (data, side), bins in BINS.items()
        if side == block and (difference := distance(bins, centers)) <= ROUNDING
    }
    return min(near, key=lambda data: near[data], default=None)


ROUNDING = 4e-3
"""Relative; more than half precision and bfloat16 lose."""


def distance(bins: Bins, centers: Tensor) -> float:
    """Return the largest relative difference of ``centers`` [1,n,1,1] from those of bins.

    Infinite for another shape; 0 on the meta device.
    """
    if list(centers.shape) != [1, len(bins.centers), 1, 1]:
        return float("inf")
    if centers.is_meta:
        return 0.0
    published = torch.tensor(bins.centers, dtype=torch.float64)
    difference = (centers.flatten().double().cpu() - published).abs()
    return float((difference / published.clamp(min=1.0)).max())
