"""What the flags of the commands ask for, as objects of the package."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from pycc import data, models
from pycc.backdoor.defenses.detector import BlendConsistency
from pycc.backdoor.defenses.finetuning import Defense, defenses
from pycc.backdoor.evaluation.training import (
    PUBLISHED,
    PUBLISHED_DEFENSE,
    PUBLISHED_OPTIONS,
    open_settings,
)
from pycc.backdoor.flags import DETECTOR, Training
from pycc.backdoor.poisoning.strategies import Strategy, strategies
from pycc.backdoor.poisoning.triggers import Trigger, triggers
from pycc.data.dataset import Dataset
from pycc.data.dataset import builtin as builtin_data
from pycc.data.scaled import Scaled
from pycc.models import CounterModel
from pycc.train import Plan

_AMOUNTS = [
    name
    for name, kind in ((name, strategies[name]) for name in strategies.names())
    if any(one.name == "amount" for one in fields(kind))
]
_PICTURES = ("layer", "picture_image")
_NEEDS: tuple[tuple[tuple[str, ...], str, Callable[[Mapping[str, Any]], object]], ...] = (
    (("assumed",), "--partitions", lambda chosen: chosen["partitions"] is not None),
    (("share", "limit_a", "split_a"), "--data-a", lambda chosen: chosen["data_a"] is not None),
    (("references",), f"--defense {DETECTOR}", lambda chosen: DETECTOR in chosen["defense"]),
    (("defend_clean",), f"--defense of {', '.join(defenses.names())}",
     lambda chosen: {*defenses.names()} & {*chosen["defense"]}),
    (("amount",), f"--strategy {' or '.join(_AMOUNTS)}",
     lambda chosen: {*_AMOUNTS} & {*_names(chosen["strategy"])}),
    (("trigger", "trigger_option"), "--strategy", lambda chosen: chosen["strategy"]),
    (_PICTURES, "--pictures of a run", lambda chosen: chosen["pictures"] is not False),
)  # fmt: skip
"""Flags, what they need, as it is told, and whether it is there."""


def check_needs(given: Mapping[str, Any], chosen: Mapping[str, Any]) -> None:
    """ValueError for a flag that was given and does nothing for want of another."""
    for names, needed, there in _NEEDS:
        for name in names:
            asked = given.get(name)
            if asked is not None and asked is not False and not there(chosen):
                raise ValueError(f"--{name.replace('_', '-')} does nothing without {needed}")


def _names(of: str | Iterable[str] | None) -> list[str]:
    """None, one or several names, each once."""
    return list(dict.fromkeys([of] if isinstance(of, str) else of or ()))


def normalise(given: dict[str, Any]) -> None:
    """Files by their absolute paths and options as mappings: as a manifest keeps them."""
    for name in ("option", "trigger_option", "defense_option"):
        if name in given:
            given[name] = dict(given[name])
    if "trigger_option" in given:
        given["trigger_option"] = _absolute(given["trigger_option"])
    inside = {**dict.fromkeys(("data_a", "data_b", "test_data"), builtin_data.names()),
              "weights": models.builtin(), "clean_weights": models.builtin()}  # fmt: skip
    for name, names in inside.items():
        if given.get(name) is not None and given[name] not in names:
            given[name] = str(Path(given[name]).absolute())


def _absolute(options: dict[str, Any]) -> dict[str, Any]:
    """A trigger's options, their picture by its absolute path: a run may be resumed elsewhere."""
    if isinstance(options.get("picture"), str):
        return {**options, "picture": str(Path(options["picture"]).absolute())}
    return options


