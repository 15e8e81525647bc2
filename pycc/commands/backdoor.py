"""``pycc backdoor``: backdoors in counters, and their defenses."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from pycc import models, report
from pycc.backdoor.defenses.base import defenses
from pycc.backdoor.evaluation import drawing, folders, page  # noqa: F401  (registers pages)
from pycc.backdoor.evaluation.counting import EvaluationSet, counted
from pycc.backdoor.evaluation.experiment import Experiment
from pycc.backdoor.evaluation.folders import open_run
from pycc.backdoor.evaluation.summary import summarise
from pycc.backdoor.evaluation.training import PUBLISHED, PUBLISHED_DEFENSE, train
from pycc.backdoor.evaluation.verdict import verdict
from pycc.backdoor.poisoning.overlap import (
    Overlap,
    overlap,
    pixels,
    poisoned_with,
    recorded_warnings,
    unseen,
)
from pycc.backdoor.poisoning.poison import Poisoned, Triggered, export, poison
from pycc.commands.backdoor_flags import SYNTHETIC
from pycc.commands.backdoor_report import Report, print_tables
from pycc.commands.backdoor_settings import (
    DefendSettings,
    EvaluateSettings,
    PoisonSettings,
    RunSettings,
    TrainSettings,
    scene_defaults,
    scene_help,
)
from pycc.commands.base import (
    DONE,
    FAILED,
    MACHINE,
    Command,
    CommandGroup,
    Context,
    Entry,
    RunCommand,
)
from pycc.commands.progress import say
from pycc.report import curves
from pycc.runs import Record
from pycc.settings import flags_of, values_of
from pycc.train import NotFiniteError
from pycc.train.loop import WEIGHTS
from pycc.types import Sample

S = TypeVar("S")
CHECK = (
    "The last line says whether a backdoor that works and its removal are shown; with --check the "
    "exit code is 1 if not."
)


class _OnScenes(Command[S]):
    """A command with other defaults on the built-in scenes."""

    step: str
    """Which defaults hold for it (``scene_defaults``)."""
    note = ""

    def known(self) -> list[str]:
        """Names of its flags."""
        return [flag.name for flag in flags_of(self.settings, self.variants(()))]

    @property
    def epilog(self) -> str:  # type: ignore[override]
        """The defaults on the built-in scenes."""
        return f"{scene_help(self.step, self.known())} {self.note}".strip()

    def presets(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The defaults on the built-in scenes, if they are the data."""
        if given.get("data", SYNTHETIC) != SYNTHETIC:
            return {}
        return scene_defaults(self.step, self.known(), given)


class _Run(_OnScenes[S], RunCommand[S]):
    """A command with a run folder."""

    kind = "backdoor"
    machine = MACHINE | {"layer", "picture_image"}

    @property
    def command(self) -> str:
        """What its manifests store under ``command``: it distinguishes runs of one kind."""
        return f"backdoor {self.step}"

    def matches(self, flags: Mapping[str, Any]) -> bool:
        """Whether a stored run is one of this command."""
        return flags.get("command") == self.command

    def stored(self, settings: object) -> Record:
        """The flags as a manifest stores them."""
        return {**values_of(settings), "command": self.command}

    def run(self, settings: S, context: Context) -> int:
        """Do the work; a loss that is no number is one line."""
        try:
            return self.work(settings, context)
        except NotFiniteError as error:
            raise ValueError(str(error)) from None

    @abstractmethod
    def work(self, settings: S, context: Context) -> int:
        """Do the work; returns the exit code."""


