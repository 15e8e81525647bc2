"""APAM: adversarial patch attack with momentum (Wu et al., arXiv 2104.10868)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pycc import ops
from pycc.attack import patch as patches
from pycc.attack.base import Scenes, attacks
from pycc.attack.objective import MEANS, Aim, objectives
from pycc.attack.window import Box, Place
from pycc.data import load_image
from pycc.random import Stream
from pycc.registry import Registry
from pycc.run import fingerprint
from pycc.types import Counter

_ROTATION, _ZOOM, _BRIGHTNESS = 5.0, 0.025, 0.05
"""Ranges (±) of the published transform: degrees, share of the side, share of white."""


def _flag(default: Any, help: str, **metadata: Any) -> Any:
    """A field whose command-line help stands beside it."""
    return field(default=default, metadata={"help": help, **metadata})


decays: Registry[Callable[[float], float]] = Registry("decay")
"""Factor on the step size by name, from the share of the steps that is done."""


@decays.register("none")
def _constant(done: float) -> float:
    return 1.0


@decays.register("cosine")
def _cosine(done: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * done))


@attacks.register("apam")
@dataclass(frozen=True)
class APAM:
    """One patch an image, optimised white-box with sign steps and momentum.

    With the patch p, the gradient g of the loss L and the momentum q, a step is

        q <- momentum * q + g / |g|_1,    p <- clip(p - step_size * sign(q), 0, 1),

    |.|_1 over one patch; where g is 0, q only decays. L = J + smoothness * S: J is the objective
    (``pycc.attack.objective``) and S the sum of squared differences of neighbouring patch pixels
    (eq. 6). The paper's J is half a sum over cells; where the objective here is a mean over cells,
    S is divided by their number too, or it would outweigh J by orders of magnitude and the patch
    would turn flat. The balance of the two is then the paper's up to the factor of a half.

    The gradient is taken through the transform; each step and image draws its own. The final patch
    is judged without transform, in the 8-bit image as reloaded. The paper states neither step
    size, momentum nor number of steps; 2/255 and 0.9 are those of the momentum attacks it builds
    on. Its density target also punishes people counted where none stand: to move the count as far
    as possible, use the objectives ``over`` and ``under``.

    Raises ValueError for a field out of range.
    """

    name: ClassVar[str] = "apam"

    size: int | float = _flag(
        0.08,
        "side of the patch: pixels, or with a point a share of the image's width",
        many=True,
    )
    shape: str = _flag("square", "the patch's shape", choices=patches.shapes.names())
    steps: int = _flag(100, "optimisation steps an image")
    step_size: float = _flag(2 / 255, "change of a patch pixel in one step, of [0,1]")
    decay: str = _flag("none", "how the step size falls over the steps", choices=decays.names())
    momentum: float = _flag(0.9, "share of the earlier direction that a step keeps")
    smoothness: float = _flag(0.01, "weight of the patch's roughness in the loss")
    objective: str = _flag("density", "what the attacker wants", choices=objectives.names())
    factor: float = _flag(10.0, "objective density: the target is this times the true density")
    target_count: float | None = _flag(None, "objective target: the count that is wanted")
    location: str = _flag(
        "centre",
        "where the patch goes; random: a place an image",
        choices=["centre", "random", "given"],
    )
    top_left: tuple[int, int] | None = _flag(
        None, "location given: the patch's first row and column", metavar=("Y", "X")
    )
    transform: str = _flag(
        "published",
        "what the patch must withstand; published: rotation 5°, zoom 2.5 %, brightness 0.05",
        choices=["published", "none"],
    )
    sampling: str = _flag("single", "how the transform samples", choices=["single", "nested"])
    init: str = _flag("noise", "first patch: noise, or an image file", metavar="noise|FILE")
    beta: float = _flag(
        1.0, "resolution of the first noise as a share of the side; below 1: smooth"
    )

    def __post_init__(self) -> None:
        if isinstance(self.size, np.integer):
            object.__setattr__(self, "size", int(self.size))
        fits = isinstance(self.size, int) or self.size <= 1
        self._check("size", self.size > 0 and fits, "pixels above 0 or a share of (0,1]")
        self._check("steps", self.steps >= 0, "at least 0")
        self._check("step_size", 0 < self.step_size <= 1, "in (0,1]")
        self._check("momentum", 0 <= self.momentum <= 1, "in [0,1]")
        self._check("smoothness", 0 <= self.smoothness <= 1e6, "in [0,1e6]")
        self._check("factor", abs(self.factor) <= 1e6, "within ±1e6")
        self._check("beta", 0 < self.beta <= 1, "in (0,1]")
        for entry in fields(self):
            choices = entry.metadata.get("choices")
            if choices is not None:
                value = getattr(self, entry.name)
                self._check(entry.name, value in choices, f"one of {', '.join(choices)}")
        wanted = self.target_count
        if self.objective == "target":
            self._check("target_count", wanted is not None, "a count, for objective target")
        if wanted is not None:
            self._check("target_count", 0 <= wanted < math.inf, "at least 0 and finite")
            self._check("target_count", self.objective == "target", "none without objective target")
        given = self.location == "given"
        self._check(
            "top_left",
            (self.top_left is not None) == given,
            "a row and a column with location given, and only then",
        )

    def _check(self, name: str, fine: bool, expected: str) -> None:
        if not fine:
            raise ValueError(f"APAM: {name} must be {expected}, got {getattr(self, name)!r}")

    def settings(self) -> dict[str, object]:
        """All fields by name, as JSON values, and what a file that they name holds."""
        settings = asdict(self)
        if self.init != "noise":
            settings["init_content"] = fingerprint([("init", load_image(self.init))])
        return settings

    def place(self, shape: tuple[int, int], *, seed: int, image: int) -> Place:
        """Where the patch goes in image number ``image`` of ``shape`` (H, W).

        ValueError if it does not fit.
        """
        side = patches.side_in_pixels(self.size, shape[1])
        if not 1 <= side <= min(shape):
            raise ValueError(
                f"APAM: size {self.size} must give a patch of 1 pixel or more that fits the image, "
                f"got {side} pixels for {shape[0]}x{shape[1]}"
            )
        if self.location == "centre":
            return Place(side, patches.centre(shape, side))
        if self.location == "random":
            return Place(side, patches.anywhere(shape, side, seed=seed, image=image))
        assert self.top_left is not None
        y, x = self.top_left
        if not (0 <= y <= shape[0] - side and 0 <= x <= shape[1] - side):
            raise ValueError(
                f"APAM: top_left must place the {side} pixels inside the image, "
                f"got ({y}, {x}) for {shape[0]}x{shape[1]}"
            )
        return Place(side, (y, x))

    def mask(self, side: int) -> Tensor:
        """[side,side] float32 of 0 and 1: the patch's shape."""
        return patches.shapes[self.shape](side)

    def extent(self, place: Place) -> Box:
        """The pixels that the transformed patch may cover, before clipping by the image."""
        margin = 0
        if self.transform != "none":
            angle = math.radians(_ROTATION)
            # Half the bounding box of the zoomed and rotated square, beyond its outermost pixels.
            half = 0.5 * place.side * (1 + _ZOOM) * (math.cos(angle) + math.sin(angle))
            margin = math.ceil(half - 0.5 * (place.side - 1))
        (y, x), side = place.top_left, place.side
        return Box(y - margin, x - margin, y + side + margin, x + side + margin)

    def optimise(
        self,
        counter: Counter,
        scenes: Scenes,
        side: int,
        *,
        seed: int,
        step_done: Callable[[int], None],
    ) -> Tensor:
        """Patches [N,3,side,side] in [0,1], one for each scene, in the scenes' element type.

        Raises ValueError where the loss is not finite: the counter returned nonsense.
        """
        mask = self.mask(side).to(scenes.images)
        patch = self.start(scenes, side, seed)
        momentum = torch.zeros_like(patch)
        for step in range(self.steps):
            transform = self.draw(scenes.index, seed, step)
            gradient = self.gradient(counter, scenes, patch, mask, transform)
            norm = gradient.abs().sum((1, 2, 3), keepdim=True)
            # A gradient of zero has no direction: nothing is added for it.
            direction = gradient / norm.where(norm > 0, torch.ones_like(norm))
            momentum = self.momentum * momentum + direction
            rate = self.step_size * decays[self.decay](step / self.steps)
            patch = (patch - rate * momentum.sign()).clamp(0.0, 1.0)
            step_done(step + 1)
        return patch

    def start(self, scenes: Scenes, side: int, seed: int) -> Tensor:
        """The first patches [N,3,side,side]."""
        if self.init == "noise":
            drawn = [
                patches.noise(side, seed=seed, purpose="init", image=image, beta=self.beta)
                for image in scenes.index
            ]
        else:
            picture = load_image(self.init)[None]
            scaled = functional.interpolate(
                picture, size=(side, side), mode="bilinear", antialias=True
            )
            drawn = [scaled[0].clamp(0.0, 1.0)] * len(scenes.index)
        return torch.stack(drawn).to(scenes.images)

    def draw(self, images: tuple[int, ...], seed: int, step: int) -> Transform:
        """This step's transforms, one an image."""
        if self.transform == "none":
            return Transform(0.0, 1.0, 0.0)
        drawn = np.stack(
            [Stream(seed, "transform", image=i, step=step).uniform(-1, 1, 3) for i in images]
        )
        angle, zoom, brightness = torch.from_numpy(drawn).float().unbind(1)
        return Transform(_ROTATION * angle, 1.0 + _ZOOM * zoom, _BRIGHTNESS * brightness)

    def shift(self, side: int, transform: Transform) -> Tensor:
        """[N,1] or []: keeps nested patches centred, whose top left is that of the zoomed one."""
        if self.sampling == "single" or not isinstance(transform.zoom, Tensor):
            return torch.zeros((), dtype=torch.int64)
        zoomed = torch.round(side * transform.zoom.double()).long()
        return torch.div(side - zoomed, 2, rounding_mode="floor")[:, None]

    def gradient(
        self, counter: Counter, scenes: Scenes, patch: Tensor, mask: Tensor, transform: Transform
    ) -> Tensor:
        """Gradient [N,3,p,p] of each scene's loss by its own patch."""
        patch = patch.detach().requires_grad_()
        attacked = ops.paste_patch(
            scenes.images,
            patch,
            top_left=scenes.top_left + self.shift(patch.shape[-1], transform).to(patch.device),
            mask=mask,
            angle=transform.angle,
            zoom=transform.zoom,
            brightness=transform.brightness,
            sampling=self.sampling,
        )
        change = counter(attacked) - scenes.clean
        loss = objectives[self.objective](change, scenes, Aim(self.factor, self.target_count))
        if self.smoothness:
            penalty = self.smoothness * patches.roughness(patch, mask)
            loss = loss + (penalty / scenes.cells if self.objective in MEANS else penalty)
        if not torch.isfinite(loss).all():
            raise ValueError(f"APAM: the loss must be finite, got {loss.tolist()}")
        (gradient,) = torch.autograd.grad(loss.sum(), patch)
        return gradient


@dataclass(frozen=True)
class Transform:
    """Degrees, factor, addend: a number or [N] each."""

    angle: float | Tensor
    zoom: float | Tensor
    brightness: float | Tensor
