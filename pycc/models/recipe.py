"""Published training recipes, as data that a trainer can follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from pycc.models.augmentation import Augmentation


class NoRecipeError(ValueError):
    """A counter without a published training recipe.

    >>> issubclass(NoRecipeError, ValueError)
    True
    """


@dataclass(frozen=True)
class Optimiser:
    """One optimiser and the epoch from which it is used.

    >>> Optimiser("sgd", 1e-7, momentum=0.95).backbone
    1.0
    """

    kind: Literal["adam", "adamw", "sgd"]
    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    from_epoch: int = 0
    backbone: float = 1.0
    """Factor of the rate for the layers of ``CounterModel.backbone_parameters``."""


@dataclass(frozen=True)
class Schedule:
    """The schedule of the learning rate, by epoch.

    >>> Schedule("step", period=100, factor=0.5).warmup
    0
    """

    kind: Literal["constant", "step", "cosine_restarts"] = "constant"
    period: int = 0
    """Epochs between two steps, or of the first cosine cycle."""
    factor: float = 1.0
    """Factor of the rate at a step, or of the period at a restart."""
    floor: float = 0.0
    """Lowest rate of a cosine cycle."""
    warmup: int = 0
    """Epochs of a rise from ``warmup_lr``."""
    warmup_lr: float = 0.0
    geometric: bool = False
    """Whether the rise multiplies the rate by the same factor in each epoch; else it is linear."""


@dataclass(frozen=True)
class Crop:
    """The parts of an image that are used for training.

    >>> Crop("fixed", number=2, size=(256, 256)).multiple
    1
    """

    kind: Literal["whole", "quarter_sides", "quadrant", "fixed", "scaled"] = "whole"
    """``quarter_sides``: about a quarter of each side, rounded to multiples of 8 where MCNN and
    CMTL do; ``quadrant``: one of the four; ``fixed``: ``size``; ``scaled``: ``size`` times a
    factor of ``scale``, then resized to ``size``."""
    number: int = 1
    """Crops per image."""
    size: tuple[int, int] | None = None
    """Height and width in pixels."""
    scale: tuple[float, float] = (1.0, 1.0)
    multiple: int = 1
    """Sides are cut or resized to multiples of this."""


@dataclass(frozen=True)
class Boxes:
    """The heads that count in a crop: those whose box lies in it in part.

    A head's box is a square around it; its side is ``factor`` times the mean distance to the three
    nearest heads, at least ``smallest`` and at most ``largest`` pixels.

    >>> Boxes(factor=1.0, smallest=4.0, largest=128.0, share=0.3).whole
    False
    """

    factor: float
    smallest: float
    largest: float
    share: float
    """Least part of a box's area that must lie in the crop."""
    whole: bool = False
    """Whether such a head counts as one person, rather than as the part of its box."""


@dataclass(frozen=True)
class Recipe:
    """A published training recipe, as far as its code or text specifies it.

    ``density`` names the ground truth of ``pycc.data.density`` by data set ("" for all others;
    ``"dots"``: one person, one pixel). ``down_sampling`` is the published conversion to the
    network's resolution: a rule of ``pycc.data.downsample``, ``"sum"`` (block sums, which keep
    counts), or None (full resolution).

    >>> recipe = Recipe(
    ...     "arXiv 1802.10062", (Optimiser("sgd", 1e-7),), epochs=400, batch=1,
    ...     density={"": "fixed15_reflect"}, down_sampling="sum",
    ... )  # fmt: skip
    >>> recipe.crop.kind, recipe.json()["augmentation"]
    ('whole', {})
    """

    source: str
    """The code or paper that states it."""
    optimisers: tuple[Optimiser, ...]
    epochs: int
    batch: int
    density: Mapping[str, str]
    down_sampling: str | None = None
    schedule: Schedule = field(default_factory=Schedule)
    crop: Crop = field(default_factory=Crop)
    flip: float = 0.0
    """Probability of a horizontal flip."""
    augmentations: tuple[Augmentation, ...] = ()
    """Other changes of an image, in this order."""
    repeats: int = 1
    """Number of passes through the crops per epoch."""
    ema: float | None = None
    """Decay of the running mean of the weights, which is validated and kept; None: the weights."""
    clip: float | None = None
    """Largest norm of a step's gradient."""
    crops: Mapping[str, int] = field(default_factory=dict)
    """Crops per image by data set, if not ``crop.number``."""
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Height and width of crops by data set, if not ``crop.size``."""
    boxes: Mapping[str, Boxes] = field(default_factory=dict)
    """Boxes of heads by data set ("" for all others); none: a crop's heads are those in it."""
    validation_share: float = 0.0
    """Share of the training images that the published code holds out (0: it validates on test
    images, which a trainer should not do)."""
    notes: tuple[str, ...] = ()
    """Differences between code and paper, or between code and its description."""

    def json(self) -> dict[str, object]:
        """Return it as a JSON object, with augmentations and repeats by name."""
        changes: dict[str, object] = {
            augmentation.name: asdict(augmentation) for augmentation in self.augmentations
        }
        if self.repeats > 1:
            changes["repeats_per_epoch"] = self.repeats
        values = asdict(self)
        del values["augmentations"], values["repeats"]
        return {**values, "augmentation": changes}