class Experimenting(_Run[RunSettings]):
    """``pycc backdoor run``."""

    name = step = "run"
    summary = "The whole experiment: clean and backdoored counters, defenses, tables, pictures."
    settings = RunSettings
    note = CHECK

    def check(self, settings: RunSettings, given: frozenset[str]) -> RunSettings:
        """Refuse flags that do nothing; decide whether pictures are drawn."""
        settings.extra.check(given)
        settings.defenses.check(given)
        settings.attack.check_amount(given, settings.attack.strategy)
        settings.picture.check(given, settings.picture.pictures is not False)
        drawn = _drawn(settings.picture.pictures)
        return replace(settings, picture=replace(settings.picture, pictures=drawn))

    def work(self, settings: RunSettings, context: Context) -> int:
        """Train, defend and measure what is not there yet; print and draw the results."""
        start = settings.start.counter(settings.machine.seed).to(context.device)
        picture = settings.picture
        with context.progress("steps") as progress:
            experiment = settings.experiment(start, context.device, context.ranks, progress)
            if start.name not in models.names():
                raise ValueError(
                    f"--weights: a counter that can be trained is expected, got {start.name}"
                )
            if picture.pictures:
                tested = EvaluationSet(experiment.test, experiment.trigger, experiment.seed)
                drawing.check(tested, start, image=picture.picture_image, layers=picture.layer)
            _warn(context, recorded_warnings(training=experiment.own, test=experiment.test))
            shared = _overlap(experiment, context)
            experiment.check(resumed=context.resume)  # before all the work
            extra = settings.extra.extra_data is not None
            log = open_run(
                context.run_folder, resume=context.resume, command=context.command,
                flags=self.stored(settings), machine=self.machine, counter=start,
                samples={"data": experiment.own, "test": experiment.test,
                         "clean": experiment.clean if extra else None},
                trigger=experiment.trigger, ranks=context.ranks,
            )  # fmt: skip
            try:
                summary = {**experiment.run(log, context.run_folder), "model": start.name}
                if shared is not None:
                    summary["overlap"] = asdict(shared)
                log.finish(summary)
            finally:
                log.close()
        shown, sentence = verdict(log.summary)
        if context.ranks.first:
            print_tables({start.name: log.summary})
            print(f"run folder: {context.run_folder}", flush=True)
            if picture.pictures:
                alone = settings.experiment(start, context.device)
                drawing.draw_run(
                    alone, log.records, context.run_folder, image=picture.picture_image,
                    layers=picture.layer,
                )  # fmt: skip
            print(sentence, flush=True)
        return DONE if shown or not settings.check else FAILED


class Poison(_OnScenes[PoisonSettings]):
    """``pycc backdoor poison``."""

    name = step = "poison"
    summary = "Write a poisoned data set, for any program to train on."
    settings = PoisonSettings

    def check(self, settings: PoisonSettings, given: frozenset[str]) -> PoisonSettings:
        """Refuse flags that do nothing."""
        settings.attack.check(given)
        return settings

    def run(self, settings: PoisonSettings, context: Context) -> int:
        """Write the folder and print what it holds."""
        strategy, seed = settings.attack.made_strategy(), settings.seed
        trigger = settings.attack.made_trigger()
        own, tested = settings.images.training(), settings.images.tested()
        unseen({sample.name: pixels(sample) for sample in tested}, map(pixels, own))
        training = poison(own, trigger, strategy, fraction=settings.attack.fraction, seed=seed)
        altered = settings.test_points == "altered"
        marked = (
            Poisoned(tested, trigger, strategy, seed=seed)
            if altered
            else Triggered(tested, trigger, seed)
        )
        with context.progress("images") as progress:
            written = export(
                {"train": training, "test": marked}, settings.out, layout=settings.layout,
                lossless=settings.lossless, progress=progress,
            )  # fmt: skip
        for split in written:
            print(f"{split.folder}: {split.images:,} images, {split.heads:,} heads annotated")
        print(f"poisoned in train: {len(training.sources):,} of {len(own):,}", flush=True)
        return DONE


