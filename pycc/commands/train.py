"""``pycc train``: train a counter, on one process or under torchrun."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pycc import data, defense, train
from pycc.commands import base
from pycc.commands.base import DONE, Context, RunCommand
from pycc.commands.checks import check_beside, check_least
from pycc.commands.flags import AnnotatedFlags, MachineFlags, StartFlags
from pycc.commands.pictures import drawn
from pycc.commands.scenes import TRAIN, OnScenes
from pycc.data.dataset import builtin as builtin_data
from pycc.models import CounterModel
from pycc.ranks import Ranks
from pycc.settings import flag, group
from pycc.train import CountErrors, TrainConfig, TrainSummary, curves
from pycc.train import config as train_config
from pycc.train.held import measured
from pycc.train.loop import Measure

MACHINE = frozenset({*train_config.MACHINE, *base.MACHINE, "tensorboard"})
"""Flags that a resumed run may change."""
_OF_RECIPES = {
    "k": ["ablation"], "unit": ["ablation"], "fill": ["ablation"],
    "ablation_samples": ["ablation"], "warmup": ["ablation", "adversarial", "certified"],
    "decline": ["adversarial"], "patch_size": ["adversarial", "certified"],
    "patch_steps": ["adversarial"],
    "patch_step_size": ["adversarial"],
}  # fmt: skip
"""Flags that only some recipes read."""


@dataclass(frozen=True)
class TrainingImages(AnnotatedFlags):
    """The images that a counter is trained on."""

    split: str = flag("train", "part that is trained on, and of which a share validates")


@dataclass(frozen=True)
class MeasuredImages:
    """The images that the best weights are measured on."""

    test_split: str | None = flag(
        None, "part that the best weights are measured on, once, after training"
    )
    test_data: str | None = flag(
        None, "its folder or built-in data set (default: --data)", metavar="FOLDER",
        names=builtin_data.names,
    )  # fmt: skip
    ablation_samples: int = flag(20, "ablation: random ablations of each test image", advanced=True)

    def __post_init__(self) -> None:
        check_least("ablation_samples", self.ablation_samples, 1)


@dataclass(frozen=True)
class OutputFlags:
    """The pictures besides the table."""

    pictures: bool | None = flag(
        None, "draw the curves of loss and validation (default: if matplotlib is installed)"
    )
    tensorboard: bool = flag(False, "write the curves for TensorBoard too", advanced=True)


@dataclass(frozen=True)
class TrainSettings:
    """Everything that a training depends on."""

    config: TrainConfig = group(TrainConfig, "training")
    images: TrainingImages = group(TrainingImages, "images")
    test: MeasuredImages = group(MeasuredImages, "test images")
    start: StartFlags = group(StartFlags, "counter")
    machine: MachineFlags = group(MachineFlags, "machine")
    output: OutputFlags = group(OutputFlags, "output")


class Train(OnScenes[TrainSettings], RunCommand[TrainSettings]):
    """``pycc train``."""

    name = "train"
    kind = "train"
    machine = MACHINE
    summary = (
        "Train a counter on annotated images by its published recipe, on ablated images, against "
        "patches, or on the certified error."
    )
    settings = TrainSettings
    scenes = TRAIN
    note = "Several processes: torchrun --nproc-per-node N -m pycc.train ..."

    def scene_values(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The defaults on the scenes; a crop that was given has a number of its own."""
        values = super().scene_values(given)
        return {name: v for name, v in values.items() if name != "crops" or "crop" not in given}

    def check(self, settings: TrainSettings, given: frozenset[str]) -> TrainSettings:
        """ValueError for a flag that was given and would do nothing, or lacks a library."""
        for name, recipes in _OF_RECIPES.items():
            needed = f"--recipe {' or '.join(recipes)}"
            met = settings.config.recipe in recipes
            check_beside(given, [name], needed, met, f"--recipe {settings.config.recipe}")
        tests = settings.test.test_split is not None
        check_beside(given, ["test_data", "ablation_samples"], "--test-split", tests)
        validates = settings.config.validation_share > 0
        check_beside(given, ["validate_every"], "--validation-share above 0", validates, "0")
        output = settings.output
        if output.tensorboard:
            curves.check_tensorboard()
        return replace(settings, output=replace(output, pictures=drawn(output.pictures)))

    def draws(self, settings: TrainSettings) -> bool:
        """Whether pictures are drawn."""
        return bool(settings.output.pictures)

    def run(self, settings: TrainSettings, context: Context) -> int:
        """Train in the run folder and print the table."""
        counter = settings.start.counter(settings.machine.seed).to(context.device)
        images = settings.images
        samples = images.samples()
        tested = _tested(settings)
        if tested is not None:
            samples = data.apart(samples, tested, ("training", "test"))
            if len(samples) == 0:
                raise ValueError(
                    f"{tested.name}: all training images are among the test images; expected "
                    "another --split, --test-split or --test-data"
                )
        with context.progress("batches") as progress:
            done = train.fit(
                counter, samples, settings.config, seed=settings.machine.seed,
                out=context.run_folder, resume=context.resume, ranks=context.ranks,
                settings=settings, command=context.command,
                machine=MACHINE, progress=progress,
                measure=_measure(tested, settings, context.ranks), tested=tested,
            )  # fmt: skip
        if context.ranks.first:
            print(curves.training_table(done))
            print(f"run folder: {context.run_folder}", flush=True)
            if settings.output.pictures:
                curves.draw_training(done, context.run_folder / "curves.png")
            if settings.output.tensorboard:
                curves.write_tensorboard(done, context.run_folder / "tensorboard")
        return DONE


command = Train()


def _tested(settings: TrainSettings) -> data.Dataset | None:
    """The images that the best weights are measured on, opened before the training."""
    test = settings.test
    if test.test_split is None:
        return None
    images = settings.images
    return images.opened(test.test_data or images.data, test.test_split)


def _measure(
    tested: data.Dataset | None, settings: TrainSettings, processes: Ranks
) -> Measure | None:
    """Return a function that measures weights on test images, without and with ablation."""
    if tested is None:
        return None

    def measure(counter: CounterModel, summary: TrainSummary) -> dict[str, CountErrors]:
        errors = {"plain": measured(counter, tested, ranks=processes)}
        if summary.fill is not None:
            ablated = defense.ablated(
                counter, settings.config.k, draws=settings.test.ablation_samples,
                fill=summary.fill, unit=settings.config.unit, seed=settings.machine.seed,
            )  # fmt: skip
            errors["ablated"] = measured(ablated, tested, ranks=processes)
        return errors

    return measure
