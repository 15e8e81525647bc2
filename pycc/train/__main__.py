"""The command ``python -m pycc.train``: train a counter, on one process or under torchrun."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from pycc import attack, cli, data, defense, models, report, train
from pycc import run as runs
from pycc.data.dataset import builtin as builtin_data
from pycc.models import CounterModel
from pycc.ranks import Ranks, own_device, ranks
from pycc.report import curves
from pycc.train.held import measured
from pycc.train.loop import Measure
from pycc.train.plan import Plan
from pycc.train.settings import MACHINE, QUICK, Settings

_ABLATED_DRAWS = 20
"""Draws of a test image under ablation."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with ``argv`` (default: the process's); returns its exit code."""
    given_argv = list(sys.argv[1:] if argv is None else argv)
    return cli.command(lambda: _work(given_argv))


def _parser() -> cli.Parser:
    flags = cli.Parser(
        prog="python -m pycc.train",
        description="Train a counter on annotated images by its own published recipe, on ablated "
        "images, or against patches. Many processes: torchrun --nproc-per-node N -m pycc.train …",
        epilog="Without --data, on the built-in scenes, "
        + ", ".join(f"{name} is {value}" for name, value in QUICK.items())
        + ". Exit codes: 0 done, 1 a loss was no number, 2 bad usage or input.",
    )
    cli.add_fields(flags.add_argument_group("training"), Plan)
    cli.add_fields(flags.add_argument_group("data and counter"), Settings)
    control = flags.add_argument_group("run")
    control.add_argument("--out", metavar="RUN", help="run folder (default: runs/train-TIME)")
    control.add_argument("--resume", metavar="RUN", help="continue the run in this folder")
    return flags


def _work(argv: list[str]) -> int:
    given = vars(_parser().parse_args(argv))
    out, resume = given.pop("out", None), given.pop("resume", None)
    if "option" in given:
        given["option"] = dict(given["option"])
    _absolute(given)
    stored = _stored(given, resume)
    device = own_device(cli.device_of(given, stored))
    with ranks(device) as processes:
        settings, folder = _settings({**stored, **given}, out, resume, processes)
        if settings["threads"] is not None:
            torch.set_num_threads(settings["threads"])
        plan = Plan.of(settings)
        counter = _counter(settings, device)
        samples = data.open(
            settings["data"], split=settings["split"], limit=settings["limit"],
            on_error=settings["on_error"],
        )  # fmt: skip
        adversary = None
        if plan.recipe == "adversarial":
            adversary = attack.InnerAttack(plan.patch, plan.patch_steps, plan.patch_step_size)
        progress = cli.Progress("batches")
        try:
            log = train.fit(
                counter, samples, plan, seed=settings["seed"],
                out=folder, resume=resume is not None, adversary=adversary, ranks=processes,
                settings=settings, progress=progress, measure=_test(settings, plan, processes),
            )  # fmt: skip
        except train.NotFiniteError as error:
            cli.say(f"error: {error}")
            return cli.FAILED
        finally:
            progress.close()
        if processes.first:
            print(curves.training_table(log.records, log.summary))
            print(f"run folder: {folder}", flush=True)
            if settings["pictures"]:
                curves.draw_training(log.records, folder / "curves.png")
            if settings["tensorboard"]:
                curves.write_tensorboard(log.records, folder / "tensorboard")
    return cli.DONE


def _absolute(given: dict[str, Any]) -> None:
    inside = builtin_data.names()
    names_of = {"data": inside, "test_data": inside, "weights": models.builtin()}
    for name, names in names_of.items():
        if given.get(name) is not None and given[name] not in names:
            given[name] = str(Path(given[name]).absolute())


def _stored(given: Mapping[str, Any], resume: str | None) -> dict[str, Any]:
    """The settings of the run that goes on; ValueError for others that a result depends on."""
    if resume is None:
        return {}
    stored = runs.read_manifest(resume)
    if stored.get("kind") != "train" or not isinstance(stored.get("settings"), dict):
        raise ValueError(f"--resume {resume}: expected a run of this command, got another")
    fixed = {name: value for name, value in given.items() if name not in MACHINE}
    cli.check_same(stored["settings"], fixed, resume)
    return dict(stored["settings"])


def _settings(
    given: dict[str, Any], out: str | None, resume: str | None, processes: Ranks
) -> tuple[dict[str, Any], Path]:
    settings = {**asdict(Plan()), **asdict(Settings())}
    if resume is not None:
        return settings | given, Path(resume)
    if given.get("data", settings["data"]) == settings["data"]:
        quick = dict(QUICK)
        if "crop" in given:  # whose number is its own
            del quick["crops"]
        settings |= quick
    settings |= given
    folder = Path(out or f"runs/train-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
    if processes.world > 1 and out is None:
        raise ValueError("torchrun: processes must agree on a folder, give --out")
    if processes.first:
        runs.check_new(folder)
    if settings["pictures"] is None:
        settings["pictures"] = report.missing_library() is None
    if settings["tensorboard"]:
        curves.check_tensorboard()
    return settings, folder


def _counter(settings: Mapping[str, Any], device: torch.device) -> CounterModel:
    options = settings["option"] or {}
    try:
        if settings["weights"] is not None:
            counter = models.load(settings["weights"], name=settings["model"], **options)
        else:
            # Fresh weights are drawn from torch's global generator.
            torch.manual_seed(settings["seed"])
            counter = models.create(settings["model"] or "mcnn", **options)
    except TypeError as error:
        raise ValueError(f"--option: {error}") from None
    return counter.to(device)


def _test(settings: Mapping[str, Any], plan: Plan, processes: Ranks) -> Measure | None:
    """What measures the best weights on test images, without and with ablation; None for none.

    The images are opened at once: what is wrong with them is told before the training.
    """
    if settings["test_split"] is None:
        return None
    tested = data.open(
        settings["test_data"] or settings["data"], split=settings["test_split"],
        on_error=settings["on_error"],
    )  # fmt: skip

    def measure(counter: CounterModel, summary: Mapping[str, Any]) -> dict[str, Any]:
        found = {"plain": measured(counter, tested, ranks=processes)}
        if plan.recipe == "ablation":
            shown = defense.ablated(
                counter, plan.k, draws=_ABLATED_DRAWS, fill=summary["fill"], unit=plan.unit,
                seed=settings["seed"],
            )  # fmt: skip
            found["ablated"] = measured(shown, tested, ranks=processes)
        return found

    return measure


if __name__ == "__main__":
    raise SystemExit(main())
