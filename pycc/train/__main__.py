"""The command ``python -m pycc.train``: train a counter, on one process or under torchrun."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from pycc import attack, cli, data, defense, models, report, runs, train
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
_OF_RECIPES = {
    "k": ["ablation"], "unit": ["ablation"], "fill": ["ablation"],
    "warmup": ["ablation", "adversarial"], "decline": ["adversarial"], "patch": ["adversarial"],
    "patch_steps": ["adversarial"], "patch_step_size": ["adversarial"],
}  # fmt: skip
"""Flags that only some recipes read."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with ``argv`` (default: the process's); returns its exit code."""
    return cli.command(_work, sys.argv[1:] if argv is None else argv)


def _parser() -> cli.Parser:
    flags = cli.Parser(
        prog="python -m pycc.train",
        description="Train a counter on annotated images by its own published recipe, on ablated "
        "images, or against patches. Many processes: torchrun --nproc-per-node N -m pycc.train …",
        epilog="Without --data, on the built-in scenes, "
        + ", ".join(f"{name} is {value}" for name, value in QUICK.items())
        + f". Exit codes: 0 done, {cli.ENDS}.",
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
        cli.set_threads(settings["threads"])
        plan = Plan.of(settings)
        counter = _counter(settings, device)
        samples = data.open(
            settings["data"], split=settings["split"], limit=settings["limit"],
            on_error=settings["on_error"], outside=settings["outside"],
            bit_depth=settings["bit_depth"], max_image_pixels=settings["max_image_pixels"],
        )  # fmt: skip
        tested = _tested(settings)
        if tested is not None:
            samples = data.apart(samples, tested, ("training", "test"))
            if len(samples) == 0:
                raise ValueError(
                    f"{tested.name}: all training images are among the test images; expected "
                    "another --split, --test-split or --test-data"
                )
        adversary = None
        if plan.recipe == "adversarial":
            adversary = attack.InnerAttack(plan.patch, plan.patch_steps, plan.patch_step_size)
        progress = cli.Progress("batches")
        try:
            log = train.fit(
                counter, samples, plan, seed=settings["seed"],
                out=folder, resume=resume is not None, adversary=adversary, ranks=processes,
                settings={"flags": settings}, command=argv, machine=MACHINE, progress=progress,
                measure=_test(tested, settings, plan, processes), tested=tested,
            )  # fmt: skip
        except train.NotFiniteError as error:
            cli.say(f"error: {error}")
            return cli.BAD_INPUT
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
    stored = runs.read_flags(resume, "train")
    fixed = {name: value for name, value in given.items() if name not in MACHINE}
    cli.check_same(stored, fixed, resume)
    return stored


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
    _check_flags(given, settings)
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


def _check_flags(given: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """ValueError for a flag that was given and would do nothing."""
    for name, recipes in _OF_RECIPES.items():
        if name in given and settings["recipe"] not in recipes:
            raise ValueError(
                f"--{name.replace('_', '-')}: needs --recipe {' or '.join(recipes)}, got "
                f"{settings['recipe']}"
            )
    if "test_data" in given and settings["test_split"] is None:
        raise ValueError("--test-data: needs --test-split, the part that is measured on")


def _counter(settings: Mapping[str, Any], device: torch.device) -> CounterModel:
    options = settings["option"] or {}
    # Fresh weights, and fresh parts of loaded ones, are drawn from torch's global generator.
    torch.manual_seed(settings["seed"])
    try:
        if settings["weights"] is not None:
            counter = models.load(settings["weights"], name=settings["model"], **options)
        else:
            counter = models.create(settings["model"] or "mcnn", **options)
    except TypeError as error:
        raise ValueError(f"--option: {error}") from None
    return counter.to(device)


def _tested(settings: Mapping[str, Any]) -> data.Dataset | None:
    """The images that the best weights are measured on, opened before anything is trained."""
    if settings["test_split"] is None:
        return None
    return data.open(
        settings["test_data"] or settings["data"], split=settings["test_split"],
        on_error=settings["on_error"], outside=settings["outside"],
        bit_depth=settings["bit_depth"], max_image_pixels=settings["max_image_pixels"],
    )  # fmt: skip


def _test(
    tested: data.Dataset | None, settings: Mapping[str, Any], plan: Plan, processes: Ranks
) -> Measure | None:
    """What measures the best weights on test images, without and with ablation; None for none."""
    if tested is None:
        return None

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
