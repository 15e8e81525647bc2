"""Augmentations of published recipes, by name; images are RGB in [0,1]."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pycc.random import Stream
from pycc.registry import Registry

augmentations: Registry[Callable[[Tensor, Mapping[str, Any], Stream], Tensor]] = Registry(
    "augmentation"
)
"""(image [3,h,w], settings of the recipe, stream) -> image [3,h,w]."""

NOT_OF_IMAGES = ("repeats_per_epoch",)
"""Entries of a recipe's augmentation that are not applied to images: repeats per epoch."""

_LUMA = (0.299, 0.587, 0.114)


def augmented(image: Tensor, settings: Mapping[str, Any], stream: Stream) -> Tensor:
    """Apply every augmentation that a recipe names, in its order."""
    for name, values in settings.items():
        if name not in NOT_OF_IMAGES:
            image = augmentations[name](image, values, stream)
    return image


def _happens(settings: Mapping[str, Any], stream: Stream) -> bool:
    return bool(float(stream.uniform(0.0, 1.0)) < settings["probability"])


@augmentations.register("uniform_noise")
def _uniform_noise(image: Tensor, settings: Mapping[str, Any], stream: Stream) -> Tensor:
    """Noise of 0 to ``levels`` of ``of`` grey levels, the same for all channels; not clipped."""
    if not _happens(settings, stream):
        return image
    noise = stream.uniform(0.0, settings["levels"] / settings["of"], image.shape[1:])
    return image + torch.from_numpy(np.asarray(noise, np.float32))


@augmentations.register("colour_jitter")
def _colour_jitter(image: Tensor, settings: Mapping[str, Any], stream: Stream) -> Tensor:
    """Brightness, contrast and saturation by factors of 1 plus or minus their setting."""
    if settings.get("hue"):
        raise ValueError("train: colour_jitter has no hue: no published recipe here uses it")
    if not _happens(settings, stream):
        return image
    factors = [
        float(stream.uniform(1 - settings[name], 1 + settings[name]))
        for name in ("brightness", "contrast", "saturation")
    ]
    image = (image * factors[0]).clamp(0.0, 1.0)
    luma = torch.tensor(_LUMA)[:, None, None]
    mean = (image * luma).sum(0).mean()
    image = (mean + factors[1] * (image - mean)).clamp(0.0, 1.0)
    grey = (image * luma).sum(0, keepdim=True)
    return (grey + factors[2] * (image - grey)).clamp(0.0, 1.0)


@augmentations.register("gaussian_blur")
def _gaussian_blur(image: Tensor, settings: Mapping[str, Any], stream: Stream) -> Tensor:
    """A Gaussian of ``kernel`` pixels and a random sigma; the border is reflected."""
    if not _happens(settings, stream):
        return image
    sigma = float(stream.uniform(*settings["sigma"]))
    half = settings["kernel"] // 2
    weights = torch.exp(-0.5 * (torch.arange(-half, half + 1) / sigma) ** 2)
    weights = weights / weights.sum()
    padded = functional.pad(image[None], (half, half, half, half), mode="reflect")
    across = functional.conv2d(padded, weights.expand(3, 1, 1, -1), groups=3)
    return functional.conv2d(across, weights[:, None].expand(3, 1, -1, 1), groups=3)[0]


@augmentations.register("pepper_and_salt")
def _pepper_and_salt(image: Tensor, settings: Mapping[str, Any], stream: Stream) -> Tensor:
    """Pixels that turn black, and others that turn white, each with its probability."""
    if not _happens(settings, stream):
        return image
    drawn = torch.from_numpy(np.asarray(stream.uniform(0.0, 1.0, image.shape[1:]), np.float32))
    image = torch.where(drawn < settings["pepper"], torch.zeros(()), image)
    return torch.where(drawn > 1.0 - settings["salt"], torch.ones(()), image)
