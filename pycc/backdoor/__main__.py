"""The command ``python -m pycc.backdoor``: backdoors in counters, and their defenses."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pycc import cli, models, report, runs
from pycc.backdoor import flags, settings
from pycc.backdoor.defenses.finetuning import Defense, defenses
from pycc.backdoor.evaluation import drawing, folders, training
from pycc.backdoor.evaluation.counting import EvaluationSet, counted
from pycc.backdoor.evaluation.experiment import Experiment, Partitions, clean_images
from pycc.backdoor.evaluation.folders import Kept, merged
from pycc.backdoor.evaluation.summary import summarise
from pycc.backdoor.evaluation.training import PUBLISHED_DEFENSE, open_settings
from pycc.backdoor.evaluation.verdict import verdict
from pycc.backdoor.flags import Pictures
from pycc.backdoor.poisoning.overlap import (
    Overlap,
    content_of,
    overlap,
    pixels,
    poisoned_with,
    recorded_warnings,
    unseen,
)
from pycc.backdoor.poisoning.poison import Poisoned, Triggered, export, poisoned_training
from pycc.certify.poisoned import most_poisoned, partition_median, partitions
from pycc.models import CounterModel
from pycc.report import backdoor as tables
from pycc.report import curves
from pycc.runs import Run
from pycc.train import NotFiniteError
from pycc.train.loop import WEIGHTS
from pycc.types import Sample

EXITS = f"Exit codes: 0 done, {cli.ENDS}."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with ``argv`` (default: the process's); returns its exit code."""
    return cli.command(_work, sys.argv[1:] if argv is None else argv)


def _parser() -> cli.Parser:
    root = cli.Parser(
        prog="python -m pycc.backdoor",
        description="Backdoors in crowd counters: poisoned training sets, what they do to "
        "counters, and what defenses leave of it.",
        epilog=EXITS + " --help of each command tells its flags.",
    )
    commands = root.add_subparsers(dest="command", metavar="COMMAND", required=True)
    gate = ("The last line says whether a backdoor that works and its removal are shown; with "
            "--gate the exit code is 1 if not. ")  # fmt: skip
    told = {
        "run": ("the whole experiment: clean and backdoored counters, defenses, tables, pictures",
                gate),
        "poison": ("write a poisoned data set, for any program to train on", ""),
        "train": ("train a counter on a poisoned set, or without --strategy on the clean one", ""),
        "evaluate": ("count clean and triggered test images with weights", ""),
    }  # fmt: skip
    for name, (text, more) in told.items():
        epilog = f"{flags.scenes(name)} {more}{EXITS}"
        one = commands.add_parser(name, help=text, description=text, epilog=epilog)
        if name == "poison":
            one.add_argument("out", metavar="OUT", help="the folder to write: new or empty")
        _add(one, flags.GROUPS[name])
        if name != "poison":
            _add_control(one, name)
    defend = commands.add_parser(
        "defend", help="a defense for a counter that may have a backdoor", epilog=EXITS
    )
    kinds = defend.add_subparsers(dest="defense", metavar="DEFENSE", required=True)
    for name in defenses.names():
        text = (defenses[name].__doc__ or name).splitlines()[0]
        epilog = f"{flags.scenes('defend', name)} {EXITS}"
        one = kinds.add_parser(name, help=text.replace("%", "%%"), epilog=epilog)
        _add(one, (("defense", defenses[name]), *flags.GROUPS["defend"]))
        _add_control(one, "defend")
    shown = commands.add_parser(
        "report", help="tables and pictures of runs, again, from their folders", epilog=EXITS
    )
    shown.add_argument(
        "run", metavar="RUN", nargs="+",
        help="the folder of a run or an evaluation; several of the same test images and trigger "
        "are shown together, such as evaluations before and after a defense, or of two models",
    )  # fmt: skip
    _add(shown, (("pictures", Pictures),))
    return root


def _add(parser: argparse.ArgumentParser, groups: Sequence[tuple[str, type[Any]]]) -> None:
    made: dict[str, argparse._ArgumentGroup] = {}
    for title, kind in groups:
        if title not in made:
            made[title] = parser.add_argument_group(title)
        cli.add_fields(made[title], kind)


def _add_control(parser: argparse.ArgumentParser, name: str) -> None:
    control = parser.add_argument_group("folder")
    control.add_argument(
        "--out", metavar="RUN", help=f"run folder (default: runs/backdoor-{name}-TIME)"
    )
    control.add_argument("--resume", metavar="RUN", help="continue the run in this folder")


