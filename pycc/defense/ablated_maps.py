"""Counts of one image with all but a random part replaced by one colour: ablated draws.

Randomized ablation keeps k random pixels (Levine and Feizi, "Robustness certificates for sparse
adversarial attacks by randomized ablation", AAAI 2020), structured ablation a band of columns or a
block (Levine and Feizi, "(De)randomized smoothing for certifiable defense against patch attacks",
NeurIPS 2020). The retained part of a draw is a function of the seed, the number of the draw and the
image's size alone. Its count may depend in the last bits on the batch size, with which convolutions
may change their order of additions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from pycc import ops
from pycc.checks import check_image, check_whole
from pycc.counters import check_eval
from pycc.defense.retained import (
    BUDGET,
    Bands,
    Batch,
    Blocks,
    Elements,
    Kind,
    Pixels,
    check_fill,
    corners,
)
from pycc.defense.structured import structured
from pycc.ranks import exact
from pycc.types import Counter, Progress

__all__ = [
    "BUDGET",
    "Bands",
    "Batch",
    "Blocks",
    "Elements",
    "Kind",
    "Pixels",
    "ablated_counts",
    "ablated_maps",
    "ablation_batches",
]

_MOST_DRAWS = 1 << 32


def ablation_batches(
    counter: Counter,
    image: Tensor,
    kind: Kind,
    *,
    draws: int | None,
    first_draw: int = 0,
    seed: int,
    fill: float | Sequence[float],
    budget: int = BUDGET,
    only: int | None = None,
) -> tuple[int, Iterator[Batch]]:
    """Return the number of draws and an iterator over the batches that count them.

    Arguments and errors are those of :func:`ablated_counts`; ``only`` selects a single draw by its
    position. For a counter with a bounded receptive field, the map of the empty image is computed
    when a batch is made and not when it is evaluated, which a caller may do twice to save memory.

    Example:
        >>> import torch
        >>> from pycc import models
        >>> from pycc.defense.ablated_maps import Pixels, ablation_batches
        >>> pool = torch.nn.AvgPool2d(8).eval()  # one person per white cell
        >>> counter = models.wrap(pool, preprocess=lambda x: x[:, :1], stride=8, receptive_field=8)
        >>> image = torch.ones(3, 32, 32)
        >>> total, batches = ablation_batches(
        ...     counter, image, Pixels(512), draws=3, seed=0, fill=0.0, budget=2048
        ... )
        >>> total, [(batch.draws, list(batch.maps(image).shape)) for batch in batches]
        (3, [([0, 1], [2, 1, 4, 4]), ([2], [1, 1, 4, 4])])
    """
    check_image(kind.op, image)
    check_eval(kind.op, counter)
    shape = image.shape[1], image.shape[2]
    kind.check(shape)
    colour = torch.tensor(check_fill(kind.op, fill), device=image.device)
    check_whole(kind.op, "budget", budget, 1)
    check_whole(kind.op, "first_draw", first_draw, 0, _MOST_DRAWS - 1)
    if draws is not None:
        check_whole(kind.op, "draws", draws, 1, _MOST_DRAWS - first_draw)
    if isinstance(kind, Bands | Blocks):
        places = corners(kind, shape, draws=draws, first_draw=first_draw, seed=seed)
        places = places if only is None else [places[only]]
        return len(places), structured(counter, image, kind, places, colour, budget)
    if draws is None:
        raise ValueError(f"{kind.op}: draws must be a number where pixels are kept, got None")
    if only is not None:
        draws, first_draw = 1, first_draw + only
    size = max(1, budget // (shape[0] * shape[1]))

    def maps(begin: int, count: int, image: Tensor) -> Tensor:
        return counter(
            ops.ablate(
                image[None], kind.k, seed=seed, fill=colour, draws=count, unit=kind.unit,
                first_draw=first_draw + begin,
            )
        )  # fmt: skip

    def batches(draws: int = draws) -> Iterator[Batch]:
        for begin in range(0, draws, size):
            count = min(size, draws - begin)
            yield Batch(list(range(begin, begin + count)), partial(maps, begin, count))

    return draws, batches()


def ablated_maps(
    counter: Counter,
    image: Tensor,
    kind: Kind,
    *,
    draws: int | None,
    first_draw: int = 0,
    seed: int,
    fill: float | Sequence[float],
    budget: int = BUDGET,
    progress: Progress | None = None,
) -> Iterator[tuple[list[int], Tensor]]:
    """Iterate over batches of draws: the positions of n draws and their density maps [n,1,h,w].

    Arguments and errors are those of :func:`ablated_counts`; without gradient.

    Example:
        >>> import torch
        >>> from pycc import models
        >>> from pycc.defense.ablated_maps import Bands, ablated_maps
        >>> pool = torch.nn.AvgPool2d(8).eval()  # one person per white cell
        >>> counter = models.wrap(pool, preprocess=lambda x: x[:, :1], stride=8)
        >>> batches = ablated_maps(
        ...     counter, torch.ones(3, 32, 32), Bands(8), draws=None, seed=0, fill=0.0
        ... )
        >>> [(len(positions), list(maps.shape)) for positions, maps in batches]
        [(32, [32, 1, 4, 4])]
    """
    total, batches = ablation_batches(
        counter, image, kind, draws=draws, first_draw=first_draw, seed=seed, fill=fill,
        budget=budget,
    )  # fmt: skip

    def evaluated(done: int = 0) -> Iterator[tuple[list[int], Tensor]]:
        for batch in batches:
            with torch.no_grad():
                maps = batch.maps(image)
            done += len(batch.draws)
            if progress is not None:
                progress(done, total, "ablated draws")
            yield batch.draws, maps

    return evaluated()


@exact()
def ablated_counts(
    counter: Counter,
    image: Tensor,
    kind: Kind,
    *,
    draws: int | None,
    first_draw: int = 0,
    seed: int,
    fill: float | Sequence[float],
    budget: int = BUDGET,
    progress: Progress | None = None,
) -> Tensor:
    """Count one image in many draws, each of which retains only a part of it.

    If the counter has a bounded receptive field, bands and blocks are evaluated in a window around
    the retained part, and all other cells are taken from the map of the empty image: the same
    numbers up to the rounding of sums.

    Args:
        counter: in eval mode, on the device of the image.
        image: [3,H,W] float32 (float64 with ``pycc.ops.reference()``), RGB in [0,1].
        kind: the retained part: :class:`Pixels`, :class:`Elements`, :class:`Bands` or
            :class:`Blocks`.
        draws: number of draws, at least 1; None takes each place of a band or block once.
        first_draw: the number of the first draw. Draws of different numbers are independent.
        seed: any 64-bit integer.
        fill: the colour of all other pixels, one number or three (RGB) in [0,1]; usually the data
            set's mean.
        budget: number of pixels that are counted at once, which bounds the memory.
        progress: called with the number of finished draws and the total.

    Returns:
        [draws] float64, people, on the device of the image.

    Raises:
        ValueError, TypeError: a bad argument, or a counter in train mode.

    Example:
        >>> import torch
        >>> from pycc import models
        >>> from pycc.defense.ablated_maps import Pixels, ablated_counts
        >>> pool = torch.nn.AvgPool2d(8).eval()  # one person per white cell
        >>> counter = models.wrap(pool, preprocess=lambda x: x[:, :1], stride=8)
        >>> ablated_counts(
        ...     counter, torch.ones(3, 32, 32), Pixels(512), draws=2, seed=0, fill=0.0
        ... ).tolist()
        [8.0, 8.0]
    """
    batches = ablated_maps(
        counter, image, kind, draws=draws, first_draw=first_draw, seed=seed, fill=fill,
        budget=budget, progress=progress,
    )  # fmt: skip
    order: list[int] = []
    counts = []
    for positions, maps in batches:
        order += positions
        counts.append(maps.double().sum((1, 2, 3)))
    result = torch.empty(len(order), dtype=torch.float64, device=image.device)
    result[order] = torch.cat(counts)
    return result
