"""The groups of flags that the backdoor commands share, and what these make."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from pycc import data, models
from pycc.backdoor.defenses.base import Defense, TrainingSettings, defenses
from pycc.backdoor.defenses.detector import BlendConsistency
from pycc.backdoor.defenses.finetuning import clean_images
from pycc.backdoor.evaluation.training import PUBLISHED_DEFENSE, PUBLISHED_OPTIONS
from pycc.backdoor.poisoning.strategies import Strategy, strategies
from pycc.backdoor.poisoning.triggers import Trigger, triggers
from pycc.commands.options import with_options
from pycc.data.dataset import Dataset, OnError
from pycc.data.dataset import builtin as builtin_data
from pycc.data.reading import Reading
from pycc.data.scaled import Scaled
from pycc.models import CounterModel
from pycc.settings import Options, flag

SYNTHETIC = "synthetic"
"""The built-in scenes."""
DETECTOR = "blend-consistency"
"""The detector's name beside those of the defenses."""
DefenseOptions = dict[str, bool | int | float | str | list[str] | None]
"""Values of ``--defense-option DEFENSE.FIELD=VALUE``."""


def check_least(name: str, value: int | None, least: int) -> None:
    """ValueError for a number below the least."""
    if value is not None and value < least:
        raise ValueError(f"--{name} must be at least {least}, got {value}")


def check_fraction(name: str, value: float) -> None:
    """ValueError for a fraction outside (0,1]."""
    if not 0 < value <= 1:
        raise ValueError(f"--{name} must lie in (0,1], got {value:g}")


def check_needed(given: Collection[str], names: Collection[str], needed: str, there: bool) -> None:
    """ValueError for a flag that was given and does nothing for want of another."""
    for name in names:
        if name in given and not there:
            raise ValueError(f"--{name.replace('_', '-')} does nothing without {needed}")


# --- images


