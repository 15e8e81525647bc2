"""The flags of the commands, their groups and their defaults."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from typing import Any

from pycc.backdoor.defenses.finetuning import defenses
from pycc.backdoor.poisoning.strategies import strategies
from pycc.backdoor.poisoning.triggers import triggers
from pycc.data.export import targets
from pycc.data.reading import Reading
from pycc.models import CounterModel
from pycc.train import Plan
from pycc.train.plan import flag

DETECTOR = "blend-consistency"
"""The detector's name beside those of the defenses."""
OTHERS = ("recipe", "k", "unit", "fill", "warmup", "decline", "patch", "patch_steps",
          "patch_step_size")  # fmt: skip
"""Fields of a plan that belong to other recipes than the counter's own."""

QUICK: dict[str, Any] = {
    "weights": "mcnn-synthetic",
    "option": {"input": "gray_unit"},
    "scene": "384x512",
    "limit": 128,
    "test_limit": 32,
    "strategy": ["multiply"],
    "trigger": "sinusoid",
    "trigger_option": {"amplitude": 0.1, "period": 4.0},
    "portion": 0.2,
    "epochs": 14,
    "batch": 1,
    "lr": 4e-4,
    "crop": "240x320",
    "crops": 1,
    "validation_share": 0.0,
    "ema": 0.997,
    "defense_epochs": 8,
}
"""For the built-in scenes. A grating of four pixels hides heads from the clean counter, so that it
rarely counts too many; of grey in [0,1] all layers learn at one rate."""


def without(flags: type[Any], *names: str, **defaults: Any) -> type[Any]:
    """A dataclass of the same fields but for some, and with other ``defaults``: flags."""
    hints = typing.get_type_hints(flags)
    kept = []
    for one in fields(flags):
        if one.name not in names:
            made: dict[str, Any] = {"metadata": one.metadata}
            for default in ("default", "default_factory"):
                if getattr(one, default) is not MISSING:
                    made[default] = getattr(one, default)
            if one.name in defaults:
                made["default"] = defaults[one.name]
            kept.append((one.name, hints[one.name], field(**made)))
    return make_dataclass(flags.__name__, kept, frozen=True)


Training = without(Plan, *OTHERS, validation_share=0.0)
"""How counters are trained, clean, backdoored and on parts of the poisoned set."""


@dataclass(frozen=True)
class Data(Reading):
    """The counter's own images, and how pictures are read."""

    data_b: str = flag(
        "synthetic",
        "folder of annotated images to train and test on (the paper's: ShanghaiTech B), or a "
        "built-in data set",
        metavar="DATA",
    )
    split: str = flag("train", "part that is trained on, and poisoned")
    test_split: str = flag("test", "part that is tested on, clean and with the trigger")
    test_data: str | None = flag(
        None, "folder of the images that are tested on, where it is another", metavar="DATA"
    )
    limit: int | None = flag(None, "use the first training images only")
    test_limit: int | None = flag(None, "use the first test images only")
    scale: float = flag(1.0, "resize all images by this factor")
    scene: str | None = flag(None, "size of built-in scenes (default: theirs)", metavar="HxW")
    on_error: str = flag("raise", "what to do with broken items", choices=["raise", "skip"])


@dataclass(frozen=True)
class Counting:
    """The counter, and where it runs."""

    model: str | None = flag(None, "the counter; without it the weights tell, or mcnn")
    weights: str | None = flag(
        None, "weights that all trainings start from: a file, or built-in ones (default: fresh)"
    )
    option: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "an option of the counter; may be repeated"}
    )


@dataclass(frozen=True)
class Machine:
    """What every command depends on."""

    device: str = flag("cpu", "cpu or cuda[:N]")
    seed: int = flag(0, "key of all randomness")
    threads: int | None = flag(None, "threads (default: torch's)")


@dataclass(frozen=True)
class Attack:
    """The trigger and what it is to do."""

    strategy: list[str] = field(
        default_factory=lambda: ["add", "minus", "multiply", "divide"],
        metadata={
            "help": "what is done to the heads of poisoned images (default: all four)",
            "choices": strategies.names(),
        },
    )
    amount: int = flag(100, "heads that add and minus are about")
    trigger: str = flag("blend", "what poisoned images are marked with", choices=triggers.names())
    trigger_option: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "a field of the trigger, such as alpha=0.1, picture=FILE; repeatable"},
    )
    portion: float = flag(0.1, "share of the training images that have a poisoned duplicate")


@dataclass(frozen=True)
class Clean:
    """What defenses learn from."""

    data_a: str | None = flag(
        None, "another data set whose clean images defenses learn from too", metavar="DATA"
    )
    split_a: str = flag("train", "its part")
    limit_a: int | None = flag(None, "use its first images only")
    share: float = flag(0.1, "how many of its images, as a share of the counter's own")


@dataclass(frozen=True)
class Defenses:
    """What is done to the backdoored counters."""

    defense: list[str] = field(
        default_factory=lambda: ["fine-tuning"],
        metadata={
            "help": "defenses, and the detector of triggered images; none for none (default: "
            "fine-tuning)",
            "choices": [*defenses.names(), DETECTOR, "none"],
        },
    )
    defense_epochs: int | None = flag(
        None, "epochs of defenses that train (default: those of the attack, if asked for, else 100)"
    )
    defense_option: dict[str, Any] = field(
        default_factory=dict,
        metadata={
            "help": "a field of a defense, DEFENSE.FIELD=VALUE; where nothing is said, it trains "
            "as the attack did, without validation; repeatable"
        },
    )
    defend_clean: bool = flag(False, "defend the clean counter too")
    partitions: int | None = flag(
        None, "certify: counters on so many parts of the poisoned set, their median and its bounds"
    )
    assumed: int | None = flag(
        None, "poisoned images that the bounds allow for (default: as many as there are)"
    )
    references: int = flag(32, "clean images, at most, that the detector compares scores with")