class Train(_Run[TrainSettings]):
    """``pycc backdoor train``."""

    name = step = "train"
    kind = "train"
    summary = "Train a counter on a poisoned set, or without --strategy on the clean one."
    settings = TrainSettings

    def check(self, settings: TrainSettings, given: frozenset[str]) -> TrainSettings:
        """Refuse flags that do nothing."""
        settings.attack.check(given)
        return settings

    def work(self, settings: TrainSettings, context: Context) -> int:
        """Train, and print the table of its epochs."""
        own, seed = settings.images.training(), settings.machine.seed
        counter = settings.start.counter(seed).to(context.device)
        attack = settings.attack
        samples: Sequence[Sample] = own
        if attack.strategy is not None:
            samples = poison(
                own, attack.made_trigger(), attack.made_strategy(), fraction=attack.fraction,
                seed=seed,
            )  # fmt: skip
        plan = settings.training.with_published(PUBLISHED, counter).plan()
        with context.progress("steps") as progress:
            log = train(
                counter, samples, plan, seed=seed, out=context.run_folder,
                fraction=attack.fraction, settings={"flags": self.stored(settings)},
                command=context.command, ranks=context.ranks, progress=progress,
            )  # fmt: skip
        if context.ranks.first:
            print(curves.training_table(log.records(), log.summary.record()))
            print(f"run folder: {context.run_folder}", flush=True)
        return DONE


