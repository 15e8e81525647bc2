"""The groups of flags that the backdoor commands share, apart from those of images."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from pycc.backdoor.defenses.base import Defense, Retraining, TrainingSettings, defenses
from pycc.backdoor.defenses.detector import BlendConsistency
from pycc.backdoor.evaluation.training import PUBLISHED_DEFENSE, PUBLISHED_OPTIONS
from pycc.backdoor.poisoning.strategies import Strategy, strategies
from pycc.backdoor.poisoning.triggers import Trigger, triggers
from pycc.commands.checks import check_beside, check_least, check_share
from pycc.commands.flags import StartFlags
from pycc.commands.options import with_options
from pycc.models import CounterModel
from pycc.settings import Options, flag

DETECTOR = "blend-consistency"
"""The detector's name beside those of the defenses."""
DefenseOptions = dict[str, bool | int | float | str | list[str] | None]
"""Values of ``--defense-option DEFENSE.FIELD=VALUE``."""


@dataclass(frozen=True)
class BackdoorStartFlags(StartFlags):
    """The counter that trainings or a defense start from."""

    published = PUBLISHED_OPTIONS

    def loaded(self, weights: str | None, flag_name: str, device: torch.device) -> CounterModel:
        """The counter with these weights, in eval mode; ValueError without any."""
        if weights is None:
            raise ValueError(f"--{flag_name}: expected a file with weights, got none")
        return self.load(device, weights).eval()


@dataclass(frozen=True)
class TriggerFlags:
    """The trigger of poisoned images, and the amount of the strategies."""

    amount: int = flag(100, "heads that the strategies add and minus add or remove")
    trigger: str = flag("blend", "trigger of poisoned images", choices=triggers.names)
    trigger_option: Options = flag(
        help="a field of the trigger, such as alpha=0.1 or picture=FILE; may be repeated",
        factory=dict,
    )

    def __post_init__(self) -> None:
        check_least("amount", self.amount, 1)
        picture = self.trigger_option.get("picture")
        if isinstance(picture, str):  # absolute, so that a run can be resumed from another folder
            absolute = {**self.trigger_option, "picture": str(Path(picture).absolute())}
            object.__setattr__(self, "trigger_option", absolute)

    def made_trigger(self) -> Trigger:
        """The trigger; ValueError for a wrong option."""
        kind = triggers[self.trigger]
        return with_options("--trigger-option", f"trigger {kind.name}", kind, self.trigger_option)

    def made_strategies(self, names: Collection[str]) -> list[Strategy]:
        """The strategies of these names, each once, with the amount if they have one."""
        return [strategies[name].with_amount(self.amount) for name in dict.fromkeys(names)]

    def check_amount(self, given: Collection[str], names: Collection[str]) -> None:
        """ValueError for an amount that no strategy has."""
        with_amount = [name for name in strategies.names() if strategies[name].has_amount]
        needed = f"--strategy {' or '.join(with_amount)}"
        check_beside(given, ("amount",), needed, bool({*with_amount} & {*names}))


@dataclass(frozen=True)
class TestedAttack(TriggerFlags):
    """The attack of a command that takes one strategy."""

    strategy: str | None = flag(
        None, "change of the head annotations of poisoned images", choices=strategies.names
    )

    def check(self, given: Collection[str]) -> None:
        """ValueError for flags without effect."""
        names = [] if self.strategy is None else [self.strategy]
        self.check_amount(given, names)
        check_beside(given, ("trigger", "trigger_option"), "--strategy", bool(names))

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
        check_share("fraction", self.fraction)


@dataclass(frozen=True)
class AttackFlags(TriggerFlags):
    """The attacks of an experiment."""

    strategy: list[str] = flag(
        help="changes of the head annotations of poisoned images (default: all four)",
        choices=strategies.names, factory=lambda: ["add", "minus", "multiply", "divide"],
    )  # fmt: skip
    fraction: float = flag(0.1, _FRACTION)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("fraction", self.fraction)


@dataclass(frozen=True)
class DefenseFlags:
    """The defenses of backdoored counters."""

    defense: list[str] = flag(
        help="defenses, and the detector of triggered images, or none (default: fine-tuning)",
        choices=lambda: [*defenses.names(), DETECTOR, "none"],
        factory=lambda: ["fine-tuning"],
    )  # fmt: skip
    defense_epochs: int | None = flag(
        None, "epochs of defenses that train (default: --epochs if given, else 100)"
    )
    defense_option: DefenseOptions = flag(
        help="a field of a defense, DEFENSE.FIELD=VALUE (default: the settings of the attack's "
        "training, without validation); may be repeated",
        factory=dict,
    )
    defend_clean: bool = flag(False, "defend the clean counter too", advanced=True)
    partitions: int | None = flag(
        None, "certify the median of counters that are trained on this many parts of the poisoned "
        "set",
    )  # fmt: skip
    assumed: int | None = flag(
        None, "poisoned images that the certificate allows for (default: the actual number)",
        advanced=True,
    )  # fmt: skip
    references: int = flag(
        32, "largest number of clean images that the detector compares scores with", advanced=True
    )

    def __post_init__(self) -> None:
        for name, value, least in (
            ("defense_epochs", self.defense_epochs, 1), ("partitions", self.partitions, 1),
            ("assumed", self.assumed, 0), ("references", self.references, 3),
        ):  # fmt: skip
            check_least(name, value, least)

    def check(self, given: Collection[str]) -> None:
        """ValueError for flags without effect."""
        check_beside(given, ("assumed",), "--partitions", self.partitions is not None)
        detects = DETECTOR in self.defense
        check_beside(given, ("references",), f"--defense {DETECTOR}", detects)
        defends = not self.defend_clean or bool({*defenses.names()} & {*self.defense})
        known = f"--defense of {', '.join(defenses.names())}"
        check_beside(given, ("defend_clean",), known, defends)
        training = [name for name in defenses.names() if issubclass(defenses[name], Retraining)]
        needed = f"--defense of {', '.join(training)}"
        check_beside(given, ("defense_epochs",), needed, bool({*training} & {*self.defense}))

    def made(
        self, training: TrainingSettings, counter: CounterModel
    ) -> tuple[list[Defense], BlendConsistency | None]:
        """The defenses, and the detector if it was requested.

        Fields that they share with a training have its values, or the published ones of this
        counter, unless an option replaces them; no image validates without such an option.
        ValueError for ``none`` beside others, for an option of a defense that was not chosen, and
        for one that the defense does not have or of another type or range.
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
    """The pictures that are drawn."""

    pictures: bool | None = flag(None, "draw densities of ratios, ROC, Grad-CAMs, density maps")
    layer: list[str] | None = flag(
        None, "layers for Grad-CAM, by name (default: an early and a late one)", advanced=True
    )
    picture_image: str | None = flag(
        None, "test image of the pictures (default: the first with people)", metavar="NAME",
        advanced=True,
    )  # fmt: skip

    def check(self, given: Collection[str], drawn: bool) -> None:
        """ValueError for flags without effect, unless pictures of a run are ``drawn``."""
        check_beside(given, ("layer", "picture_image"), "--pictures of a run", drawn)
