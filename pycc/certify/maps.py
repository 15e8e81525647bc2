"""What certificates share: the checked density map, ensembles, weak places, room for rounding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from pycc.checks import check_image, naming
from pycc.counters import like_of
from pycc.data import quantize
from pycc.defense.capping import Caps, additive_moves
from pycc.defense.windows import check_maps, window_of, window_sums
from pycc.grid import in_region
from pycc.types import Counter, Interval, Sample

Objective = Literal["over", "under"]
"""Which way an attack pushes the count."""
ABSOLUTE, RELATIVE = 0.01, 1e-5
"""What an interval is widened by, in people and of the count: cells of another batch or image size
differ in their last bits, and a patch may make a count a hundred times as large."""


def map_of(counter: Counter, image: Tensor) -> Tensor:
    """The map [1,h,w] of an image [3,H,W], RGB in [0,1], checked.

    ValueError for a counter with parts in train mode (a batch norm there mixes what should stay
    apart), an image of another kind or range, and cells that are negative or not finite.
    """
    check_eval(counter)
    check_image("certify", image)
    with torch.no_grad():
        return check_maps(counter(image[None]))


def certified_map(counter: Counter, sample: Sample) -> Tensor:
    """The map [1,h,w] of a sample's image as attacks see it, 0 outside its region of interest.

    The image is rounded to 8 bits. Cells that the region's border cuts count in proportion. What
    certificates state about the counter's own map, cell by cell and window by window, holds for
    this one.
    """
    with naming(sample.name, sample.image.shape):
        cells = map_of(counter, quantize(sample.image).to(like_of(counter)))
    return in_region(cells, sample.roi, counter.stride)


def check_field(counter: Counter, image: Tensor, patch_size: int) -> None:
    """ValueError where a patch moves cells that the declared receptive field puts out of its reach.

    A patch of the opposite colours is laid into the middle of ``image`` [3,H,W] and cells outside
    its window are compared: whole-image statistics, resizing or compression inside a counter move
    all of them. A check on one image, no proof.

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
                f"certify: a patch of {patch_size} pixels moves {extent} cells of an axis, and at "
                f"most {most} by the declared receptive field of {counter.receptive_field} pixels: "
                "the counter looks at more of the image (statistics, resizing, attention)"
            )


def check_eval(counter: Counter) -> None:
    """ValueError unless every part of a counter is in eval mode."""
    if isinstance(counter, nn.Module) and any(part.training for part in counter.modules()):
        raise ValueError("certify: the counter must be in eval mode, call eval() first")


def mixed(intervals: Sequence[Interval], shares: Sequence[float]) -> Interval:
    """An interval on the sum of counts times their shares, from intervals on each of them.

    Holds where all of them hold: one patch does to each counter what it does to it. Deterministic
    intervals give a deterministic one; errors of others add up. One interval of share 1 is
    returned as it is. ValueError for none, or shares of another number or not above 0.

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
    counts = [one.count for one in intervals]
    known = [count for count in counts if count is not None]
    reasons = [one.reason for one in intervals if one.reason is not None]
    return Interval(
        low=sum(share * one.low for share, one in zip(shares, intervals, strict=True)),
        high=sum(share * one.high for share, one in zip(shares, intervals, strict=True)),
        method=f"mixed-{intervals[0].method}",
        deterministic=all(one.deterministic for one in intervals),
        confidence=max(0.0, 1.0 - sum(1.0 - one.confidence for one in intervals)),
        count=sum(share * one for share, one in zip(shares, known, strict=True))
        if len(known) == len(counts)
        else None,
        vacuous=all(one.vacuous for one in intervals),
        reason="; ".join(dict.fromkeys(reasons)) or None,
    )


def slack_map(cells: Tensor, window: tuple[int, int], caps: Caps | None = None) -> Tensor:
    """[h,w]: for each cell, people in the fullest window around it: where a patch would hurt.

    With ``caps`` it is the most that the sum of capped cells can lose or gain in one of them.

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
    padded = nn.functional.pad(
        sums[None],
        (window[1] - 1, window[1] - 1, window[0] - 1, window[0] - 1),
        value=-math.inf,
    )
    return nn.functional.max_pool2d(padded, window, stride=1)[0, 0]


def weakest_window(cells: Tensor, window: tuple[int, int], objective: Objective) -> tuple[int, int]:
    """First cell (row, column) of the emptiest window of a map [1,h,w], or of the fullest one.

    The emptiest is where a patch that raises the count (``over``) has most to add.
    """
    sums = window_sums(cells, window)[0]
    place = int(sums.argmin() if objective == "over" else sums.argmax())
    row, column = divmod(place, sums.shape[1])
    return row, column


def shape_of(tensor: Tensor) -> tuple[int, int]:
    """The last two sizes of a tensor."""
    return tensor.shape[-2], tensor.shape[-1]


def rounding_room(count: float) -> float:
    """People by which the ends of an interval are moved outward, for the last bits of counts."""
    return ABSOLUTE + RELATIVE * abs(count)
