"""The base of every patch attack on a count: its settings, its place, its overridable steps."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pycc.attack import patch as patches
from pycc.attack.objective import Aim, Objective, objectives
from pycc.attack.patch import Place
from pycc.attack.problem import Problem, pasted
from pycc.attack.tracker import LOOKS, OptimisedPatches
from pycc.data import load_image, load_opacity
from pycc.local import Box
from pycc.registry import Registry
from pycc.runs import fingerprint
from pycc.settings import check_fields, flag
from pycc.types import Counter

if TYPE_CHECKING:
    from pycc.attack.result import AttackResult

LOCATIONS = ("centre", "random", "given", "worst", "moving")
TRIAL = 0.1
"""Share of the steps that a trial of a place takes."""


@dataclass(frozen=True)
class PatchAttack(ABC):
    """A patch attack on a count: a dataclass whose fields are the command's flags.

    Calling it optimises a patch for each image and returns tensors; ``pycc.attack.run`` applies
    attacks to a data set and measures them beside baselines. A new attack is a subclass with a
    ``name`` and ``optimise``, registered in ``attacks``; the other methods have defaults that fit
    an attack which optimises one patch per image from one start. One that ``is_universal`` also
    defines ``train``. The engine asks these methods and never tests the class.

    Raises ValueError for a field out of range.

    >>> class Grey(PatchAttack):
    ...     name = "grey patch"
    ...     def optimise(self, problem, *, seed, step_done):
    ...         patches = torch.full((len(problem), 3, problem.side, problem.side), 128 / 255)
    ...         losses = tuple((loss,) * 21 for loss in self.objective_loss(
    ...             problem, patches, self.patch_mask(problem.side)).tolist())
    ...         return OptimisedPatches(patches, losses, None)
    >>> from pycc import models
    >>> attack, counter = Grey(patch_size=16, objective="over"), models.load("mcnn-synthetic")
    >>> result = attack(counter, torch.rand(1, 3, 64, 64))
    >>> list(result.patches.shape), round(255 * float(result.patches.max()))
    ([1, 3, 16, 16], 128)
    """

    name: ClassVar[str]
    """The name in ``attacks``, and the condition of its results."""
    uses_gradient: ClassVar[bool] = False
    """Whether it needs the counter's gradient."""
    is_universal: ClassVar[bool] = False
    """Whether one patch serves all images: ``train`` then makes it, on training images."""

    patch_size: int | float = flag(
        0.08, "side of the patch: pixels, or with a point a share of the image's width"
    )
    shape: str = flag("square", "the patch's shape", choices=patches.shapes.names, advanced=True)
    steps: int = flag(100, "steps per image (and restart)")
    objective: str = flag("density", "what the attacker wants", choices=objectives.names)
    factor: float = flag(
        10.0, "objectives density and target: the wanted count is this times the truth"
    )
    target_count: float | None = flag(
        None, "objective target: the wanted count (default: factor times the heads)"
    )
    location: str = flag(
        "centre",
        "place of the patch; random: drawn for each image; worst: where the count is most "
        "sensitive; moving: optimised for a new random place at each step, measured at one",
        choices=LOCATIONS,
    )
    top_left: tuple[int, int] | None = flag(
        None,
        "location given: the patch's first row and column",
        metavar=("Y", "X"),
        advanced=True,
    )
    init: str = flag(
        "noise",
        "first patch: noise, or an image file",
        metavar="noise|FILE",
        names=lambda: ("noise",),
        advanced=True,
    )
    beta: float = flag(
        1.0,
        "resolution of the first noise as a share of the side; below 1: smooth",
        advanced=True,
    )

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.is_universal != (cls.train is not PatchAttack.train):
            raise TypeError(
                f"{cls.__name__}: an attack must define train if it is universal, and only then"
            )

    def __post_init__(self) -> None:
        check_fields(type(self).__name__, self)
        if isinstance(self.patch_size, np.integer):
            object.__setattr__(self, "patch_size", int(self.patch_size))
        fits = isinstance(self.patch_size, int) or self.patch_size <= 1
        expected = "pixels above 0 or a share of (0,1]"
        self.check("patch_size", self.patch_size > 0 and fits, expected)
        self.check("steps", self.steps >= 0, "at least 0")
        self.check("factor", abs(self.factor) <= 1e6, "within ±1e6")
        self.check("beta", 0 < self.beta <= 1, "in (0,1]")
        for entry in fields(self):
            choices = entry.metadata.get("choices")
            choices = choices() if callable(choices) else choices
            if choices is not None:
                value = getattr(self, entry.name)
                self.check(entry.name, value in choices, f"one of {', '.join(choices)}")
        wanted = self.target_count
        if wanted is not None:
            self.check("target_count", 0 <= wanted < math.inf, "at least 0 and finite")
            takes_count = self.goal.wants_count and not self.goal.is_mean
            self.check("target_count", takes_count, "none without objective target")
        if self.is_universal:
            self.check("location", self.location != "worst", "a place that needs no search")
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
    def goal(self) -> Objective:
        """The objective of that name."""
        return objectives[self.objective]

    @property
    def aim(self) -> Aim:
        """The numbers that its objective needs."""
        return Aim(self.factor, self.target_count)

    def side(self, shape: tuple[int, int]) -> int:
        """The patch's side in pixels in an image of ``shape`` (H, W); ValueError if too large."""
        side = patches.side_in_pixels(self.patch_size, shape[1])
        if not 1 <= side <= min(shape):
            raise ValueError(
                f"{type(self).__name__}: patch_size {self.patch_size} must give a patch of "
                f"1 pixel or more that fits the image, got {side} pixels for {shape[0]}x{shape[1]}"
            )
        return side

    def place(self, shape: tuple[int, int], *, seed: int, image: int) -> Place:
        """Return the place of the patch in image number ``image`` of ``shape`` (H, W).

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

    def patch_mask(self, side: int) -> Tensor:
        """Return the patch's shape [side,side], float32 of 0 and 1."""
        return patches.shapes[self.shape](side)

    def check_side(self, side: int) -> None:
        """Raise ValueError if a patch of this side has no shape, or no picture to start from."""
        patch_mask = self.patch_mask(side)
        there = None if self.init == "noise" else load_opacity(self.init)
        if there is not None:
            scaled = functional.interpolate(there[None, None].float(), size=(side, side))[0, 0]
            missing = int(((scaled == 0) & (patch_mask > 0)).sum())
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

    def __call__(
        self,
        counter: Counter,
        images: Tensor | Sequence[Tensor],
        *,
        points: Sequence[Tensor] | None = None,
        seed: int = 0,
    ) -> AttackResult:
        """Optimise a patch for each image and count the images without and with it.

        The same computation as ``pycc.attack.run``, with the same bits, in memory. A universal
        attack makes one patch for all the images.

        Args:
            counter: the counter to attack; a module is put in eval mode and frozen meanwhile.
            images: [N,3,H,W], RGB in [0,1], or a sequence of [3,H,W] of any sizes.
            points: N head annotations [M,2] (x, y) in pixels; needed only for the objectives that
                are about heads: ``density``, ``pap``, and ``target`` without ``target_count``.
            seed: key of all randomness.

        Raises:
            TypeError: for images or a counter of another type.
            ValueError: for images that are not [N,3,H,W] in [0,1], a patch that does not fit, and
                an objective about heads without points.

        >>> import torch
        >>> from pycc import models
        >>> counter = models.load("mcnn-synthetic")
        >>> from pycc.attack import APAM
        >>> attack = APAM(patch_size=16, steps=2, objective="over")
        >>> result = attack(counter, torch.rand(1, 3, 64, 64))
        >>> result.images.shape, result.places.tolist()
        (torch.Size([1, 3, 64, 64]), [[24, 24]])
        """
        from pycc.attack.call import attack_images  # which imports this module

        return attack_images(self, counter, images, points=points, seed=seed)

    # The steps of an attack

    @abstractmethod
    def optimise(
        self, problem: Problem, *, seed: int, step_done: Callable[[int], None]
    ) -> OptimisedPatches:
        """Patches for the images of a problem.

        Calls ``step_done(steps so far)`` after each step. ValueError if the loss is not finite: the
        counter's map is unusable.
        """

    def train(
        self,
        problems: Sequence[Callable[[], Problem]],
        *,
        seed: int,
        step_done: Callable[[int], None],
    ) -> OptimisedPatches:
        """One patch [1,3,p,p] for the images of all problems: universal attacks define it."""
        raise TypeError(f"{type(self).__name__}: makes one patch per image, not one for all")

    def objective_loss(self, problem: Problem, patch: Tensor, patch_mask: Tensor) -> Tensor:
        """Compute the objective's losses [N] of patches [N,3,p,p], untransformed."""
        return problem.loss(
            lambda region: pasted(region, patch, patch_mask), self.objective, self.aim
        )

    def penalty(self, problem: Problem, patch: Tensor, patch_mask: Tensor) -> Tensor:
        """Compute the loss [N] besides the objective's, on its scale, of patches [N,3,p,p]."""
        return patch.new_zeros(len(patch))

    def loss(
        self, problem: Problem, patch: Tensor, seed: int, step: int = 0, restart: int = 0
    ) -> Tensor:
        """Compute the loss [N] that a step descends, of patches [N,3,p,p]."""
        patch_mask = self.patch_mask(problem.side).to(problem.like)
        return self.objective_loss(problem, patch, patch_mask) + self.penalty(
            problem, patch, patch_mask
        )

    def gradient(
        self, problem: Problem, patch: Tensor, seed: int, step: int = 0, restart: int = 0
    ) -> Tensor:
        """Gradient [N,3,p,p] of each image's loss by its own patch."""
        patch = patch.detach().requires_grad_()
        loss = self.loss(problem, patch, seed, step, restart)
        (gradient,) = torch.autograd.grad(loss.sum(), patch)
        return gradient

    def step_gradient(
        self, problem: Problem, patch: Tensor, seed: int, step: int = 0, restart: int = 0
    ) -> Tensor:
        """The gradient [N,3,p,p] of a step, with the patches at the places of that step."""
        parts = self.problems_at(problem, seed, step)
        rows = torch.split(patch, [len(part) for part in parts])
        return torch.cat([
            self.gradient(part, row, seed, step, restart)
            for part, row in zip(parts, rows, strict=True)
        ])  # fmt: skip

    def problems_at(self, problem: Problem, seed: int, step: int) -> list[Problem]:
        """The problems of a step: with location ``moving``, the patch elsewhere each time."""
        if self.location != "moving":
            return [problem]
        assert problem.moved is not None
        return problem.moved([
            Place(
                problem.side,
                patches.anywhere(
                    shape, problem.side, seed=seed, image=image, purpose="moving", step=step
                ),
            )
            for image, shape in zip(problem.index, problem.shapes, strict=True)
        ])  # fmt: skip

    def zero_share(self, gradient: Tensor) -> list[float]:
        """N times the share of the patch's pixels whose gradient is exactly 0 in all channels."""
        patch_mask = self.patch_mask(gradient.shape[-1]).to(gradient.device).bool()
        zero = (gradient == 0).all(1)[:, patch_mask]
        return zero.double().mean(1).tolist()

    # Variants of the same attack, for the checks and the search for a place

    @property
    def per_image(self) -> PatchAttack | None:
        """The same attack with a patch for each image; None if there is no such variant."""
        return None if self.is_universal else self

    @property
    def unpenalised(self) -> Self:
        """The same attack without penalty: its gradient is that of the objective."""
        return self

    @property
    def plain(self) -> PatchAttack:
        """The same attack without penalty and without transform."""
        return self

    @property
    def differentiable(self) -> PatchAttack:
        """The same attack with ``gradient`` the exact derivative of ``loss``."""
        return self

    @property
    def single_start(self) -> PatchAttack:
        """The same attack with its first start alone."""
        return self

    @property
    def trial(self) -> PatchAttack:
        """The same attack from one start with a tenth of the steps, to try a place."""
        steps = max(1, round(TRIAL * self.steps))
        return replace(self.single_start, steps=steps, location="centre")

    # Costs

    @property
    def restarts(self) -> int:
        """Optimisations from different first patches."""
        return 1

    @property
    def rounds(self) -> int:
        """Steps of all restarts."""
        return self.restarts * self.steps

    @property
    def cost(self) -> float:
        """Forward and backward passes over the patch's surroundings, per image."""
        return self.restarts * (self.steps + (LOOKS + 1) / 3)


attacks: Registry[type[PatchAttack]] = Registry("attack")
"""The attacks by the names that the command takes."""