def check(settings: Mapping[str, Any]) -> None:
    """ValueError for a number out of range, named as its flag is."""
    least = {"limit": 1, "test_limit": 1, "limit_a": 1, "threads": 1, "amount": 1,
             "defense_epochs": 1, "partitions": 1, "assumed": 0, "references": 3}  # fmt: skip
    for name, low in least.items():
        value = settings.get(name)
        if value is not None and value < low:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {low}, got {value}")
    for name in ("portion", "share"):
        value = settings.get(name)
        if value is not None and not 0 < value <= 1:
            raise ValueError(f"--{name} must lie in (0,1], got {value}")
    if settings.get("scene") is not None:
        _size(settings["scene"])
        where = [settings.get(name) for name in ("data_b", "data_a", "test_data")]
        if "synthetic" not in where:
            raise ValueError("--scene: only built-in scenes have a size to choose; see --scale")
    value = settings.get("scale", 1.0)
    if not 0 < value < float("inf"):
        raise ValueError(f"--scale must be above 0 and finite, got {value}")


def plan_of(settings: Mapping[str, Any], counter: CounterModel) -> Plan:
    """How counters are trained: as asked for, else as the paper trains this one."""
    return Plan(**open_settings(_asked(settings), PUBLISHED, counter))


def _asked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked for of a training."""
    return {one.name: settings[one.name] for one in fields(Training)}


def strategies_of(settings: Mapping[str, Any]) -> list[Strategy]:
    """The strategies, each once."""
    return [_varied(strategies[name], settings["amount"]) for name in _names(settings["strategy"])]


def strategy_of(settings: Mapping[str, Any]) -> Strategy:
    """The strategy of a command that knows one; ValueError without it."""
    if settings["strategy"] is None:
        raise ValueError(f"--strategy: expected one of {', '.join(strategies.names())}, got none")
    return strategies_of(settings)[0]


def _varied(strategy: Any, amount: int) -> Strategy:
    """The strategy with another amount, where it has any."""
    known = {one.name for one in fields(strategy)}
    found: Strategy = replace(strategy, amount=amount) if "amount" in known else strategy
    return found


def trigger_of(settings: Mapping[str, Any]) -> Trigger:
    """The trigger; ValueError for a field that it does not have, or of another kind or range."""
    kind = triggers[settings["trigger"]]
    return kind(**_fields("--trigger-option", f"trigger {kind.name}", kind,
                          settings["trigger_option"]))  # fmt: skip


def defenses_of(
    settings: Mapping[str, Any], counter: CounterModel
) -> tuple[list[Defense], BlendConsistency | None]:
    """The defenses, and the detector if it was asked for.

    What they share with a training is as asked for there, or as the paper defends this counter, but
    for what was said for a defense alone; no image validates unless that is said. ValueError for
    ``none`` beside others, and for an option of a defense that was not chosen, that it does not
    have, or of another kind or range.
    """
    names = list(dict.fromkeys(settings["defense"]))
    if "none" in names:
        if len(names) > 1:
            raise ValueError(f"--defense: none must stand alone, got {' '.join(names)}")
        names = []
    options: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in settings["defense_option"].items():
        name, point, entry = key.partition(".")
        if not point or name not in options:
            raise ValueError(
                f"--defense-option: expected DEFENSE.FIELD=VALUE of {', '.join(names) or 'none'}, "
                f"got {key}"
            )
        options[name][entry] = value
    found = [_defense(name, options[name], settings, counter) for name in names if name != DETECTOR]
    detector = None
    if DETECTOR in options:
        detector = BlendConsistency(**_fields("--defense-option", DETECTOR, BlendConsistency,
                                              options[DETECTOR]))  # fmt: skip
    return found, detector


def _defense(
    name: str, options: Mapping[str, Any], settings: Mapping[str, Any], counter: CounterModel
) -> Defense:
    kind = defenses[name]
    own = {one.name for one in fields(kind)} - {"validation_share"}
    asked = {**_asked(settings), "epochs": settings["defense_epochs"] or settings["epochs"]}
    shared = {
        entry: value
        for entry, value in open_settings(asked, PUBLISHED_DEFENSE, counter).items()
        if entry in own and value is not None
    }
    return kind(**_fields("--defense-option", name, kind, options, shared))


def counter_of(settings: Mapping[str, Any]) -> CounterModel:
    """The counter with the weights that all trainings start from, on the CPU."""
    # Fresh weights, and fresh parts of loaded ones, are drawn from torch's global generator.
    torch.manual_seed(settings["seed"])
    options = settings["option"] or {}
    try:
        if settings["weights"] is not None:
            return models.load(settings["weights"], name=settings["model"], **options)
        name = settings["model"] or "mcnn"
        return models.create(name, **{**PUBLISHED_OPTIONS.get(name, {}), **options})
    except TypeError as error:
        raise ValueError(f"--option: {error}") from None


def own(settings: Mapping[str, Any]) -> Dataset:
    """The images that are trained on, and poisoned."""
    return _opened(settings, "data_b", settings["split"], settings["limit"])


def tested(settings: Mapping[str, Any]) -> Dataset:
    """The images that are tested on."""
    which = "data_b" if settings.get("test_data") is None else "test_data"
    return _opened(settings, which, settings["test_split"], settings["test_limit"])


def other(settings: Mapping[str, Any]) -> Dataset | None:
    """The other data set that defenses learn from, if there is one."""
    if settings["data_a"] is None:
        return None
    return _opened(settings, "data_a", settings["split_a"], settings["limit_a"])


def _opened(settings: Mapping[str, Any], which: str, split: str, limit: int | None) -> Dataset:
    """The data set of the setting ``which``, resized as asked for."""
    where = settings[which]
    options: dict[str, Any] = {}
    if where == "synthetic":
        # Scenes are drawn, not stored: there are as many as one asks for.
        options = {"count": max(100, limit or 0)}
        if settings.get("scene") is not None:
            options["shape"] = _size(settings["scene"])
    found = data.open(
        where, split=split, limit=limit, on_error=settings["on_error"],
        bit_depth=settings["bit_depth"], max_image_pixels=settings["max_image_pixels"], **options,
    )  # fmt: skip
    scale = settings["scale"]
    return found if scale == 1.0 else Scaled(found, scale)


def _size(text: str) -> tuple[int, int]:
    height, cross, width = text.partition("x")
    if not (cross and height.isdecimal() and width.isdecimal()):
        raise ValueError(f"--scene must be HxW pixels, got {text!r}")
    return int(height), int(width)


def _fields(
    flags: str,
    what: str,
    kind: type[Any],
    options: Mapping[str, Any],
    rest: Mapping[str, Any] = types.MappingProxyType({}),
) -> dict[str, Any]:
    """Options as the fields of a dataclass."""
    hints = typing.get_type_hints(kind)
    known = [one.name for one in fields(kind)]
    found = {}
    for name, value in options.items():
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(f"{flags}: {what} has fields {', '.join(known)}, got {name!r}{hint}")
        found[name] = _typed(flags, name, hints[name], value)
    return {**rest, **found}


def _typed(flags: str, name: str, hint: Any, value: Any) -> Any:
    """A value read from JSON as a field of that type; ValueError if it is none."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = typing.get_args(hint) if union else (hint,)
    for kind in kinds:
        if kind is type(None) and value is None:
            return None
        if kind is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if kind in (bool, str) and isinstance(value, kind):
            return value
        if typing.get_origin(kind) is list:
            names = [value] if isinstance(value, str) else value
            if isinstance(names, list) and all(isinstance(one, str) for one in names):
                return names
    said = " or ".join(_told(kind) for kind in kinds if kind is not type(None))
    raise ValueError(f"{flags}: {name} must be {said}, got {value!r}")


def _told(kind: Any) -> str:
    names: tuple[tuple[Any, str], ...] = (
        (int, "a whole number"), (float, "a number"), (bool, "true or false"), (str, "a text"),
    )  # fmt: skip
    return next((said for one, said in names if one is kind), "a list of names")
