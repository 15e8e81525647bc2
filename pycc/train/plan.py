"""What a training is asked for, and what the model's own recipe says where nothing is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from pycc.data.density import recipes, rules
from pycc.models import CounterModel
from pycc.models.recipe import Crop, Optimiser, Recipe
from pycc.train.items import Joined
from pycc.types import Sample

RECIPES = ("plain", "adversarial", "ablation")

TABLE_6: Mapping[str, tuple[Optimiser, int]] = {
    "mcnn": (Optimiser("adam", 1e-5), 800),
    "csrnet": (Optimiser("adam", 1e-5), 800),
    "cmtl": (Optimiser("adam", 1e-5), 800),
    "danet": (Optimiser("adam", 1e-5), 800),
    "can": (Optimiser("sgd", 1e-7, momentum=0.95), 1000),
}
"""Optimiser and epochs of ablation training (arXiv 2104.10868, Table 6), of batches of one. Its
momentum of 0.9 for Adam is Adam's own first decay."""


def flag(default: Any, help: str, **metadata: Any) -> Any:
    """A field whose command-line help stands beside it."""
    return field(default=default, metadata={"help": help, **metadata})


@dataclass(frozen=True)
class Plan:
    """How a counter is trained; None takes what the model's published recipe says.

    ValueError for a field out of range.
    """

    recipe: str = flag(
        "plain",
        "plain: the model's own; ablation: on randomly ablated images (arXiv 2104.10868, section "
        "5); adversarial: half of the loss on patched images (eq. 18)",
        choices=RECIPES,
    )
    epochs: int | None = flag(None, "times through the training images (default: the recipe's)")
    batch: int | None = flag(None, "crops a step, of all processes together (default: recipe's)")
    accumulate: int = flag(1, "parts that a batch is computed in, to save memory")
    lr: float | None = flag(None, "learning rate (default: the recipe's)")
    crop: str | None = flag(
        None,
        "what is trained on: whole images, crops of a quarter of each side, quadrants, or HxW "
        "pixels (default: the recipe's)",
        metavar="whole|quarter_sides|quadrant|HxW",
    )
    crops: int | None = flag(None, "crops an image and epoch (default: the recipe's)")
    density: str | None = flag(
        None, "ground truth: a recipe of pycc.data.density, or dots (default: the recipe's)"
    )
    down_sampling: str | None = flag(
        None, "how it comes to the map's resolution: sum or a published rule (default: recipe's)"
    )
    validation_share: float = flag(0.1, "share of the training images that only validate")
    validate_every: int = flag(1, "epochs between two validations")
    patience: int | None = flag(None, "validations without a better one before it stops")
    ema: float | None = flag(None, "validate and keep a running mean of the weights: its decay")
    clip: float | None = flag(None, "largest norm of a step's gradient")
    amp: bool = flag(False, "compute in bfloat16 on CUDA")
    workers: int = flag(0, "processes that load images")
    every_minutes: float = flag(5.0, "minutes between two checkpoints inside an epoch")
    k: int = flag(45, "ablation: pixels (or entries) that are kept")
    unit: str = flag("pixel", "ablation: what is kept", choices=["pixel", "element"])
    fill: float | None = flag(None, "ablation: grey of the rest, in [0,1] (default: mean colour)")
    warmup: int = flag(20, "ablation: epochs before it; adversarial: epochs of clean loss (m)")
    decline: int = flag(20, "adversarial: epochs in which its share grows to a half (n)")
    patch: int = flag(81, "adversarial: side of the patch, pixels")
    patch_steps: int = flag(5, "adversarial: steps of the attack in a training step")
    patch_step_size: float = flag(0.1, "adversarial: change of a pixel in one of them, of [0,1]")

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise ValueError(
                f"train: recipe must be one of {', '.join(RECIPES)}, got {self.recipe}"
            )
        least = {
            "epochs": 1, "batch": 1, "accumulate": 1, "crops": 1, "validate_every": 1,
            "patience": 1, "workers": 0, "k": 1, "warmup": 0, "decline": 0, "patch": 1,
            "patch_steps": 1,
        }  # fmt: skip
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and not value >= low:
                raise ValueError(f"train: {name} must be at least {low}, got {value}")
        for name in ("lr", "clip", "every_minutes", "patch_step_size"):
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

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Plan:
        """The plan among a command's settings."""
        return cls(**{entry.name: settings[entry.name] for entry in fields(cls)})


