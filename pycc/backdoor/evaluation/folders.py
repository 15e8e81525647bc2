"""Run folders of the commands: opened anew or again, and what they say of the weights in them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycc import runs
from pycc.backdoor import settings
from pycc.backdoor.evaluation import measures
from pycc.backdoor.evaluation.summary import summarise
from pycc.backdoor.poisoning.overlap import content_of
from pycc.runs import Record, Run, open_or_resume


def run_of(
    folder: Path,
    resumed: bool,
    argv: list[str],
    chosen: Mapping[str, Any],
    of: Mapping[str, Any],
    facts: Mapping[str, Any] | None = None,
) -> Run:
    """The run of a command: a new one, or the one that is there if it is of the same things.

    ``facts`` are further settings for its manifest.
    """
    prints: dict[str, Any] = {name: content_of(one) for name, one in of.items()}
    if "trigger" in chosen:
        prints["trigger"] = settings.trigger_of(chosen).settings()
    return open_or_resume(
        folder, kind="backdoor", command=argv,
        settings={"flags": chosen, "model": of["weights"].name, **(facts or {})},
        fingerprints=prints, key=measures.KEY, resume=resumed,
    )  # fmt: skip


@dataclass(frozen=True)
class Kept:
    """A run or an evaluation as its folder has it."""

    folder: Path
    manifest: Mapping[str, Any]
    settings: Mapping[str, Any]
    command: str
    records: list[Record]

    @classmethod
    def of(cls, folder: Path) -> Kept:
        """What is there, of one that is not finished too; ValueError for anything else."""
        manifest = runs.read_manifest(folder)
        stored = manifest.get("settings")
        kept = stored.get("flags") if isinstance(stored, dict) else None
        if manifest.get("kind") != "backdoor" or not isinstance(kept, dict):
            raise ValueError(
                f"{folder}: expected a run or an evaluation of this command, got another"
            )
        command = str(kept.get("command")).removeprefix("backdoor ")
        if command not in ("run", "evaluate"):
            raise ValueError(f"{folder}: expected a run or an evaluation, got {command}")
        log = Run(None, manifest, measures.KEY)
        log.tell(runs.read_records(folder))
        if not log.records:
            raise ValueError(f"{folder}: expected results, got none")
        return cls(folder, manifest, kept, command, log.records)

    def tested(self) -> dict[str, Any]:
        """Fingerprint of the test images, and the trigger."""
        found = self.manifest["fingerprints"]
        return {"test": found["test"], "trigger": _of_content(found["trigger"])}


def merged(kept: Sequence[Kept]) -> dict[str, dict[str, Any]]:
    """What several runs and evaluations say together: a summary for each model, by its name.

    ValueError, naming the difference, unless all are of the same test images and trigger, and what
    two know of one image under one counter is the same.
    """
    first = kept[0]
    found: dict[str, dict[tuple[Any, ...], tuple[Record, Kept]]] = {}
    for one in kept:
        changed = runs.differences(first.tested(), one.tested())
        if changed:
            raise ValueError(
                f"{one.folder}: expected the test images and the trigger of {first.folder}, "
                f"got others: {'; '.join(changed)}"
            )
        group = found.setdefault(str(one.manifest["settings"]["model"]), {})
        for record in one.records:
            key = tuple(record[name] for name in measures.KEY)
            known, other = group.setdefault(key, (record, one))
            if known != record:
                raise ValueError(
                    f"{one.folder}: expected what {other.folder} knows of {record['images']} image "
                    f"{record['name']}, {_counter(record)}, got another: "
                    f"{'; '.join(runs.differences(known, record))}"
                )
    return {
        model: {**summarise(record for record, _ in group.values()), "model": model}
        for model, group in found.items()
    }


def _counter(record: Record) -> str:
    names = (record["strategy"], record["model"], record["defense"])
    return " ".join(str(name) for name in names if name is not None)


def poisoning_of(weights: Path) -> dict[str, Any] | None:
    """How the set was poisoned that weights were trained on, as the manifest beside them says.

    That is ``Poisoned.settings``; of weights that ``defend`` made the manifest of its run, which is
    one folder above, has it, with the defense's name under ``defended``. None if nothing is said.
    """
    places = (weights.parent, weights.parent.parent) if weights.is_file() else ()
    for folder in places:  # of built-in weights, which lie in none, nothing is known
        if (folder / runs.MANIFEST).exists():
            kept = runs.read_manifest(folder).get("settings")
            found = kept.get("poisoning") if isinstance(kept, dict) else None
            if isinstance(found, dict):
                return found
    return None


def as_poisoned(given: Mapping[str, Any], poisoning: Mapping[str, Any]) -> dict[str, Any]:
    """The flags given, over those of the poisoning that weights were trained with."""
    trigger, strategy = ({**poisoning[name]} for name in ("trigger", "strategy"))
    found = {"trigger": trigger.pop("trigger"), "strategy": strategy.pop("strategy"),
             "seed": poisoning["seed"], "defended": poisoning.get("defended")}  # fmt: skip
    if given.get("trigger", found["trigger"]) == found["trigger"]:
        trigger.pop("picture_content", None)
        found["trigger_option"] = trigger
    if given.get("strategy", found["strategy"]) == found["strategy"]:
        found |= strategy  # the amount, of one that has any
    return {**found, **given}


def strayed(chosen: Mapping[str, Any], poisoning: Mapping[str, Any]) -> list[str]:
    """What of the settings of an evaluation is other than of that poisoning, an entry each."""
    trigger = _of_content(settings.trigger_of(chosen).settings())
    strategy = settings.strategy_of(chosen).settings()
    now = {"trigger": trigger, "strategy": strategy, "seed": chosen["seed"],
           "defended": chosen["defended"]}  # fmt: skip
    before = {name: poisoning.get(name) for name in now}
    before["trigger"] = _of_content(poisoning["trigger"])
    return runs.differences(before, json.loads(json.dumps(now)))


def _of_content(trigger: Mapping[str, Any]) -> dict[str, Any]:
    """A trigger's settings without the file's name, where they say what it holds."""
    kept = "picture_content" not in trigger
    return {name: value for name, value in trigger.items() if kept or name != "picture"}
