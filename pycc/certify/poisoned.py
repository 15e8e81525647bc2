"""The median count of counters trained on disjoint parts, which poisoned images can hardly move.

After Levine and Feizi, "Deep partition aggregation: provable defenses against general poisoning
attacks" (ICLR 2021), carried over from votes of classifiers to the median of counts.

The training images are split into S parts, a counter is trained on each part, and the prediction is
the median of their counts. The number of poisoned images is the number of images that are in only
one of two training sets, the clean and the poisoned one:

* an image that is **inserted** (also a duplicate) or **removed** counts once;
* an image whose **pixels are changed** counts twice, as it is removed and inserted;
* an image of which **only the heads are changed** stays in its part and counts once;
* an image that is **renamed** does not count.

With ``partitions`` each of these affects one part (changed pixels two), whatever the attacker
chooses and even if the attacker knows the key: m of them leave S - m counters unchanged. The caller
must ensure four conditions:

* The part of an image depends on that image alone. This excludes splits by position or into parts
  of equal size, because one inserted image would move all later ones. A hash of the name would
  protect against inserted and changed images, but the attacker also controls names, and a renamed
  image would count twice. Therefore the pixels are hashed.
* A counter is a function of its part as a set, and of randomness that is independent of the part.
  Therefore parts are ordered independently of names. Everything that the counters share (initial
  weights, a mean colour, the choice of settings) comes from other data.
* Heads affect only the counter of their own part.
* Training is deterministic: the same part gives the same weights, bit for bit, whatever the other
  parts contain. ``pycc.train`` ensures this on one device and version of torch (on CUDA by the
  deterministic algorithms of cuDNN); for counters from different machines or another trainer it
  must be shown.

A part must not affect the other counters by failing either: if a part, perhaps an attacker's,
cannot be trained, a counter that depends on that part alone takes its place, and a count that is
not a number becomes 0.

The test image is not restricted, except that it is the same for all counters.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from pycc.certify._check import counts_of
from pycc.certify.fixed import fixed_ablations_bounds
from pycc.checks import check_whole
from pycc.types import Interval, Sample, each


def partitions(samples: Sequence[Sample], parts: int, *, seed: int) -> list[list[int]]:
    """Split training images into S = ``parts`` parts; return the indices of the images of each.

    The part of an image is a keyed hash of its pixels, so that parts have random sizes and may be
    empty. Each part is ordered by the hashes of pixels, then of heads, independently of names and
    of the order of ``samples``. ValueError or TypeError for fewer than one part.

    >>> from pycc.certify import partitions
    >>> from pycc import data
    >>> scenes = data.open("synthetic", split="train", shape=(64, 64), limit=6)
    >>> parts = partitions(scenes, 3, seed=0)
    >>> sorted(index for part in parts for index in part)
    [0, 1, 2, 3, 4, 5]
    """
    number = check_whole("partitions", "parts", parts, 1)
    split: list[list[tuple[bytes, bytes, int]]] = [[] for _ in range(number)]
    for index, sample in enumerate(each(samples)):
        pixels = _digest(seed, sample.image)
        # The key only gives other partitions for other seeds; it need not be secret.
        part = int.from_bytes(pixels, "little") % number
        others = [sample.points, *([] if sample.roi is None else [sample.roi])]
        split[part].append((pixels, b"".join(_digest(seed, values) for values in others), index))
    return [[index for _, _, index in sorted(part)] for part in split]


def partition_median(counts: ArrayLike, *, poisoned: int) -> Interval:
    """Bound the median of S counts against ``poisoned`` = m poisoned training images.

    ``counts`` [S] are the counts of one image, in people, by the counters of all parts, trained
    either on the poisoned or on the clean set. The interval contains the median for the other set,
    since at most m counters differ. With x_(j) the j-th smallest count,

        x_(j - m) <= x'_(j) <= x_(j + m).

    For odd S the median stays between the order statistics m ranks away from the middle; for even
    S, where it is the mean of two counts, between the means of their bounds. Both ends are
    attained. The module's docstring defines how images are counted: changed pixels count twice.

    Returns:
        A deterministic interval of method ``partition-median``; ``count`` is the median. It is
        vacuous, with a reason, if m >= S / 2, because the attacker then controls half of the
        counters.

    Raises:
        ValueError: no counts, counts that are negative or not finite, a negative ``poisoned``.
        TypeError: ``poisoned`` is not a whole number.

    Example:
        >>> from pycc.certify import partition_median
        >>> interval = partition_median([10, 12, 13, 15, 40], poisoned=1)
        >>> interval.low, interval.count, interval.high
        (12.0, 13.0, 15.0)
    """
    op = "partition_median"
    values = counts_of(op, counts)
    moved = check_whole(op, "poisoned", poisoned, 0)
    # The same bound on order statistics as for masks, of which an attack touches m.
    bounds = fixed_ablations_bounds(values, min(moved, len(values)))
    interval = replace(bounds, method="partition-median")
    if not interval.vacuous:
        return interval
    reached = min(moved, len(values))
    reason = f"{moved} poisoned images can reach {reached} of {len(values)} counters"
    return replace(interval, reason=f"{reason}, half or more")


def most_poisoned(parts: int) -> int:
    """Return the largest number of poisoned images for which a median of S parts is bounded.

    >>> from pycc.certify import most_poisoned
    >>> most_poisoned(5), most_poisoned(6)
    (2, 2)
    """
    return math.ceil(check_whole("most_poisoned", "parts", parts, 1) / 2) - 1


def _digest(seed: int, values: Tensor) -> bytes:
    """Return a keyed hash of a tensor's type, shape and content."""
    array = np.ascontiguousarray(values.detach().cpu().numpy())
    key = hashlib.sha256(f"pycc, partitions, {seed}".encode()).digest()
    digest = hashlib.blake2b(f"{array.dtype.str}{array.shape}".encode(), key=key, digest_size=32)
    digest.update(array.tobytes())
    return digest.digest()