def crop_of(text: str, number: int) -> Crop:
    """A crop by its name, or of HxW pixels; ValueError for anything else."""
    if text in ("whole", "quarter_sides", "quadrant"):
        return Crop(text, number=number)  # type: ignore[arg-type]
    sides = text.split("x")
    if len(sides) == 2 and all(side.isdecimal() and int(side) > 0 for side in sides):
        return Crop("fixed", number=number, size=(int(sides[0]), int(sides[1])))
    raise ValueError(
        f"train: crop must be whole, quarter_sides, quadrant or HxW pixels, got {text!r}"
    )


def resolved(plan: Plan, model: CounterModel, data: str) -> Recipe:
    """The model's recipe for a data set, with what the plan asks for in place of its own.

    ``data`` is the data set's name: ShanghaiTech B has ground truths of its own. A model without a
    published recipe trains as MCNN does. ValueError for a ground truth that a model cannot learn.
    """
    try:
        recipe = model.recipe()
    except ValueError:
        recipe = Recipe(
            source="pycc: none is published for this model",
            optimisers=(Optimiser("adam", 1e-5),),
            epochs=400,
            batch=1,
            density={"": "svishwa_window"},
            down_sampling="sum",
            crop=Crop("quarter_sides", number=9, multiple=8),
        )
    if plan.recipe == "ablation" and model.name in TABLE_6:
        optimiser, epochs = TABLE_6[model.name]
        recipe = replace(recipe, optimisers=(optimiser,), epochs=epochs, batch=1)
    if plan.density not in (None, "dots"):
        recipes[plan.density]  # ValueError that names those there are
    if plan.down_sampling not in (None, "sum"):
        stride = rules[plan.down_sampling][0]
        if stride != model.stride:
            raise ValueError(
                f"train: down_sampling {plan.down_sampling} gives cells of {stride} pixels, the "
                f"counter's have {model.stride}"
            )
    part_b = "part_b" in data.lower() and "shanghaitech_b" in recipe.density
    density = plan.density or recipe.density["shanghaitech_b" if part_b else ""]
    crop = recipe.crop
    if plan.crop is not None:
        crop = replace(crop_of(plan.crop, crop.number), multiple=crop.multiple)
    if plan.crops is not None:
        crop = replace(crop, number=plan.crops)
    optimisers = recipe.optimisers
    if plan.lr is not None:
        optimisers = tuple(replace(one, lr=plan.lr) for one in optimisers)
    epochs, rates = plan.epochs or recipe.epochs, recipe.schedule
    if rates.kind == "cosine_restarts" and rates.period == recipe.epochs:
        rates = replace(rates, period=epochs)  # one cosine over the whole training
    return replace(
        recipe,
        optimisers=optimisers,
        epochs=epochs,
        schedule=rates,
        batch=plan.batch or recipe.batch,
        density={"": density},
        down_sampling=plan.down_sampling or recipe.down_sampling,
        crop=crop,
    )


def with_own_truths(samples: Sequence[Sample], plan: Plan, model: CounterModel) -> Sequence[Sample]:
    """The samples; joined data sets with the ground truth that the plan has for each by its name.

    So fixed kernels of ShanghaiTech B and geometry-adaptive ones of A are trained on together.
    """
    if not isinstance(samples, Joined):
        return samples
    rules = {name: resolved(plan, model, name).density[""] for name in samples.parts}
    return Joined(samples.parts, rules)