def _work(argv: list[str]) -> int:
    given = vars(_parser().parse_args(argv))
    command = given.pop("command")
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes != "1":
        raise ValueError(f"torchrun: this command runs on one process, got WORLD_SIZE {processes}")
    if command == "report":
        return _report([Path(one) for one in given.pop("run")], given)
    settings.normalise(given)
    cli.device(given.get("device", "cpu"))
    if command == "poison":
        out = Path(given.pop("out"))
        return _poison(out, _checked(given, flags.defaults("poison", given)))
    out, resume = given.pop("out", None), given.pop("resume", None)
    kind = f"backdoor {command}"
    if command == "defend":
        kind += f" {given['defense']}"
    if resume is not None:
        kept = runs.read_flags(resume, "train" if command == "train" else "backdoor")
        if kept.get("command") != kind:
            raise ValueError(f"--resume {resume}: expected a run of this command, got another")
        cli.check_same(kept, given, resume)
        basis = flags.defaults(command, {"defense": kept.get("defense")})
        chosen, folder = {**basis, **kept}, resume
    else:
        chosen = {**_checked(given, _defaults(command, given)), "command": kind}
        folder = out or f"runs/backdoor-{command}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        runs.check_new(folder)
        if chosen.get("pictures", False) is None:
            reason = report.missing_library()
            chosen["pictures"] = reason is None
            if reason is not None:
                cli.say(f"note: {reason}")
    cli.set_threads(chosen["threads"])
    work = {"run": _run, "train": _train, "evaluate": _evaluate, "defend": _defend}[command]
    told = _Stages()
    try:
        return work(argv, chosen, Path(folder), resume is not None, told)
    except NotFiniteError as error:
        cli.say(f"error: {error}")
        return cli.BAD_INPUT
    finally:
        told.close()


