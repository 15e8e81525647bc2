"""What every patch attack on a count shares: its fields, its place, what it works on and finds."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pycc.attack import patch as patches
from pycc.attack.objective import Aim, objectives
from pycc.attack.patch import Place
from pycc.attack.scenes import Problem, laid
from pycc.data import load_image, load_opacity, quantize
from pycc.local import Box
from pycc.registry import Registry
from pycc.runs import fingerprint

LOCATIONS = ("centre", "random", "given", "worst", "moving")


def flag(default: Any, help: str, **metadata: Any) -> Any:
    """A field whose command-line help stands beside it."""
    return field(default=default, metadata={"help": help, **metadata})


@dataclass(frozen=True, eq=False)
class Found:
    """Patches that an attack has found, one for each scene, and how it got there."""

    patch: Tensor
    """[N,3,p,p], multiples of 1/255 in [0,1]: the best that was seen."""
    path: tuple[tuple[float, ...], ...]
    """N times the objective's loss of the patch that was best so far, at evenly spaced steps from
    the first on; one restart after the other, each by itself. The best is chosen by the loss with
    its penalty, which is no part of these: they measure what the counter makes of the patch."""
    unrounded: Tensor | None
    """[N], people that the patches add to the count before they are rounded to 8 bits; None where
    that depends on the image."""
    zero: tuple[float, ...] = ()
    """N times the share of patch pixels where the objective's first gradient is exactly 0; ()
    without gradient."""


@dataclass(frozen=True)
class PatchAttack(ABC):
    """What all patch attacks have in common; the fields are the command's flags.

    Raises ValueError for a field out of range.
    """

    name: ClassVar[str]
    follows_gradient: ClassVar[bool] = False
    """Whether it needs the counter's gradient."""
    per_image: ClassVar[bool] = True
    """Whether ``optimise`` makes what is judged: a patch for each image."""

    size: int | float = flag(
        0.08,
        "side of the patch: pixels, or with a point a share of the image's width",
        many=True,
    )
    shape: str = flag("square", "the patch's shape", choices=patches.shapes.names())
    steps: int = flag(100, "steps an image (and restart)")
    objective: str = flag("density", "what the attacker wants", choices=objectives.names())
    factor: float = flag(
        10.0, "objectives density and target: what is wanted is this times the truth"
    )
    target_count: float | None = flag(
        None, "objective target: the count that is wanted (default: factor times the heads)"
    )
    location: str = flag(
        "centre",
        "where the patch goes; random: a place an image; worst: where the count is most sensitive; "
        "moving: optimised for a new random place each step, judged at random",
        choices=LOCATIONS,
    )
    top_left: tuple[int, int] | None = flag(
        None, "location given: the patch's first row and column", metavar=("Y", "X")
    )
    init: str = flag("noise", "first patch: noise, or an image file", metavar="noise|FILE")
    beta: float = flag(1.0, "resolution of the first noise as a share of the side; below 1: smooth")

    def __post_init__(self) -> None:
        if isinstance(self.size, np.integer):
            object.__setattr__(self, "size", int(self.size))
        fits = isinstance(self.size, int) or self.size <= 1
        self.check("size", self.size > 0 and fits, "pixels above 0 or a share of (0,1]")
        self.check("steps", self.steps >= 0, "at least 0")
        self.check("factor", abs(self.factor) <= 1e6, "within ±1e6")
        self.check("beta", 0 < self.beta <= 1, "in (0,1]")
        for entry in fields(self):
            choices = entry.metadata.get("choices")
            if choices is not None:
                value = getattr(self, entry.name)
                self.check(entry.name, value in choices, f"one of {', '.join(choices)}")
        wanted = self.target_count
        if wanted is not None:
            self.check("target_count", 0 <= wanted < math.inf, "at least 0 and finite")
            self.check("target_count", self.objective == "target", "none without objective target")
        self.check(
            "top_left",
            (self.top_left is not None) == (self.location == "given"),
            "a row and a column with location given, and only then",
        )

    def check(self, name: str, fine: bool, expected: str) -> None:
        """ValueError, naming the field, unless it is as expected."""
        if not fine:
            kind = type(self).__name__
            raise ValueError(f"{kind}: {name} must be {expected}, got {getattr(self, name)!r}")

    def settings(self) -> dict[str, object]:
        """All fields by name, as JSON values, and what a file that they name holds."""
        settings = asdict(self)
        if self.init != "noise":
            settings["init_content"] = fingerprint([("init", load_image(self.init))])
        return settings

    @property
    def aim(self) -> Aim:
        """The numbers that its objective needs."""
        return Aim(self.factor, self.target_count)

    def side(self, shape: tuple[int, int]) -> int:
        """The patch's side in pixels in an image of ``shape`` (H, W); ValueError if too large."""
        side = patches.side_in_pixels(self.size, shape[1])
        if not 1 <= side <= min(shape):
            raise ValueError(
                f"{type(self).__name__}: size {self.size} must give a patch of 1 pixel or more "
                f"that fits the image, got {side} pixels for {shape[0]}x{shape[1]}"
            )
        return side

    def place(self, shape: tuple[int, int], *, seed: int, image: int) -> Place:
        """Where the patch is judged in image number ``image`` of ``shape`` (H, W).

        For location ``worst`` the centre: the search needs a counter. ValueError if the patch does
        not fit.
        """
        side = self.side(shape)
        if self.location in ("centre", "worst"):
            return Place(side, patches.centre(shape, side))
        if self.location in ("random", "moving"):
            return Place(side, patches.anywhere(shape, side, seed=seed, image=image))
        assert self.top_left is not None
        y, x = self.top_left
        if not (0 <= y <= shape[0] - side and 0 <= x <= shape[1] - side):
            raise ValueError(
                f"{type(self).__name__}: top_left must place the {side} pixels inside the image, "
                f"got ({y}, {x}) for {shape[0]}x{shape[1]}"
            )
        return Place(side, (y, x))

    def mask(self, side: int) -> Tensor:
        """[side,side] float32 of 0 and 1: the patch's shape."""
        return patches.shapes[self.shape](side)

    def check_side(self, side: int) -> None:
        """ValueError where a patch of this side has no shape, or no picture to start from."""
        mask = self.mask(side)
        there = None if self.init == "noise" else load_opacity(self.init)
        if there is not None:
            scaled = functional.interpolate(there[None, None].float(), size=(side, side))[0, 0]
            missing = int(((scaled == 0) & (mask > 0)).sum())
            if missing:
                raise ValueError(
                    f"{self.init}: a first patch must be opaque where the patch is, "
                    f"got {missing} transparent pixels of {side}x{side} in shape {self.shape}"
                )

    def extent(self, place: Place) -> Box:
        """The pixels that the patch may change while it is optimised, before clipping."""
        (y, x), side = place.top_left, place.side
        return Box(y, x, y + side, x + side)

    def start(self, images: Sequence[int], side: int, seed: int, restart: int = 0) -> Tensor:
        """The first patches [N,3,side,side] of images with these numbers."""
        if self.init == "noise":
            drawn = [
                patches.noise(
                    side, seed=seed, purpose="init", image=image, beta=self.beta, step=restart
                )
                for image in images
            ]
        else:
            picture = load_image(self.init)[None]
            scaled = functional.interpolate(
                picture, size=(side, side), mode="bilinear", antialias=True
            )
            drawn = [scaled[0].clamp(0.0, 1.0)] * len(images)
        return torch.stack(drawn)

    @abstractmethod
    def optimise(self, problem: Problem, *, seed: int, step_done: Callable[[int], None]) -> Found:
        """Patches for the scenes of a problem.

        Calls ``step_done(steps so far)`` after each step. ValueError where the loss is not finite:
        the counter returned nonsense.
        """

    def judge(self, problem: Problem, patch: Tensor, mask: Tensor) -> Tensor:
        """[N]: the objective's losses of patches [N,3,p,p] as they lie, without transform."""
        return problem.loss(lambda one: laid(one, patch, mask), self.objective, self.aim)

    def penalty(self, problem: Problem, patch: Tensor, mask: Tensor) -> Tensor:
        """[N]: what the loss of patches [N,3,p,p] holds beside the objective, on its scale."""
        return patch.new_zeros(len(patch))

    @property
    def plain(self) -> PatchAttack:
        """The same attack on the objective of the patch as it lies, with nothing else to heed."""
        return self

    @property
    def rounds(self) -> int:
        """Steps of all restarts."""
        return self.steps

    @property
    def work(self) -> float:
        """Forward and backward passes over the patch's surroundings, an image."""
        return self.steps


