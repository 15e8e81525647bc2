"""The base of the backdoor commands: defaults on the built-in scenes, run folders, warnings."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pycc import report
from pycc.commands.backdoor_images import SYNTHETIC
from pycc.commands.backdoor_settings import scene_defaults, scene_help
from pycc.commands.base import MACHINE, Command, Context, RunCommand
from pycc.commands.progress import say
from pycc.settings import flags_of

S = TypeVar("S")


class OnScenes(Command[S]):
    """A command with special defaults on the built-in scenes."""

    step: str
    """The command's name for ``scene_defaults``."""
    note = ""
    """The text of the help besides these defaults."""

    def flag_names(self) -> list[str]:
        """Names of the command's flags."""
        return [flag.name for flag in flags_of(self.settings, self.variants(()))]

    @property
    def epilog(self) -> str:  # type: ignore[override]
        """The defaults on the built-in scenes."""
        return f"{scene_help(self.step, self.flag_names())} {self.note}".strip()

    def presets(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The defaults on the built-in scenes, if they are the data."""
        if given.get("data", SYNTHETIC) != SYNTHETIC:
            return {}
        return scene_defaults(self.step, self.flag_names(), given)


class RunOnScenes(OnScenes[S], RunCommand[S]):
    """A command with a run folder."""

    kind = "backdoor"
    machine = MACHINE | {"layer", "picture_image"}

    @property
    def command(self) -> str:
        """The name of the command in manifests, which distinguishes runs of one kind."""
        return f"backdoor {self.step}"

    def matches(self, flags: Mapping[str, Any]) -> bool:
        """Whether a stored run is one of this command."""
        return flags.get("command") == self.command


def drawn(pictures: bool | None) -> bool:
    """Whether pictures are drawn: as given; by default if the library for them is installed.

    ValueError if they are requested without the library.
    """
    reason = report.missing_library()
    if pictures and reason is not None:
        raise ValueError(reason)
    if pictures is None and reason is not None:
        say(f"note: {reason}")
    return reason is None if pictures is None else pictures


def warn(context: Context, lines: Sequence[str]) -> None:
    """Print warnings in the first process alone."""
    for line in lines if context.ranks.first else ():
        warnings.warn(line, stacklevel=2)
