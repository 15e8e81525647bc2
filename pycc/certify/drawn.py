"""Intervals that ask the counter many times: ablated draws (C1, C1'), pairs of masks (C4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pycc.certify.fixed import fixed_masks_bounds
from pycc.certify.maps import ABSOLUTE, RELATIVE, check_eval
from pycc.certify.quantile import exposure, quantile_bounds
from pycc.defense.ablated_maps import Bands, Blocks, Kind, Pixels, ablated_counts
from pycc.defense.mask_pairs import two_mask_table
from pycc.defense.retained import most_touched
from pycc.defense.windows import check_patch
from pycc.types import Counter, Interval

Progress = Callable[[int, int], None]


def quantile(
    counter: Counter,
    image: Tensor,
    patch: int,
    *,
    k: int | None = None,
    band: int | None = None,
    block: int | None = None,
    fill: float | Sequence[float],
    draws: int = 1000,
    q: float = 0.5,
    alpha: float = 0.001,
    images: int = 1,
    patches: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> Interval:
    """C1: the q-quantile of the counts of randomly ablated images, of every image a patch away.

    Each draw shows the counter ``k`` random pixels of ``image`` [3,H,W], or one ``band`` of so many
    columns, or one ``block`` of that side; the rest is ``fill`` (a number or three, RGB in [0,1]:
    the data set's mean). A patch of ``patch`` pixels is met by a draw with a probability of at most
    ``exposure``. Holds with probability 1 - ``alpha`` over the ``draws`` (for ``images`` of them
    together), which are keyed by ``seed`` and must not be those that chose q, k or the counter.
    Abstains on the side where a patch may meet too many draws. The defended counter is the quantile
    itself; ``pycc.defense.ablated`` estimates it (``estimate_interval`` covers that error).

    ValueError for a patch or k that does not fit the image, a counter in train mode, and unless
    exactly one of ``k``, ``band`` and ``block`` is given.
    """
    check_eval(counter)
    check_patch(patch, _shape(image))
    kind = kind_of(k, band, block)
    # What is wrong with the arguments is said before hours of counting.
    bound = partial(
        quantile_of, shape=_shape(image), patch=patch, kind=kind, q=q, alpha=alpha, images=images,
        patches=patches,
    )  # fmt: skip
    bound(torch.zeros(1))
    counts = ablated_counts(
        counter, image, kind, draws=draws, seed=seed, fill=fill, progress=progress
    )
    return bound(counts)


def quantile_of(
    counts: Tensor,
    shape: tuple[int, int],
    patch: int,
    kind: Kind,
    *,
    q: float = 0.5,
    alpha: float,
    images: int = 1,
    patches: int = 1,
) -> Interval:
    """``quantile`` of the counts [draws] of an image of ``shape`` (H, W) that are known."""
    k, band, block = (
        kind.k if isinstance(kind, Pixels) else None,
        kind.width if isinstance(kind, Bands) else None,
        kind.side if isinstance(kind, Blocks) else None,
    )
    touched = exposure(shape, patch, k=k, band=band, block=block, patches=patches)
    found = quantile_bounds(_people(counts), touched, q=q, alpha=alpha, images=images)
    return _widened(found, found.low, found.high)


def kind_of(k: int | None, band: int | None, block: int | None) -> Kind:
    """What a draw keeps; ValueError unless exactly one of the three is given."""
    kinds: list[Kind] = []
    kinds += [Pixels(k)] if k is not None else []
    kinds += [Bands(band)] if band is not None else []
    kinds += [Blocks(block)] if block is not None else []
    if len(kinds) != 1:
        raise ValueError("certify: expected one of k, band and block")
    return kinds[0]


def fixed_masks(
    counter: Counter,
    image: Tensor,
    patch: int,
    *,
    k: int | None = None,
    band: int | None = None,
    block: int | None = None,
    fill: float | Sequence[float],
    draws: int | None = 101,
    patches: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> Interval:
    """C1': the median count over ablated draws that are fixed, of every image a patch away.

    The draws are those of ``quantile``, but ``seed`` may be public: their interval counts how many
    of them a patch can touch at most (``most_touched``), and holds without any probability. Bands
    and blocks with ``draws`` None are shown at every place once. The defended counter is
    ``pycc.defense.ablated``, ``banded`` or ``blocked`` with ``combine="median"`` and the same draws
    and seed, which predicts the lower of two middle counts.

    ValueError for a patch or draw that does not fit the image, a counter in train mode, and unless
    exactly one of ``k``, ``band`` and ``block`` is given.
    """
    check_eval(counter)
    check_patch(patch, _shape(image))
    kind = kind_of(k, band, block)
    counts = ablated_counts(
        counter, image, kind, draws=draws, seed=seed, fill=fill, progress=progress
    )
    return fixed_of(counts, _shape(image), patch, kind, draws=draws, patches=patches, seed=seed)


def fixed_of(
    counts: Tensor,
    shape: tuple[int, int],
    patch: int,
    kind: Kind,
    *,
    draws: int | None,
    patches: int = 1,
    seed: int,
) -> Interval:
    """``fixed_masks`` of the counts of an image of ``shape`` (H, W) that are known."""
    hits = most_touched(kind, shape, patch, draws=draws, seed=seed)
    found = fixed_masks_bounds(_people(counts), hits, patches=patches, median="lower")
    return _widened(found, found.low, found.high)


def two_mask(
    counter: Counter,
    image: Tensor,
    patch: int,
    *,
    masks: int | tuple[int, int] = 36,
    fill: float | Sequence[float],
    progress: Progress | None = None,
) -> Interval:
    """C4: min over m of max over m' of the count with masks m and m' hidden; any counter.

    Some mask hides every place of the patch, so that every attacked image agrees with the clean
    one under it. The interval is the least and the largest count of the clean image's table of all
    pairs (Xiang, Mahloujifar and Mittal, "PatchCleanser", USENIX Security 2022, for the idea of two
    masks). Deterministic; the defended counter is ``pycc.defense.two_mask``.

    ValueError for a patch that does not fit, masks that are no square number or pair, and a counter
    in train mode.
    """
    check_eval(counter)
    table = two_mask_table(counter, image, patch, masks=masks, fill=fill, progress=progress)
    _people(table)
    found = Interval(
        low=float(table.min()),
        high=float(table.max()),
        method="two-mask",
        deterministic=True,
        count=float(table.max(1).values.min()),
    )
    return _widened(found, found.low, found.high)


def _people(counts: Tensor) -> NDArray[np.float64]:
    """The counts, of which none is below nobody; ValueError otherwise."""
    least = float(counts.min())
    if least < 0:
        raise ValueError(
            f"certify: counts must not be negative, got {least:.3g}; count with "
            "pycc.defense.clipped(counter)"
        )
    found: NDArray[np.float64] = counts.double().cpu().numpy()
    return found


def _shape(image: Tensor) -> tuple[int, int]:
    return int(image.shape[-2]), int(image.shape[-1])


def _widened(found: Interval, low: float, high: float) -> Interval:
    """The interval with room for the last bits of counts of other batch shapes."""

    def room(value: float) -> float:
        return ABSOLUTE + RELATIVE * abs(value) if math.isfinite(value) else 0.0

    return replace(found, low=max(0.0, low - room(low)), high=high + room(high))
