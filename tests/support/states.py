"""State dicts as checkpoints hold them."""

from __future__ import annotations

from torch import Tensor

State = dict[str, Tensor]


def prefixed(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def other_than(state: State) -> State:
    return {key: value + 1e-3 for key, value in state.items()}
