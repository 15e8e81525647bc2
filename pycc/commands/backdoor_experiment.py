"""``pycc backdoor run``: the whole experiment."""

from __future__ import annotations

from dataclasses import asdict, replace

from pycc import models
from pycc.backdoor.evaluation import drawing
from pycc.backdoor.evaluation.counting import EvaluationSet
from pycc.backdoor.evaluation.experiment import Experiment
from pycc.backdoor.evaluation.folders import open_run
from pycc.backdoor.evaluation.verdict import verdict
from pycc.backdoor.poisoning.overlap import Overlap, overlap, recorded_warnings
from pycc.commands.backdoor_base import RunOnScenes, warn
from pycc.commands.backdoor_report import print_tables
from pycc.commands.backdoor_settings import RunSettings
from pycc.commands.base import DONE, FAILED, Context
from pycc.commands.pictures import drawn

CHECK = (
    "The last line states whether a backdoor that works and its removal are shown; with --check "
    "the exit code is 1 if not."
)


class RunExperiment(RunOnScenes[RunSettings]):
    """``pycc backdoor run``."""

    name = step = "run"
    summary = "The whole experiment: clean and backdoored counters, defenses, tables, pictures."
    settings = RunSettings
    note = CHECK

    def check(self, settings: RunSettings, given: frozenset[str]) -> RunSettings:
        """Refuse flags without effect; decide whether pictures are drawn."""
        settings.extra.check(given)
        settings.defenses.check(given)
        settings.attack.check_amount(given, settings.attack.strategy)
        settings.picture.check(given, settings.picture.pictures is not False)
        pictures = drawn(settings.picture.pictures)
        return replace(settings, picture=replace(settings.picture, pictures=pictures))

    def draws(self, settings: RunSettings) -> bool:
        """Whether pictures are drawn."""
        return bool(settings.picture.pictures)

    def run(self, settings: RunSettings, context: Context) -> int:
        """Train, defend and measure what is missing; print and draw the results."""
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
            warn(context, recorded_warnings(training=experiment.training, test=experiment.test))
            shared = _overlap(experiment, context)
            experiment.check(resumed=context.resume)  # before all the work
            extra = settings.extra.extra_data is not None
            log = open_run(
                context.run_folder, resume=context.resume, settings=settings, name=self.command,
                command=context.command, machine=self.machine, counter=start,
                samples={"data": experiment.training, "test": experiment.test,
                         "clean": experiment.clean if extra else None},
                trigger=experiment.trigger, ranks=context.ranks,
            )  # fmt: skip
            with log:
                summary = experiment.run(log, context.run_folder)
                record = {**summary.json(), "model": start.name}
                if shared is not None:
                    record["overlap"] = asdict(shared)
                log.finish(record)
        shown, sentence = verdict(summary)
        if context.ranks.first:
            print_tables({start.name: summary})
            print(f"run folder: {context.run_folder}", flush=True)
            if picture.pictures:
                one_process = settings.experiment(start, context.device)
                drawing.draw_run(
                    one_process, log.records, context.run_folder, image=picture.picture_image,
                    layers=picture.layer,
                )  # fmt: skip
            print(sentence, flush=True)
        return DONE if shown or not settings.check else FAILED


def _overlap(experiment: Experiment, context: Context) -> Overlap | None:
    """The overlap between the images for defenses and the poisoned set; it is warned of."""
    if not (experiment.defenses or experiment.detector):
        return None
    shared = overlap(experiment.contents, experiment.clean, known=experiment.clean_pixels)
    warn(context, shared.warnings())
    return shared
