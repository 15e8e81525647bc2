"""The settings of a training, and the recipe that they and the model's own recipe make."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from pycc import models
from pycc.data.density import recipes, rules
from pycc.models import CounterModel
from pycc.models.recipe import Crop, NoRecipeError, Optimiser, Recipe, Schedule
from pycc.settings import check_fields, flag
from pycc.train.items import Joined
from pycc.types import Sample

_NAMED_CROPS: tuple[Literal["whole", "quarter_sides", "quadrant"], ...] = (
    "whole", "quarter_sides", "quadrant",
)  # fmt: skip
RecipeKind = Literal["plain", "adversarial", "ablation", "certified"]
RECIPES: tuple[RecipeKind, ...] = get_args(RecipeKind)
PHASES: Mapping[str, tuple[int, int]] = {
    "plain": (0, 0), "ablation": (20, 0), "adversarial": (50, 350), "certified": (20, 0),
}  # fmt: skip
"""Epochs of warm-up, and epochs in which the recipe's share then grows. Those of ``ablation`` and
``adversarial`` are of the code of arXiv 2104.10868; the paper leaves them open."""
MACHINE = ("workers", "cache", "every_minutes")
"""Fields that no result depends on: a resumed training may have others."""

TABLE_6: Mapping[str, tuple[Optimiser, int]] = {
    "mcnn": (Optimiser("adam", 1e-5), 800),
    "csrnet": (Optimiser("adam", 1e-5), 800),
    "cmtl": (Optimiser("adam", 1e-5), 800),
    "danet": (Optimiser("adam", 1e-5), 800),
    "can": (Optimiser("sgd", 1e-7, momentum=0.95), 1000),
}
"""Optimiser and epochs of ablation training (arXiv 2104.10868, Table 6), with batches of one; also
used for adversarial training, for which the paper gives none. Its momentum of 0.9 for Adam is
Adam's first decay."""


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a training; None stands for the value of the model's published recipe.

    ValueError for a field out of range.

    >>> TrainConfig(recipe="adversarial", epochs=500).phases
    (50, 350)
    """

    recipe: RecipeKind = flag(
        "plain",
        "plain: the model's own recipe; ablation: on randomly ablated images (arXiv 2104.10868, "
        "section 5); adversarial: half of the loss on patched images (eq. 18); certified: the "
        "error of the masked count and the width of its certified interval",
        choices=RECIPES,
    )
    epochs: int | None = flag(
        None, "times through the training images (default: the recipe's); a warm-up of the rate is "
        "shortened in proportion, and one cosine cycle replaces restarts",
    )  # fmt: skip
    batch: int | None = flag(
        None, "crops per step, of all processes together (default: the recipe's)"
    )
    accumulate: int = flag(1, "parts that a batch is computed in, to save memory", advanced=True)
    lr: float | None = flag(None, "learning rate (default: the recipe's)")
    crop: str | None = flag(
        None,
        "the part of an image that a step sees: the whole, a quarter of each side, a quadrant, or "
        "HxW pixels (default: the recipe's)",
        metavar="whole|quarter_sides|quadrant|HxW",
    )
    crops: int | None = flag(
        None, "crops per image and epoch (default: the recipe's; 1 for --crop whole)"
    )
    density: str | None = flag(
        None, "ground truth: a recipe of pycc.data.density, or dots (default: the recipe's)",
        advanced=True,
    )  # fmt: skip
    down_sampling: str | None = flag(
        None, "how the ground truth is reduced to the map's resolution: sum, or a published rule "
        "(default: the recipe's)", advanced=True,
    )  # fmt: skip
    validation_share: float = flag(0.1, "share of the training images that only validate")
    validate_every: int = flag(1, "epochs between two validations", advanced=True)
    patience: int | None = flag(
        None, "stop after this many validations without a better one (default: never)"
    )
    ema: float | None = flag(
        None, "validate and keep a running mean of the weights with this decay (default: the "
        "recipe's)", advanced=True,
    )  # fmt: skip
    clip: float | None = flag(
        None, "largest norm of a step's gradient (default: the recipe's)", advanced=True
    )
    amp: bool = flag(False, "compute in bfloat16 where that is safe (mixed precision)")
    workers: int = flag(0, "processes that load images")
    cache: float = flag(
        2.0, "gigabytes of images and ground truths that each process keeps; what does not fit is "
        "read and made again for each crop", advanced=True,
    )  # fmt: skip
    every_minutes: float = flag(
        5.0, "minutes between two checkpoints inside an epoch", advanced=True
    )
    k: int = flag(
        45, "ablation: pixels (or array entries) of the whole image that are kept; a crop shows "
        "those that lie in it",
    )  # fmt: skip
    unit: Literal["pixel", "element"] = flag(
        "pixel", "ablation: what is kept", choices=["pixel", "element"], advanced=True
    )
    fill: float | None = flag(
        None, "ablation: grey of the rest, in [0,1] (default: the images' mean colour)",
        advanced=True,
    )  # fmt: skip
    warmup: int | None = flag(
        None, "ablation, certified: epochs before it begins (default: 20); adversarial: epochs of "
        "clean loss alone (default: 50)",
    )  # fmt: skip
    decline: int | None = flag(
        None, "adversarial: epochs in which the share of patched images grows to a half (default: "
        "350)",
    )  # fmt: skip
    patch_size: int = flag(
        81, "adversarial, certified: side of the patch in pixels; crops must hold it"
    )
    patch_steps: int = flag(5, "adversarial: steps of the attack in a training step", advanced=True)
    patch_step_size: float = flag(
        0.1, "adversarial: change of a pixel in a step of the attack, of [0,1]", advanced=True
    )

    def __post_init__(self) -> None:
        check_fields("train", self)
        if self.recipe not in RECIPES:
            raise ValueError(
                f"train: recipe must be one of {', '.join(RECIPES)}, got {self.recipe}"
            )
        least = {
            "epochs": 1, "batch": 1, "accumulate": 1, "crops": 1, "validate_every": 1,
            "patience": 1, "workers": 0, "k": 1, "warmup": 0, "decline": 0,
            "patch_size": 1, "patch_steps": 1,
        }  # fmt: skip
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and not value >= low:
                raise ValueError(f"train: {name} must be at least {low}, got {value}")
        for name in ("lr", "clip", "cache", "every_minutes", "patch_step_size"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"train: {name} must be above 0, got {value}")
        for name, low_open in (("validation_share", False), ("ema", True)):
            value = getattr(self, name)
            if value is not None and not (0 <= value < 1 and (value > 0 or not low_open)):
                raise ValueError(f"train: {name} must lie in [0,1), got {value}")
        if self.fill is not None and not 0 <= self.fill <= 1:
            raise ValueError(f"train: fill must lie in [0,1], got {self.fill}")
        if self.unit not in ("pixel", "element"):
            raise ValueError(f"train: unit must be pixel or element, got {self.unit}")
        if self.crop is not None:
            crop_of(self.crop, 1)

    @property
    def phases(self) -> tuple[int, int]:
        """Epochs of warm-up and of the recipe's growing share: as given, or those of ``PHASES``."""
        warmup, decline = PHASES[self.recipe]
        if self.recipe != "plain" and self.warmup is not None:
            warmup = self.warmup
        if self.recipe == "adversarial" and self.decline is not None:
            decline = self.decline
        return warmup, decline