class Best:
    """The best patches so far, judged as they will be: in 8 bits and without transform."""

    def __init__(self, attack: PatchAttack, problem: Problem) -> None:
        self._attack, self._problem = attack, problem
        self._mask = attack.mask(problem.side).to(problem.like)
        self.loss = torch.full((len(problem),), torch.inf, device=problem.like.device)
        self._patch = problem.like.new_zeros(len(problem), 3, problem.side, problem.side)
        self._path: list[Tensor] = []  # objectives of the best of this optimisation
        self.begin()

    def begin(self) -> None:
        """A new optimisation begins, from another first patch."""
        self._own = torch.full_like(self.loss, torch.inf)
        self._objective = self._own

    def look(self, patch: Tensor) -> Tensor:
        """Judge patches [N,3,p,p], keep those that are better; returns their losses [N]."""
        rounded = quantize(patch).to(patch)
        with torch.no_grad():
            objective = self._attack.judge(self._problem, rounded, self._mask)
            loss = objective + self._attack.penalty(self._problem, rounded, self._mask)
        if not torch.isfinite(loss).all():
            kind = type(self._attack).__name__
            raise ValueError(f"{kind}: the loss must be finite, got {loss.tolist()}")
        better = loss < self.loss
        self.loss = torch.where(better, loss, self.loss)
        self._objective = torch.where(loss < self._own, objective, self._objective)
        self._own = torch.minimum(loss, self._own)
        self._patch = torch.where(better[:, None, None, None], patch, self._patch)
        return loss

    def note(self) -> None:
        """Remember how good the best of this optimisation are now."""
        self._path.append(self._objective)

    def found(self, zero: Sequence[float] = ()) -> Found:
        """What was best."""
        with torch.no_grad():
            added = self._problem.added(self._patch, self._mask)
        path = torch.stack(self._path, dim=1).double().tolist()
        return Found(quantize(self._patch), tuple(tuple(row) for row in path), added, tuple(zero))


attacks: Registry[type[PatchAttack]] = Registry("attack")
"""The attacks by the names that the command takes."""