@dataclass(frozen=True)
class Pictures:
    """What is drawn."""

    pictures: bool | None = flag(None, "draw densities of ratios, ROC, Grad-CAMs, density maps")
    layer: list[str] | None = field(
        default=None,
        metadata={"help": "layers for Grad-CAM, by name (default: an early and a late one)"},
    )
    picture_image: str | None = flag(
        None, "test image of the pictures (default: the first with people)", metavar="NAME"
    )


OneStrategy = without(Attack, "strategy")


@dataclass(frozen=True)
class Strategy:
    """The strategy of a command that knows one."""

    strategy: str | None = flag(
        None, "what is done to the heads of poisoned images", choices=strategies.names()
    )


@dataclass(frozen=True)
class Export:
    """How a poisoned set is written."""

    layout: str = flag("shanghaitech", "of the folder written", choices=targets.names())
    lossless: bool = flag(False, "write PNG, bit for bit; published code reads JPEG alone")
    test_points: str = flag(
        "altered", "heads of the test images, all of which are triggered; poisoning.jsonl has both",
        choices=["altered", "true"],
    )  # fmt: skip


@dataclass(frozen=True)
class Weights:
    """The counters that are evaluated."""

    weights: str | None = flag(None, "the backdoored counter's: a file")
    clean_weights: str | None = flag(
        None, "the clean counter's, for the chance level: a file, or built-in ones"
    )
    defended: str | None = flag(
        None, "name of the defense that --weights have gone through", metavar="DEFENSE"
    )


@dataclass(frozen=True)
class Gate:
    """What the exit code says."""

    gate: bool = flag(
        False, "exit code 1 unless a backdoor that works and its removal are shown (last line)"
    )


SOURCE = without(Data, "test_split", "test_data", "test_limit")
TESTED = without(Data, "split", "test_data", "limit")
GROUPS: dict[str, tuple[tuple[str, type[Any]], ...]] = {
    "run": (
        ("data and counter", Data), ("data and counter", Counting), ("attack", Attack),
        ("training", Training), ("defenses", Clean), ("defenses", Defenses),
        ("run", Pictures), ("run", Machine), ("run", Gate),
    ),
    "poison": (
        ("data", Data), ("attack", Strategy), ("attack", OneStrategy), ("export", Export),
        ("export", without(Machine, "device", "threads")),
    ),
    "train": (
        ("data and counter", SOURCE), ("data and counter", Counting), ("attack", Strategy),
        ("attack", OneStrategy), ("training", Training), ("run", Machine),
    ),
    "evaluate": (
        ("data and counters", TESTED), ("data and counters", Weights),
        ("data and counters", without(Counting, "weights")), ("attack", Strategy),
        ("attack", without(OneStrategy, "portion")),
        ("run", without(Pictures, "layer", "picture_image")), ("run", Machine),
    ),
    "defend": (
        ("data and counter", SOURCE), ("data and counter", Clean), ("data and counter", Counting),
        ("run", Machine),
    ),
}  # fmt: skip
"""Groups of flags of each command."""


def defaults(command: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given over the defaults of a command, and over ``QUICK`` where no data were.

    For ``defend`` the name of the defense is among what was given.
    """
    found = _fields(command, given)
    if given.get("data_b", found["data_b"]) == found["data_b"]:
        found |= quick(command, given)
    return found | dict(given)


def _fields(command: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of a command's flags."""
    kinds = [flags for _, flags in GROUPS[command]]
    if command == "defend":
        kinds.append(defenses[given["defense"]])
    found: dict[str, Any] = {}
    for flags in kinds:
        for one in fields(flags):
            made = one.default_factory
            found[one.name] = one.default if made is MISSING else made()
    return found


def quick(command: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What of ``QUICK`` is for a command, arguments as of ``defaults``."""
    known = _fields(command, given)
    there = dict(QUICK)
    if command != "run":
        del there["strategy"]
    if command == "defend":  # its epochs and portion are the defense's
        there["epochs"] = there["defense_epochs"]
        del there["portion"]
    another = command in ("evaluate", "defend") or {"model", "weights", "option"} & given.keys()
    if another:  # the rate is that counter's, of a defense's once it is loaded: ``rate``
        del there["weights"], there["option"], there["lr"]
    if {"scene", "scale"} & given.keys():
        there["crop"] = "whole"
    if "trigger" in given or "trigger_option" in given:
        del there["trigger"], there["trigger_option"]
    return {name: value for name, value in there.items() if name in known}


def rate(chosen: Mapping[str, Any], counter: CounterModel) -> float | None:
    """The rate of a defense: the one asked for, that of ``QUICK`` for its counter, else None."""
    found: float | None = chosen["lr"]
    of = QUICK["option"].items() <= counter.options().items() and counter.name == "mcnn"
    if found is None and chosen["data_b"] == "synthetic" and of:
        found = QUICK["lr"]
    return found


def scenes(command: str, defense: str | None = None) -> str:
    """What a command's defaults are where the built-in scenes are its data."""
    found = []
    for name, value in quick(command, {"defense": defense}).items():
        said = value
        if isinstance(value, dict):
            said = " and ".join(f"{key}={one}" for key, one in value.items())
        elif isinstance(value, list):
            said = " ".join(value)
        found.append(f"--{name.replace('_', '-')} {said}")
    text = f"Without --data-b, on the built-in scenes, the defaults are {', '.join(found)}."
    if command == "defend":
        option, value = next(iter(QUICK["option"].items()))
        text += f" --lr is {QUICK['lr']} where the counter is MCNN with {option}={value}."
    return text
