"""The settings of ``pycc attack``: an attack method with its own flags, presets, and groups."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pycc import data, models
from pycc.attack.base import PatchAttack, attacks
from pycc.attack.methods.pgd import PGD
from pycc.attack.problem import combinations
from pycc.commands.flags import CounterFlags, DataFlags, MachineFlags
from pycc.data.dataset import builtin as builtin_data
from pycc.settings import flag, group, values_of

CLEAN = "clean"
"""In place of an attack method: the images are counted and not attacked."""
APAM, STRONG = "apam", "strong"
"""The default method and preset."""
SIZES = (0.02, 0.04, 0.08, 0.16)
"""The published sizes as shares of the width: 20, 40, 81 and 163 of 1024 pixels."""
FEW_IMAGES = 4
"""Images of a built-in data set that are attacked by default."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {},
    "strong": {
        "objective": "target", "steps": 240, "step_size": 0.25, "decay": "cosine",
        "smoothness": 0.0, "transform": "none",
    },
    "quick": {
        "max_images": FEW_IMAGES, "objective": "over", "steps": 200, "step_size": 64 / 255,
        "decay": "cosine", "pgd_steps": 4,
    },
}  # fmt: skip
"""The values of each preset, by the names of flags.

``paper``: nothing, the attack's defaults are the paper's, which are weak. ``strong``: those of the
results in the README. ``quick``: a minute or so on the built-in scenes on two cores. Few large
steps that shrink to nothing reach as far as many of the published 2/255. They raise the count
outright: the paper's target, ten times the true density, also punishes people counted where none
stand, and noise alone raises the built-in counter's count by more than it allows.
"""


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

    def pgd(self) -> PGD | None:
        """The reference; ValueError for numbers out of range."""
        if self.pgd_steps < 0:
            raise ValueError(f"--pgd-steps must be at least 0, got {self.pgd_steps}")
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
        choices=tuple(PRESETS),
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
    """Return the preset's values beside the flags ``chosen`` (by name), of the flags ``names``.

    Images without annotation have no target: their count is raised. The steps of a method without
    gradients are queries, of which its default is kept.
    """
    attack = chosen.get("attack", APAM)
    values = dict(PRESETS.get(chosen.get("preset", STRONG), {}))  # a wrong name is refused later
    unknown_heads = chosen.get("unannotated") and chosen.get("target_count") is None
    if values.get("objective") == "target" and unknown_heads:
        values["objective"] = "over"
    if attack != CLEAN and not attacks[attack].uses_gradient:
        values.pop("steps", None)
    if attack == CLEAN:  # nothing is attacked, so there is nothing to look at unless requested
        values |= {"pictures": False, "save_images": bool(chosen.get("pictures"))}
    if chosen.get("data", DataFlags.data) in builtin_data.names():
        values["max_images"] = FEW_IMAGES
    return {name: value for name, value in values.items() if name in names}


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
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        yield f"--{name.replace('_', '-')} {shown}"
