"""``python -m pycc.models``: which counters there are, what weights are, and their export."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Sequence

import torch

from pycc import cli, models
from pycc.models.base import MODELS, CounterModel
from pycc.models.probe import HEADS, ask
from pycc.models.recipe import Recipe
from pycc.models.weights import builtin


def parser() -> cli.Parser:
    """The command's flags."""
    root = cli.Parser(
        prog="python -m pycc.models",
        description="Counters and their weights.",
        epilog=f"Exit codes: 0 done, 1 weights read in a wrong convention, {cli.ENDS}.",
    )
    commands = root.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser("list", help="the known counters and the built-in weights")
    show = commands.add_parser("show", help="a counter's options, geometry and published recipe")
    show.add_argument("name", metavar="NAME", help="a counter's name or that of built-in weights")
    _add_options(show)
    check = commands.add_parser("check", help="what weights are, and what they say of a picture")
    _add_weights(check)
    export = commands.add_parser("export", help="write a counter as ONNX and check it")
    _add_weights(export)
    export.add_argument("out", metavar="FILE.onnx", help="the file to write")
    export.add_argument("--height", type=int, default=768, help="of the images (default: 768)")
    export.add_argument("--width", type=int, default=1024, help="of the images (default: 1024)")
    return root


def _add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--option", type=cli.pair, action="append", metavar="NAME=VALUE", default=[],
        help="an option of the counter; may be repeated",
    )  # fmt: skip


def _add_weights(command: argparse.ArgumentParser) -> None:
    command.add_argument("weights", metavar="WEIGHTS", help="a file, or built-in weights")
    command.add_argument("--model", metavar="NAME", default=None, help="the counter, if not told")
    _add_options(command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""

    def work(argv: list[str]) -> int:
        given = parser().parse_args(argv)
        if given.command == "list":
            return _list()
        if given.command == "show":
            return _show(given.name, dict(given.option))
        counter = models.load(given.weights, name=given.model, **dict(given.option))
        if given.command == "check":
            return _check(counter)
        shape = (given.height, given.width)
        difference = models.export_onnx(counter, given.out, shape=shape)
        print(
            f"{given.out}: images [N,3,{shape[0]},{shape[1]}] in [0,1] -> people per cell of "
            f"{counter.stride}x{counter.stride} pixels; onnxruntime differs by "
            f"{difference:.1e} of the map's maximum",
            flush=True,
        )
        return cli.DONE

    return cli.command(work, sys.argv[1:] if argv is None else argv)


def _list() -> int:
    for name in models.names():
        counter = _meta(name, {})
        print(
            f"{name:14} {_parameters(counter):>11,} parameters, stride {counter.stride:>2}, "
            f"receptive field {_field(counter)}"
        )
    for name in builtin():
        print(f"{name:14} built-in weights")
    sys.stdout.flush()
    return cli.DONE


def _show(name: str, options: dict[str, object]) -> int:
    counter = models.load(name) if name in builtin() else _meta(name, options)
    model = MODELS[counter.name]
    print(inspect.cleandoc(model.__doc__ or ""))
    print()
    _geometry(counter)
    try:
        recipe = counter.recipe()
    except ValueError as error:
        print(str(error))
    else:
        _recipe(recipe)
    sys.stdout.flush()
    return cli.DONE


def _check(counter: CounterModel) -> int:
    print(f"recognised       {counter.origin}")
    _geometry(counter)
    answer = ask(counter)
    print(
        f"probe image      {answer.count:.5g} people for {HEADS} heads, checksum "
        f"{answer.checksum:.6g}; bare ground {answer.blank:.4g}"
    )
    for name, value in counter.metadata.items():
        if name in ("source", "data", "mae", "rmse", "recipe"):
            print(f"{name:16} {value}")
    other = models.diagnose(counter)
    if other is not None:
        verdict = f"wrong convention: {other}"
    elif counter.metadata:
        verdict = "agrees with its metadata"
    elif answer.plausible:
        verdict = "plausible"
    else:
        verdict = "under no known convention does it see the heads: untrained, or not for heads"
    print(f"verdict          {verdict}", flush=True)
    return cli.DONE if other is None else cli.FAILED


def _geometry(counter: CounterModel) -> None:
    print(f"options          {' '.join(f'{k}={v!r}' for k, v in counter.options().items())}")
    print(f"input            {counter.convention.kind}, output scale {counter.scale:g}")
    print(f"stride           {counter.stride} pixels")
    print(f"receptive field  {_field(counter)}")
    print(f"parameters       {_parameters(counter):,}")


def _recipe(recipe: Recipe) -> None:
    print(f"recipe           {recipe.source}")
    for optimiser in recipe.optimisers:
        print(
            f"  from epoch {optimiser.from_epoch}: {optimiser.kind}, rate {optimiser.lr:g}, "
            f"momentum {optimiser.momentum:g}, weight decay {optimiser.weight_decay:g}"
        )
    print(
        f"  {recipe.epochs} epochs, batch {recipe.batch}, schedule {recipe.schedule.kind}, "
        f"crops {recipe.crop.number} {recipe.crop.kind}, flip {recipe.flip:g}"
    )
    truth = ", ".join(f"{data or 'all others'}: {name}" for data, name in recipe.density.items())
    print(f"  density {truth}; down-sampling {recipe.down_sampling or 'none'}")
    for name, value in recipe.augmentation.items():
        print(f"  {name} {value}")
    for note in recipe.notes:
        print(f"  note: {note}")


def _meta(name: str, options: dict[str, object]) -> CounterModel:
    """A counter without values: its geometry and number of parameters at no cost."""
    with torch.device("meta"):
        return models.create(name, **options)


def _field(counter: CounterModel) -> str:
    field = counter.receptive_field
    return "the whole image" if field is None else f"{field} pixels"


def _parameters(counter: CounterModel) -> int:
    return sum(parameter.numel() for parameter in counter.net.parameters())


if __name__ == "__main__":
    sys.exit(main())
