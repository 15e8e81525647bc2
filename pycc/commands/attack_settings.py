"""The settings of ``pycc attack``: an attack method with its own flags, presets, and groups."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from pycc import data, models
from pycc.attack.base import PatchAttack, attacks
from pycc.attack.methods.pgd import PGD
from pycc.attack.presets import Preset, presets
from pycc.attack.problem import combinations
from pycc.commands.checks import check_least
from pycc.commands.flags import CounterFlags, DataFlags, MachineFlags
from pycc.commands.scenes import ATTACK, on_scenes
from pycc.settings import flag, group, values_of

CLEAN = "clean"
"""In place of an attack method: the images are counted and not attacked."""
APAM, STRONG = "apam", "strong"
"""The default method and preset."""
SIZES = (0.02, 0.04, 0.08, 0.16)
"""The published sizes as shares of the width: 20, 40, 81 and 163 of 1024 pixels."""


def methods() -> list[str]:
    """The names that ``--attack`` takes."""
    return [*attacks.names(), CLEAN]


@dataclass(frozen=True)
class NoPatches:
    """The choice to count images without attack."""

    def attacks(self) -> list[PatchAttack]:
        """No attacks."""
        return []


@dataclass(frozen=True)
class Patches(NoPatches):
    """The choice of an attack method: its own flags, and the sizes of its patches."""

    patch_size: tuple[int | float, ...] = flag(
        SIZES,
        "sides of the patches, one or several: pixels, or with a decimal point a share of the "
        "image's width",
        metavar="SIZE",
    )
    method: PatchAttack = group(attacks[APAM], "attack method")

    def attacks(self) -> list[PatchAttack]:
        """One attack for each size; ValueError for a field out of range."""
        return [replace(self.method, patch_size=size) for size in self.patch_size]


def variants(attack: str) -> dict[str, type[Any]]:
    """The dataclasses of the groups that ``--attack`` chooses."""
    if attack == CLEAN:
        return {"patches": NoPatches}
    return {"patches": Patches, "method": attacks[attack]}


@dataclass(frozen=True)
class BlackBoxFlags:
    """Counters on which patches are made for another counter."""

    surrogates: tuple[str, ...] = flag(
        (),
        "weights on which patches are made too, together, and tried on the counter: a black-box "
        "attack",
        metavar="WEIGHTS",
        names=models.builtin,
    )
    transfer: tuple[str, ...] = flag(
        (),
        "weights of two counters or more, in place of --weights: patches made on each, and on all "
        "others together, are tried on each",
        metavar="WEIGHTS",
        names=models.builtin,
    )
    combine: str = flag(
        "mean", "loss over several counters", choices=combinations.names, advanced=True
    )


@dataclass(frozen=True)
class AblationFlags:
    """The defense that shows the counter a few random pixels."""

    ablate: int | None = flag(
        None,
        "attack the counter that sees only K random pixels, the mean over several draws "
        "(pycc.defense.ablated)",
        metavar="K",
    )
    ablation_samples: int = flag(20, "--ablate: draws per image", advanced=True)
    ablation_unit: str = flag(
        "pixel", "--ablate: what is kept, pixels or array entries", choices=["pixel", "element"],
        advanced=True,
    )  # fmt: skip
    ablation_fill: float | None = flag(
        None,
        "--ablate: grey of the other pixels, in [0,1] (default: the mean colour of the training "
        "images)",
        advanced=True,
    )


@dataclass(frozen=True)
class EvaluationFlags:
    """The measurements beside the attack."""

    seeds: int = flag(1, "repeat the attack from as many seeds")
    pgd_steps: int = flag(10, "steps of PGD on all pixels, a reference; 0: without it")
    pgd_epsilon: float = flag(
        4 / 255, "the reference's largest change of a pixel, of [0,1]", advanced=True
    )
    train_split: str = flag(
        "train",
        "part of the data set for attack universal, and for the mean colour of --ablate",
        advanced=True,
    )
    train_max_images: int | None = flag(60, "images of that part", advanced=True)
    checks: bool = flag(True, "end with exit code 1 if a check fails; checks are stored anyway")

    def __post_init__(self) -> None:
        check_least("train_max_images", self.train_max_images, 1)

    def pgd(self) -> PGD | None:
        """The reference; ValueError for numbers out of range."""
        check_least("pgd_steps", self.pgd_steps, 0)
        return PGD(self.pgd_epsilon, self.pgd_steps) if self.pgd_steps else None


@dataclass(frozen=True)
class OutputFlags:
    """The content of the run folder besides results."""

    save_images: bool = flag(
        True, "keep the attacked images; they are counted as read back", advanced=True
    )
    pictures: bool | None = flag(
        None, "draw one picture per image (default: if matplotlib is installed)"
    )


@dataclass(frozen=True)
class AttackSettings:
    """All settings of ``pycc attack``."""

    attack: str = flag(APAM, f"attack method, or {CLEAN}: count without attack", choices=methods)
    preset: str = flag(
        STRONG,
        "paper: the paper's settings, which are weak; strong: as in the README; quick: a few steps "
        "on a few images. Flags that are given take precedence",
        choices=presets.names,
    )
    patches: NoPatches = group(Patches, "attack method")
    images: DataFlags = group(DataFlags, "images")
    counter: CounterFlags = group(CounterFlags, "counter")
    black_box: BlackBoxFlags = group(BlackBoxFlags, "several counters")
    ablation: AblationFlags = group(AblationFlags, "defense")
    evaluation: EvaluationFlags = group(EvaluationFlags, "evaluation")
    output: OutputFlags = group(OutputFlags, "output")
    machine: MachineFlags = group(MachineFlags, "machine")

    def samples(self, *, train: bool = False) -> data.Dataset:
        """The images that are attacked, or the training images."""
        images, evaluation = self.images, self.evaluation
        if not train:
            return images.samples()
        return images.opened(images.data, evaluation.train_split, evaluation.train_max_images)


def preset_values(chosen: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return the preset's values beside the flags ``chosen`` (by name), of the flags ``names``."""
    attack, name = chosen.get("attack", APAM), chosen.get("preset", STRONG)
    if name not in presets.names():  # refused later, with the flag's name
        return {}
    values: dict[str, Any] = {}
    if attack != CLEAN:
        has_target = not chosen.get("unannotated") or chosen.get("target_count") is not None
        values |= presets[name].values(attacks[attack], has_target=has_target)
    values |= _evaluation(presets[name])
    if attack == CLEAN:  # nothing is attacked, so there is nothing to look at unless requested
        values |= {"pictures": False, "save_images": bool(chosen.get("pictures"))}
    if on_scenes(chosen):
        values |= vars(ATTACK)
    return {name: value for name, value in values.items() if name in names}