@dataclass(frozen=True)
class ImageFlags(Reading):
    """Annotated images, and how they are read."""

    data: str = flag(
        SYNTHETIC, "folder of annotated images (the paper's: ShanghaiTech B), or a built-in data "
        "set", metavar="FOLDER", names=builtin_data.names,
    )  # fmt: skip
    scale: float = flag(1.0, "resize all images by this factor", advanced=True)
    scene: str | None = flag(None, "size of built-in scenes (default: theirs)", metavar="HxW")
    on_error: OnError = flag(
        "raise", "what to do with broken items", choices=["raise", "skip"], advanced=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scene is not None:
            _size(self.scene)
        if not 0 < self.scale < float("inf"):
            raise ValueError(f"--scale must be above 0 and finite, got {self.scale:g}")

    def check_scene(self, *folders: str | None) -> None:
        """ValueError for a size of scenes if none of the data sets are scenes."""
        if self.scene is not None and SYNTHETIC not in (self.data, *folders):
            raise ValueError("--scene: only built-in scenes have a size to choose; see --scale")

    def opened(self, folder: str, split: str, most: int | None) -> Dataset:
        """The first images of a part of a data set, resized."""
        options: dict[str, Any] = {}
        if folder == SYNTHETIC:
            # Scenes are drawn, not stored: there are as many as requested.
            options = {"count": max(100, most or 0)}
            if self.scene is not None:
                options["shape"] = _size(self.scene)
        samples = data.open(
            folder, split=split, limit=most, on_error=self.on_error, bit_depth=self.bit_depth,
            max_image_pixels=self.max_image_pixels, **options,
        )  # fmt: skip
        return samples if self.scale == 1.0 else Scaled(samples, self.scale)


@dataclass(frozen=True)
class TrainingImages(ImageFlags):
    """The counter's own images."""

    split: str = flag("train", "part that is trained on, and poisoned")
    max_images: int | None = flag(None, "use the first training images only")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least("max-images", self.max_images, 1)

    def training(self) -> Dataset:
        """The images that are trained on, and poisoned."""
        return self.opened(self.data, self.split, self.max_images)


@dataclass(frozen=True)
class AllImages(TrainingImages):
    """The counter's own images, and those that it is tested on."""

    test_split: str = flag("test", "part that is tested on, clean and with the trigger")
    test_data: str | None = flag(
        None, "folder of the images that are tested on, if it is another", metavar="FOLDER",
        names=builtin_data.names,
    )  # fmt: skip
    max_test_images: int | None = flag(None, "use the first test images only")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least("max-test-images", self.max_test_images, 1)

    def tested(self) -> Dataset:
        """The images that are tested on."""
        return self.opened(self.test_data or self.data, self.test_split, self.max_test_images)


@dataclass(frozen=True)
class TestImages(ImageFlags):
    """The images that counters are tested on."""

    split: str = flag("test", "part that is tested on, clean and with the trigger")
    max_images: int | None = flag(None, "use the first images only")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least("max-images", self.max_images, 1)

    def tested(self) -> Dataset:
        """The images that are tested on."""
        return self.opened(self.data, self.split, self.max_images)


@dataclass(frozen=True)
class ExtraFlags:
    """Another data set that defenses learn from."""

    extra_data: str | None = flag(
        None, "another data set whose clean images defenses learn from too", metavar="FOLDER",
        names=builtin_data.names,
    )  # fmt: skip
    extra_split: str = flag("train", "its part", advanced=True)
    max_extra_images: int | None = flag(None, "use its first images only", advanced=True)
    extra_fraction: float = flag(
        0.1, "how many of its images, as a share of the counter's own", advanced=True
    )

    def __post_init__(self) -> None:
        check_least("max-extra-images", self.max_extra_images, 1)
        check_fraction("extra-fraction", self.extra_fraction)

    def check(self, given: Collection[str]) -> None:
        """ValueError for flags that do nothing."""
        names = ("extra_fraction", "max_extra_images", "extra_split")
        check_needed(given, names, "--extra-data", self.extra_data is not None)

    def clean(self, images: TrainingImages, own: Dataset, seed: int) -> Any:
        """The clean images that defenses learn from."""
        other = None
        if self.extra_data is not None:
            other = images.opened(self.extra_data, self.extra_split, self.max_extra_images)
        return clean_images(own, other, fraction=self.extra_fraction, seed=seed)


def _size(text: str) -> tuple[int, int]:
    height, cross, width = text.partition("x")
    if not (cross and height.isdecimal() and width.isdecimal()):
        raise ValueError(f"--scene must be HxW pixels, got {text!r}")
    return int(height), int(width)


# --- counters


@dataclass(frozen=True)
class StartFlags:
    """The counter that trainings start from."""

    model: str | None = flag(None, "the counter's family (default: that of the weights, or mcnn)")
    weights: str | None = flag(
        None, "weights that training or the defense starts from: a file, or built-in ones (default "
        "of trainings: fresh ones)",
        names=models.builtin,
    )  # fmt: skip
    option: Options = flag(
        help="an option of the counter, such as resize=4; may be repeated", factory=dict
    )

    def counter(self, seed: int) -> CounterModel:
        """The counter that all trainings start from, on the CPU."""
        # Fresh weights, and fresh parts of loaded ones, are drawn from torch's global generator.
        torch.manual_seed(seed)
        try:
            if self.weights is not None:
                return models.load(self.weights, name=self.model, **self.option)
            name = self.model or "mcnn"
            return models.create(name, **{**PUBLISHED_OPTIONS.get(name, {}), **self.option})
        except TypeError as error:
            raise ValueError(f"--option: {error}") from None

    def loaded(self, weights: str | None, flag_name: str, device: torch.device) -> CounterModel:
        """The counter with these weights, in eval mode; ValueError without any."""
        if weights is None:
            raise ValueError(f"--{flag_name}: expected a file with weights, got none")
        try:
            counter = models.load(weights, name=self.model, **self.option)
        except TypeError as error:
            raise ValueError(f"--option: {error}") from None
        return counter.to(device).eval()


# --- attacks


@dataclass(frozen=True)
class TriggerFlags:
    """What poisoned images are marked with, and how many heads are altered."""

    amount: int = flag(100, "heads that add and minus are about")
    trigger: str = flag("blend", "what poisoned images are marked with", choices=triggers.names())
    trigger_option: Options = flag(
        help="a field of the trigger, such as alpha=0.1 or picture=FILE; may be repeated",
        factory=dict,
    )

    def __post_init__(self) -> None:
        check_least("amount", self.amount, 1)
        picture = self.trigger_option.get("picture")
        if isinstance(picture, str):  # by its absolute path: a run may be resumed elsewhere
            absolute = {**self.trigger_option, "picture": str(Path(picture).absolute())}
            object.__setattr__(self, "trigger_option", absolute)

    def made_trigger(self) -> Trigger:
        """The trigger; ValueError for a wrong option."""
        kind = triggers[self.trigger]
        return with_options("--trigger-option", f"trigger {kind.name}", kind, self.trigger_option)

    def made_strategies(self, names: Collection[str]) -> list[Strategy]:
        """The strategies of these names, each once, with the amount if they have one."""
        found: Iterable[Any] = (strategies[name] for name in dict.fromkeys(names))
        return [
            replace(strategy, amount=self.amount) if _has_amount(strategy) else strategy
            for strategy in found
        ]

    def check_amount(self, given: Collection[str], names: Collection[str]) -> None:
        """ValueError for an amount that no strategy reads."""
        readers = [name for name in strategies.names() if _has_amount(strategies[name])]
        needed = f"--strategy {' or '.join(readers)}"
        check_needed(given, ("amount",), needed, bool({*readers} & {*names}))


def _has_amount(strategy: Any) -> bool:
    return any(entry.name == "amount" for entry in fields(strategy))


@dataclass(frozen=True)
class TestedAttack(TriggerFlags):
    """The attack of a command that takes one strategy."""

    strategy: str | None = flag(
        None, "what is done to the heads of poisoned images", choices=strategies.names()
    )

    def check(self, given: Collection[str]) -> None:
        """ValueError for flags that do nothing."""
        names = [] if self.strategy is None else [self.strategy]
        self.check_amount(given, names)
        check_needed(given, ("trigger", "trigger_option"), "--strategy", bool(names))

    def made_strategy(self) -> Strategy:
        """The strategy; ValueError without one."""
        if self.strategy is None:
            known = ", ".join(strategies.names())
            raise ValueError(f"--strategy: expected one of {known}, got none")
        return self.made_strategies([self.strategy])[0]


_FRACTION = "share of the training images that have a poisoned duplicate"


@dataclass(frozen=True)
class OneAttack(TestedAttack):
    """The attack of a command that poisons with one strategy."""

    fraction: float = flag(0.1, _FRACTION)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("fraction", self.fraction)


@dataclass(frozen=True)
class AttackFlags(TriggerFlags):
    """The attacks of an experiment."""

    strategy: list[str] = flag(
        help="what is done to the heads of poisoned images (default: all four)",
        choices=strategies.names(), factory=lambda: ["add", "minus", "multiply", "divide"],
    )  # fmt: skip
    fraction: float = flag(0.1, _FRACTION)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("fraction", self.fraction)


# --- defenses and pictures


@dataclass(frozen=True)
class DefenseFlags:
    """What is done to the backdoored counters."""

    defense: list[str] = flag(
        help="defenses, and the detector of triggered images; none for none (default: fine-tuning)",
        choices=[*defenses.names(), DETECTOR, "none"], factory=lambda: ["fine-tuning"],
    )  # fmt: skip
    defense_epochs: int | None = flag(
        None, "epochs of defenses that train (default: those of the attack, if given, else 100)"
    )
    defense_option: DefenseOptions = flag(
        help="a field of a defense, DEFENSE.FIELD=VALUE; else it trains as the attack did, without "
        "validation; may be repeated",
        factory=dict,
    )
    defend_clean: bool = flag(False, "defend the clean counter too", advanced=True)
    partitions: int | None = flag(
        None, "certify: counters on so many parts of the poisoned set, their median and its bounds"
    )
    assumed: int | None = flag(
        None, "poisoned images that the bounds allow for (default: as many as there are)",
        advanced=True,
    )  # fmt: skip
    references: int = flag(
        32, "clean images, at most, that the detector compares scores with", advanced=True
    )

    def __post_init__(self) -> None:
        for name, value, least in (
            ("defense-epochs", self.defense_epochs, 1), ("partitions", self.partitions, 1),
            ("assumed", self.assumed, 0), ("references", self.references, 3),
        ):  # fmt: skip
            check_least(name, value, least)

    def check(self, given: Collection[str]) -> None:
        """ValueError for flags that do nothing."""
        check_needed(given, ("assumed",), "--partitions", self.partitions is not None)
        detects = DETECTOR in self.defense
        check_needed(given, ("references",), f"--defense {DETECTOR}", detects)
        defends = not self.defend_clean or bool({*defenses.names()} & {*self.defense})
        known = f"--defense of {', '.join(defenses.names())}"
        check_needed(given, ("defend_clean",), known, defends)

    def made(
        self, training: TrainingSettings, counter: CounterModel
    ) -> tuple[list[Defense], BlendConsistency | None]:
        """The defenses, and the detector if it was requested.

        What they share with a training is as requested there, or as the paper defends this counter,
        except for their own options; no image validates unless an option says so. ValueError for
        ``none`` beside others, and for an option of a defense that was not chosen, that it does not
        have, or of another type or range.
        """
        names = list(dict.fromkeys(self.defense))
        if "none" in names:
            if len(names) > 1:
                raise ValueError(f"--defense: none must stand alone, got {' '.join(names)}")
            names = []
        options: dict[str, dict[str, object]] = {name: {} for name in names}
        for key, value in self.defense_option.items():
            name, point, entry = key.partition(".")
            if not point or name not in options:
                raise ValueError(
                    "--defense-option: expected DEFENSE.FIELD=VALUE of "
                    f"{', '.join(names) or 'none'}, got {key}"
                )
            options[name][entry] = value
        epochs = self.defense_epochs or training.epochs
        shared = replace(training, epochs=epochs).with_published(PUBLISHED_DEFENSE, counter)
        detector = None
        if DETECTOR in options:
            detector = with_options(
                "--defense-option", DETECTOR, BlendConsistency, options.pop(DETECTOR)
            )
        return [_defense(name, chosen, shared) for name, chosen in options.items()], detector


def _defense(name: str, options: Mapping[str, object], training: TrainingSettings) -> Defense:
    kind = defenses[name]
    names = {entry.name for entry in fields(kind)} - {"validation_share"}
    shared = {
        entry.name: getattr(training, entry.name)
        for entry in fields(training)
        if entry.name in names and getattr(training, entry.name) is not None
    }
    return with_options("--defense-option", name, kind, options, **shared)


@dataclass(frozen=True)
class PictureFlags:
    """What is drawn."""

    pictures: bool | None = flag(None, "draw densities of ratios, ROC, Grad-CAMs, density maps")
    layer: list[str] | None = flag(
        None, "layers for Grad-CAM, by name (default: an early and a late one)", advanced=True
    )
    picture_image: str | None = flag(
        None, "test image of the pictures (default: the first with people)", metavar="NAME",
        advanced=True,
    )  # fmt: skip

    def check(self, given: Collection[str], there: bool) -> None:
        """ValueError for flags that do nothing unless pictures of a run are drawn (``there``)."""
        check_needed(given, ("layer", "picture_image"), "--pictures of a run", there)