def crop_of(text: str, number: int) -> Crop:
    """A crop by its name, or of HxW pixels; ValueError for anything else."""
    for kind in _NAMED_CROPS:
        if text == kind:
            return Crop(kind, number=number)
    sides = text.split("x")
    if len(sides) == 2 and all(side.isdecimal() and int(side) > 0 for side in sides):
        return Crop("fixed", number=number, size=(int(sides[0]), int(sides[1])))
    raise ValueError(
        f"train: crop must be whole, quarter_sides, quadrant or HxW pixels, got {text!r}"
    )


def origin_of(samples: Sequence[Sample]) -> str:
    """Return the published data set of the samples (``pycc.data.Dataset.origin``); "" if unknown.

    >>> from pycc import data
    >>> origin_of(data.open("synthetic", split="train", limit=2))
    'synthetic'
    """
    return getattr(samples, "origin", "")


def resolved(config: TrainConfig, model: CounterModel, origin: str) -> Recipe:
    """Return the model's recipe for a data set, with the values of the config in place of its own.

    ``origin`` names the data set (``origin_of``): some have ground truths of their own. A model
    without a published recipe trains as MCNN does; a warning reports a published model whose
    variant has none. ValueError for a ground truth that a model cannot learn, and for a recipe with
    no epochs after its warm-up.

    >>> from pycc import models
    >>> recipe = resolved(TrainConfig(epochs=30, lr=1e-4), models.create("mcnn"), "")
    >>> recipe.epochs, recipe.optimisers[0].lr, recipe.batch
    (30, 0.0001, 1)
    """
    recipe = _published(config, model)
    density = config.density or recipe.density.get(origin, recipe.density[""])
    boxes = recipe.boxes.get(origin, recipe.boxes.get(""))
    crop = _crop(config, recipe, origin)
    _check_truth(config, density, crop, model)
    optimisers = recipe.optimisers
    if config.lr is not None:
        optimisers = tuple(replace(rule, lr=config.lr) for rule in optimisers)
    epochs = config.epochs or recipe.epochs
    warmup, decline = config.phases
    if epochs <= warmup + decline:
        raise ValueError(
            f"train: {epochs} epochs leave none to the {config.recipe} recipe after {warmup} of "
            f"warm-up and {decline} of decline; ask for more --epochs, or a smaller --warmup or "
            "--decline"
        )
    return replace(
        recipe,
        optimisers=optimisers,
        epochs=epochs,
        schedule=_shortened(recipe.schedule, recipe.epochs, epochs),
        batch=config.batch or recipe.batch,
        density={"": density},
        down_sampling=config.down_sampling or recipe.down_sampling,
        crop=crop,
        sizes={},
        boxes={} if boxes is None else {"": boxes},
    )


