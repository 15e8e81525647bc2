"""Augmentations of published training recipes: random changes of an image, RGB in [0,1]."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pycc.models.convention import LUMA
from pycc.random import Stream
from pycc.registry import Registry


@dataclass(frozen=True)
class Augmentation(ABC):
    """A change of an image that happens with a probability.

    A new one sets ``name``, adds its settings as fields and implements ``changed``. ValueError for
    a probability outside [0,1].
    """

    name: ClassVar[str]
    """Its name in the metadata of weights."""
    probability: float

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"{self.name}: probability must lie in [0,1], got {self.probability}")

    def __call__(self, image: Tensor, stream: Stream) -> Tensor:
        """Return the image [3,h,w], changed or not: the next number of ``stream`` decides."""
        happens = float(stream.uniform(0.0, 1.0)) < self.probability
        return self.changed(image, stream) if happens else image

    @abstractmethod
    def changed(self, image: Tensor, stream: Stream) -> Tensor:
        """Return the changed image [3,h,w]; ``stream`` is the only source of randomness."""


augmentations: Registry[type[Augmentation]] = Registry("augmentation")


@augmentations.register("uniform_noise")
@dataclass(frozen=True)
class UniformNoise(Augmentation):
    """Noise of 0 to ``levels`` of ``of`` grey levels, the same for all channels; not clipped."""

    name = "uniform_noise"
    levels: float
    of: float = 255.0

    def changed(self, image: Tensor, stream: Stream) -> Tensor:
        """Add the noise."""
        noise = stream.uniform(0.0, self.levels / self.of, image.shape[1:])
        return image + torch.from_numpy(np.asarray(noise, np.float32))


@augmentations.register("colour_jitter")
@dataclass(frozen=True)
class ColourJitter(Augmentation):
    """Brightness, contrast and saturation by factors of 1 plus or minus their field."""

    name = "colour_jitter"
    brightness: float
    contrast: float
    saturation: float

    def changed(self, image: Tensor, stream: Stream) -> Tensor:
        """Multiply each by its random factor, in that order."""
        brightness, contrast, saturation = (
            float(stream.uniform(1 - most, 1 + most))
            for most in (self.brightness, self.contrast, self.saturation)
        )
        image = (image * brightness).clamp(0.0, 1.0)
        luma = torch.tensor(LUMA)[:, None, None]
        mean = (image * luma).sum(0).mean()
        image = (mean + contrast * (image - mean)).clamp(0.0, 1.0)
        grey = (image * luma).sum(0, keepdim=True)
        return (grey + saturation * (image - grey)).clamp(0.0, 1.0)


@augmentations.register("gaussian_blur")
@dataclass(frozen=True)
class GaussianBlur(Augmentation):
    """A Gaussian of ``kernel`` pixels; the border is reflected."""

    name = "gaussian_blur"
    kernel: int
    sigma: tuple[float, float]
    """The least and the largest, in pixels."""

    def changed(self, image: Tensor, stream: Stream) -> Tensor:
        """Blur with a random sigma."""
        sigma = float(stream.uniform(*self.sigma))
        half = self.kernel // 2
        weights = torch.exp(-0.5 * (torch.arange(-half, half + 1) / sigma) ** 2)
        weights = weights / weights.sum()
        padded = functional.pad(image[None], (half, half, half, half), mode="reflect")
        across = functional.conv2d(padded, weights.expand(3, 1, 1, -1), groups=3)
        return functional.conv2d(across, weights[:, None].expand(3, 1, -1, 1), groups=3)[0]


@augmentations.register("pepper_and_salt")
@dataclass(frozen=True)
class PepperAndSalt(Augmentation):
    """Pixels that turn black, and others that turn white, each with its probability."""

    name = "pepper_and_salt"
    pepper: float
    salt: float

    def changed(self, image: Tensor, stream: Stream) -> Tensor:
        """Draw the pixels and colour them."""
        drawn = torch.from_numpy(np.asarray(stream.uniform(0.0, 1.0, image.shape[1:]), np.float32))
        image = torch.where(drawn < self.pepper, torch.zeros(()), image)
        return torch.where(drawn > 1.0 - self.salt, torch.ones(()), image)


@augmentations.register("gamma")
@dataclass(frozen=True)
class Gamma(Augmentation):
    """All values to the power of a random ``exponent``."""

    name = "gamma"
    exponent: tuple[float, float]
    """The least and the largest."""

    def changed(self, image: Tensor, stream: Stream) -> Tensor:
        """Raise the values to a random power."""
        return image.clamp(min=0.0) ** float(stream.uniform(*self.exponent))


@augmentations.register("grey")
@dataclass(frozen=True)
class Grey(Augmentation):
    """The image's luma in all three channels."""

    name = "grey"

    def changed(self, image: Tensor, stream: Stream) -> Tensor:
        """Drop the colours."""
        luma = torch.tensor(LUMA)[:, None, None]
        return (image * luma).sum(0, keepdim=True).expand_as(image).contiguous()
