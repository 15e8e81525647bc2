"""The settings of the backdoor commands, one frozen dataclass for each."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
    AllImages,
    ExtraFlags,
    TestImages,
    TrainingImages,
)
from pycc.commands.flags import MachineFlags
from pycc.commands.scenes import BACKDOOR, SYNTHETIC
from pycc.data.target import targets
from pycc.models import CounterModel
from pycc.ranks import Ranks
from pycc.settings import flag, group
from pycc.types import Progress


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

        It is the rate of the counter that is trained on the scenes; other counters keep their own.
        """
        defense = self.defense
        if not isinstance(defense, Retraining) or defense.lr is not None:
            return self
        grey = BACKDOOR.option.items() <= counter.options().items() and counter.name == "mcnn"
        if not (grey and self.images.data == SYNTHETIC):
            return self
        return replace(self, defense=replace(defense, lr=BACKDOOR.lr))


@dataclass(frozen=True)
class ReportSettings:
    """The runs that are reported."""

    runs: list[str] = flag(
        help="the folder of a run or an evaluation; several with the same test images and trigger "
        "are reported together, such as evaluations before and after a defense, or of two models",
        positional=True, metavar="RUN",
    )  # fmt: skip
    picture: PictureFlags = group(PictureFlags, "pictures")