def _evaluation(preset: Preset) -> dict[str, Any]:
    """Flags of the evaluation that a preset sets to other values than their defaults."""
    values: dict[str, Any] = {}
    if preset.max_images is not None:
        values["max_images"] = preset.max_images
    if preset.patch_sizes is not None:
        values["patch_size"] = list(preset.patch_sizes)
    default = PGD()
    for field in fields(PGD):
        if (value := getattr(preset.pgd, field.name)) != getattr(default, field.name):
            values[f"pgd_{field.name}"] = value
    return values


def preset_flags() -> frozenset[str]:
    """Names of the flags that some preset sets."""
    known = [presets[name] for name in presets.names()]
    return frozenset(name for preset in known for name in {**_evaluation(preset), **preset.attack})


def preset_text(settings: AttackSettings) -> str:
    """One line: the preset, what it set, and which of its values were given otherwise."""
    values = values_of(settings)
    wanted = preset_values(values, values)
    kept = {name: value for name, value in wanted.items() if values[name] == value}
    changed = {name: values[name] for name in wanted if name not in kept}
    text = f"preset {settings.preset}: {' '.join(_arguments(kept)) or 'the defaults'}"
    return f"{text}; given otherwise: {' '.join(_arguments(changed))}" if changed else text


def _arguments(values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        several = value if isinstance(value, (list, tuple)) else [value]
        shown = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in several]
        yield f"--{name.replace('_', '-')} {' '.join(shown)}"
