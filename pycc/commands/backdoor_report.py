"""``pycc backdoor report``: tables and pictures of existing runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from pycc import models
from pycc.backdoor.evaluation import drawing
from pycc.backdoor.evaluation.experiment import Experiment
from pycc.backdoor.evaluation.folders import StoredRun, merged
from pycc.backdoor.evaluation.verdict import verdict
from pycc.backdoor.poisoning.overlap import content_of
from pycc.commands.backdoor_flags import PictureFlags
from pycc.commands.backdoor_settings import ReportSettings, RunSettings
from pycc.commands.base import DONE, Command, Context
from pycc.commands.pictures import drawn
from pycc.commands.progress import note
from pycc.metrics.backdoor import BackdoorSummary
from pycc.report import backdoor as tables
from pycc.settings import build
from pycc.train.loop import WEIGHTS


class Report(Command[ReportSettings]):
    """``pycc backdoor report``."""

    name = "report"
    summary = "Tables and pictures of existing runs, from their folders."
    settings = ReportSettings

    def run(self, settings: ReportSettings, context: Context) -> int:
        """Print and draw the results, also of unfinished runs."""
        folders_of = {Path(run).resolve(): Path(run) for run in settings.runs}
        stored = [StoredRun.read(folder) for folder in folders_of.values()]
        pictures = [_pictures_of(run, settings.picture, context.given) for run in stored]
        single = any(
            run.command == "run" and picture.pictures
            for run, picture in zip(stored, pictures, strict=True)
        )
        settings.picture.check(context.given, single)
        summaries = merged(stored)
        print_tables(summaries)
        for run, picture in zip(stored, pictures, strict=True):
            if picture.pictures:
                _draw_again(run, picture)
        if len(stored) > 1 or stored[0].command == "run":
            for model, summary in summaries.items():
                sentence = verdict(summary)[1]
                line = sentence if len(summaries) == 1 else f"{model}: {sentence}"
                print(line, flush=True)
        return DONE


def print_tables(summaries: Mapping[str, BackdoorSummary]) -> None:
    """Print the tables of the summaries, by the model's name."""
    rows = (row for summary in summaries.values() for row in summary.rows)
    applied = [row.defense for row in rows if row.defense]
    shown = "fine-tuning" if "fine-tuning" in applied or not applied else applied[0]
    print(tables.tables(summaries, defense=shown))


def _pictures_of(run: StoredRun, flags: PictureFlags, given: frozenset[str]) -> PictureFlags:
    """The picture settings of a run; those of ``flags`` that were given replace them."""
    stored = build(PictureFlags, run.flags)
    requested = flags.pictures
    if "pictures" not in given and stored.pictures is False:
        requested = False
    return PictureFlags(
        drawn(requested),
        flags.layer if "layer" in given else stored.layer,
        flags.picture_image if "picture_image" in given else stored.picture_image,
    )


def _draw_again(run: StoredRun, picture: PictureFlags) -> None:
    """Draw the pictures for which results and counters exist; nothing is trained for a picture."""
    applied = sorted({str(r["defense"]) for r in run.records if r["defense"] and "count" in r})
    pictures = run.folder / "pictures"
    if run.command != "run":
        drawing.draw_results(run.records, pictures, defenses=applied)
        return
    settings = build(RunSettings, run.flags)
    in_order = [name for name in settings.defenses.defense if name in applied]
    drawing.draw_results(run.records, pictures, defenses=in_order)
    try:
        experiment = _experiment_of(run, settings)
    except (ValueError, OSError) as error:
        note(f"{run.folder}: no pictures of single images: {error}")
        return
    drawing.draw_images(experiment, run.folder, image=picture.picture_image, layers=picture.layer)


def _experiment_of(run: StoredRun, settings: RunSettings) -> Experiment:
    """The experiment of a run; ValueError unless its counters and its test images exist."""
    clean_weights = run.folder / "clean" / WEIGHTS
    if clean_weights.exists():
        counter = models.load(clean_weights)
        experiment = settings.experiment(counter, torch.device("cpu"))
        if drawing.complete(experiment, run.folder):
            if content_of(experiment.test) != run.test:
                raise ValueError("the test images are not those of the run")
            return experiment
    raise ValueError("counters are missing")
