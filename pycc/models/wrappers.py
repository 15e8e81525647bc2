"""Find the state dict in a checkpoint, under any wrappers.

Training scripts store weights under a name of their own, beside optimizers, settings and scores.
They are found by structure: a state dict is a mapping whose leaves are tensors. Of several, the one
whose keys are those of a known family is used (``pycc.models.families``).
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pycc.models.archive import is_script
from pycc.models.families import Match, is_of_family, is_recognised, match_of, state_parts, unfit
from pycc.models.options import shown

Place = tuple[str | int, ...]
"""Keys of nested mappings and indices of lists, from the outside in."""
Leaf = tuple[Place, object]

NAMES = (
    *("state_dict", "model_state_dict", "model_state", "net_state_dict", "model", "net"),
    *("network", "module", "weights", "params"),
)
"""Names under which training scripts store the weights."""
_NOT_WEIGHTS = re.compile(r"(lr|grad|amp|loss)?(optim(i[sz]er)?|sched(uler)?|scaler)s?")
"""Words in the names of what training stores beside weights."""
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_MOMENTS = {"step", "exp_avg", "momentum_buffer", "square_avg"}
"""The state of a parameter in torch's optimizers; each stores at least one of these."""
_SETTINGS = (int, float, complex, str, bytes, type(None), np.generic, list, tuple, Namespace)
"""Types beside tensors that are not weights: a score, a name, a list of such."""
# Far more than any checkpoint has; a pickle of a few bytes can describe endless nesting.
_MOST_DEPTH = 16
_MOST_LEAVES = 200_000


