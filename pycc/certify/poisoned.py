"""A count that a few poisoned training images cannot move far: the median of partitions.

After Levine and Feizi, "Deep partition aggregation: provable defenses against general poisoning
attacks" (ICLR 2021), carried from votes of classifiers to the median of counts.

The training images are cut into S parts, a counter is trained on each, and the median of their
counts is what is predicted. What an attacker does to the training set is told by the images that
are in one set and not in the other, the clean set and the poisoned one:

* an image that is **inserted**, a duplicate too, is in one set only: it counts once;
* one that is **removed** counts once;
* one whose **pixels are changed** is removed and inserted: it counts twice;
* one whose **heads alone are changed** stays in its part, and counts once;
* one that is **renamed** counts for nothing.

With ``partitions`` each of these changes one part (a changed picture two), wherever the attacker
would have it fall and whether or not the key is known: m of them leave S - m counters as they were.
That takes four things, which are the caller's to see to:

* the part of an image depends on that image alone. A cut by position, or into parts of equal size,
  is none: one image inserted moves all that follow. A hash of the name would do for images that are
  inserted or changed, but names are the attacker's too, and then a renamed image, which nobody
  would call poisoned, would count twice. So the pixels are hashed.
* a counter is a function of its part as a set, and of randomness that has nothing to do with it.
  So the parts are put in an order that names have no say in. Whatever is shared by the counters
  (weights to start from, a mean colour, the choice of settings) comes from elsewhere.
* heads decide nothing but in their own part.
* training is deterministic: the same part gives the same weights, to the bit, whatever the others
  hold. On one device and version of torch ``pycc.train`` sees to that, on CUDA too, where it holds
  cuDNN to deterministic algorithms; counters that come from different machines or from another
  trainer need it shown.

Nor may a part stop the others: for one that cannot be trained, an attacker's perhaps, a counter is
taken that depends on that part alone, and a count that is no number is one of nobody.

Of the test image nothing is asked, but that it is the same for all counters.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from pycc.certify._check import counts_of, whole
from pycc.certify.fixed import fixed_ablations_bounds
from pycc.types import Interval, Sample


def partitions(samples: Sequence[Sample], parts: int, *, seed: int) -> list[list[int]]:
    """Indices of the training images of each of S = ``parts`` parts, which together hold all.

    The part of an image is a keyed hash of its pixels, so parts differ in size as chance has it and
    may be empty. Each is in the order of the hashes of pixels, then of heads: names and the order
    of ``samples`` do not matter. ValueError or TypeError for fewer parts than one.

    >>> from pycc.certify import partitions
    >>> from pycc import data
    >>> scenes = data.open("synthetic", split="train", shape=(64, 64), limit=6)
    >>> parts = partitions(scenes, 3, seed=0)
    >>> sorted(index for part in parts for index in part)
    [0, 1, 2, 3, 4, 5]
    """
    number = whole("partitions", "parts", parts, 1)
    cut: list[list[tuple[bytes, bytes, int]]] = [[] for _ in range(number)]
    for index, sample in enumerate(samples):
        pixels = _digest(seed, sample.image)
        # The key gives other partitions for other seeds; nothing rests on its being secret.
        part = int.from_bytes(pixels, "little") % number
        rest = [sample.points, *([] if sample.roi is None else [sample.roi])]
        cut[part].append((pixels, b"".join(_digest(seed, one) for one in rest), index))
    return [[index for _, _, index in sorted(part)] for part in cut]


def partition_median(counts: ArrayLike, *, poisoned: int) -> Interval:
    """Interval on the median of S counts, whatever ``poisoned`` = m training images were.

    ``counts`` [S] are people, not negative, of one image by the counters of all parts. They may be
    those that were trained on the poisoned set, or on the clean one: of either the interval holds
    the median of the other, since m counters at most differ. With x_(j) the j-th smallest count,

        x_(j - m) <= x'_(j) <= x_(j + m),

    so that for odd S the median stays between the order statistics m away from the middle one; for
    even S, where it is the mean of two, between the means of their bounds. Both ends are reached.
    ``poisoned`` counts images as the module says: a picture that is changed is two.

    Returns:
        Method ``partition-median``, deterministic; ``count`` is the median. Vacuous, with a reason,
        where m >= S / 2: half of the counters are then the attacker's.

    Raises:
        ValueError: no counts, counts that are negative or not finite, a negative ``poisoned``.
        TypeError: ``poisoned`` is no whole number.

    Example:
        >>> from pycc.certify import partition_median
        >>> interval = partition_median([10, 12, 13, 15, 40], poisoned=1)
        >>> interval.low, interval.count, interval.high
        (12.0, 13.0, 15.0)
    """
    op = "partition_median"
    found = counts_of(op, counts)
    moved = whole(op, "poisoned", poisoned, 0)
    # The same fact of order statistics as with masks, of which an attack touches m.
    bounds = fixed_ablations_bounds(found, min(moved, len(found)))
    interval = replace(bounds, method="partition-median")
    if not interval.vacuous:
        return interval
    reason = f"{moved} poisoned images can reach {min(moved, len(found))} of {len(found)} counters"
    return replace(interval, reason=f"{reason}, half or more")


def most_poisoned(parts: int) -> int:
    """The largest number of poisoned images for which a median of S parts says anything.

    >>> from pycc.certify import most_poisoned
    >>> most_poisoned(5), most_poisoned(6)
    (2, 2)
    """
    return math.ceil(whole("most_poisoned", "parts", parts, 1) / 2) - 1


def _digest(seed: int, values: Tensor) -> bytes:
    """A keyed hash of a tensor's type, shape and content."""
    array = np.ascontiguousarray(values.detach().cpu().numpy())
    key = hashlib.sha256(f"pycc, partitions, {seed}".encode()).digest()
    digest = hashlib.blake2b(f"{array.dtype.str}{array.shape}".encode(), key=key, digest_size=32)
    digest.update(array.tobytes())
    return digest.digest()
