"""Which model weights are of, by their keys."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pycc.models.base import MODELS, CounterModel
from pycc.models.families import takers, untrained
from pycc.models.foreign import network_of
from pycc.models.options import known
from pycc.models.weights import Stored, misfit, shortened


def read_as(model: type[CounterModel], stored: Stored) -> dict[str, object] | None:
    """Return the options under which weights fit a model, or None."""
    options = model.recognise(stored.state)
    # C-3-Framework's networks have the keys of others; their prefix identifies them.
    by_prefix = "CCN." in stored.prefixes and "c3" in model.not_in_keys.get("variant", ())
    return {**options, "variant": "c3"} if options is not None and by_prefix else options


def recognise(stored: Stored, source: str) -> tuple[type[CounterModel], dict[str, object]]:
    """Return the model whose keys weights have, and the options that these show.

    If none has them, it is the model that shares most keys, whose fit will list the others.
    ValueError, naming the ``source``, for a backbone alone and for other networks.
    """
    for name in MODELS.names():
        options = read_as(MODELS[name], stored)
        if options is not None:
            return MODELS[name], options
    fresh = untrained()
    if backbones := takers(stored.state, fresh):
        raise ValueError(
            f"weights: {source} holds a backbone, not a counter: name the counter that starts "
            f"from it, {known(backbones)}"
        )
    shared = {
        name: len(stored.state.keys() & counter.net.state_dict().keys())
        for name, counter in fresh.items()
    }
    # VGG numbers its layers as backbones of several counters do: a few keys are the same.
    if not any(shared.values()) or network_of(stored.state):
        raise ValueError(f"weights: {source} {_unknown(stored.state, any(shared.values()))}")

    # The nearest shares most keys; among equals, the one with fewest missing keys.
    def far(name: str) -> tuple[int, int]:
        return -shared[name], misfit(fresh[name], stored.state)[0]

    return MODELS[min(fresh, key=far)], {}


def _unknown(state: Mapping[str, Tensor], shares: bool) -> str:
    """Describe weights of no family; ``shares``: whether they share a few keys with some."""
    network = network_of(state)
    what = "is not of any family" if shares else "shares no key with any family"
    seems = f", which seem to be those of {network}" if network else ""
    return (
        f"{what} of counters ({', '.join(MODELS.names())}); its keys are "
        f"{shortened(state)}{seems}; a family of your own needs --import FILE or its import in "
        "Python, and pycc.models.wrap makes a counter of any network"
    )
