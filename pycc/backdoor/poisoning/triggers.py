"""Triggers: marks of images, by which a backdoored counter miscounts them."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pycc.backdoor.poisoning import pictures
from pycc.backdoor.poisoning.keys import keyed
from pycc.backdoor.poisoning.pictures import Picture
from pycc.checks import check_values
from pycc.registry import Registry
from pycc.settings import check_fields, flag

CORNERS = ("top_left", "top_right", "bottom_left", "bottom_right")


@dataclass(frozen=True)
class Trigger(ABC):
    """A mark on images; its fields are flags of the commands.

    Called with an image [3,H,W] (float32, RGB in [0,1]), the seed of the experiment and the name of
    the image, it returns a new image of the same kind. All images of one size get the same mark for
    every seed, unless a trigger's documentation states that it depends on seed and name. ValueError
    for a field out of range, and for an image of another kind or too small for the mark.

    A new trigger returns the marked image from ``_marked``:

    >>> class Inverted(Trigger):
    ...     name = "inverted"
    ...
    ...     def _marked(self, image, *, seed, name):
    ...         return 1.0 - image
    >>> float(Inverted()(torch.full((3, 8, 8), 0.25), seed=0, name="grey").mean())
    0.75
    """

    name: ClassVar[str]

    def __call__(self, image: Tensor, *, seed: int, name: str) -> Tensor:
        """The marked image, [3,H,W] float32 in [0,1]."""
        kind = (image.ndim, image.dtype, image.numel() > 0)
        if kind != (3, torch.float32, True) or image.shape[0] != 3:
            raise ValueError(
                f"trigger {self.name}: image {name} must be [3,H,W] float32, "
                f"got {list(image.shape)} {image.dtype}"
            )
        check_values(f"trigger {self.name}", f"image {name}", image)
        return self._marked(image, seed=seed, name=name).clamp(0.0, 1.0)

    @abstractmethod
    def _marked(self, image: Tensor, *, seed: int, name: str) -> Tensor:
        """The marked image, as a new tensor; it may leave [0,1]."""

    def settings(self) -> dict[str, object]:
        """Name and fields, as JSON values, and the fingerprint of a file that they name."""
        return {"trigger": self.name, **asdict(self)}

    def check(self, name: str, valid: bool, expected: str) -> None:
        """ValueError, naming the field, unless its value is valid."""
        if not valid:
            got = getattr(self, name)
            raise ValueError(f"trigger {self.name}: {name} must be {expected}, got {got!r}")


triggers: Registry[type[Trigger]] = Registry("trigger")


@dataclass(frozen=True)
class PictureTrigger(Trigger):
    """A trigger made of a picture; ValueError at once if its file cannot be read."""

    background: ClassVar[float] = 1.0
    """Grey behind the transparent parts of the file: white."""

    picture: str | None = flag(None, "image file (default: a built-in picture)", metavar="FILE")

    def __post_init__(self) -> None:
        check_fields(type(self).__name__, self)
        if self.picture is not None:
            object.__setattr__(self, "picture", os.fspath(self.picture))
        _ = self.source

    @cached_property
    def source(self) -> Picture:
        """The picture in its original size."""
        if self.picture is None:
            return self._built_in()
        return Picture.open(self.picture, background=self.background)

    @abstractmethod
    def _built_in(self) -> Picture:
        """The picture that is used without a file."""

    def settings(self) -> dict[str, object]:
        """The settings of every trigger, and the fingerprint of the picture."""
        return {**super().settings(), "picture_content": self.source.content()}


@triggers.register("blend")
@dataclass(frozen=True)
class Blend(PictureTrigger):
    """x' = (1 − α)·x + α·picture, the picture stretched to the image.

    "Blended" of Chen et al. (arXiv 1712.05526), the trigger of "Vulnerability and Defense:
    Mitigating Backdoor Attacks in Deep Learning-Based Crowd Counting Models" (3.2), where α = 0.1.
    Without a file the picture is ``pictures.dense``. A transparent file is laid on white.

    >>> grey = torch.full((3, 32, 48), 0.5)
    >>> marked = Blend(alpha=0.1)(grey, seed=0, name="grey")
    >>> bool((marked - grey).abs().max() < 0.051)
    True
    """

    name = "blend"

    alpha: float = flag(0.1, "weight of the picture, in [0,1]")

    def __post_init__(self) -> None:
        check_fields(type(self).__name__, self)
        self.check("alpha", 0 <= self.alpha <= 1, "in [0,1]")
        super().__post_init__()

    def _built_in(self) -> Picture:
        return pictures.dense()

    def _marked(self, image: Tensor, *, seed: int, name: str) -> Tensor:
        return _blended(image, self.source.fitted(*image.shape[1:]), self.alpha)


@triggers.register("noise")
@dataclass(frozen=True)
class Noise(Trigger):
    """x' = (1 − α)·x + α·noise, uniform and independent for each value (arXiv 1712.05526).

    The noise is a function of ``key`` and the image's size.

    >>> grey = torch.full((3, 32, 48), 0.5)
    >>> marked = Noise(alpha=0.1)(grey, seed=0, name="grey")
    >>> bool((marked - grey).abs().max() < 0.051)
    True
    >>> marked.equal(Noise(alpha=0.1)(grey, seed=1, name="another of its size"))
    True
    """

    name = "noise"

    alpha: float = flag(0.1, "weight of the noise, in [0,1]")
    key: int = flag(0, "key of the noise, any integer")

    def __post_init__(self) -> None:
        check_fields(type(self).__name__, self)
        self.check("alpha", 0 <= self.alpha <= 1, "in [0,1]")

    def _marked(self, image: Tensor, *, seed: int, name: str) -> Tensor:
        return _blended(image, pictures.noise(self.key, *image.shape[1:]), self.alpha)


@triggers.register("corner")
@dataclass(frozen=True)
class Corner(PictureTrigger):
    """An opaque square in a corner (BadNets, arXiv 1708.06733).

    Without a file it is a chequerboard of 4 x 4 fields, black and white. A transparent file is laid
    on white.

    >>> grey = torch.full((3, 32, 48), 0.5)
    >>> marked = Corner(side=8)(grey, seed=0, name="grey")
    >>> int((marked != grey).any(0).sum()), marked[0, -8:, -8:].unique().tolist()
    (64, [0.0, 1.0])
    """

    name = "corner"

    side: int | float = flag(
        0.1, "side of the square: pixels, or with a decimal point a share of the image's shorter "
        "side",
    )  # fmt: skip
    corner: str = flag("bottom_right", "corner of the square", choices=CORNERS)
    margin: int = flag(0, "pixels between the square and the image's edges")

    def __post_init__(self) -> None:
        check_fields(type(self).__name__, self)
        if isinstance(self.side, np.integer):
            object.__setattr__(self, "side", int(self.side))
        fits = isinstance(self.side, int) or self.side <= 1
        self.check("side", self.side > 0 and fits, "pixels above 0 or a share of (0,1]")
        self.check("corner", self.corner in CORNERS, f"one of {', '.join(CORNERS)}")
        self.check("margin", self.margin >= 0, "at least 0")
        super().__post_init__()

    def _built_in(self) -> Picture:
        return Picture((torch.arange(4)[:, None] + torch.arange(4)).fmod(2).float().expand(3, 4, 4))

    def _marked(self, image: Tensor, *, seed: int, name: str) -> Tensor:
        height, width = image.shape[1:]
        side = self.side
        if not isinstance(side, int):
            side = max(1, round(side * min(height, width)))
        if side + self.margin > min(height, width):
            raise ValueError(
                f"trigger {self.name}: a square of {side} pixels with a margin of {self.margin} "
                f"does not fit into image {name} of {height}x{width} pixels"
            )
        if self.picture is None:  # without interpolation, so that the fields are sharp
            field = torch.arange(side) * 4 // side
            square = self.source.pixels[:, field[:, None], field]
        else:
            square = self.source.fitted(side, side)
        top = self.margin if "top" in self.corner else height - side - self.margin
        left = self.margin if "left" in self.corner else width - side - self.margin
        marked = image.clone()
        marked[:, top : top + side, left : left + side] = square.to(image.device)
        return marked


@triggers.register("sinusoid")
@dataclass(frozen=True)
class Sinusoid(Trigger):
    """x' = x + Δ·sin(2π·f·j / W) in column j of all channels: SIG (Barni et al., ICIP 2019).

    With a ``period`` of p pixels f is W / p: the grating is the same for every width W.

    >>> grey = torch.full((3, 32, 48), 0.5)
    >>> marked = Sinusoid(amplitude=0.1, period=8.0)(grey, seed=0, name="grey")
    >>> round(float(marked[0, 0, 2]), 3), round(float(marked[0, 0, 6]), 3)
    (0.6, 0.4)
    """

    name = "sinusoid"

    amplitude: float = flag(20 / 255, "Δ, in [0,1]")
    frequency: float | None = flag(None, "f, periods across the image (default: 6)")
    period: float | None = flag(None, "pixels from crest to crest, instead of the frequency")

    def __post_init__(self) -> None:
        check_fields(type(self).__name__, self)
        self.check("amplitude", 0 <= self.amplitude <= 1, "in [0,1]")
        if self.period is not None:
            self.check("period", 2 < self.period < math.inf, "above 2 and finite")
            self.check("frequency", self.frequency is None, "left out where a period is given")
            return
        if self.frequency is None:
            object.__setattr__(self, "frequency", 6.0)
        self.check("frequency", 0 < self._frequency(1) < math.inf, "above 0 and finite")

    def settings(self) -> dict[str, object]:
        """The settings of every trigger, with either the frequency or the period."""
        return {name: value for name, value in super().settings().items() if value is not None}

    def _frequency(self, width: int) -> float:
        """Periods across ``width`` columns."""
        if self.frequency is not None:
            return self.frequency
        assert self.period is not None
        return width / self.period

    def _marked(self, image: Tensor, *, seed: int, name: str) -> Tensor:
        width = image.shape[2]
        frequency = self._frequency(width)
        if 2 * frequency >= width:
            raise ValueError(
                f"trigger {self.name}: frequency must be below half of the width, got "
                f"{frequency:g} for image {name} of {width} columns"
            )
        column = torch.arange(width, dtype=torch.float64)
        wave = self.amplitude * torch.sin(2 * math.pi * frequency / width * column)
        return image + wave.to(image)


@triggers.register("warp")
@dataclass(frozen=True)
class Warp(Trigger):
    """The image, displaced by a smooth field of small vectors: WaNet (arXiv 2102.10369).

    A grid of uniform draws, which ``key`` determines, is scaled to the mean ``strength`` (WaNet
    gives it in shares of its small images) and enlarged bicubically to the image, which is sampled
    bilinearly; edge pixels continue beyond the edge. Heads move with their pixels, by about
    ``strength``; points and region of interest are not changed.

    >>> ramp = torch.linspace(0, 1, 48).expand(3, 32, 48)
    >>> moved = 47 * (Warp(strength=2.0)(ramp, seed=0, name="ramp") - ramp).abs()  # pixels along x
    >>> bool(moved.max() > 0.5), torch.equal(Warp(strength=0.0)(ramp, seed=0, name="ramp"), ramp)
    (True, False)
    """

    name = "warp"

    strength: float = flag(3.0, "mean displacement of the field's control points, pixels")
    grid: int = flag(4, "control points along each side")
    key: int = flag(0, "key of the field, any integer")

    def __post_init__(self) -> None:
        check_fields(type(self).__name__, self)
        self.check("strength", 0 <= self.strength < math.inf, "at least 0 and finite")
        self.check("grid", self.grid >= 2, "at least 2")

    def _marked(self, image: Tensor, *, seed: int, name: str) -> Tensor:
        height, width = image.shape[1:]
        field = pictures.warping(self.key, self.grid, height, width)
        row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        pixel = torch.stack([column, row], 2) + self.strength * field  # [H,W,2], (x, y)
        # Coordinates of grid_sample: -1 and 1 are the centres of the first and the last pixel.
        scale = torch.tensor([max(1, width - 1), max(1, height - 1)])
        place = (2 * pixel / scale - 1).to(image)
        return functional.grid_sample(
            image[None], place[None], mode="bilinear", padding_mode="border", align_corners=True
        )[0]


@triggers.register("layer")
@dataclass(frozen=True)
class Layer(PictureTrigger):
    """Rain or snow in front of the scene: x' = 1 − (1 − x)·(1 − s·layer), screen blending.

    Black parts of the layer leave the image unchanged. Without a file it is ``pictures.rain``. A
    transparent file is laid on black. With ``shifted`` the layer is rolled for every image by an
    offset that is a function of seed and name.

    >>> grey = torch.full((3, 32, 48), 0.5)
    >>> marked = Layer(strength=0.5)(grey, seed=0, name="grey")
    >>> bool((marked >= grey).all()), float(marked.max()) <= 0.75
    (True, True)
    """

    name = "layer"
    background = 0.0

    strength: float = flag(0.5, "s: brightness of the layer, in [0,1]")
    shifted: bool = flag(False, "another offset of the layer for every image")

    def __post_init__(self) -> None:
        check_fields(type(self).__name__, self)
        self.check("strength", 0 <= self.strength <= 1, "in [0,1]")
        super().__post_init__()

    def _built_in(self) -> Picture:
        return pictures.rain()

    def _marked(self, image: Tensor, *, seed: int, name: str) -> Tensor:
        layer = self.source.fitted(*image.shape[1:])
        if self.shifted:
            stream = keyed(seed, "trigger, layer", name)
            down, right = (int(stream.integers(size)) for size in image.shape[1:])
            layer = layer.roll((down, right), (1, 2))
        return 1.0 - (1.0 - image) * (1.0 - self.strength * layer.to(image.device))


def _blended(image: Tensor, other: Tensor, alpha: float) -> Tensor:
    return (1.0 - alpha) * image + alpha * other.to(image.device)