class Candidate(NamedTuple):
    """A mapping of tensors and its place in the checkpoint, or the part of it under a prefix."""

    place: Place
    state: Mapping[str, object]
    prefix: str = ""
    """The common start of its keys, which other keys of the mapping lack; ends with a dot."""
    mapping: Mapping[str, object] = MappingProxyType({})
    """The complete mapping of which it is a part; empty if it is all of it."""

    @property
    def names(self) -> Place:
        """The place, and the prefix as if it were part of it."""
        return *self.place, *self.prefix.split(".")[:-1]

    @property
    def path(self) -> str:
        """The place as messages show it, "" for the checkpoint itself."""
        return ".".join(map(str, self.names))

    @property
    def is_named(self) -> bool:
        """Whether its name is one under which weights are stored."""
        return bool(self.names) and self.names[-1] in NAMES

    @property
    def left_out(self) -> list[str]:
        """The mapping's other keys, except those of single integers: counts of steps, flags."""
        others = {key: self.mapping[key] for key in self.mapping if key not in self.state}
        return [
            key
            for key, value in others.items()
            if not isinstance(value, Tensor) or value.is_floating_point() or value.numel() != 1
        ]

    def parts(self, name: str | None) -> list[Candidate]:
        """Return the parts under a prefix that belong to a family, unless all keys do."""
        if is_of_family(self.tensors, name):
            return [self]
        parts = [
            Candidate(self.place, {prefix + k: v for k, v in part.items()}, prefix, self.state)
            for prefix, part in state_parts(self.tensors, name)
        ]
        return parts or [self]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Its tensors."""
        return {key: value for key, value in self.state.items() if isinstance(value, Tensor)}

    @property
    def has_kernels(self) -> bool:
        """Whether it has the tensors of a network; scores and settings are numbers and lists."""
        return any(
            isinstance(v, Tensor) and unfit(v) is None and v.is_floating_point() and v.ndim > 1
            for v in self.state.values()
        )

    def match(self, name: str | None) -> Match:
        """Return how well its keys, without prefixes, match those of a family."""
        dense = {k: v for k, v in self.tensors.items() if unfit(v) is None}
        if len(dense) < len(self.state):
            return Match.NOTHING
        return match_of(dense, name)


def leaves(content: object, source: Path) -> list[Leaf]:
    """List everything in nested mappings and lists that is neither, with its place.

    Optimizers, schedulers and gradient scalers are left out, recognised by their structure or name,
    and so are entries of mappings under keys other than strings and integers. Arrays of numbers
    become tensors. ValueError for something else than a mapping or a list of mappings and tensors,
    for more nesting than any checkpoint has, and for optimizers without weights.
    """
    collected: list[Leaf] = []
    stack: list[Leaf] = [((), content)]
    training: list[Leaf] = []
    while stack:
        place, value = stack.pop()
        if _is_of_training(place, value):
            training.append((place, value))
            continue
        entries = _entries(value)
        if entries is None and not place:
            what = type(value).__name__
            raise ValueError(f"weights: {source} must hold a state dict, got {what}")
        if entries is None:
            collected.append((place, tensor_of(value) if isinstance(value, np.ndarray) else value))
        elif len(place) < _MOST_DEPTH:
            stack += [((*place, key), inner) for key, inner in reversed(entries)]
        if len(collected) + len(stack) > _MOST_LEAVES or len(place) >= _MOST_DEPTH:
            raise ValueError(
                f"weights: {source} is nested too deeply to be a checkpoint: expected at most "
                f"{_MOST_LEAVES:,} entries, {_MOST_DEPTH} levels deep"
            )
    # Random states are tensors of integers; scores have no dimension.
    if training and not any(
        isinstance(v, Tensor) and v.is_floating_point() and v.ndim for _, v in collected
    ):
        places = [shown(".".join(map(str, place))) for place, _ in training if place]
        under = f" (under {', '.join(places[:3])})" if places else ""
        raise ValueError(
            f"weights: {source} holds the state of an optimizer, scheduler or scaler{under} and no "
            "weights: give the file of the weights, torch.save(model.state_dict(), FILE)"
        )
    return collected


def _is_of_training(place: Place, value: object) -> bool:
    """Return whether a value is an optimizer, scheduler or scaler, by its structure or name."""
    name = place[-1] if place else ""
    if isinstance(value, Mapping):
        states = [s for key, s in value.items() if not isinstance(key, str)]
        if "param_groups" in value or any(
            isinstance(state, Mapping) and not _MOMENTS.isdisjoint(state) for state in states
        ):
            return True
    return (
        isinstance(value, Mapping | list | tuple)
        and isinstance(name, str)
        and any(_NOT_WEIGHTS.fullmatch(word.lower()) for word in _WORD.findall(name))
    )


def tensor_of(array: NDArray[np.generic]) -> Tensor | NDArray[np.generic]:
    """Convert an array to a tensor in native byte order; return it if no tensor has its type."""
    native = np.require(array, array.dtype.newbyteorder("="), ["C_CONTIGUOUS", "WRITEABLE"])
    try:
        return torch.from_numpy(native)
    except TypeError:
        return array


def _entries(value: object) -> Sequence[tuple[str | int, object]] | None:
    """Return the entries of a mapping or list that may hold weights; None for anything else."""
    if isinstance(value, Mapping):
        return [(key, inner) for key, inner in value.items() if isinstance(key, str | int)]
    if isinstance(value, list | tuple):
        # A list of a million losses is one entry.
        kept = [
            (i, v) for i, v in enumerate(value) if isinstance(v, Mapping | list | tuple | Tensor)
        ]
        return kept or None
    return None


def find(leaves: Sequence[Leaf], source: Path, name: str | None = None) -> Candidate:
    """Find the state dict among the leaves of a checkpoint.

    Of several mappings of tensors, the one whose keys belong to a family (to ``name``, if given) is
    used, if it is the only one; of a mapping whose keys as a whole belong to no family, the part
    under a prefix that does. Numbers, text and lists of them beside tensors are ignored.
    ValueError, naming the mappings, if it is unclear which one is meant. If there is none, the
    mapping with most tensors is returned, with its other entries.
    """
    kept = [(place, value) for place, value in leaves if not isinstance(value, _SETTINGS)]
    candidates = [part for outer in _candidates((), kept) for part in outer.parts(name)]
    if not candidates:
        return _nearly(kept or leaves)
    if len(candidates) == 1:
        return candidates[0]
    matches = [candidate.match(name) for candidate in candidates]
    best = max(*matches, Match.SHARED)
    networks = [candidate for candidate in candidates if candidate.has_kernels]
    meant = [
        c for c, match in zip(candidates, matches, strict=True) if match == best > Match.SHARED
    ]
    meant = meant or networks or candidates
    named = [candidate for candidate in meant if candidate.is_named]
    if len(meant) == 1:
        # A name that says "these are the weights" is preferred to any other.
        if named or not any(other.is_named for other in networks):
            return meant[0]
        meant = [*meant, *(other for other in networks if other.is_named)]
    elif named and ((len(named) == 1 and best < Match.FAMILY) or _are_same(meant)):
        return named[0]
    places = [f"{shown(c.path)} ({len(c.state)} tensors)" for c in meant[:4]]
    more = f" and {len(meant) - 4} more" if len(meant) > 4 else ""
    raise ValueError(
        f"weights: {source} holds several state dicts: {', '.join(places)}{more}; save the one to "
        f"load alone{_saving(meant[0], source)}"
    )


def _saving(chosen: Candidate, source: Path) -> str:
    """Return the call that saves one of several state dicts alone, for a message; "" for HDF5."""
    suffix = source.suffix.lower()
    if suffix in (".h5", ".hdf5") or is_script(source):
        return ""
    index = "".join(f"[{shown(key)}]" for key in chosen.place)
    reader = {".npz": "np.load", ".safetensors": "safetensors.torch.load_file"}
    opened = f"{reader.get(suffix, 'torch.load')}({source.name!r}){index}"
    if chosen.prefix:
        test = f"k.startswith({shown(chosen.prefix)})"
        opened = f"{{k: v for k, v in {opened}.items() if {test}}}"
    if suffix == ".npz":
        return f": np.savez('chosen.npz', **{opened})"
    return f": torch.save({opened}, 'chosen.pth')"


def _candidates(place: Place, leaves: Sequence[Leaf]) -> Iterator[Candidate]:
    """Yield the mappings of tensors alone; of nested ones the outer, if it is a family's."""
    depth = len(place)
    groups: dict[str | int, list[Leaf]] = {}
    for path, value in leaves:
        if len(path) > depth:
            groups.setdefault(path[depth], []).append((path, value))
    inner = {key: group for key, group in groups.items() if len(group[0][0]) > depth + 1}
    keys = [path[depth:] for path, _ in leaves]
    if keys and all(isinstance(v, Tensor) for _, v in leaves) and all(map(_is_key, keys)):
        state = {
            ".".join(map(str, key)): value for key, (_, value) in zip(keys, leaves, strict=True)
        }
        candidate = Candidate(place, state)
        if not inner or (len(groups) > 1 and is_recognised(state)):
            yield candidate
            return
    for key, group in inner.items():
        yield from _candidates((*place, key), group)


def _is_key(key: Place) -> bool:
    return bool(key) and all(isinstance(part, str) for part in key)


def _nearly(leaves: Sequence[Leaf]) -> Candidate:
    tensors: dict[Place, int] = {}
    for path, value in leaves:
        tensors[path[:-1]] = tensors.get(path[:-1], 0) + isinstance(value, Tensor)
    place = max(tensors, key=lambda place: tensors[place], default=())
    return Candidate(place, {str(path[-1]): v for path, v in leaves if path and path[:-1] == place})


def _are_same(candidates: Sequence[Candidate]) -> bool:
    first, *others = (candidate.state for candidate in candidates)
    return all(
        state.keys() == first.keys() and all(_equal(state[key], first[key]) for key in first)
        for state in others
    )


def _equal(a: object, b: object) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or unfit(a) or unfit(b):
        return a is b
    return a.dtype == b.dtype and torch.equal(a, b)