class Evaluate(_Run[EvaluateSettings]):
    """``pycc backdoor evaluate``."""

    name = step = "evaluate"
    summary = "Count clean and triggered test images with weights."
    settings = EvaluateSettings

    def presets(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """What poisoned the weights, over the defaults on the built-in scenes."""
        weights = given.get("weights")
        poisoning = None if weights is None else folders.poisoning_of(Path(weights))
        if poisoning is None:
            return super().presets(given)
        trigger, strategy = ({**poisoning[name]} for name in ("trigger", "strategy"))
        presets = {"trigger": trigger.pop("trigger"), "strategy": strategy.pop("strategy"),
                   "seed": poisoning["seed"], "defended": poisoning.get("defended")}  # fmt: skip
        if given.get("trigger", presets["trigger"]) == presets["trigger"]:
            trigger.pop("picture_content", None)
            presets["trigger_option"] = trigger
        if given.get("strategy", presets["strategy"]) == presets["strategy"]:
            presets |= strategy  # the amount, of one that has any
        return {**super().presets({**presets, **given}), **presets}

    def check(self, settings: EvaluateSettings, given: frozenset[str]) -> EvaluateSettings:
        """Refuse flags that do nothing; decide whether pictures are drawn."""
        settings.attack.check(given)
        if settings.pictures and report.missing_library() is not None:
            raise ValueError(report.missing_library())
        return replace(settings, pictures=_drawn(settings.pictures))

    def work(self, settings: EvaluateSettings, context: Context) -> int:
        """Count what is not counted yet, print the tables and draw."""
        device, seed = context.device, settings.machine.seed
        backdoored = settings.start.loaded(settings.weights, "weights", device)
        clean = None
        if settings.clean_weights is not None:
            clean = settings.start.loaded(settings.clean_weights, "clean-weights", device)
        strategy, trigger = settings.attack.made_strategy(), settings.attack.made_trigger()
        samples = settings.images.tested()
        tested = EvaluationSet(samples, trigger, seed)
        poisoning = folders.poisoning_of(Path(str(settings.weights)))
        if poisoning is not None and not context.resume:
            now = {"trigger": trigger.settings(), "strategy": strategy.settings(), "seed": seed,
                   "defended": settings.defended}  # fmt: skip
            changes = folders.poisoning_changes(poisoning, now)
            other = f"{settings.weights}: trained with another poisoning than is tested: "
            _warn(context, [other + "; ".join(changes)] if changes else [])
        _warn(context, recorded_warnings(test=samples))
        for index in range(len(tested)):
            tested.sample("triggered", index)
        log = open_run(
            context.run_folder, resume=context.resume, command=context.command,
            flags=self.stored(settings), machine=self.machine, counter=backdoored,
            samples={"clean_weights": clean, "test": samples}, trigger=trigger,
            ranks=context.ranks,
        )  # fmt: skip
        try:
            with context.progress("images") as progress:
                if clean is not None:
                    counted(log, lambda: clean, tested, strategy=None, defense=None,
                            ranks=context.ranks, progress=progress)  # fmt: skip
                counted(log, lambda: backdoored, tested, strategy=strategy,
                        defense=settings.defended, ranks=context.ranks,
                        progress=progress)  # fmt: skip
            log.finish({**summarise(log.records), "model": backdoored.name})
        finally:
            log.close()
        if context.ranks.first:
            print_tables({backdoored.name: log.summary})
            if settings.pictures:
                applied = [] if settings.defended is None else [settings.defended]
                drawing.draw_results(log.records, context.run_folder / "pictures", defenses=applied)
            print(f"run folder: {context.run_folder}", flush=True)
        return DONE


class Defend(_Run[DefendSettings]):
    """``pycc backdoor defend NAME``, for one defense."""

    settings = DefendSettings
    step = "defend"

    def __init__(self, name: str) -> None:
        self.name = name
        self.summary = (defenses[name].__doc__ or name).splitlines()[0]
        super().__init__()

    @property
    def command(self) -> str:
        """What its manifests store under ``command``."""
        return f"backdoor defend {self.name}"

    def variants(self, argv: Sequence[str]) -> Mapping[str, type[Any]]:
        """The settings of the defense."""
        return {"defense": defenses[self.name]}

    def check(self, settings: DefendSettings, given: frozenset[str]) -> DefendSettings:
        """Refuse flags that do nothing."""
        settings.extra.check(given)
        return settings

    def work(self, settings: DefendSettings, context: Context) -> int:
        """Defend the counter, and print where its weights are."""
        before = settings.start.loaded(settings.start.weights, "weights", context.device)
        weights, seed = Path(str(settings.start.weights)), settings.machine.seed
        settings = settings.with_scene_rate(before)
        defense = settings.defense.with_published(PUBLISHED_DEFENSE, before)
        images = settings.extra.clean(settings.images, settings.images.training(), seed)
        known = poisoned_with(weights.parent) if weights.is_file() else None
        poisoning = folders.poisoning_of(weights)
        facts = {}
        if poisoning is not None:  # for evaluations of the counter that comes out
            facts["poisoning"] = {**poisoning, "defended": defense.name}
        if known is None and context.ranks.first:
            say("note: what the weights were trained on is not known, nor whether these images "
                "overlap it")  # fmt: skip
        shared = overlap(known or [], images, known=() if known is None else None)
        _warn(context, shared.warnings())
        log = open_run(
            context.run_folder, resume=context.resume, command=context.command,
            flags=self.stored(settings), machine=self.machine, counter=before,
            samples={"data": images}, facts=facts, ranks=context.ranks,
        )  # fmt: skip
        folder = context.run_folder / defense.name
        try:
            with context.progress("steps") as progress:
                defense(before, images, seed=seed, out=folder, resume=True, ranks=context.ranks,
                        progress=progress)  # fmt: skip
            unknown = known is None and not shared.recorded
            log.finish({"defense": defense.name, "overlap": None if unknown else asdict(shared)})
        finally:
            log.close()
        if context.ranks.first:
            print(f"weights: {folder / WEIGHTS}", flush=True)
        return DONE


class Defending(CommandGroup):
    """``pycc backdoor defend``."""

    name = "defend"
    summary = "A defense for a counter that may have a backdoor."
    entries: Sequence[Entry] = tuple(Defend(name) for name in defenses.names())


class Backdoor(CommandGroup):
    """``pycc backdoor``."""

    name = "backdoor"
    summary = "Backdoors in counters: poisoned training sets, their effects, and defenses."
    entries: Sequence[Entry] = (
        Experimenting(), Poison(), Train(), Evaluate(), Defending(), Report()
    )  # fmt: skip


command = Backdoor()


def _drawn(pictures: bool | None) -> bool:
    """Whether pictures are drawn: as given, else if the library for them is there."""
    if pictures is not None:
        return pictures
    reason = report.missing_library()
    if reason is not None:
        say(f"note: {reason}")
    return reason is None


def _overlap(experiment: Experiment, context: Context) -> Overlap | None:
    """What the defenses' images have in common with the poisoned ones; warned of."""
    if not (experiment.defenses or experiment.detector):
        return None
    shared = overlap(experiment.contents, experiment.clean, known=experiment.clean_pixels)
    _warn(context, shared.warnings())
    return shared


def _warn(context: Context, lines: Sequence[str]) -> None:
    """Warn once, however many processes there are."""
    for line in lines if context.ranks.first else ():
        warnings.warn(line, stacklevel=2)
