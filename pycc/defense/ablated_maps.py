"""Counts of one image of which only a random part is shown: ablated draws.

Randomized ablation keeps k random pixels (Levine and Feizi, "Robustness certificates for sparse
adversarial attacks by randomized ablation", AAAI 2020), structured ablation a band of columns or a
block (Levine and Feizi, "(De)randomized smoothing for certifiable defense against patch attacks",
NeurIPS 2020). The rest has one colour. What a draw shows is a function of its seed, its number and
the image's size alone. Its count may differ in the last bits where convolutions of batches of other
sizes add in another order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from pycc import ops
from pycc.checks import check_image
from pycc.defense.retained import (
    BUDGET,
    Bands,
    Batch,
    Blocks,
    Elements,
    Kind,
    Pixels,
    check_eval,
    check_fill,
    check_whole,
    corners,
)
from pycc.defense.structured import structured
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
    """The number of draws and, one after another, the batches that count them.

    Arguments and errors are those of :func:`ablated_counts`; ``only`` asks for one of the draws, by
    its position among them. What a counter with a bounded field says of the empty image is computed
    while the batches are made, outside of what a caller may evaluate twice to save memory.
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
    """Density maps [n,1,h,w] of draws of one image, batch by batch, each with its draws' positions.

    Arguments and errors are those of :func:`ablated_counts`; without gradient.
    """
    total, batches = ablation_batches(
        counter, image, kind, draws=draws, first_draw=first_draw, seed=seed, fill=fill,
        budget=budget,
    )  # fmt: skip

    def found(done: int = 0) -> Iterator[tuple[list[int], Tensor]]:
        for batch in batches:
            with torch.no_grad():
                maps = batch.maps(image)
            done += len(batch.draws)
            if progress is not None:
                progress(done, total, "ablated draws")
            yield batch.draws, maps

    return found()


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
    """What a counter says of one image of which each draw shows only a part.

    On a counter with a bounded receptive field, bands and blocks are counted in the surroundings of
    what they show, and the rest is taken from the map of the empty image: the same numbers up to
    the rounding of sums.

    Args:
        counter: in eval mode, on the device of the image.
        image: [3,H,W] float32 (float64 with ``pycc.ops.reference()``), RGB in [0,1].
        kind: what is kept: :class:`Pixels`, :class:`Elements`, :class:`Bands` or :class:`Blocks`.
        draws: how many; None: each place of a band or block once.
        first_draw: the number of the first draw. Draws of other numbers are independent.
        seed: any integer of 64 bits.
        fill: the colour of what is not kept, one number or three (RGB) in [0,1]: the data set's
            mean.
        budget: pixels that are counted at once, which bounds the memory.
        progress: is called with the number of draws that are counted, and of all.

    Returns:
        [draws] float64, people, on the device of the image.

    Raises:
        ValueError, TypeError: a bad argument, or a counter in train mode.
    """
    found = ablated_maps(
        counter, image, kind, draws=draws, first_draw=first_draw, seed=seed, fill=fill,
        budget=budget, progress=progress,
    )  # fmt: skip
    order: list[int] = []
    counts = []
    for positions, maps in found:
        order += positions
        counts.append(maps.double().sum((1, 2, 3)))
    result = torch.empty(len(order), dtype=torch.float64, device=image.device)
    result[order] = torch.cat(counts)
    return result
