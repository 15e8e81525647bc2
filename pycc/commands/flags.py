"""Flags on the command line: a parser made from settings, and groups that commands share."""

from __future__ import annotations

import argparse
import json
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import torch

from pycc import data, models
from pycc.commands.checks import check_least
from pycc.commands.entry import DEBUG, HELP, HELP_ALL, IMPORT
from pycc.commands.options import naming_option
from pycc.data.dataset import Dataset, OnError
from pycc.data.dataset import builtin as builtin_data
from pycc.data.outside import SHOW, Show
from pycc.data.reading import Reading
from pycc.models.exchange import BlackBox
from pycc.registry import nearest
from pycc.settings import Flag, Options, flag


@dataclass(frozen=True)
class FolderFlags(Reading):
    """The options for reading the images of data sets."""

    on_error: OnError = flag(
        "raise", "what to do with broken items", choices=["raise", "skip"], advanced=True
    )

    def opened(self, folder: str, split: str, limit: int | None = None, **options: Any) -> Dataset:
        """Open the first ``limit`` images of a part of a data set, read as these flags say."""
        return data.open(
            folder, split=split, limit=limit, on_error=self.on_error, bit_depth=self.bit_depth,
            max_image_pixels=self.max_image_pixels, **options,
        )  # fmt: skip


