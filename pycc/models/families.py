"""Recognising the family of counters by the keys of weights, under the prefixes of any wrapper.

Training wrappers put a prefix before every key. It is found by structure: the common start of all
keys, or of those keys that belong to a family.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from itertools import takewhile
from typing import NamedTuple, cast

import torch
from torch import Tensor

from pycc.models.base import MODELS, CounterModel

_PREFIXES = (
    *("module", "net", "DME", "CCN", "fine"),
    *("model", "network", "_orig_mod", "backbone", "encoder"),
)
"""Names of the modules in which training scripts wrap a network."""
_INNER = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Names that torch also inserts between those of modules; networks do not use them."""
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_MOST_PREFIXES = 8


class Match(IntEnum):
    """The match of keys with those of a family."""

    NOTHING = 0
    SHARED = 1
    """Some keys are the same."""
    BACKBONE = 2
    """The weights of a backbone that a family starts from."""
    FAMILY = 3
    NAMED = 4
    """The requested family."""


class Unprefixed(NamedTuple):
    """A state dict without the prefixes of training wrappers."""

    state: dict[str, Tensor]
    prefixes: frozenset[str]


def unfit(value: Tensor) -> str | None:
    """Describe what makes a tensor unusable as weights, or return None."""
    if value.is_nested:
        return "a nested tensor"
    if value.layout != torch.strided:
        return str(value.layout).removeprefix("torch.")
    if value.device.type != "cpu":
        return f"one on the {value.device.type} device"
    if value.dtype not in _FLOATS + _INTEGERS:
        return str(value.dtype).removeprefix("torch.")
    if value.untyped_storage().nbytes() < value.numel() * value.element_size():
        return f"a view of shape {list(value.shape)} of fewer numbers"
    return None


def unprefixed(state: Mapping[str, Tensor], name: str | None = None) -> Unprefixed:
    """Remove the prefixes that all keys of a state share, as far as a family requires it.

    Tried in this order, each with as few prefixes removed as possible: the keys are those of the
    family ``name``; of any family; and after a well-known wrapper's prefix, of a backbone; they
    share most keys with a family. If none applies, the well-known prefixes are removed.
    """
    plain = _without_inner(state)
    inner = {f"{word}." for word in _INNER if any(word in key.split(".") for key in state)}
    levels, heads = _levels(plain)
    wrapping = list(takewhile(lambda head: head.removesuffix(".") in _PREFIXES, heads))
    shapes = [_shapes(level) for level in levels]
    depth, match = _family(shapes, name)
    if match == Match.NOTHING and wrapping:
        depth, match = _nearest(shapes)
        depth = depth if match else len(wrapping)
    return Unprefixed(levels[depth], frozenset({*heads[:depth], *inner}))


def is_of_family(state: Mapping[str, Tensor], name: str | None) -> bool:
    """Return whether a state's keys, without common prefixes, are those of a family."""
    return _family(_level_shapes(state), name)[1] > Match.NOTHING


def match_of(state: Mapping[str, Tensor], name: str | None) -> Match:
    """Return how well a state's keys, without common prefixes, match those of a family."""
    levels = _level_shapes(state)
    return _family(levels, name)[1] or _nearest(levels)[1]


def is_recognised(state: Mapping[str, object]) -> bool:
    """Return whether a state's keys, prefixes included, are those of a family."""
    return _recognised(_shapes(state), MODELS.names())


