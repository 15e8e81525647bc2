"""Defaults on the built-in scenes, with which a command ends in minutes: one table for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from pycc.commands.base import Command
from pycc.settings import Options, flags_of

S = TypeVar("S")

SYNTHETIC = "synthetic"
"""The name of the built-in scenes."""


@dataclass(frozen=True)
class AttackScenes:
    """Flags of ``pycc attack`` on the scenes, with every preset."""

    max_images: int = 4


@dataclass(frozen=True)
class CertifyScenes:
    """Flags of ``pycc certify`` on the scenes."""

    max_images: int = 6
    calibration_max_images: int = 12


@dataclass(frozen=True)
class TrainScenes:
    """Flags of ``pycc train`` on the scenes."""

    max_images: int = 24
    epochs: int = 3
    crops: int = 2
    warmup: int = 1
    decline: int = 1


@dataclass(frozen=True)
class BackdoorScenes:
    """Flags of the backdoor commands on the scenes.

    A grating of four pixels hides heads from the clean counter, which therefore rarely counts too
    many; with grey in [0,1] all layers learn at one rate.
    """

    weights: str = "mcnn-synthetic"
    option: Options = field(default_factory=lambda: {"input": "gray_unit"})
    scene: str = "384x512"
    max_images: int = 128
    max_test_images: int = 32
    strategy: tuple[str, ...] = ("multiply",)
    trigger: str = "sinusoid"
    trigger_option: Options = field(default_factory=lambda: {"amplitude": 0.1, "period": 4.0})
    fraction: float = 0.2
    epochs: int = 14
    batch: int = 1
    lr: float = 4e-4
    crop: str = "240x320"
    crops: int = 1
    validation_share: float = 0.0
    ema: float = 0.997
    defense_epochs: int = 8


ATTACK, CERTIFY, TRAIN, BACKDOOR = AttackScenes(), CertifyScenes(), TrainScenes(), BackdoorScenes()

Scenes = AttackScenes | CertifyScenes | TrainScenes | BackdoorScenes


def on_scenes(given: Mapping[str, Any]) -> bool:
    """Whether the flags that were given leave the built-in scenes as the data."""
    return bool(given.get("data", SYNTHETIC) == SYNTHETIC)


class OnScenes(Command[S]):
    """A command with defaults of its own on the built-in scenes."""

    scenes: ClassVar[Scenes]
    note: ClassVar[str] = ""
    """The end of the help text, after these defaults."""

    def scene_values(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The table's values that fit the flags that were given."""
        return dict(vars(self.scenes))

    def presets(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The defaults on the built-in scenes, if they are the data."""
        return self._known(given) if on_scenes(given) else {}

    def _known(self, given: Mapping[str, Any]) -> dict[str, Any]:
        names = {flag.name for flag in flags_of(self.settings, self.variants(()))}
        return {name: value for name, value in self.scene_values(given).items() if name in names}

    @property
    def epilog(self) -> str:  # type: ignore[override]
        """The sentence of the help about these defaults."""
        shown = (f"--{name.replace('_', '-')} {_text(v)}" for name, v in self._known({}).items())
        sentence = f"Without --data, on the built-in scenes, the defaults are {', '.join(shown)}."
        return f"{sentence} {self.note}".strip()


def _text(value: object) -> str:
    if isinstance(value, dict):
        return " and ".join(f"{name}={inner}" for name, inner in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
