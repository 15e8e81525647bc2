"""Weights and inputs of the fixtures, drawn as their makers drew them."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor

_STANDARDS = {
    "rgb_imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "rgb_clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}


def draw(key: str, shape: tuple[int, ...], kind: str, scale: float = 1.0) -> Tensor:
    """One entry of a state dict, from a generator keyed by its published name."""
    if kind == "count":
        return torch.zeros(shape, dtype=torch.int64)
    if kind == "prelu":
        return torch.full(shape, 0.25)
    if kind == "logit_scale":
        return torch.tensor(np.log(1 / 0.07), dtype=torch.float32).reshape(shape)
    drawn = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()))).standard_normal(shape)
    value = {
        "weight": lambda n: n * np.sqrt(2 / np.prod(shape[1:])),
        "norm_weight": lambda n: 1 + 0.1 * n,
        "bias": lambda n: 0.01 * n,
        "running_mean": lambda n: 0.1 * n,
        "running_var": lambda n: 1 + 0.1 * np.abs(n),
    }[kind](drawn)
    return torch.from_numpy((value * scale).astype(np.float32))


def published_state(data: NpzFile, prefix: str = "") -> dict[str, Tensor]:
    """The fixture's weights under their keys without the prefix; their sums are checked."""
    state = {}
    for key, shape, kind, scale, total in zip(
        data["keys"], data["shapes"], data["kinds"], data["scales"], data["param_sums"], strict=True
    ):
        sides = tuple(int(side) for side in str(shape).split(",") if side)
        if kind == "given":
            value = torch.from_numpy(data[f"given:{key}"])
        else:
            value = draw(str(key), sides, str(kind), float(scale))
        summed = float(value.double().sum())
        assert summed == pytest.approx(float(total), rel=1e-9, abs=1e-9), key
        state[str(key).removeprefix(prefix)] = value
    return state


def published_input(data: NpzFile, case: int) -> Tensor:
    """Input ``case`` in the network's own convention."""
    generator = np.random.Generator(np.random.PCG64(int(data["seeds"][case])))
    drawn = generator.random(tuple(data["input_shapes"][case]))
    kind = str(data["input_convention"])
    if kind in ("gray255", "rgb255"):
        drawn = 255.0 * drawn
    else:
        mean, std = _STANDARDS.get(kind, ((0.5,) * 3, (0.225,) * 3))
        drawn = (drawn - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    values = drawn.astype(np.float32)
    np.testing.assert_array_equal(values.ravel()[:4], data["input_first"][case])
    return torch.from_numpy(values)


def images_of(data: NpzFile, case: int) -> Tensor:
    """The RGB image in [0,1] behind input ``case`` (three-channel conventions)."""
    generator = np.random.Generator(np.random.PCG64(int(data["seeds"][case])))
    return torch.from_numpy(generator.random(tuple(data["input_shapes"][case])).astype(np.float32))


def close(actual: Tensor, expected: np.ndarray, tolerance: float = 1e-5) -> bool:
    """Within ``tolerance`` of the map's maximum."""
    assert actual.shape == expected.shape
    difference = np.abs(actual.detach().numpy() - expected).max()
    return bool(difference <= tolerance * np.abs(expected).max())
