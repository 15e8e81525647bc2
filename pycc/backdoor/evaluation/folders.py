"""The run folders of backdoor commands: new, resumed, read again."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from pycc import runs
from pycc.backdoor.evaluation import measures
from pycc.backdoor.evaluation.summary import summarise
from pycc.backdoor.poisoning.overlap import content_of
from pycc.backdoor.poisoning.stated import StatedPoisoning, StatedTrigger
from pycc.backdoor.poisoning.triggers import Trigger
from pycc.metrics.backdoor import BackdoorSummary
from pycc.ranks import Ranks
from pycc.runs import Record, Run, open_or_resume, replicated
from pycc.settings import flag, group, values_of
from pycc.types import Counter, Sample


@dataclass(frozen=True)
class NamedSettings:
    """The settings of a command and its name, as its manifest stores them (``values_of``)."""

    settings: object = group(object, "settings")
    command: str = flag("", "distinguishes runs of one kind")


EVALUATE = "backdoor evaluate"
"""The name of the command that evaluates weights, also for evaluations from Python."""


def open_run(
    folder: str | PathLike[str] | None,
    *,
    resume: bool,
    settings: object | None,
    name: str,
    command: Sequence[str],
    machine: Collection[str],
    counter: Counter,
    samples: Mapping[str, Sequence[Sample] | Counter | None],
    trigger: Trigger | None = None,
    poisoning: StatedPoisoning | None = None,
    facts: Mapping[str, object] | None = None,
    ranks: Ranks = Ranks(),
) -> Run:
    """The run of the command ``name``: a new one, or with ``resume`` the one in the folder.

    Every process appends all results, and those of the first one are written.

    Args:
        folder: the run folder; None keeps the results in memory.
        resume: continue the run in the folder.
        settings: the settings of the command, a frozen dataclass; None for a run from Python.
        name: the command's name, such as "backdoor run".
        command: its arguments.
        machine: names of settings that a resumed run may change.
        counter: the counter whose weights the run depends on.
        samples: its data sets, and further counters, by their names among the fingerprints.
        trigger: the trigger of the test images.
        poisoning: how the training set of ``counter`` was poisoned, for the manifest.
        facts: further settings, of a run from Python.
        ranks: the processes under torchrun.
    """

    def opened() -> Run:
        prints: Record = {name: content_of(content) for name, content in samples.items()}
        prints["weights"] = content_of(counter)
        flags = {"command": name}
        if settings is not None:
            flags = values_of(NamedSettings(settings, name))
        if trigger is not None:
            prints["trigger"] = trigger.settings()
        return open_or_resume(
            folder, kind="backdoor", command=command, machine=machine,
            settings={"flags": flags, "model": model_of(counter), **(facts or {}),
                      **({} if poisoning is None else {"poisoning": poisoning.json()})},
            fingerprints=prints, key=measures.KEY, resume=resume,
        )  # fmt: skip

    return replicated(opened, ranks, measures.KEY)


def model_of(counter: Counter) -> str:
    """The name of a counter's model, or of its class."""
    return str(getattr(counter, "name", type(counter).__name__))


@dataclass(frozen=True)
class StoredRun:
    """A run or an evaluation, finished or not, as read from its folder."""

    folder: Path
    command: str
    """``run`` or ``evaluate``."""
    flags: Mapping[str, Any]
    """The flags of the command as stored, for ``pycc.settings.build``."""
    model: str
    test: Mapping[str, int | str]
    """Fingerprint of the test images."""
    trigger: StatedTrigger
    """The trigger of the test images."""
    records: list[Record]

    @classmethod
    def read(cls, folder: Path) -> StoredRun:
        """Read a folder; ValueError unless it holds results of a run or an evaluation."""
        manifest, flags = runs.read_manifest(folder), runs.read_flags(folder, "backdoor")
        command = str(flags.get("command")).removeprefix("backdoor ")
        if command not in ("run", "evaluate"):
            raise ValueError(f"{folder}: expected a run or an evaluation, got {command}")
        log = Run(None, manifest, measures.KEY)
        log.include(runs.read_records(folder))
        if not log.records:
            raise ValueError(f"{folder}: expected results, got none")
        prints, model = manifest["fingerprints"], str(manifest["settings"]["model"])
        trigger = StatedTrigger.read(prints["trigger"])
        return cls(folder, command, flags, model, prints["test"], trigger, log.records)

    def differences(self, other: StoredRun) -> list[str]:
        """The differences of the other run's test images and trigger from these."""
        before, now = (
            {"test": run.test, "trigger": run.trigger.content()} for run in (self, other)
        )
        return runs.differences(before, now)


def merged(stored: Sequence[StoredRun]) -> dict[str, BackdoorSummary]:
    """One summary for each model, by its name, of the results of several runs and evaluations.

    ValueError, naming the difference, unless all are of the same test images and trigger, and two
    results of one image under one counter are the same.
    """
    first = stored[0]
    models: dict[str, dict[tuple[Any, ...], tuple[Record, StoredRun]]] = {}
    for run in stored:
        changed = first.differences(run)
        if changed:
            raise ValueError(
                f"{run.folder}: expected the test images and the trigger of {first.folder}, "
                f"got others: {'; '.join(changed)}"
            )
        group = models.setdefault(run.model, {})
        for record in run.records:
            key = tuple(record[name] for name in measures.KEY)
            known, other = group.setdefault(key, (record, run))
            if known != record:
                raise ValueError(
                    f"{run.folder}: expected the result of {other.folder} for {record['images']} "
                    f"image {record['name']}, {_counter(record)}, got another: "
                    f"{'; '.join(runs.differences(known, record))}"
                )
    return {
        model: summarise(record for record, _ in group.values()) for model, group in models.items()
    }


def _counter(record: Record) -> str:
    names = (record["strategy"], record["model"], record["defense"])
    return " ".join(str(name) for name in names if name is not None)


def poisoning_of(weights: Path) -> StatedPoisoning | None:
    """Read the poisoning of the weights' training set from the manifest beside them.

    For weights that ``defend`` wrote it is in the manifest of its run, one folder above, with the
    name of the defense. None if no manifest has it; ValueError for one that cannot be read.
    """
    places = (weights.parent, weights.parent.parent) if weights.is_file() else ()
    for folder in places:  # none for built-in weights
        if (folder / runs.MANIFEST).exists():
            settings = runs.read_manifest(folder).get("settings")
            poisoning = settings.get("poisoning") if isinstance(settings, dict) else None
            if isinstance(poisoning, dict):
                try:
                    return StatedPoisoning.read(poisoning)
                except ValueError as error:
                    raise ValueError(f"{folder / runs.MANIFEST}: {error}") from None
    return None
