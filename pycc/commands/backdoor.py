"""``pycc backdoor``: poison, train, evaluate and defend counters; the experiment and its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pycc.backdoor.defenses.base import defenses
from pycc.backdoor.evaluation import drawing, folders, page  # noqa: F401  (registers pages)
from pycc.backdoor.evaluation.evaluate import evaluate
from pycc.backdoor.evaluation.training import PUBLISHED, PUBLISHED_DEFENSE, train
from pycc.backdoor.poisoning.overlap import (
    check_unseen,
    overlap,
    pixels,
    poisoned_with,
    recorded_warnings,
)
from pycc.backdoor.poisoning.poison import Poisoned, Triggered, export, poison
from pycc.backdoor.poisoning.stated import StatedPoisoning
from pycc.commands.backdoor_base import OnBackdoorScenes, RunOnScenes, warn
from pycc.commands.backdoor_experiment import RunExperiment
from pycc.commands.backdoor_report import Report, print_tables
from pycc.commands.backdoor_settings import (
    DefendSettings,
    EvaluateSettings,
    PoisonSettings,
    TrainSettings,
)
from pycc.commands.base import DONE, CommandGroup, Context, Entry
from pycc.commands.pictures import drawn
from pycc.commands.progress import note
from pycc.commands.scenes import BACKDOOR
from pycc.train import curves
from pycc.train.loop import WEIGHTS
from pycc.types import Sample


class Poison(OnBackdoorScenes[PoisonSettings]):
    """``pycc backdoor poison``."""

    name = step = "poison"
    summary = "Write a poisoned data set, for any program to train on."
    settings = PoisonSettings

    def check(self, settings: PoisonSettings, given: frozenset[str]) -> PoisonSettings:
        """Refuse flags without effect."""
        settings.attack.check(given)
        return settings

    def run(self, settings: PoisonSettings, context: Context) -> int:
        """Write the folder and print the numbers of images and heads."""
        strategy, seed = settings.attack.made_strategy(), settings.seed
        trigger = settings.attack.made_trigger()
        training, tested = settings.images.training(), settings.images.tested()
        check_unseen({sample.name: pixels(sample) for sample in tested}, map(pixels, training))
        fraction = settings.attack.fraction
        poisoned = poison(training, trigger, strategy, fraction=fraction, seed=seed)
        triggered = (
            Poisoned(tested, trigger, strategy, seed=seed)
            if settings.test_points == "altered"
            else Triggered(tested, trigger, seed)
        )
        with context.progress("images") as progress:
            written = export(
                {"train": poisoned, "test": triggered}, settings.out, layout=settings.layout,
                lossless=settings.lossless, progress=progress,
            )  # fmt: skip
        for split in written:
            print(f"{split.folder}: {split.images:,} images, {split.heads:,} heads annotated")
        print(f"poisoned in train: {len(poisoned.sources):,} of {len(training):,}", flush=True)
        return DONE


class Train(RunOnScenes[TrainSettings]):
    """``pycc backdoor train``."""

    name = step = "train"
    kind = "train"
    summary = "Train a counter on a poisoned set, or without --strategy on the clean one."
    settings = TrainSettings

    def check(self, settings: TrainSettings, given: frozenset[str]) -> TrainSettings:
        """Refuse flags without effect."""
        settings.attack.check(given)
        return settings

    def run(self, settings: TrainSettings, context: Context) -> int:
        """Train, and print the table of epochs."""
        training, seed = settings.images.training(), settings.machine.seed
        counter = settings.start.counter(seed).to(context.device)
        attack = settings.attack
        samples: Sequence[Sample] = training
        if attack.strategy is not None:
            samples = poison(
                training, attack.made_trigger(), attack.made_strategy(),
                fraction=attack.fraction, seed=seed,
            )  # fmt: skip
        plan = settings.training.with_published(PUBLISHED, counter).plan()
        with context.progress("steps") as progress:
            log = train(
                counter, samples, plan, seed=seed, out=context.run_folder,
                fraction=attack.fraction, settings=folders.NamedSettings(settings, self.command),
                command=context.command, ranks=context.ranks, progress=progress,
            )  # fmt: skip
        if context.ranks.first:
            print(curves.training_table(log))
            print(f"run folder: {context.run_folder}", flush=True)
        return DONE


class Evaluate(RunOnScenes[EvaluateSettings]):
    """``pycc backdoor evaluate``."""

    name = step = "evaluate"
    summary = "Count clean and triggered test images with weights."
    settings = EvaluateSettings

    def presets(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the poisoning of the weights, over the defaults on the built-in scenes."""
        weights = given.get("weights")
        poisoning = None if weights is None else folders.poisoning_of(Path(weights))
        if poisoning is None:
            return super().presets(given)
        trigger, strategy = poisoning.trigger, poisoning.strategy
        presets: dict[str, Any] = {
            "trigger": trigger.name,
            "strategy": strategy.name,
            "seed": poisoning.seed,
            "defended": poisoning.defended,
        }
        if given.get("trigger", trigger.name) == trigger.name:
            presets["trigger_option"] = trigger.fields
        if given.get("strategy", strategy.name) == strategy.name:
            presets |= strategy.fields  # the amount, of one that has any
        return {**super().presets({**presets, **given}), **presets}

    def check(self, settings: EvaluateSettings, given: frozenset[str]) -> EvaluateSettings:
        """Refuse flags without effect; decide whether pictures are drawn."""
        settings.attack.check(given)
        return replace(settings, pictures=drawn(settings.pictures))

    def draws(self, settings: EvaluateSettings) -> bool:
        """Whether pictures are drawn."""
        return bool(settings.pictures)

    def run(self, settings: EvaluateSettings, context: Context) -> int:
        """Count what is missing; print and draw the results."""
        device, seed = context.device, settings.machine.seed
        backdoored = settings.start.loaded(settings.weights, "weights", device)
        clean = None
        if settings.clean_weights is not None:
            clean = settings.start.loaded(settings.clean_weights, "clean-weights", device)
        strategy, trigger = settings.attack.made_strategy(), settings.attack.made_trigger()
        samples = settings.images.tested()
        poisoning = folders.poisoning_of(Path(str(settings.weights)))
        if poisoning is not None and not context.resume:
            changes = poisoning.changes(
                StatedPoisoning.of(trigger, strategy, seed=seed, defended=settings.defended)
            )
            start = f"{settings.weights}: trained with another poisoning than is tested: "
            warn(context, [start + "; ".join(changes)] if changes else [])
        warn(context, recorded_warnings(test=samples))
        with context.progress("images") as progress:
            evaluate(
                backdoored, samples, trigger, strategy, clean_counter=clean,
                defense=settings.defended, seed=seed, out=context.run_folder,
                resume=context.resume, ranks=context.ranks, progress=progress, settings=settings,
                command=context.command, machine=self.machine,
            )  # fmt: skip
        if context.ranks.first:
            done = folders.StoredRun.read(context.run_folder)
            print_tables(folders.merged([done]))
            if settings.pictures:
                applied = [] if settings.defended is None else [settings.defended]
                drawing.draw_results(
                    done.records, context.run_folder / "pictures", defenses=applied
                )
            print(f"run folder: {context.run_folder}", flush=True)
        return DONE