def _level_shapes(state: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Return the shapes of a state without no, one, two, … of its common first names."""
    return [_shapes(level) for level in _levels(_without_inner(state))[0]]


def _without_inner(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    def plain(key: str) -> str:
        *modules, parameter = key.split(".")
        return ".".join((*(name for name in modules if name not in _INNER), parameter))

    return {plain(key): value for key, value in state.items()}


def _levels(state: dict[str, Tensor]) -> tuple[list[dict[str, Tensor]], list[str]]:
    """Return a state without no, one, two, … of its common first names; and these names."""
    levels, heads = [state], list[str]()
    while len(heads) < _MOST_PREFIXES and (head := _head(levels[-1])):
        levels.append({key[len(head) :]: value for key, value in levels[-1].items()})
        heads.append(head)
    return levels, heads


def _head(state: Mapping[str, object]) -> str | None:
    """Return the first name that all keys share and continue after, with its dot."""
    heads = {key.partition(".")[0] + "." for key in state}
    (head, *others) = heads
    return None if others or any(len(key) <= len(head) for key in state) else head


def _family(levels: Sequence[Mapping[str, Tensor]], name: str | None) -> tuple[int, Match]:
    """Return how many prefixes to remove for the keys of a family, and how well they match."""
    for families, match in (([name], Match.NAMED), (MODELS.names(), Match.FAMILY)):
        for depth, state in enumerate(levels):
            if _recognised(state, families):
                return depth, match
    return 0, Match.NOTHING


def _nearest(levels: Sequence[Mapping[str, Tensor]]) -> tuple[int, Match]:
    """Return how many to remove for the keys of a backbone, or for most keys of a family."""
    fresh = untrained()
    for depth, state in enumerate(levels):
        if takers(state, fresh):
            return depth, Match.BACKBONE
    known = [counter.net.state_dict().keys() for counter in fresh.values()]
    most = [max(len(keys & state.keys()) for keys in known) for state in levels]
    return most.index(max(most)), Match.SHARED if max(most) else Match.NOTHING


def state_parts(
    state: Mapping[str, Tensor], name: str | None, prefix: str = ""
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the shortest prefixes under which most keys of a family lie, and their content.

    A few keys are not enough: other networks have parts that begin like a counter.
    """
    groups: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, value in state.items():
        head, dot, rest = key.partition(".")
        if dot:
            groups[f"{prefix}{head}."][rest] = value
    for head, group in groups.items():
        levels = _level_shapes(group)
        depth, match = _family(levels, name)
        if match and _has_most(levels[depth], name):
            yield head, group
        elif head.count(".") < _MOST_PREFIXES:
            yield from state_parts(group, name, head)


def _has_most(state: Mapping[str, Tensor], name: str | None) -> bool:
    """Return whether a state has most keys of a family that recognises it, of ``name`` first."""
    for family in sorted(MODELS.names(), key=lambda family: family != name):
        options = MODELS[family].recognise(state)
        if options is not None:
            with torch.device("meta"):
                net = cast("Callable[..., CounterModel]", MODELS[family])(**options).net
            keys = net.state_dict().keys()
            return 2 * len(keys & state.keys()) > len(keys)
    return False


def _recognised(state: Mapping[str, Tensor], families: Iterable[str | None]) -> bool:
    known = [family for family in families if family in MODELS.names()]
    return any(MODELS[family].recognise(state) is not None for family in known)


def _shapes(state: Mapping[str, object]) -> dict[str, Tensor]:
    """Return the state's tensors without values, on which no family's keys depend."""
    return {
        key: torch.empty(value.shape, dtype=value.dtype, device="meta")
        for key, value in state.items()
        if isinstance(value, Tensor) and (value.is_meta or unfit(value) is None)
    }


def untrained() -> dict[str, CounterModel]:
    """Return every family's counter as ``create`` makes it, without memory for its weights."""
    for name in MODELS.names():
        if MODELS[name] not in skeletons:
            with torch.device("meta"):
                skeletons[MODELS[name]] = cast("Callable[[], CounterModel]", MODELS[name])()
    return {name: skeletons[MODELS[name]] for name in MODELS.names()}


skeletons: dict[type[CounterModel], CounterModel] = {}
"""The results of ``untrained``, which takes about half a second."""


def takers(state: Mapping[str, Tensor], fresh: Mapping[str, CounterModel]) -> list[str]:
    """List the families that start from a backbone with these keys and shapes."""
    shapes = _shapes(state)

    def would_take(counter: CounterModel) -> bool:
        try:
            return counter.adopt(shapes) is not None
        except ValueError:
            return False

    return [name for name, counter in fresh.items() if would_take(counter)]
