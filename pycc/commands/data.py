"""``pycc data``: what a data set consists of and what is wrong in it; its conversion."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pycc.commands.base import DONE, FAILED, Command, CommandGroup, Context, Entry
from pycc.data.dataset import OnError, builtin
from pycc.data.export import export
from pycc.data.inspect import inspect, table
from pycc.data.outside import SHOW, Show
from pycc.data.reading import Reading
from pycc.data.target import targets
from pycc.settings import flag, group


@dataclass(frozen=True)
class InspectSettings:
    """The data set that is inspected."""

    path: str = flag(help="the data set's folder", positional=True)
    split: str | None = flag(None, "one split (default: all)")
    json: bool = flag(False, "print the report as JSON")
    reading: Reading = group(Reading, "picture files")


@dataclass(frozen=True)
class ConvertSettings:
    """The data set that is converted, and how."""

    path: str = flag(help="the data set's folder", positional=True)
    out: str = flag(help="the folder to write: new or empty", positional=True)
    split: str | None = flag(None, "one split (default: all)")
    layout: str = flag("folder", "layout of the folder that is written", choices=targets.names)
    max_images: int | None = flag(None, "use the first images of each split only")
    max_side: int | None = flag(None, "shrink images whose longer side exceeds so many pixels")
    outside_roi: Show = flag(
        "keep", "what images show outside their region of interest", choices=SHOW
    )
    on_error: OnError = flag("raise", "what to do with broken items", choices=["raise", "skip"])
    reading: Reading = group(Reading, "picture files")


class Inspect(Command[InspectSettings]):
    """``pycc data inspect``."""

    name = "inspect"
    summary = "Format and figures of a data set, all that is broken, and images that occur twice."
    settings = InspectSettings
    shared = True

    def check(self, settings: InspectSettings, given: frozenset[str]) -> InspectSettings:
        """Refuse built-in scenes."""
        _check_folder(settings.path)
        return settings

    def run(self, settings: InspectSettings, context: Context) -> int:
        """Print the report; the check fails if something is broken or occurs twice.

        Several processes share the images.
        """
        with context.progress("images") as progress:
            report = inspect(
                Path(settings.path), split=settings.split, reading=settings.reading,
                progress=progress, ranks=context.ranks,
            )  # fmt: skip
        text = json.dumps(report.json(), indent=1) if settings.json else table(report)
        if context.ranks.first:
            print(text, flush=True)
        return DONE if report.intact else FAILED


class Convert(Command[ConvertSettings]):
    """``pycc data convert``."""

    name = "convert"
    summary = "Write a data set in another layout, such as that of a labelling tool."
    settings = ConvertSettings

    def check(self, settings: ConvertSettings, given: frozenset[str]) -> ConvertSettings:
        """Refuse built-in scenes."""
        _check_folder(settings.path)
        return settings

    def run(self, settings: ConvertSettings, context: Context) -> int:
        """Write the folder and print what it holds."""
        with context.progress("images") as progress:
            written = export(
                Path(settings.path), Path(settings.out), split=settings.split,
                layout=settings.layout, limit=settings.max_images, max_side=settings.max_side,
                outside=settings.outside_roi, on_error=settings.on_error,
                reading=settings.reading, progress=progress,
            )  # fmt: skip
        for split in written:
            resized = f", {split.resized:,} of them resized" if split.resized else ""
            print(f"{split.folder}: {split.images:,} images{resized}, {split.heads:,} heads")
        sys.stdout.flush()
        return DONE


class Data(CommandGroup):
    """``pycc data``."""

    name = "data"
    summary = "Data sets: inspect one, or write it in another layout."
    entries: Sequence[Entry] = (Inspect(), Convert())


command = Data()


def _check_folder(path: str) -> None:
    if path in builtin.names():
        raise ValueError(f"{path}: built-in scenes are not files; expected a folder")
