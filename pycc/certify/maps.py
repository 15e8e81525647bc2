"""The density map that certificates bound, sums of intervals, weak windows and rounding."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from pycc.checks import check_image, naming
from pycc.counters import check_eval, like_of
from pycc.data import quantize
from pycc.defense.capping import Caps, additive_moves
from pycc.defense.windows import check_maps, window_of, window_sums
from pycc.grid import in_region
from pycc.ranks import exact
from pycc.types import Counter, Interval, Sample

Objective = Literal["over", "under"]
"""The direction in which an attack pushes the count."""
ABSOLUTE, RELATIVE = 0.01, 1e-5
"""Absolute (people) and relative widening of an interval: the last bits of cells depend on the
sizes of batch and image, and a patch may multiply a count by a hundred."""


def map_of(counter: Counter, image: Tensor) -> Tensor:
    """Compute the density map [1,h,w] of an image [3,H,W], RGB in [0,1].

    ValueError for a counter with parts in train mode (whose batch norm would mix images), an image
    of another type or range, and cells that are negative or not finite.
    """
    check_eval("certify", counter)
    check_image("certify", image)
    with torch.no_grad(), exact():
        return check_maps("certify", counter(image[None]))


def certified_map(counter: Counter, sample: Sample) -> Tensor:
    """Compute the map [1,h,w] of a sample's image, 0 outside its region of interest.

    The image is rounded to 8 bits, as in attacks. Cells that the region's border cuts count in
    proportion. Statements of certificates about cells and windows of the counter's map also hold
    for this map.
    """
    with naming(sample.name, sample.image.shape):
        cells = map_of(counter, quantize(sample.image).to(like_of(counter)))
    return in_region(cells, sample.roi, counter.stride)


def check_field(counter: Counter, image: Tensor, patch_size: int) -> None:
    """Raise ValueError if a patch changes cells beyond the declared receptive field.

    A patch of inverted colours is put into the middle of ``image`` [3,H,W], and cells outside its
    window are compared. Statistics over the full image, resizing or compression inside a counter
    change all of them. This is a check on one image, not a proof.

    >>> import torch
    >>> from pycc.certify import check_field
    >>> from pycc import models
    >>> counter = models.load("mcnn-synthetic")
    >>> check_field(counter, torch.rand(3, 96, 128), patch_size=20)  # passes
    """
    before = map_of(counter, image)
    height, width = shape_of(image)
    top, left = (height - patch_size) // 2, (width - patch_size) // 2
    other = image.clone()
    part = (..., slice(top, top + patch_size), slice(left, left + patch_size))
    other[part] = (image[part] < 0.5).to(image)
    after = map_of(counter, other)
    rows, columns = window_of(counter, patch_size, (height, width), shape_of(before))
    changed = (after - before).abs() > 1e-5 * float(before.abs().max()) + 1e-7
    moved = changed[0].nonzero()
    if not len(moved):
        return
    for axis, most in enumerate((rows, columns)):
        extent = int(moved[:, axis].max() - moved[:, axis].min()) + 1
        if extent > most:
            raise ValueError(
                f"certify: a patch of {patch_size} pixels changes {extent} cells along an axis, at "
                f"most {most} by the declared receptive field of {counter.receptive_field} pixels: "
                "the counter depends on more of the image (statistics, resizing, attention)"
            )


def mixed(intervals: Sequence[Interval], shares: Sequence[float]) -> Interval:
    """Combine intervals on counts into one on the sum of the counts times their shares.

    It holds if all intervals hold, also if one patch affects all counters. It is deterministic if
    all intervals are; otherwise their error probabilities add up. It has an alarm if one of them
    has. A single interval of share 1 is returned unchanged. ValueError for no interval, or unless
    there is one share above 0 for each.

    >>> from pycc.certify import Interval, mixed
    >>> first = Interval(low=10.0, high=20.0, method="masked", deterministic=True, count=15.0)
    >>> second = Interval(low=20.0, high=24.0, method="masked", deterministic=True, count=21.0)
    >>> mixture = mixed([first, second], [0.5, 0.5])
    >>> mixture.low, mixture.count, mixture.high
    (15.0, 18.0, 22.0)
    """
    if not intervals or len(intervals) != len(shares) or not all(s > 0 for s in shares):
        raise ValueError(
            f"certify: a mixture needs intervals with a share above 0 each, got {len(intervals)} "
            f"and {list(shares)}"
        )
    if len(intervals) == 1 and shares[0] == 1.0:
        return intervals[0]
    counts = [interval.count for interval in intervals if interval.count is not None]
    alarms = [interval.alarm for interval in intervals if interval.alarm is not None]
    reasons = [interval.reason for interval in intervals if interval.reason is not None]

    def weighted(values: Iterable[float]) -> float:
        return sum(share * value for share, value in zip(shares, values, strict=True))

    return Interval(
        low=weighted(interval.low for interval in intervals),
        high=weighted(interval.high for interval in intervals),
        method=f"mixed-{intervals[0].method}",
        deterministic=all(interval.deterministic for interval in intervals),
        confidence=max(0.0, 1.0 - sum(1.0 - interval.confidence for interval in intervals)),
        count=weighted(counts) if len(counts) == len(intervals) else None,
        vacuous=all(interval.vacuous for interval in intervals),
        reason="; ".join(dict.fromkeys(reasons)) or None,
        alarm=any(alarms) if alarms else None,
    )


def slack_map(cells: Tensor, window: tuple[int, int], caps: Caps | None = None) -> Tensor:
    """Compute for each cell [h,w] the number of people in the fullest window that contains it.

    With ``caps`` it is the largest loss or gain of the sum of capped cells by a change of one such
    window. Shows where a patch can change the count most.

    >>> import torch
    >>> from pycc.certify import slack_map
    >>> cells = torch.tensor([[[0.0, 0.0, 1.0], [0.0, 0.0, 2.0]]])
    >>> slack_map(cells, (2, 1)).tolist()
    [[0.0, 0.0, 3.0], [0.0, 0.0, 3.0]]
    """
    sums = window_sums(cells, window)
    if caps is not None:
        _, lost, gained = additive_moves(cells, window, caps)
        sums = torch.maximum(lost, gained)
    padded = functional.pad(
        sums[None],
        (window[1] - 1, window[1] - 1, window[0] - 1, window[0] - 1),
        value=-math.inf,
    )
    return functional.max_pool2d(padded, window, stride=1)[0, 0]


def weakest_window(cells: Tensor, window: tuple[int, int], objective: Objective) -> tuple[int, int]:
    """Return the first cell (row, column) of the emptiest or fullest window of a map [1,h,w].

    The emptiest window, to which a patch can add most, belongs to the objective ``over``.
    """
    sums = window_sums(cells, window)[0]
    place = int(sums.argmin() if objective == "over" else sums.argmax())
    row, column = divmod(place, sums.shape[1])
    return row, column


def shape_of(tensor: Tensor) -> tuple[int, int]:
    """Return the last two sizes of a tensor."""
    return tensor.shape[-2], tensor.shape[-1]


def rounding_room(count: float) -> float:
    """Return by how many people an interval's ends are moved outward, against rounding."""
    return ABSOLUTE + RELATIVE * abs(count)
