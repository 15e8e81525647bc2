"""The base of the backdoor commands: defaults on the built-in scenes, run folders, warnings."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pycc.commands.base import MACHINE, Context, RunCommand
from pycc.commands.scenes import BACKDOOR, OnScenes

S = TypeVar("S")


class OnBackdoorScenes(OnScenes[S]):
    """A backdoor command with special defaults on the built-in scenes."""

    step: str
    """The command's name, also of the one for a single defense."""
    scenes = BACKDOOR

    def scene_values(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The table's values that fit the command and the flags that were given."""
        values = super().scene_values(given)
        if self.step == "run":
            values["strategy"] = list(BACKDOOR.strategy)
        else:
            del values["strategy"]
        if self.step == "evaluate":
            values["max_images"] = BACKDOOR.max_test_images
        if self.step == "defend":
            values["epochs"] = BACKDOOR.defense_epochs
        other_counter = self.step in ("evaluate", "defend") or (
            {"model", "weights", "option"} & given.keys()
        )
        if other_counter:  # with its own rate, which a defense knows once the counter is loaded
            for name in ("weights", "option", "lr"):
                del values[name]
        if {"scene", "scale"} & given.keys():
            values["crop"] = "whole"
        if "trigger" in given or "trigger_option" in given:
            del values["trigger"], values["trigger_option"]
        return values


class RunOnScenes(OnBackdoorScenes[S], RunCommand[S]):
    """A command with a run folder."""

    kind = "backdoor"
    machine = MACHINE | {"layer", "picture_image"}
    stated = frozenset({"command"})

    @property
    def command(self) -> str:
        """The name of the command in manifests, which distinguishes runs of one kind."""
        return f"backdoor {self.step}"

    def matches(self, flags: Mapping[str, Any]) -> bool:
        """Whether a stored run is one of this command."""
        return flags.get("command") == self.command


def warn(context: Context, lines: Sequence[str]) -> None:
    """Print warnings in the first process alone."""
    for line in lines if context.ranks.first else ():
        warnings.warn(line, stacklevel=2)
