"""``pycc models``: the counters that exist, what weights are, and their export."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from pycc import models
from pycc.commands.base import DONE, FAILED, Command, CommandGroup, Context, Entry
from pycc.commands.flags import WeightsFlags
from pycc.commands.options import naming_option
from pycc.models.base import MODELS, CounterModel
from pycc.models.families import untrained
from pycc.models.probe import HEADS, hidden_readings, probe_result
from pycc.models.recipe import Recipe
from pycc.registry import nearest
from pycc.settings import Options, flag


@dataclass(frozen=True)
class NoSettings:
    """A command without flags."""


@dataclass(frozen=True)
class ShowSettings:
    """The counter that is shown."""

    name: str = flag(help="a counter's name, or that of built-in weights", positional=True)
    option: Options = flag(help="an option of the counter; may be repeated", factory=dict)


@dataclass(frozen=True, kw_only=True)
class CheckSettings(WeightsFlags):
    """The weights that are checked."""

    weights: str = flag(
        help="a file, or the name of built-in weights", positional=True, names=models.builtin
    )


@dataclass(frozen=True, kw_only=True)
class ExportSettings(CheckSettings):
    """The weights that are exported, and where to."""

    out: str = flag(help="the ONNX file to write", positional=True, metavar="FILE.onnx")
    height: int = flag(768, "of the images, pixels")
    width: int = flag(1024, "of the images, pixels")


class List(Command[NoSettings]):
    """``pycc models list``."""

    name = "list"
    summary = "The counters that can be created and the built-in weights."
    settings = NoSettings

    def run(self, settings: NoSettings, context: Context) -> int:
        """Print one line for each."""
        return _list()


class Show(Command[ShowSettings]):
    """``pycc models show``."""

    name = "show"
    summary = "A counter's options, geometry and published recipe."
    settings = ShowSettings

    def run(self, settings: ShowSettings, context: Context) -> int:
        """Print them."""
        return _show(settings.name, settings.option)


class Check(Command[CheckSettings]):
    """``pycc models check``."""

    name = "check"
    summary = "What weights are, and their count on a test image."
    settings = CheckSettings

    def run(self, settings: CheckSettings, context: Context) -> int:
        """Print a verdict; the check fails for weights that are read in a wrong convention."""
        return _check(settings.load(context.device), settings.option)


class Export(Command[ExportSettings]):
    """``pycc models export``."""

    name = "export"
    summary = "Write a counter as ONNX and check it."
    settings = ExportSettings

    def run(self, settings: ExportSettings, context: Context) -> int:
        """Write the file."""
        counter, shape = settings.load(context.device), (settings.height, settings.width)
        difference = models.export_onnx(counter, settings.out, shape=shape)
        print(
            f"{settings.out}: images [N,3,{shape[0]},{shape[1]}] in [0,1] -> people per cell of "
            f"{counter.stride}x{counter.stride} pixels; onnxruntime differs by "
            f"{difference:.1e} of the map's maximum",
            flush=True,
        )
        return DONE


class Models(CommandGroup):
    """``pycc models``."""

    name = "models"
    summary = "The counters that exist, what weights are, and their export."
    entries: Sequence[Entry] = (List(), Show(), Check(), Export())


command = Models()


def _list() -> int:
    for name, counter in untrained().items():
        print(
            f"{name:14} {_parameters(counter):>11,} parameters, stride {counter.stride:>2}, "
            f"receptive field {_field(counter)}"
        )
    for name in models.builtin():
        print(f"{name:14} built-in weights")
    sys.stdout.flush()
    return DONE


def _show(name: str, options: Options) -> int:
    known = [*models.names(), *models.builtin()]
    if name not in known:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(known)}{nearest(name, known)}")
    with naming_option():
        loaded = name in models.builtin()
        counter = models.load(name, name=None, **options) if loaded else _meta(name, options)
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
    return DONE


def _check(counter: CounterModel, given: Options) -> int:
    print(f"recognised       {counter.origin}")
    _geometry(counter)
    result = probe_result(counter)
    print(
        f"probe image      {result.count:.5g} people for {HEADS} heads, checksum "
        f"{result.checksum:.6g}; bare ground {result.blank:.4g}"
    )
    for changes, reading in hidden_readings(counter, given):
        text = " ".join(f"{k}={v!r}" for k, v in changes.items())
        print(f"or, with {text}: {reading.count:.5g} people, bare ground {reading.blank:.4g}")
    for name, value in counter.metadata.items():
        if name in ("source", "data", "mae", "rmse", "recipe"):
            print(f"{name:16} {value}")
    field = _wrong_field(counter)
    if counter.caution is not None:
        print(f"caution          {counter.caution}")
    other = models.diagnose(counter)
    if field is not None:
        verdict = f"wrong receptive field: {field}"
    elif other is not None:
        verdict = f"wrong convention: {other}"
    elif counter.metadata:
        verdict = "agrees with its metadata"
    elif result.plausible:
        verdict = "plausible"
    else:
        verdict = (
            "no known convention makes it see the drawn heads: untrained, or trained on "
            "photographs alone; count images whose heads are known"
        )
    print(f"verdict          {verdict}", flush=True)
    return DONE if other is None and field is None else FAILED


def _wrong_field(counter: CounterModel) -> str | None:
    """Measure the receptive field of a family from outside; what is wrong with the declared one.

    Those of pycc are measured by its tests.
    """
    if not _from_outside(counter):
        return None
    measured = models.measure_receptive_field(counter)
    side, declared = None if measured is None else measured.side, counter.receptive_field
    print(f"measured field   {_side(side)}")
    if declared is None or (side is not None and side <= declared):
        return None
    return (
        f"declared are {declared} pixels, measured {_side(side)}; its certificates would not hold"
    )


def _from_outside(counter: CounterModel) -> bool:
    return not type(counter).__module__.startswith("pycc.")


def _geometry(counter: CounterModel) -> None:
    options = " ".join(f"{k}={v!r}" for k, v in counter.options().items())
    print(f"options          {options or 'none'}")
    own = _from_outside(counter) and type(counter).preprocess is not CounterModel.preprocess
    print(
        f"input            {'its own preprocess' if own else counter.convention.kind}, "
        f"output scale {counter.scale:g}"
    )
    print(f"stride           {counter.stride} pixels")
    if counter.period != counter.stride:
        print(f"grid             {counter.period} pixels, of which {counter.stride} make a cell")
    print(f"receptive field  {_field(counter)}")
    print(f"parameters       {_parameters(counter):,}")


def _recipe(recipe: Recipe) -> None:
    print(f"recipe           {recipe.source}")
    for optimiser in recipe.optimisers:
        print(
            f"  from epoch {optimiser.from_epoch}: {optimiser.kind}, rate {optimiser.lr:g}, "
            f"momentum {optimiser.momentum:g}, weight decay {optimiser.weight_decay:g}"
            + ("" if optimiser.backbone == 1.0 else f", of the backbone x {optimiser.backbone:g}")
        )
    print(
        f"  {recipe.epochs} epochs, batch {recipe.batch}, schedule {recipe.schedule.kind}, "
        f"crops {recipe.crop.number} {recipe.crop.kind}, flip {recipe.flip:g}"
    )
    truth = ", ".join(f"{data or 'all others'}: {name}" for data, name in recipe.density.items())
    print(f"  density {truth}; down-sampling {recipe.down_sampling or 'none'}")
    for augmentation in recipe.augmentations:
        values = ", ".join(f"{name} {value}" for name, value in asdict(augmentation).items())
        print(f"  {augmentation.name}: {values}")
    if recipe.repeats > 1:
        print(f"  each crop {recipe.repeats} times per epoch")
    for note in recipe.notes:
        print(f"  note: {note}")


def _meta(name: str, options: Options) -> CounterModel:
    """A counter without values: its geometry and number of parameters at no cost."""
    with torch.device("meta"):
        return models.create(name, **options)


def _field(counter: CounterModel) -> str:
    return _side(counter.receptive_field)


def _side(field: int | None) -> str:
    return "the whole image" if field is None else f"{field} pixels"


def _parameters(counter: CounterModel) -> int:
    return sum(parameter.numel() for parameter in counter.net.parameters())
