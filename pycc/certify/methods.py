"""What is certified and how: the methods of the command, by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pycc.certify.calibration import Calibration
from pycc.certify.drawn import fixed_of, quantile_of, two_mask
from pycc.certify.maps import additive_of, masked_of, mixed
from pycc.defense.ablated_maps import Pixels, ablated_counts
from pycc.defense.capping import Caps
from pycc.defense.mixture import parts_of
from pycc.defense.windows import window_of
from pycc.registry import Registry
from pycc.types import Counter, Interval


@dataclass(frozen=True)
class Plan:
    """What is certified, and how."""

    patches: tuple[int, ...] = (20, 40, 81, 163)
    methods: tuple[str, ...] = ("masked",)
    masks: int = 36
    k: int = 45
    draws: int = 1000
    alpha: float = 0.001
    seed: int = 0
    allowance: float | None = None
    """People; None: calibrated for each patch."""
    cap: float | None = None
    """People a cell; None: calibrated."""
    block_cap: float | None = None
    """People a block of 8 x 8 cells; None: calibrated."""
    fill: tuple[float, float, float] | None = None
    """None: the mean colour of the calibration images."""

    @property
    def needs_heads(self) -> bool:
        """Whether something is calibrated on the annotated heads of other images: allowances."""
        return "masked" in self.methods and self.allowance is None


@dataclass
class Calibrated:
    """What a plan's methods need, from images that are not the certified ones."""

    allowances: dict[int, tuple[Calibration, ...]] = field(default_factory=dict)
    """By patch, one for each counter of a mixture."""
    cap: Calibration | None = None
    block_cap: Calibration | None = None
    fill: tuple[float, float, float] | None = None

    def json(self) -> dict[str, Any]:
        """As a run's folder keeps it."""
        return {
            "allowances": {
                str(patch): [one.json() for one in found]
                for patch, found in self.allowances.items()
            },
            "cap": None if self.cap is None else self.cap.json(),
            "block_cap": None if self.block_cap is None else self.block_cap.json(),
            "fill": self.fill,
        }

    def check(self, plan: Plan, counters: int) -> None:
        """ValueError unless all is there that a plan needs, for so many counters of a mixture."""
        if "masked" in plan.methods:
            for patch in plan.patches:
                if len(self.allowances.get(patch, ())) != counters:
                    raise ValueError(f"an allowance for {patch} pixels and each counter is missing")
        if "additive" in plan.methods and None in (self.cap, self.block_cap):
            raise ValueError("caps are missing")
        if self.fill is None and any(name not in ON_MAPS for name in plan.methods):
            raise ValueError("the fill is missing")
        numbers = [one.value for ones in self.allowances.values() for one in ones]
        numbers += [one.value for one in (self.cap, self.block_cap) if one is not None]
        numbers += list(self.fill or ())
        if not all(math.isfinite(float(number)) and number >= 0 for number in numbers):
            raise ValueError("numbers must be finite and at least 0")

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Calibrated:
        """What ``json`` gave; an error of some kind for anything else."""
        caps = (stored[name] for name in ("cap", "block_cap"))
        cap, block_cap = (None if one is None else Calibration(**one) for one in caps)
        fill = None if stored["fill"] is None else [float(value) for value in stored["fill"]]
        return cls(
            {
                int(patch): tuple(Calibration(**one) for one in found)
                for patch, found in sorted(
                    stored["allowances"].items(), key=lambda one: int(one[0])
                )
            },
            cap,
            block_cap,
            None if fill is None else (fill[0], fill[1], fill[2]),
        )


@dataclass(frozen=True)
class Seen:
    """One image, and what the counter says of it."""

    image: Tensor
    cells: Tensor
    """[1,h,w], the counter's map."""
    parts: tuple[Tensor, ...]
    """The maps of the counters that it is a mixture of."""
    index: int
    told: Callable[[int, int], None] | None = None
    """How many draws or pairs of masks are counted, and of how many."""
    counts: dict[int, Tensor] = field(default_factory=dict)
    """Counts of ablated draws, by seed: no patch size changes them."""

    def drawn(self, counter: Counter, plan: Plan, known: Calibrated, seed: int) -> Tensor:
        """Counts [draws] of the plan's ablation."""
        assert known.fill is not None
        if seed not in self.counts:
            self.counts[seed] = ablated_counts(
                counter, self.image, Pixels(plan.k), draws=plan.draws, seed=seed, fill=known.fill,
                progress=self.told,
            )  # fmt: skip
        return self.counts[seed]

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.image.shape[-2], self.image.shape[-1]


Method = Callable[[Counter, Seen, int, Plan, Calibrated, int], Interval]
methods: Registry[Method] = Registry("method")
"""(counter, image, patch, plan, calibrated, number of images) -> interval."""
ON_MAPS = ("masked", "additive")
"""Methods that need the map alone: one forward pass for all patches."""


@methods.register("masked")
def _masked(
    counter: Counter, seen: Seen, patch: int, plan: Plan, known: Calibrated, images: int
) -> Interval:
    counters, shares = parts_of(counter)
    found = [
        masked_of(cells, _window(one, seen, patch), allowance.value)
        for one, cells, allowance in zip(counters, seen.parts, known.allowances[patch], strict=True)
    ]
    return mixed(found, shares)


@methods.register("additive")
def _additive(
    counter: Counter, seen: Seen, patch: int, plan: Plan, known: Calibrated, images: int
) -> Interval:
    return additive_of(seen.cells, _window(counter, seen, patch), caps_of(known))


@methods.register("two-mask")
def _two_mask(
    counter: Counter, seen: Seen, patch: int, plan: Plan, known: Calibrated, images: int
) -> Interval:
    assert known.fill is not None
    return two_mask(
        counter, seen.image, patch, masks=plan.masks, fill=known.fill, progress=seen.told
    )


@methods.register("quantile")
def _quantile(
    counter: Counter, seen: Seen, patch: int, plan: Plan, known: Calibrated, images: int
) -> Interval:
    counts = seen.drawn(counter, plan, known, plan.seed + seen.index)
    # alpha is the run's: shared by images and patch sizes.
    return quantile_of(
        counts, seen.shape, patch, Pixels(plan.k), alpha=plan.alpha,
        images=images * len(plan.patches),
    )  # fmt: skip


@methods.register("fixed-masks")
def _fixed_masks(
    counter: Counter, seen: Seen, patch: int, plan: Plan, known: Calibrated, images: int
) -> Interval:
    counts = seen.drawn(counter, plan, known, plan.seed)
    return fixed_of(counts, seen.shape, patch, Pixels(plan.k), draws=plan.draws, seed=plan.seed)


def caps_of(known: Calibrated) -> Caps:
    """The caps of the additive certificate."""
    assert known.cap is not None
    assert known.block_cap is not None
    return Caps(known.cap.value, known.block_cap.value)


def _window(counter: Counter, seen: Seen, patch: int) -> tuple[int, int]:
    return window_of(counter, patch, seen.shape, (seen.cells.shape[-2], seen.cells.shape[-1]))
