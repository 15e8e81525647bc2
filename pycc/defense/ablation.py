"""Counters that see a random part of the image, again and again: randomized ablation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pycc import ops
from pycc.defense.ablated_maps import (
    BUDGET,
    Bands,
    Blocks,
    Elements,
    Kind,
    Pixels,
    ablated_counts,
    ablation_batches,
)
from pycc.defense.base import Defended, DefendedModule, Defense, check_finite, defended
from pycc.defense.retained import check_fill, check_whole
from pycc.local import Box, LastDensityCache, Local, TracedGraph, aligned, influence
from pycc.types import Counter

COMBINES = ("mean", "median")
"""How the draws' maps become one."""
UNITS = {"pixel": Pixels, "element": Elements}


@dataclass(frozen=True)
class Ablated(Defense):
    """The mean of draws, or the draw of median count."""

    kind: Kind
    draws: int | None
    fill: tuple[float, float, float]
    combine: str
    seed: int
    budget: int

    @property
    def op(self) -> str:  # type: ignore[override]
        """The function that made it."""
        return self.kind.op

    def __post_init__(self) -> None:
        if self.combine not in COMBINES:
            known = ", ".join(repr(name) for name in COMBINES)
            raise ValueError(f"{self.op}: combine must be one of {known}, got {self.combine!r}")
        if self.draws is not None:
            check_whole(self.op, "draws", self.draws, 1)
        check_whole(self.op, "budget", self.budget, 1)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise TypeError(f"{self.op}: seed must be a whole number, got {self.seed!r}")

    def density(self, counter: Counter, images: Tensor) -> Tensor:
        """One image after another, so that each is ablated as if it were alone."""
        check_finite(self.op, images)
        combined = self._median if self.combine == "median" else self._mean
        return torch.cat([combined(counter, image) for image in images])

    def around(
        self,
        counter: Counter,
        windows: Tensor,
        box: Box,
        traced: TracedGraph,
        clean: LastDensityCache,
    ) -> tuple[Callable[[Tensor], Tensor], Box] | None:
        """Draws that keep pixels of the box are counted in its surroundings; the others stay.

        For the mean of draws of pixels (entries), on a counter with a bounded field and known
        layers, as long as the budget holds all these draws' windows at once.
        """
        known = isinstance(self.kind, Pixels | Elements) and self.combine == "mean"
        if not known or counter.receptive_field is None:
            return None
        check_finite(self.op, windows)
        shape, stride = (windows.shape[2], windows.shape[3]), counter.stride
        seen = influence(
            aligned(box, shape, stride), shape, stride=stride,
            receptive_field=counter.receptive_field,
        )  # fmt: skip
        inner = box.moved(-seen.top, -seen.left)
        part, colour = windows[..., *seen.slices], windows.new_tensor(self.fill)[:, None, None]
        kept = self._kept(shape, seen, windows)
        touched = kept[..., *inner.slices].flatten(1).any(1)
        touched[0] |= not touched.any()  # whose gradient is then 0
        size = max(1, self.budget // (len(part) * part.shape[2] * part.shape[3]))
        if int(touched.sum()) > size:
            return None

        def shown(draws: Tensor) -> Tensor:
            return torch.where(draws[:, None], part, colour).flatten(0, 1)

        local = Local(counter, shown(kept[touched]), inner, traced=traced)
        if not local.follows_layers:
            return None  # cells at the window's border would not be those of the image
        cells, mask = local.cells, kept[touched][..., *inner.slices]

        def summed(maps: Tensor) -> Tensor:
            """[N,...] float64: the sum over draws of maps [draws * N,...]."""
            return maps.double().reshape(-1, len(part), *maps.shape[1:]).sum(0)

        still = torch.zeros(len(part), 1, *cells.shape, dtype=torch.float64, device=part.device)
        for draws in torch.split(kept[~touched], size):
            if len(draws):  # of nothing there is one empty piece
                still += summed(counter(shown(draws))[..., *cells.slices])

        def compute(pixels: Tensor) -> Tensor:
            pixels = pixels.reshape(len(part), -1, *pixels.shape[1:])
            rows = torch.where(mask[:, None, None], pixels, colour)
            maps = local(rows.flatten(0, 2)).reshape(-1, rows.shape[2], 1, *cells.shape)
            total = still[:, None] + summed(maps)
            return (total / len(kept)).flatten(0, 1).to(pixels.dtype)

        return compute, cells.moved(seen.top // stride, seen.left // stride)

    def _kept(self, shape: tuple[int, int], seen: Box, like: Tensor) -> Tensor:
        """[draws,3,*seen.shape] bool: what of a part of the image each draw keeps."""
        assert isinstance(self.kind, Pixels | Elements)
        assert self.draws is not None
        self.kind.check(shape)
        whole = like.new_ones(1, 3, *shape)
        size = max(1, self.budget // (shape[0] * shape[1]))
        found = []
        for begin in range(0, self.draws, size):
            draws = ops.ablate(
                whole, self.kind.k, seed=self.seed, fill=0.0, unit=self.kind.unit,
                draws=min(size, self.draws - begin), first_draw=begin,
            )  # fmt: skip
            found.append(draws[..., *seen.slices] > 0)
        return torch.cat(found)

    def _mean(self, counter: Counter, image: Tensor) -> Tensor:
        total, batches = ablation_batches(
            counter, image, self.kind,
            draws=self.draws, seed=self.seed, fill=self.fill, budget=self.budget,
        )  # fmt: skip
        summed: Tensor | None = None
        for batch in batches:
            if len(batch.draws) < total and torch.is_grad_enabled():
                # All batches' activations together would not fit: they are computed once more.
                maps = cast(
                    Tensor,
                    checkpoint(batch.maps, image, use_reentrant=False, preserve_rng_state=False),
                )
            else:
                maps = batch.maps(image)
            part = maps.double().sum(0, keepdim=True)
            summed = part if summed is None else summed + part
        assert summed is not None
        return (summed / total).to(image.dtype)

    def _median(self, counter: Counter, image: Tensor) -> Tensor:
        counts = ablated_counts(
            counter, image.detach(), self.kind,
            draws=self.draws, seed=self.seed, fill=self.fill, budget=self.budget,
        )  # fmt: skip
        middle = int(counts.argsort(stable=True)[(len(counts) - 1) // 2])
        _, batches = ablation_batches(
            counter, image, self.kind,
            draws=self.draws, seed=self.seed, fill=self.fill, budget=self.budget, only=middle,
        )  # fmt: skip
        return next(batches).maps(image)


def ablated(
    counter: Counter,
    k: int,
    *,
    draws: int = 100,
    fill: float | Sequence[float],
    unit: str = "pixel",
    combine: str = "mean",
    seed: int = 0,
    budget: int = BUDGET,
) -> Defended | DefendedModule:
    """The counter on images of which only k random pixels are kept, over many draws.

    Randomized ablation (Levine and Feizi, AAAI 2020), on crowd counters by Wu et al., arXiv
    2104.10868. The draws are a function of ``seed`` and the image's size, the same for all images.
    With ``combine="mean"`` the map is the mean of the draws' maps; with ``"median"`` it is the map
    of the draw whose count is the median, of an even number the lower of the two middle ones.
    Differentiable in the images: through all draws, or through that draw. The receptive field is
    None: a window of the image alone would be ablated differently.

    ``k`` counts pixels, or array entries with ``unit="element"`` as the published code does;
    ``fill`` is the colour of the others, one number or three (RGB) in [0,1]: the data set's mean.
    ``budget`` is the number of pixels counted at once; the map may depend on it in its last bits.
    Images are float32 (float64 with ``pycc.ops.reference()``).

    ValueError for fewer than one draw, a colour outside [0,1], another unit or combination; when
    called, for an image with fewer than k pixels (entries).
    """
    if unit not in UNITS:
        known = ", ".join(repr(name) for name in UNITS)
        raise ValueError(f"ablated: unit must be one of {known}, got {unit!r}")
    check_whole("ablated", "draws", draws, 1)
    colour = check_fill("ablated", fill)
    return defended(counter, Ablated(UNITS[unit](k), draws, colour, combine, seed, budget))


def banded(
    counter: Counter,
    width: int,
    *,
    draws: int | None = 100,
    fill: float | Sequence[float],
    combine: str = "mean",
    seed: int = 0,
    budget: int = BUDGET,
) -> Defended | DefendedModule:
    """The counter on images of which only ``width`` columns side by side are kept, wrapping around.

    Band ablation (Levine and Feizi, NeurIPS 2020). ``draws`` None takes each of the image's W
    bands once: nothing is random then. Everything else is as in :func:`ablated`, but a counter with
    a bounded receptive field only looks at the bands and their surroundings: the gradient is that
    by the images, not by the counter's parameters.

    ValueError as there; when called, for an image with fewer columns than the band.
    """
    colour = check_fill("banded", fill)
    return defended(counter, Ablated(Bands(width), draws, colour, combine, seed, budget))


def blocked(
    counter: Counter,
    side: int,
    *,
    draws: int | None = 100,
    fill: float | Sequence[float],
    combine: str = "mean",
    seed: int = 0,
    budget: int = BUDGET,
) -> Defended | DefendedModule:
    """The counter on images of which only a block of ``side`` x ``side`` pixels is kept.

    Block ablation (Levine and Feizi, NeurIPS 2020): as :func:`banded`, wrapping around in both
    directions; ``draws`` None takes each of the H * W blocks once.

    ValueError as there; when called, for an image that is smaller than the block.
    """
    colour = check_fill("blocked", fill)
    return defended(counter, Ablated(Blocks(side), draws, colour, combine, seed, budget))