@dataclass(frozen=True)
class AnnotatedFlags(FolderFlags):
    """The images of a command that needs their head annotations."""

    data: str = flag(
        "synthetic", "folder of annotated images, or a built-in data set",
        metavar="FOLDER", names=builtin_data.names,
    )  # fmt: skip
    split: str = flag("test", "part of the data set")
    max_images: int | None = flag(None, "use the first images only")
    outside_roi: Show = flag(
        "keep", "what images show outside their region of interest", choices=SHOW, advanced=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least("max_images", self.max_images, 1)

    def opened(self, folder: str, split: str, limit: int | None = None, **options: Any) -> Dataset:
        """Open images as ``FolderFlags`` does, with the outside of their regions as requested."""
        return super().opened(folder, split, limit, outside=self.outside_roi, **options)

    def samples(self) -> Dataset:
        """The images that the flags name."""
        return self.opened(self.data, self.split, self.max_images)


@dataclass(frozen=True)
class DataFlags(AnnotatedFlags):
    """The images of a command that works without head annotations too."""

    unannotated: bool = flag(
        False, "images without head annotations: errors against heads are then unknown"
    )

    def opened(self, folder: str, split: str, limit: int | None = None, **options: Any) -> Dataset:
        """Open images as ``AnnotatedFlags`` does, with or without head annotations."""
        return super().opened(folder, split, limit, annotated=not self.unannotated, **options)


_WEIGHTS = "file with weights, the name of built-in ones, or hf://OWNER/NAME on a hub"


@dataclass(frozen=True)
class WeightsFlags:
    """A counter's family, weights and options."""

    model: str | None = flag(
        None, "the counter's family (default: recognised from the weights)",
        choices=lambda: [*models.names(), BlackBox.name], metavar="NAME",
    )  # fmt: skip
    weights: str | None = flag(None, _WEIGHTS, names=models.builtin)
    option: Options = flag(
        help="an option of the counter, such as resize=4; may be repeated", factory=dict
    )

    def load(self, device: torch.device, weights: str | None = None) -> models.CounterModel:
        """The counter on a device, with its own or other weights; ValueError if they do not fit."""
        chosen = weights or self.weights
        if chosen is None:
            raise ValueError("--weights: expected a file with weights, got none")
        with naming_option():
            counter = models.load(chosen, name=self.model, **self.option)
        return counter.to(device)


@dataclass(frozen=True)
class CounterFlags(WeightsFlags):
    """The counter of a command."""

    weights: str = flag("mcnn-synthetic", _WEIGHTS, names=models.builtin)


@dataclass(frozen=True)
class StartFlags(WeightsFlags):
    """The counter that a training starts from."""

    published: ClassVar[Mapping[str, Options]] = {}
    """Options of fresh counters by family, unless ``--option`` says otherwise."""

    model: str | None = flag(
        None, "the counter's family (default: recognised from the weights, or mcnn)"
    )
    weights: str | None = flag(
        None, "weights to start from: a file, or the name of built-in ones (default of trainings: "
        "fresh ones)", names=models.builtin,
    )  # fmt: skip

    def counter(self, seed: int) -> models.CounterModel:
        """The counter that a training starts from, on the CPU."""
        # Fresh weights, and fresh parts of loaded ones, are drawn from torch's global generator.
        torch.manual_seed(seed)
        if self.weights is not None:
            return self.load(torch.device("cpu"))
        name = self.model or "mcnn"
        with naming_option():
            return models.create(name, **{**self.published.get(name, {}), **self.option})


@dataclass(frozen=True)
class DeviceFlags:
    """The device of a command."""

    device: str = flag("cpu", "cpu or cuda[:N]")
    threads: int | None = flag(
        None, "threads (default: torch's, as many as cores); sums depend on it", advanced=True
    )


@dataclass(frozen=True)
class MachineFlags(DeviceFlags):
    """The device of a command, and the key of its randomness."""

    seed: int = flag(0, "key of all randomness")


def number(text: str) -> int | float:
    """An int if it is written as one, else a float: 20 is pixels, 0.02 a share."""
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            pass
    raise argparse.ArgumentTypeError(
        f"expected pixels, such as 20, or a share, such as 0.02, got {text!r}"
    )


def pair(text: str) -> tuple[str, Any]:
    """NAME=VALUE; the value is read as JSON if it is JSON, else as text."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


class Parser(argparse.ArgumentParser):
    """A parser that raises ValueError for bad usage and answers mistyped flags.

    Flags that are not given leave no value behind: a given value differs from a default.
    """

    def __init__(
        self,
        prog: str,
        description: str,
        epilog: str,
        flags: Sequence[Flag],
        elsewhere: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            prog=prog, description=description, epilog=epilog, argument_default=argparse.SUPPRESS,
            allow_abbrev=False, add_help=False,
        )  # fmt: skip
        self.flags = {entry.name: entry for entry in flags}
        self._elsewhere = elsewhere or {}
        self._groups: dict[str, argparse._ArgumentGroup] = {}
        for entry in flags:
            self._add(entry)
        common = self.add_argument_group("every command")
        common.add_argument(HELP, action="store_true", help="show the flags that most people need")
        common.add_argument(HELP_ALL, action="store_true", help="show every flag")
        common.add_argument(DEBUG, action="store_true", help="show the traceback of an error")
        common.add_argument(
            IMPORT, action="append", metavar="MODULE_OR_FILE",
            help="import this first, for what it registers, such as attacks, models and layouts of "
            "data sets; may be repeated",
        )  # fmt: skip

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise ValueError(message)

    def given(self, argv: Sequence[str]) -> dict[str, Any]:
        """The values that were given by name, checked; paths are made absolute.

        ValueError for an unknown flag, with the nearest one, and for a value that cannot be read.
        """
        space, rest = self.parse_known_args(list(argv))
        for text in rest:
            if text.startswith("--"):
                name = text.partition("=")[0]
                known = [option.removeprefix("--") for option in self._option_string_actions]
                close = nearest(name.removeprefix("--"), known, prefix="--")
                raise ValueError(self._elsewhere.get(name, f"unknown flag {name}{close}"))
        if rest:
            raise ValueError(f"unexpected argument {rest[0]!r}{self._after_flag(rest[0], argv)}")
        values = vars(space)
        for name in (HELP, HELP_ALL, DEBUG, IMPORT):
            values.pop(name[2:].replace("-", "_"), None)
        return {name: self._value(self.flags[name], value) for name, value in values.items()}

    def _after_flag(self, text: str, argv: Sequence[str]) -> str:
        """The end of an error: the flag of one value that an argument was given to as another."""
        at = list(argv).index(text)
        action = self._option_string_actions.get(argv[at - 2]) if at >= 2 else None
        if action is not None and action.nargs is None:
            return f": {argv[at - 2]} takes one value, {argv[at - 1]!r}"
        return f"; {HELP} shows what is expected"

    def _value(self, entry: Flag, value: Any) -> Any:
        if typing.get_origin(entry.annotation) is dict:
            return dict(value)
        value = entry.checked(value)
        if entry.names is None:
            return value
        known = entry.names()

        def full_path(path: str) -> str:
            if path in known or "://" in path:  # such as weights on a hub
                return path
            close = nearest(path, known)
            if close and not Path(path).exists():
                raise ValueError(f"{entry.shown}: {path} does not exist{close}")
            return str(Path(path).absolute())

        return [full_path(path) for path in value] if isinstance(value, list) else full_path(value)

    def _add(self, entry: Flag) -> None:
        title = entry.title or "options"
        if title not in self._groups:
            self._groups[title] = self.add_argument_group(title)
        options = _conversion(entry.annotation)
        if entry.metavar is not None:
            options["metavar"] = entry.metavar
        elif entry.choices is not None:
            options["metavar"] = "{" + ",".join(entry.choices) + "}"
        names = [entry.name] if entry.positional else [entry.shown]
        if entry.positional and "metavar" not in options:
            options["metavar"] = entry.name.upper()
        if entry.positional and entry.default is not MISSING:
            options["nargs"] = "*"
        about = _help(entry).replace("%", "%%")
        if entry.annotation is bool and entry.default is not True:  # help need not show --no-X
            self._groups[title].add_argument(*names, help=about, action="store_true")
            self._groups[title].add_argument(
                f"--no-{entry.shown[2:]}", dest=entry.name, help=argparse.SUPPRESS,
                action="store_false",
            )  # fmt: skip
            return
        self._groups[title].add_argument(*names, help=about, **options)

    def text(self, *, everything: bool) -> str:
        """The help text: of every flag, or of those that most people need."""
        for group in self._action_groups:
            for action in group._group_actions:
                entry = self.flags.get(action.dest)
                advanced = IMPORT in action.option_strings if entry is None else entry.advanced
                if advanced and not everything:
                    action.help = argparse.SUPPRESS
        return self.format_help()


def _help(entry: Flag) -> str:
    empty = entry.default in (None, MISSING, (), "") or entry.default == [] or entry.default == {}
    if empty or isinstance(entry.default, bool) or "default:" in entry.help:
        return entry.help
    default = entry.default
    shown = " ".join(map(_shown, default)) if isinstance(default, list | tuple) else _shown(default)
    return f"{entry.help} (default: {shown})"


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _conversion(annotation: Any) -> dict[str, Any]:
    """Return the function with which argparse reads a value of this type."""
    if annotation == (int, float):
        return {"type": number}
    if annotation is bool:
        return {"action": argparse.BooleanOptionalAction}
    if typing.get_origin(annotation) is typing.Literal:
        return {"type": str}
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is tuple and inner[-1] is not Ellipsis:
        return {"type": inner[0], "nargs": len(inner)}
    if origin in (tuple, list):
        read = _conversion(inner[0] if not typing.get_args(inner[0]) else typing.get_args(inner[0]))
        return {**read, "nargs": "+"}
    if origin in (dict, Mapping):
        return {"type": pair, "action": "append", "metavar": "NAME=VALUE"}
    return {"type": annotation}
