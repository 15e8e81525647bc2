"""Deterministic intervals from one map: masked counts (C3) and capped sums (C2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pycc.checks import check_image
from pycc.defense.capping import BLOCK, Caps, additive_bounds, additive_moves, capped_maps
from pycc.defense.masking import masked_bounds, masked_maps
from pycc.defense.windows import check_maps, window_of, window_sums
from pycc.types import Counter, Interval

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


def check_field(counter: Counter, image: Tensor, patch: int) -> None:
    """ValueError where a patch moves cells that the declared receptive field puts out of its reach.

    A patch of the opposite colours is laid into the middle of ``image`` [3,H,W] and cells outside
    its window are compared: whole-image statistics, resizing or compression inside a counter move
    all of them. A check on one image, no proof.
    """
    before = map_of(counter, image)
    height, width = _shape(image)
    top, left = (height - patch) // 2, (width - patch) // 2
    other = image.clone()
    part = (..., slice(top, top + patch), slice(left, left + patch))
    other[part] = (image[part] < 0.5).to(image)
    after = map_of(counter, other)
    rows, columns = window_of(counter, patch, (height, width), _shape(before))
    moved = (after - before).abs() > 1e-5 * float(before.abs().max()) + 1e-7
    found = moved[0].nonzero()
    if not len(found):
        return
    for axis, most in enumerate((rows, columns)):
        extent = int(found[:, axis].max() - found[:, axis].min()) + 1
        if extent > most:
            raise ValueError(
                f"certify: a patch of {patch} pixels moves {extent} cells of an axis, and at most "
                f"{most} by the declared receptive field of {counter.receptive_field} pixels: the "
                "counter looks at more of the image (statistics, resizing, attention)"
            )


def check_eval(counter: Counter) -> None:
    """ValueError unless every part of a counter is in eval mode."""
    if isinstance(counter, nn.Module) and any(part.training for part in counter.modules()):
        raise ValueError("certify: the counter must be in eval mode, call eval() first")


def masked(counter: Counter, image: Tensor, patch: int, *, allowance: float) -> Interval:
    """C3: the masked count S - max(0, max_W S_W - allowance) of every image a patch away.

    ``image`` [3,H,W] RGB in [0,1]; ``patch`` the side in pixels of a square patch, at any place,
    of any content; ``allowance`` people, fixed beforehand on training data (``allowance_of``). The
    defended counter is ``pycc.defense.masked(counter, patch, allowance)``.

    Let the patch touch cells of the window W*, and let these hold a in place of S_{W*}. Above: the
    fullest window holds a at least, so the masked count is S - S_{W*} + min(a, allowance) at most.
    Below: the fullest holds max_W S_{W without W*} + a at most, so the masked count is
    S - S_{W*} - max(0, max_W S_{W without W*} - allowance) at least. Deterministic.

    ValueError as ``map_of`` and ``window_of``, and for an allowance below 0.
    """
    cells = map_of(counter, image)
    window = window_of(counter, patch, _shape(image), _shape(cells))
    return masked_of(cells, window, allowance)


def masked_of(cells: Tensor, window: tuple[int, int], allowance: float) -> Interval:
    """``masked`` of a map [1,h,w] that is known, for a window of cells (height, width)."""
    _check_people("allowance", allowance)
    bounds = masked_bounds(cells, window, allowance)
    count = float(masked_maps(cells, window, allowance).double().sum())
    slack = _slack(cells)
    whole = window == _shape(cells)
    return Interval(
        low=max(0.0, float(bounds.low[0]) - slack),
        high=float(bounds.high[0]) + slack,
        method="masked",
        deterministic=True,
        count=count,
        vacuous=whole,
        reason="the patch can touch every cell" if whole else None,
    )


def additive(
    counter: Counter,
    image: Tensor,
    patch: int,
    *,
    caps: Tensor | float | None = None,
    block_cap: float | None = None,
    block: int = BLOCK,
    patches: int = 1,
) -> Interval:
    """C2: the sum of capped cells and blocks, of every image ``patches`` patches away.

    ``caps`` are people a cell, a number or [h,w]; ``block_cap`` people in a block of ``block`` x
    ``block`` cells. At least one of them is needed, both fixed beforehand (``cap_of``); the
    defended counter is ``pycc.defense.clipped`` with the same. Outside the touched windows the
    cells are those of the clean image, inside they lie in [0, caps], and a block counts its cap at
    most. Deterministic.

    ValueError as ``masked``, and for caps that are not positive or of another map's size.
    """
    cells = map_of(counter, image)
    window = window_of(counter, patch, _shape(image), _shape(cells))
    return additive_of(cells, window, Caps(caps, block_cap, block), patches=patches)


def additive_of(
    cells: Tensor, window: tuple[int, int], caps: Caps, *, patches: int = 1
) -> Interval:
    """``additive`` of a map [1,h,w] that is known, for a window of cells (height, width)."""
    if patches < 1:
        raise ValueError(f"certify: patches must be at least 1, got {patches}")
    bounds = additive_bounds(cells, window, caps, patches=patches)
    most = caps.total(cells)
    slack = _slack(cells)
    low = max(0.0, float(bounds.low[0]) - slack)
    high = min(float(bounds.high[0]), most) + slack
    vacuous = low <= 0.0 and high >= most
    return Interval(
        low=low,
        high=high,
        method="additive",
        deterministic=True,
        count=float(capped_maps(cells, caps).double().sum()),
        vacuous=vacuous,
        reason="patches can touch every cell" if vacuous else None,
    )


def mixed(intervals: Sequence[Interval], shares: Sequence[float]) -> Interval:
    """An interval on the sum of counts times their shares, from intervals on each of them.

    Holds where all of them hold: one patch does to each counter what it does to it. Deterministic
    intervals give a deterministic one; errors of others add up. One interval of share 1 is
    returned as it is. ValueError for none, or shares of another number or not above 0.
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


def _shape(tensor: Tensor) -> tuple[int, int]:
    return tensor.shape[-2], tensor.shape[-1]


def _slack(cells: Tensor) -> float:
    return ABSOLUTE + RELATIVE * float(cells.double().sum())


def _check_people(what: str, value: float) -> None:
    if not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"certify: {what} must be people from 0 on, got {value!r}")
