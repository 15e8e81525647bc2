"""The settings of the backdoor commands, one frozen dataclass for each."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from pycc import models
from pycc.backdoor.defenses.base import Defense, Retraining, TrainingSettings
from pycc.backdoor.evaluation.experiment import Experiment, Partitions
from pycc.backdoor.evaluation.training import PUBLISHED
from pycc.commands.backdoor_flags import (
    AttackFlags,
    BackdoorStartFlags,
    DefenseFlags,
    OneAttack,
    PictureFlags,
    TestedAttack,
)
from pycc.commands.backdoor_images import (
    SYNTHETIC,
    AllImages,
    ExtraFlags,
    TestImages,
    TrainingImages,
)
from pycc.commands.flags import MachineFlags
from pycc.data.target import targets
from pycc.models import CounterModel
from pycc.ranks import Ranks
from pycc.settings import flag, group
from pycc.types import Progress

SCENES: Mapping[str, Any] = {
    "weights": "mcnn-synthetic", "option": {"input": "gray_unit"}, "scene": "384x512",
    "max_images": 128, "max_test_images": 32, "strategy": ["multiply"], "trigger": "sinusoid",
    "trigger_option": {"amplitude": 0.1, "period": 4.0}, "fraction": 0.2, "epochs": 14,
    "batch": 1, "lr": 4e-4, "crop": "240x320", "crops": 1, "validation_share": 0.0, "ema": 0.997,
    "defense_epochs": 8,
}  # fmt: skip
"""Defaults on the built-in scenes. A grating of four pixels hides heads from the clean counter,
which therefore rarely counts too many; with grey in [0,1] all layers learn at one rate."""


@dataclass(frozen=True)
class RunSettings:
    """The whole experiment."""

    images: AllImages = group(AllImages, "data and counter")
    start: BackdoorStartFlags = group(BackdoorStartFlags, "data and counter")
    attack: AttackFlags = group(AttackFlags, "attack")
    training: TrainingSettings = group(TrainingSettings, "training")
    extra: ExtraFlags = group(ExtraFlags, "defenses")
    defenses: DefenseFlags = group(DefenseFlags, "defenses")
    picture: PictureFlags = group(PictureFlags, "pictures")
    machine: MachineFlags = group(MachineFlags, "machine")
    check: bool = flag(
        False, "exit code 1 unless a backdoor that works and its removal are shown (last line)"
    )

    def __post_init__(self) -> None:
        self.images.check_scene(self.images.test_data, self.extra.extra_data)

    def experiment(
        self, counter: CounterModel, device: torch.device, ranks: Ranks = Ranks(),
        progress: Progress | None = None,
    ) -> Experiment:  # fmt: skip
        """The experiment with counters like this one; ValueError for wrong settings."""
        seed, training = self.machine.seed, self.images.training()
        applied, detector = self.defenses.made(self.training, counter)
        certificate = None
        if self.defenses.partitions is not None:
            certificate = Partitions(self.defenses.partitions, self.defenses.assumed)
        return Experiment(
            start=lambda: self.start.counter(seed).to(device),
            plan=self.training.with_published(PUBLISHED, counter).plan(),
            training=training,
            test=self.images.tested(),
            trigger=self.attack.made_trigger(),
            strategies=self.attack.made_strategies(self.attack.strategy),
            fraction=self.attack.fraction,
            seed=seed,
            clean=self.extra.clean(self.images, training, seed),
            defenses=applied,
            detector=detector,
            references=self.defenses.references,
            defend_clean=self.defenses.defend_clean,
            partitions=certificate,
            device=device,
            ranks=ranks,
            progress=progress,
        )


@dataclass(frozen=True)
class PoisonSettings:
    """The poisoned data set that is written."""

    out: str = flag(help="the folder to write: new or empty", positional=True)
    images: AllImages = group(AllImages, "data")
    attack: OneAttack = group(OneAttack, "attack")
    layout: str = flag("shanghaitech", "layout of the folder", choices=targets.names)
    lossless: bool = flag(False, "write lossless PNG; published code reads JPEG alone")
    test_points: str = flag(
        "altered", "heads of the triggered test images; poisoning.jsonl has both",
        choices=["altered", "true"], advanced=True,
    )  # fmt: skip
    seed: int = flag(0, "key of all randomness")

    def __post_init__(self) -> None:
        self.images.check_scene(self.images.test_data)


@dataclass(frozen=True)
class TrainSettings:
    """The counter that is trained, on a poisoned set or on the clean one."""

    images: TrainingImages = group(TrainingImages, "data and counter")
    start: BackdoorStartFlags = group(BackdoorStartFlags, "data and counter")
    attack: OneAttack = group(OneAttack, "attack")
    training: TrainingSettings = group(TrainingSettings, "training")
    machine: MachineFlags = group(MachineFlags, "machine")

    def __post_init__(self) -> None:
        self.images.check_scene()


@dataclass(frozen=True)
class EvaluateSettings:
    """The counters that are evaluated, and the attack that they are tested with."""

    images: TestImages = group(TestImages, "data and counters")
    start: BackdoorStartFlags = group(BackdoorStartFlags, "data and counters")
    attack: TestedAttack = group(TestedAttack, "attack")
    machine: MachineFlags = group(MachineFlags, "machine")
    weights: str | None = flag(
        None, "file with the weights of the backdoored counter", names=models.builtin
    )
    clean_weights: str | None = flag(
        None, "weights of the clean counter, for the chance level: a file, or the name of built-in "
        "ones", names=models.builtin,
    )  # fmt: skip
    defended: str | None = flag(
        None, "name of the defense that was applied to --weights", metavar="DEFENSE"
    )
    pictures: bool | None = flag(None, "draw densities of ratios")

    def __post_init__(self) -> None:
        self.images.check_scene()


@dataclass(frozen=True)
class DefendSettings:
    """The counter that is defended, and how."""

    defense: Defense = group(Defense, "defense")  # type: ignore[type-abstract]
    images: TrainingImages = group(TrainingImages, "data and counter")
    extra: ExtraFlags = group(ExtraFlags, "data and counter")
    start: BackdoorStartFlags = group(BackdoorStartFlags, "data and counter")
    machine: MachineFlags = group(MachineFlags, "machine")

    def __post_init__(self) -> None:
        self.images.check_scene(self.extra.extra_data)

    def with_scene_rate(self, counter: CounterModel) -> DefendSettings:
        """These settings, with the learning rate of the built-in scenes if none is given.

        It is the rate of the counter that ``SCENES`` trains; other counters keep their own.
        """
        defense = self.defense
        if not isinstance(defense, Retraining) or defense.lr is not None:
            return self
        grey = SCENES["option"].items() <= counter.options().items() and counter.name == "mcnn"
        if not (grey and self.images.data == SYNTHETIC):
            return self
        return replace(self, defense=replace(defense, lr=SCENES["lr"]))


@dataclass(frozen=True)
class ReportSettings:
    """The runs that are reported."""

    runs: list[str] = flag(
        help="the folder of a run or an evaluation; several with the same test images and trigger "
        "are reported together, such as evaluations before and after a defense, or of two models",
        positional=True, metavar="RUN",
    )  # fmt: skip
    picture: PictureFlags = group(PictureFlags, "pictures")


def scene_defaults(
    command: str, known: Collection[str], given: Mapping[str, Any]
) -> Mapping[str, Any]:
    """The values of ``SCENES`` that apply to a command with these flags on the built-in scenes."""
    values = dict(SCENES)
    if command != "run":
        del values["strategy"]
    if command == "evaluate":
        values["max_images"] = values["max_test_images"]
    if command == "defend":
        values["epochs"] = values["defense_epochs"]
    other_counter = command in ("evaluate", "defend") or (
        {"model", "weights", "option"} & given.keys()
    )
    if other_counter:  # with its own rate, which a defense knows once the counter is loaded
        for name in ("weights", "option", "lr"):
            del values[name]
    if {"scene", "scale"} & given.keys():
        values["crop"] = "whole"
    if "trigger" in given or "trigger_option" in given:
        del values["trigger"], values["trigger_option"]
    return {name: value for name, value in values.items() if name in known}


def scene_help(command: str, known: Collection[str]) -> str:
    """The sentence of the help about a command's defaults on the built-in scenes."""
    shown = []
    for name, value in scene_defaults(command, known, {}).items():
        text = value
        if isinstance(value, dict):
            text = " and ".join(f"{key}={inner}" for key, inner in value.items())
        elif isinstance(value, list):
            text = " ".join(value)
        shown.append(f"--{name.replace('_', '-')} {text}")
    sentence = f"Without --data, on the built-in scenes, the defaults are {', '.join(shown)}."
    if command == "defend":
        option, value = next(iter(SCENES["option"].items()))
        sentence += f" --lr is {SCENES['lr']} if the counter is MCNN with {option}={value}."
    return sentence