class Defend(RunOnScenes[DefendSettings]):
    """``pycc backdoor defend NAME``, for one defense."""

    settings = DefendSettings
    step = "defend"
    note = (
        f"--lr is {BACKDOOR.lr} if the counter is MCNN with "
        f"{' and '.join(f'{name}={value}' for name, value in BACKDOOR.option.items())}."
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.summary = (defenses[name].__doc__ or name).splitlines()[0]
        super().__init__()

    @property
    def command(self) -> str:
        """The name of the command in manifests."""
        return f"backdoor defend {self.name}"

    def variants(self, argv: Sequence[str]) -> Mapping[str, type[Any]]:
        """The settings of the defense."""
        return {"defense": defenses[self.name]}

    def check(self, settings: DefendSettings, given: frozenset[str]) -> DefendSettings:
        """Refuse flags without effect."""
        settings.extra.check(given)
        return settings

    def run(self, settings: DefendSettings, context: Context) -> int:
        """Defend the counter, and print the file of its weights."""
        before = settings.start.loaded(settings.start.weights, "weights", context.device)
        weights, seed = Path(str(settings.start.weights)), settings.machine.seed
        settings = settings.with_scene_rate(before)
        defense = settings.defense.with_published(PUBLISHED_DEFENSE, before)
        images = settings.extra.clean(settings.images, settings.images.training(), seed)
        poisoned = poisoned_with(weights.parent) if weights.is_file() else None
        poisoning = folders.poisoning_of(weights)
        if poisoning is not None:  # for evaluations of the defended counter
            poisoning = replace(poisoning, defended=defense.name)
        if poisoned is None:
            note("the training set of the weights is not known, nor whether it has these images")
        shared = overlap(poisoned or [], images, known=() if poisoned is None else None)
        warn(context, shared.warnings())
        log = folders.open_run(
            context.run_folder, resume=context.resume, settings=settings, name=self.command,
            command=context.command, machine=self.machine, counter=before,
            samples={"data": images}, poisoning=poisoning, ranks=context.ranks,
        )  # fmt: skip
        folder = context.run_folder / defense.name
        with log:
            with context.progress("steps") as progress:
                defense(before, images, seed=seed, out=folder, resume=True, ranks=context.ranks,
                        progress=progress)  # fmt: skip
            unknown = poisoned is None and not shared.recorded
            log.finish({"defense": defense.name, "overlap": None if unknown else asdict(shared)})
        if context.ranks.first:
            print(f"weights: {folder / WEIGHTS}", flush=True)
        return DONE


class DefendGroup(CommandGroup):
    """``pycc backdoor defend``."""

    name = "defend"
    summary = "A defense for a counter that may have a backdoor."

    @property
    def entries(self) -> Sequence[Entry]:
        """One command for each defense."""
        return [Defend(name) for name in defenses.names()]


class Backdoor(CommandGroup):
    """``pycc backdoor``."""

    name = "backdoor"
    summary = "Backdoors in counters: poisoned training sets, their effects, and defenses."
    entries: Sequence[Entry] = (
        RunExperiment(), Poison(), Train(), Evaluate(), DefendGroup(), Report()
    )  # fmt: skip


command = Backdoor()