def _published(config: TrainConfig, model: CounterModel) -> Recipe:
    """The model's recipe, or MCNN's; with the published optimiser of the config's kind.

    A certificate is one of the whole image.
    """
    try:
        recipe = model.recipe()
    except NoRecipeError as error:
        recipe = _AS_MCNN
        if model.name in models.names():
            warnings.warn(f"train: {error} of this variant; it is trained as MCNN", stacklevel=3)
    if config.recipe == "certified":
        whole = Crop("whole", multiple=recipe.crop.multiple)
        return replace(recipe, crop=whole, crops={}, sizes={})
    if config.recipe != "plain" and model.name in TABLE_6:
        optimiser, epochs = TABLE_6[model.name]
        recipe = replace(recipe, optimisers=(optimiser,), epochs=epochs, batch=1)
    return recipe


def _crop(config: TrainConfig, recipe: Recipe, origin: str) -> Crop:
    number, size = recipe.crops.get(origin, recipe.crop.number), recipe.sizes.get(origin)
    crop = replace(recipe.crop, number=number, size=size or recipe.crop.size)
    if config.crop is not None:
        number = 1 if config.crop == "whole" else crop.number
        crop = replace(crop_of(config.crop, number), multiple=crop.multiple)
    return crop if config.crops is None else replace(crop, number=config.crops)


def _check_truth(config: TrainConfig, density: str, crop: Crop, model: CounterModel) -> None:
    """Raise ValueError for a ground truth that is unknown or unfit for the crops or cells."""
    if config.density not in (None, "dots"):
        recipes[config.density]  # ValueError that names those there are
        if crop.kind == "scaled":
            raise ValueError(
                "train: crops of a random scale count heads as dots, got density "
                f"{config.density}; ask for another --crop"
            )
    if config.down_sampling in (None, "sum"):
        return
    cell = rules[config.down_sampling][0]
    if cell != model.stride:
        raise ValueError(
            f"train: down_sampling {config.down_sampling} gives cells of {cell} pixels, the "
            f"counter's have {model.stride}"
        )
    if density == "dots":
        raise ValueError(
            f"train: down_sampling {config.down_sampling} is for density maps, and the ground "
            "truth is dots: ask for another --density"
        )


def _shortened(rates: Schedule, published: int, epochs: int) -> Schedule:
    """A schedule for another number of epochs: its warm-up in proportion, then one cosine cycle.

    Restarts belong to the published number: with another one the training would end within a cycle,
    at whatever rate that has there.
    """
    if rates.kind != "cosine_restarts" or epochs == published:
        return rates
    warmup = round(rates.warmup * epochs / published)
    return replace(rates, warmup=warmup, period=max(1, epochs - warmup))


_AS_MCNN = Recipe(
    source="pycc: none is published for this model",
    optimisers=(Optimiser("adam", 1e-5),),
    epochs=400,
    batch=1,
    density={"": "svishwa_window"},
    down_sampling="sum",
    crop=Crop("quarter_sides", number=9, multiple=8),
)


def with_own_truths(
    samples: Sequence[Sample], config: TrainConfig, model: CounterModel
) -> Sequence[Sample]:
    """The samples; joined data sets with the ground truth that the config gives to each.

    So fixed kernels of ShanghaiTech B and geometry-adaptive ones of A can be joined.
    """
    if not isinstance(samples, Joined):
        return samples
    rules = {
        name: resolved(config, model, origin_of(part)).density[""]
        for name, part in samples.parts.items()
    }
    return Joined(samples.parts, rules)
