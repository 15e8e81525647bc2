"""Copying a pre-trained backbone into a part of a network, from a file of another network."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def take(
    family: str,
    part: nn.Module,
    state: Mapping[str, Tensor],
    keys: Mapping[str, str],
    *,
    trunk: str,
) -> int:
    """Copy the tensors of ``state`` under ``keys`` into a part of a network.

    Args:
        family: begins the error message, such as ``"vgg"``.
        part: the module to fill.
        state: the tensors of the file.
        keys: the file's key for each key of ``part`` that is copied.
        trunk: ends the error message, as in "the trunk is VGG-16".

    Returns:
        The number of tensors copied. Numbers of batches, which old files lack and on which no
        result depends, may be missing.

    Raises:
        ValueError: a tensor that is missing or has another shape, and integers in place of floats;
            nothing is copied then.

    >>> norm = nn.BatchNorm2d(2)
    >>> state = {f"bn1.{key}": value + 1 for key, value in norm.state_dict().items()}
    >>> del state["bn1.num_batches_tracked"]
    >>> keys = {key: f"bn1.{key}" for key in norm.state_dict()}
    >>> take("hrnet", norm, state, keys, trunk="the trunk is HRNet-W48"), norm.weight.tolist()
    (4, [2.0, 2.0])
    """
    taken = {}
    wanted = part.state_dict()
    for own, key in keys.items():
        tensor, given = wanted[own], state.get(key)
        is_weight = tensor.is_floating_point()
        if given is None and not is_weight:
            continue
        coded = is_weight and given is not None and not given.is_floating_point()
        if given is None or given.shape != tensor.shape or coded:
            got = "nothing" if given is None else f"{list(given.shape)} of {given.dtype}"
            raise ValueError(
                f"{family}: {key} must be floats {list(tensor.shape)}, got {got}; {trunk}"
            )
        taken[own] = given
    # Not load_state_dict, which adds numbers of batches of its own to what a file lacks.
    for own, tensor in taken.items():
        wanted[own].copy_(tensor)
    return len(taken)
