"""How the published weights were trained, as data that a trainer can follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


class NoRecipeError(ValueError):
    """A counter of which nobody has published how it was trained."""


@dataclass(frozen=True)
class Optimiser:
    """One optimiser and the epoch from which it is used."""

    kind: Literal["adam", "sgd"]
    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    from_epoch: int = 0


@dataclass(frozen=True)
class Schedule:
    """How the learning rate changes, per epoch."""

    kind: Literal["constant", "step", "cosine_restarts"] = "constant"
    period: int = 0
    """Epochs between two steps, or of the first cosine cycle."""
    factor: float = 1.0
    """Of the rate at a step, or of the period at a restart."""
    floor: float = 0.0
    """Lowest rate of a cosine cycle."""
    warmup: int = 0
    """Epochs of a linear rise from ``warmup_lr``."""
    warmup_lr: float = 0.0


@dataclass(frozen=True)
class Crop:
    """Which parts of an image are trained on."""

    kind: Literal["whole", "quarter_sides", "quadrant", "fixed", "scaled"] = "whole"
    """``quarter_sides``: about a quarter of each side, rounded to multiples of 8 where MCNN and
    CMTL do; ``quadrant``: one of the four; ``fixed``: ``size``; ``scaled``: ``size`` times a
    factor of ``scale``, then resized to ``size``."""
    number: int = 1
    """Crops of an image."""
    size: tuple[int, int] | None = None
    """Height and width in pixels."""
    scale: tuple[float, float] = (1.0, 1.0)
    multiple: int = 1
    """Sides are cut or resized to multiples of this."""


@dataclass(frozen=True)
class Recipe:
    """A published training recipe, as far as its code or text fixes it.

    ``density`` names the ground truth of ``pycc.data.density`` by data set ("" for all others;
    ``"dots"``: one person, one pixel) and ``down_sampling`` the published way to the network's
    resolution: a rule of ``pycc.data.downsample``, ``"sum"`` (block sums, which keep counts), or
    None (full resolution).
    """

    source: str
    """The code or paper that it was read from."""
    optimisers: tuple[Optimiser, ...]
    epochs: int
    batch: int
    density: Mapping[str, str]
    down_sampling: str | None = None
    schedule: Schedule = field(default_factory=Schedule)
    crop: Crop = field(default_factory=Crop)
    flip: float = 0.0
    """Probability of a horizontal flip."""
    augmentation: Mapping[str, object] = field(default_factory=dict)
    """Anything else that is done to an image, by name."""
    ema: float | None = None
    """Decay of the running mean of the weights that is validated and kept; None: the weights."""
    clip: float | None = None
    """Largest norm of a step's gradient."""
    crops: Mapping[str, int] = field(default_factory=dict)
    """Crops an image by data set, where it is not ``crop.number``."""
    validation_share: float = 0.0
    """Share of the training images that the published code holds out (0: it looks at test
    images, which a trainer should not)."""
    notes: tuple[str, ...] = ()
    """Where code and paper differ, or the code does something other than it says."""
