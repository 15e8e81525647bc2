"""Randomized ablation as a defense: combine the maps of many randomly ablated images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pycc import ops
from pycc.checks import check_whole
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
from pycc.defense.base import (
    Around,
    Change,
    Defended,
    DefendedModule,
    Defense,
    check_finite,
    defended,
)
from pycc.defense.retained import check_fill
from pycc.local import Box, Local
from pycc.types import Counter

COMBINES = ("mean", "median")
"""Ways to combine the maps of the draws."""
UNITS = {"pixel": Pixels, "element": Elements}


@dataclass(frozen=True)
class Ablated(Defense):
    """The mean of the draws' maps, or the map of the draw with the median count."""

    kind: Kind
    draws: int | None
    fill: tuple[float, float, float]
    combine: str
    seed: int
    budget: int

    @property
    def op(self) -> str:  # type: ignore[override]
        """The function of ``pycc.defense`` that makes this defense."""
        return self.kind.op

    def __post_init__(self) -> None:
        if self.combine not in COMBINES:
            known = ", ".join(repr(name) for name in COMBINES)
            raise ValueError(f"{self.op}: combine must be one of {known}, got {self.combine!r}")
        if self.draws is not None:
            check_whole(self.op, "draws", self.draws, 1)
        check_whole(self.op, "budget", self.budget, 1)
        check_whole(self.op, "seed", self.seed, -(2**63), 2**64 - 1)

    def density(self, counter: Counter, images: Tensor) -> Tensor:
        """Compute the defended maps, one image at a time, so that a batch changes nothing."""
        check_finite(self.op, images)
        combined = self._median if self.combine == "median" else self._mean
        return torch.cat([combined(counter, image) for image in images])

    def around(self, counter: Counter, change: Change) -> Around | None:
        """Evaluate draws that keep pixels of the box in a window around it; all others are fixed.

        Available for the mean of draws of pixels (entries), for a counter with a bounded receptive
        field and known layers, if the windows of these draws fit into the budget together.
        """
        supported = isinstance(self.kind, Pixels | Elements) and self.combine == "mean"
        if not supported or counter.receptive_field is None:
            return None
        windows, stride = change.windows, counter.stride
        check_finite(self.op, windows)
        seen, inner = change.influenced(counter)
        part, colour = windows[..., *seen.slices], windows.new_tensor(self.fill)[:, None, None]
        kept = self._kept(change.shape, seen, windows)
        touched = kept[..., *inner.slices].flatten(1).any(1)
        touched[0] |= not touched.any()  # at least one draw; its gradient is then 0
        size = max(1, self.budget // (len(part) * part.shape[2] * part.shape[3]))
        if int(touched.sum()) > size:
            return None

        def ablate(draws: Tensor) -> Tensor:
            return torch.where(draws[:, None], part, colour).flatten(0, 1)

        local = Local(counter, ablate(kept[touched]), inner, traced=change.traced)
        if not local.follows_layers:
            return None  # cells at the window's border would differ from those of the image
        cells, kept_pixels = local.cells, kept[touched][..., *inner.slices]

        def summed(maps: Tensor) -> Tensor:
            """Sum maps [draws * N,...] over the draws: [N,...] float64."""
            return maps.double().reshape(-1, len(part), *maps.shape[1:]).sum(0)

        still = torch.zeros(len(part), 1, *cells.shape, dtype=torch.float64, device=part.device)
        for draws in torch.split(kept[~touched], size):
            if len(draws):  # torch.split gives one empty piece for an empty tensor
                still += summed(counter(ablate(draws))[..., *cells.slices])

        def compute(pixels: Tensor) -> Tensor:
            pixels = pixels.reshape(len(part), -1, *pixels.shape[1:])
            rows = torch.where(kept_pixels[:, None, None], pixels, colour)
            maps = local(rows.flatten(0, 2)).reshape(-1, rows.shape[2], 1, *cells.shape)
            total = still[:, None] + summed(maps)
            return (total / len(kept)).flatten(0, 1).to(pixels.dtype)

        return compute, cells.moved(seen.top // stride, seen.left // stride)

    def _kept(self, shape: tuple[int, int], seen: Box, like: Tensor) -> Tensor:
        """Return the kept pixels of the box ``seen`` for each draw: [draws,3,*seen.shape] bool."""
        assert isinstance(self.kind, Pixels | Elements)
        assert self.draws is not None
        self.kind.check(shape)
        ones = like.new_ones(1, 3, *shape)
        size = max(1, self.budget // (shape[0] * shape[1]))
        kept = []
        for begin in range(0, self.draws, size):
            draws = ops.ablate(
                ones, self.kind.k, seed=self.seed, fill=0.0, unit=self.kind.unit,
                draws=min(size, self.draws - begin), first_draw=begin,
            )  # fmt: skip
            kept.append(draws[..., *seen.slices] > 0)
        return torch.cat(kept)

    def _mean(self, counter: Counter, image: Tensor) -> Tensor:
        total, batches = ablation_batches(
            counter, image, self.kind,
            draws=self.draws, seed=self.seed, fill=self.fill, budget=self.budget,
        )  # fmt: skip
        summed: Tensor | None = None
        for batch in batches:
            if len(batch.draws) < total and torch.is_grad_enabled():
                # The activations of all batches would not fit: recompute them in the backward pass.
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
    """Defend a counter by randomized ablation: keep k random pixels of the image, in many draws.

    The draws are a function of ``seed`` and the image's size, the same for all images. The defended
    counter is differentiable in the images: through all draws, or through the median draw. Its
    receptive field is None, since a window alone would be ablated differently. It takes float32
    images (float64 with ``pycc.ops.reference()``).

    Args:
        counter: any counter, in eval mode when it is called.
        k: number of kept pixels, or of array entries with ``unit="element"``, as the published code
            counts.
        draws: number of draws, at least 1.
        fill: the colour of all other pixels, one number or three (RGB) in [0,1]; usually the data
            set's mean.
        unit: ``pixel`` or ``element``.
        combine: ``mean``: the map is the mean of the draws' maps. ``median``: it is the map of the
            draw with the median count, of an even number the lower of the two middle ones.
        seed: any 64-bit integer.
        budget: number of pixels that are counted at once; the map may depend on it in its last
            bits.

    Raises:
        ValueError: fewer than one draw, a colour outside [0,1], another unit or combination; when
            the counter is called, an image with fewer than k pixels (entries).

    Source:
        Levine and Feizi, "Robustness certificates for sparse adversarial attacks by randomized
        ablation", AAAI 2020; on crowd counters Wu et al., arXiv 2104.10868.

    Example:
        >>> import torch
        >>> from pycc import defense, models
        >>> pool = torch.nn.AvgPool2d(8).eval()  # one person per white cell
        >>> counter = models.wrap(pool, preprocess=lambda x: x[:, :1], stride=8, receptive_field=8)
        >>> ablated = defense.ablated(counter, 512, draws=4, fill=0.0)
        >>> with torch.no_grad():
        ...     float(ablated(torch.ones(1, 3, 32, 32)).sum())
        8.0
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
    """Defend a counter by band ablation: keep ``width`` adjacent columns of the image.

    A band wraps around the image's right border. A counter with a bounded receptive field is only
    evaluated in windows around the bands; gradients by its parameters are then not available,
    gradients by the images are.

    Args:
        width: columns of a band, in pixels, 1 to the image's width.
        draws: number of random bands, at least 1; None takes each of the image's W bands once,
            without randomness.
        counter, fill, combine, seed, budget: as in :func:`ablated`.

    Raises:
        ValueError: as in :func:`ablated`; when the counter is called, an image with fewer columns
            than the band.

    Source:
        Levine and Feizi, "(De)randomized smoothing for certifiable defense against patch attacks",
        NeurIPS 2020.

    Example:
        >>> import torch
        >>> from pycc import defense, models
        >>> pool = torch.nn.AvgPool2d(8).eval()  # one person per white cell
        >>> counter = models.wrap(pool, preprocess=lambda x: x[:, :1], stride=8)
        >>> banded = defense.banded(counter, 8, draws=None, fill=0.0)
        >>> with torch.no_grad():
        ...     float(banded(torch.ones(1, 3, 32, 32)).sum())
        4.0
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
    """Defend a counter by block ablation: keep a block of ``side`` x ``side`` pixels of the image.

    A block wraps around the image's borders in both directions. Everything else is as in
    :func:`banded`.

    Args:
        side: side of a block in pixels, 1 to the image's smaller side.
        draws: number of random blocks, at least 1; None takes each of the H * W blocks once.
        counter, fill, combine, seed, budget: as in :func:`ablated`.

    Raises:
        ValueError: as in :func:`ablated`; when the counter is called, an image that is smaller than
            the block.

    Source:
        Levine and Feizi, "(De)randomized smoothing for certifiable defense against patch attacks",
        NeurIPS 2020.

    Example:
        >>> import torch
        >>> from pycc import defense, models
        >>> pool = torch.nn.AvgPool2d(8).eval()  # one person per white cell
        >>> counter = models.wrap(pool, preprocess=lambda x: x[:, :1], stride=8)
        >>> blocked = defense.blocked(counter, 16, draws=4, fill=0.0)
        >>> with torch.no_grad():
        ...     float(blocked(torch.ones(1, 3, 32, 32)).sum())
        4.0
    """
    colour = check_fill("blocked", fill)
    return defended(counter, Ablated(Blocks(side), draws, colour, combine, seed, budget))