def _defaults(command: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given over the defaults, of an evaluation over what poisoned its weights."""
    weights = given.get("weights") if command == "evaluate" else None
    poisoning = None if weights is None else folders.poisoning_of(Path(weights))
    if poisoning is None:
        return flags.defaults(command, given)
    chosen = flags.defaults(command, folders.as_poisoned(given, poisoning))
    strayed = folders.strayed(chosen, poisoning)
    if strayed:
        said = f"{weights}: trained with another poisoning than is tested: {'; '.join(strayed)}"
        _warn([said])
    return chosen


def _checked(given: Mapping[str, Any], chosen: dict[str, Any]) -> dict[str, Any]:
    """The settings; ValueError for what is wrong with them, and for flags that do nothing."""
    settings.check(chosen)
    settings.check_needs(given, chosen)
    return chosen


class _Stages:
    """Progress of one stage after the other: rate and time left begin anew with each."""

    def __init__(self) -> None:
        self._bar: cli.Progress | None = None
        self._done = 0

    def __call__(self, done: int, total: int, label: str) -> None:
        if self._bar is None or done <= self._done:
            self.close()
            self._bar = cli.Progress("steps")
        self._done = done
        self._bar(done, total, label)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


# --- run and report


def _experiment(
    chosen: Mapping[str, Any], told: _Stages | None, counter: CounterModel
) -> Experiment:
    """What the settings ask for, of such counters; ValueError for what is wrong with them."""
    found, detector = settings.defenses_of(chosen, counter)
    device = cli.device(chosen["device"])
    own = settings.own(chosen)
    certificate = None
    if chosen["partitions"] is not None:
        certificate = Partitions(
            chosen["partitions"], chosen["assumed"], partitions, partition_median, most_poisoned
        )
    return Experiment(
        start=lambda: settings.counter_of(chosen).to(device),
        plan=settings.plan_of(chosen, counter),
        own=own,
        test=settings.tested(chosen),
        trigger=settings.trigger_of(chosen),
        strategies=settings.strategies_of(chosen),
        portion=chosen["portion"],
        seed=chosen["seed"],
        clean=clean_images(own, settings.other(chosen), share=chosen["share"], seed=chosen["seed"]),
        defenses=found,
        detector=detector,
        references=chosen["references"],
        defend_clean=chosen["defend_clean"],
        partitions=certificate,
        device=device,
        progress=told,
    )


def _run(
    argv: list[str], chosen: dict[str, Any], folder: Path, resumed: bool, told: _Stages
) -> int:
    start = settings.counter_of(chosen).to(cli.device(chosen["device"]))
    whole = _experiment(chosen, told, start)
    if start.name not in models.names():
        raise ValueError(f"--weights: a counter that can be trained is expected, got {start.name}")
    tested = EvaluationSet(whole.test, whole.trigger, whole.seed)
    if chosen["pictures"]:
        drawing.check(tested, start, image=chosen["picture_image"], layers=chosen["layer"])
    _warn(recorded_warnings(training=whole.own, test=whole.test))
    shared = _overlap(whole)
    whole.check(resumed=resumed)  # before all the work
    log = folders.run_of(
        folder, resumed, argv, chosen,
        {"weights": start, "data": whole.own, "test": whole.test,
         "clean": whole.clean if chosen["data_a"] is not None else None},
    )  # fmt: skip
    try:
        summary = {**whole.run(log, folder), "model": start.name}
        if shared is not None:
            summary["overlap"] = asdict(shared)
        log.finish(summary)
        told.close()
        _tell({str(log.summary["model"]): log.summary})
        print(f"run folder: {folder}", flush=True)
        if chosen["pictures"]:
            _draw(whole, log, folder, chosen)
    finally:
        log.close()
    held, said = verdict(log.summary)
    print(said, flush=True)
    return cli.DONE if held or not chosen["gate"] else cli.FAILED


def _overlap(whole: Experiment) -> Overlap | None:
    """What the defenses' images have to do with the poisoned ones; warned of."""
    if not (whole.defenses or whole.detector):
        return None
    found = overlap(whole.contents, whole.clean, known=whole.clean_pixels)
    _warn(found.warnings())
    return found


def _warn(lines: Sequence[str]) -> None:
    for said in lines:
        warnings.warn(said, stacklevel=2)


def _tell(summaries: Mapping[str, Mapping[str, Any]]) -> None:
    rows = (row for summary in summaries.values() for row in summary["rows"])
    applied = [row["defense"] for row in rows if row["defense"]]
    shown = "fine-tuning" if "fine-tuning" in applied or not applied else applied[0]
    print(tables.tables(summaries, defense=shown))


def _report(places: Sequence[Path], given: Mapping[str, Any]) -> int:
    """Tables and pictures again, of what is there: of runs that are not finished too."""
    there = {place.resolve(): Kept.of(place) for place in places}
    kept = [(one, _shown(one, given)) for one in there.values()]
    single = any(one.command == "run" and chosen["pictures"] for one, chosen in kept)
    settings.check_needs(given, {"pictures": single})
    summaries = merged([one for one, _ in kept])
    _tell(summaries)
    for one, chosen in kept:
        if chosen["pictures"]:
            _draw_again(one, chosen)
    if len(kept) > 1 or kept[0][0].command == "run":
        for model, summary in summaries.items():
            said = verdict(summary)[1]
            print(said if len(summaries) == 1 else f"{model}: {said}", flush=True)
    return cli.DONE


def _shown(one: Kept, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run, with what is asked for now."""
    chosen = {**flags.defaults(one.command, {}), **one.settings, **given}
    if chosen["pictures"] is None:
        chosen["pictures"] = report.missing_library() is None
    return chosen


def _draw_again(one: Kept, chosen: dict[str, Any]) -> None:
    """What of a run's pictures can be drawn from what is there; nothing is trained for them."""
    reason = report.missing_library()
    if reason is not None:
        raise ValueError(reason)
    applied = sorted({str(r["defense"]) for r in one.records if r["defense"] and "count" in r})
    if one.command == "run":  # as the run itself has them
        applied = [name for name in chosen["defense"] if name in applied]
    drawing.draw_results(one.records, one.folder / "pictures", defenses=applied)
    if one.command != "run":
        return
    try:
        whole = _again(one, chosen)
    except (ValueError, OSError) as error:
        cli.say(f"note: {one.folder}: no pictures of single images: {error}")
        return
    drawing.draw_images(whole, one.folder, image=chosen["picture_image"], layers=chosen["layer"])


def _again(one: Kept, chosen: Mapping[str, Any]) -> Experiment:
    """The experiment of a run; ValueError unless its counters and its test images are there."""
    plain = one.folder / "clean" / WEIGHTS
    whole = None
    if plain.exists():
        whole = _experiment({**chosen, "device": "cpu"}, None, models.load(plain))
    if whole is None or not drawing.complete(whole, one.folder):
        raise ValueError("counters are missing")
    if content_of(whole.test) != one.tested()["test"]:
        raise ValueError("the test images are not those of the run")
    return whole


def _draw(whole: Experiment, log: Run, folder: Path, chosen: Mapping[str, Any]) -> None:
    drawing.draw_run(
        whole, log.records, folder, image=chosen["picture_image"], layers=chosen["layer"]
    )


# --- single steps


def _poison(out: Path, chosen: dict[str, Any]) -> int:
    strategy = settings.strategy_of(chosen)
    trigger, seed = settings.trigger_of(chosen), chosen["seed"]
    own = settings.own(chosen)
    tested = settings.tested(chosen)
    unseen({one.name: pixels(one) for one in tested}, (pixels(one) for one in own))
    altered = chosen["test_points"] == "altered"
    training = poisoned_training(own, trigger, strategy, portion=chosen["portion"], seed=seed)
    told = cli.Progress("images")
    try:
        written = export(
            {
                "train": training,
                "test": Poisoned(tested, trigger, strategy, seed=seed)
                if altered
                else Triggered(tested, trigger, seed),
            },
            out, layout=chosen["layout"], lossless=chosen["lossless"], progress=told,
        )  # fmt: skip
    finally:
        told.close()
    for split in written:
        print(f"{split.folder}: {split.images:,} images, {split.heads:,} heads annotated")
    print(f"poisoned in train: {len(training.sources):,} of {len(own):,}", flush=True)
    return cli.DONE


def _train(
    argv: list[str], chosen: dict[str, Any], folder: Path, resumed: bool, told: _Stages
) -> int:
    own = settings.own(chosen)
    counter = settings.counter_of(chosen).to(cli.device(chosen["device"]))
    plan = settings.plan_of(chosen, counter)
    samples: Sequence[Sample] = own
    if chosen["strategy"] is not None:
        strategy = settings.strategy_of(chosen)
        samples = poisoned_training(
            own, settings.trigger_of(chosen), strategy, portion=chosen["portion"],
            seed=chosen["seed"],
        )  # fmt: skip
    log = training.train(
        counter, samples, plan, seed=chosen["seed"], out=folder,
        portion=chosen["portion"], settings={"flags": chosen}, command=argv, progress=told,
    )  # fmt: skip
    told.close()
    print(curves.training_table(log.records, log.summary))
    print(f"run folder: {folder}", flush=True)
    return cli.DONE


def _loaded(chosen: Mapping[str, Any], which: str) -> CounterModel:
    if chosen[which] is None:
        raise ValueError(f"--{which.replace('_', '-')}: expected a file with weights, got none")
    try:
        found = models.load(chosen[which], name=chosen["model"], **(chosen["option"] or {}))
    except TypeError as error:
        raise ValueError(f"--option: {error}") from None
    return found.to(cli.device(chosen["device"])).eval()


def _evaluate(
    argv: list[str], chosen: dict[str, Any], folder: Path, resumed: bool, told: _Stages
) -> int:
    backdoored = _loaded(chosen, "weights")
    clean = _loaded(chosen, "clean_weights") if chosen["clean_weights"] is not None else None
    strategy = settings.strategy_of(chosen)
    samples = settings.tested(chosen)
    tested = EvaluationSet(samples, settings.trigger_of(chosen), chosen["seed"])
    if chosen["pictures"] and report.missing_library() is not None:
        raise ValueError(report.missing_library())
    _warn(recorded_warnings(test=samples))
    for index in range(len(tested)):
        tested.sample("triggered", index)
    log = folders.run_of(
        folder, resumed, argv, chosen,
        {"weights": backdoored, "clean_weights": clean, "test": samples},
    )  # fmt: skip
    try:
        if clean is not None:
            counted(log, lambda: clean, tested, strategy=None, defense=None, progress=told)
        counted(log, lambda: backdoored, tested, strategy=strategy, defense=chosen["defended"],
                progress=told)  # fmt: skip
        log.finish({**summarise(log.records), "model": backdoored.name})
        told.close()
        _tell({str(log.summary["model"]): log.summary})
        if chosen["pictures"]:
            applied = [] if chosen["defended"] is None else [chosen["defended"]]
            drawing.draw_results(log.records, folder / "pictures", defenses=applied)
        print(f"run folder: {folder}", flush=True)
    finally:
        log.close()
    return cli.DONE


def _defend(
    argv: list[str], chosen: dict[str, Any], folder: Path, resumed: bool, told: _Stages
) -> int:
    before = _loaded(chosen, "weights")
    if "lr" in chosen:
        chosen["lr"] = flags.rate(chosen, before)
    defense: Defense = defenses[chosen["defense"]].of(
        open_settings(chosen, PUBLISHED_DEFENSE, before)
    )
    own = settings.own(chosen)
    images = clean_images(own, settings.other(chosen), share=chosen["share"], seed=chosen["seed"])
    weights = Path(chosen["weights"])
    known = poisoned_with(weights.parent) if weights.is_file() else None
    poisoning = folders.poisoning_of(weights)
    facts = {}
    if poisoning is not None:  # for evaluations of the counter that comes out
        facts["poisoning"] = {**poisoning, "defended": defense.name}
    if known is None:
        cli.say("note: what the weights were trained on is not known, nor whether these images "
                "overlap it")  # fmt: skip
    shared = overlap(known or [], images, known=() if known is None else None)
    _warn(shared.warnings())
    log = folders.run_of(folder, resumed, argv, chosen, {"weights": before, "data": images}, facts)
    try:
        defense(before, images, seed=chosen["seed"], out=folder / defense.name, resume=True,
                progress=told)  # fmt: skip
        unknown = known is None and not shared.recorded
        log.finish({"defense": defense.name, "overlap": None if unknown else asdict(shared)})
    finally:
        log.close()
    print(f"weights: {folder / defense.name / WEIGHTS}", flush=True)
    return cli.DONE


if __name__ == "__main__":
    raise SystemExit(main())
