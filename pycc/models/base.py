"""What every counter of this package shares: the protocol, its checks, a loss, the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn

from pycc.checks import check_values
from pycc.models.convention import Convention
from pycc.models.options import is_number, shown
from pycc.models.recipe import NoRecipeError, Recipe
from pycc.registry import Registry

_MOST_SCALE = 1e6


class CounterModel(nn.Module):
    """A network as published, wrapped so that it counts people in RGB images of [0,1].

    ``net`` is the published network in its own input convention; its state-dict keys are the
    published ones without the prefix of the training wrapper. A counter is the composition
    ``density(run(preprocess(images)))``, where ``run`` calls the network. A new model sets
    ``name`` and ``minimum_side``, passes its network, geometry and input convention to
    ``__init__``, and overrides ``preprocess``, ``run``, ``density``, ``loss``, ``recipe``,
    ``options``, ``recognise`` and ``adopt`` where the defaults do not fit. ValueError for a
    geometry that no network has and for a ``scale`` that is no number above 0, at most a million.
    """

    name: ClassVar[str] = ""
    """Public name, the one under which the class is registered."""
    minimum_side: int = 1
    """Smallest height and width, in pixels, that give a map of at least one cell."""
    adjustable: ClassVar[frozenset[str]] = frozenset()
    """Options that do not belong to the weights and may be changed when these are loaded."""
    untold: ClassVar[Mapping[str, tuple[object, ...]]] = {}
    """Options that leave no trace in the keys of weights, and the values that the probe image may
    tell apart (none: it cannot)."""
    origin: str = "fresh"
    """Where the weights come from: what ``pycc.models.load`` recognised."""
    metadata: Mapping[str, object] = MappingProxyType({})
    """What is known of the weights, if anything is (``pycc.models.metadata``)."""

    def __init__(
        self,
        net: nn.Module,
        *,
        stride: int,
        receptive_field: int | None,
        scale: float = 1.0,
        convention: Convention = Convention("rgb_unit"),  # noqa: B008  (frozen)
    ) -> None:
        super().__init__()
        if type(stride) is not int or stride < 1:
            raise ValueError(
                f"{self.name}: stride must be a whole number from 1 on, got {shown(stride)}"
            )
        if receptive_field is not None and (
            type(receptive_field) is not int or receptive_field < 1
        ):
            raise ValueError(
                f"{self.name}: receptive_field must be a whole number from 1 on or None, "
                f"got {shown(receptive_field)}"
            )
        if not is_number(scale) or not 0 < scale <= _MOST_SCALE:
            raise ValueError(
                f"{self.name}: scale must be a number above 0 and at most {_MOST_SCALE:g}, "
                f"got {shown(scale)}"
            )
        self.net = net
        self.scale = float(scale)
        self.convention = convention
        self._stride = int(stride)
        self._receptive_field = receptive_field

    @property
    def stride(self) -> int:
        """Pixels per cell: the map of an [H,W] image is [H // stride, W // stride].

        Networks whose poolings round up keep a last, incomplete cell.
        """
        return self._stride

    @property
    def receptive_field(self) -> int | None:
        """Side in pixels of the square, centred on its cell, that one cell depends on, or None.

        Cell (i, j) covers the pixels ``stride*i … stride*i + stride - 1`` and likewise j; the
        square sticks out by at most ``(receptive_field - stride) / 2`` on each side. None where
        no such bound holds.
        """
        return self._receptive_field

    def preprocess(self, images: Tensor) -> Tensor:
        """Images [N,3,H,W], RGB in [0,1], in the network's own convention; differentiable."""
        return self.convention(images)

    def run(self, x: Tensor) -> object:
        """What ``density`` takes, from the network's input ``x``: here what ``net`` returns."""
        return self.net(x)

    def density(self, output: object) -> Tensor:
        """Map [N,1,h,w] in people per cell from what the network returned (here: ×``scale``)."""
        if not isinstance(output, Tensor):
            raise ValueError(
                f"{self.name}: the network must return one tensor, got {type(output).__name__}"
            )
        if output.ndim == 3:
            output = output.unsqueeze(1)
        if output.ndim != 4 or output.shape[1] != 1:
            raise ValueError(
                f"{self.name}: the network must return [N,1,h,w] or [N,h,w], "
                f"got {list(output.shape)}"
            )
        return output if self.scale == 1.0 else output * self.scale

    def forward(self, images: Tensor) -> Tensor:
        """Density map [N,1,h,w], people per cell, of images [N,3,H,W] (RGB in [0,1]).

        The sum over a map is the count. Raises ValueError for another rank, number of channels or
        element type, in eval mode for values outside [0,1], for an image smaller than
        ``minimum_side``, and for a network whose output contradicts ``stride``; TypeError for
        something that is not a tensor.
        """
        self._check_images(images)
        density = self.density(self.run(self.preprocess(images)))
        height, width = images.shape[-2:]
        for size, cells in ((height, density.shape[2]), (width, density.shape[3])):
            # Networks differ in whether a last, incomplete cell is kept.
            if not size // self._stride <= cells <= -(-size // self._stride):
                raise ValueError(
                    f"{self.name}: stride {self._stride} gives {height // self._stride}x"
                    f"{width // self._stride} cells for an image of {height}x{width} pixels, "
                    f"the network returned {density.shape[2]}x{density.shape[3]}"
                )
        return density

    def loss(
        self,
        images: Tensor,
        target: Tensor,
        *,
        points: Sequence[Tensor] | None = None,
        region: Tensor | None = None,
    ) -> Tensor:
        """Training loss (a scalar) of images [N,3,H,W] for density target [N,1,h,w], per cell.

        The mean over images of each image's loss, whatever that is summed over: so a batch may be
        computed in parts, and by several processes. Here it is the mean over cells of the squared
        error, as MCNN and DA-Net are trained; a model with another published loss overrides this.
        ``points`` are the heads of each image, [M,2] (x, y) in its pixels, for losses that compare
        with heads; others ignore them. ``region`` [N,1,h,w] is the share of each cell, 0 to 1, that
        lies in the region of interest (None: all of it): what is predicted elsewhere is no error,
        and the target holds nobody there. Raises ValueError for a target or region of another
        shape.
        """
        density = self._within(self(images), target, region)
        return nn.functional.mse_loss(density, target)

    def learns_from(self, counts: Callable[[], Sequence[float]]) -> None:
        """Set what the loss needs to know of a training, before it begins; here nothing.

        ``counts`` gives the number of people in each crop of the first epoch, which takes as long
        as loading them.
        """

    def recipe(self) -> Recipe:
        """How the published weights of this variant were trained; NoRecipeError where none is."""
        raise NoRecipeError(f"{self.name}: no published training recipe")

    def options(self) -> dict[str, object]:
        """What ``create(name, **options)`` needs to build this counter again; JSON values only."""
        return {}

    @classmethod
    def recognise(cls, state: Mapping[str, Tensor]) -> dict[str, object] | None:
        """Options under which ``state`` (published keys, no prefix) is this model's, or None."""
        return None

    def reading(self, input: str) -> CounterModel | None:
        """A counter of the same counts and another scale of its input, or None if it has none."""
        return None

    def adopt(self, state: Mapping[str, Tensor]) -> str | None:
        """Copy a pre-trained backbone into the network; what was taken, or None if it is none."""
        return None

    def _within(self, density: Tensor, target: Tensor, region: Tensor | None) -> Tensor:
        """What of a density map [N,1,h,w] a loss compares with the target: people in the region."""
        for name, given in (("target", target), ("region", region)):
            if given is not None and given.shape != density.shape:
                raise ValueError(
                    f"{self.name}.loss: {name} must be {list(density.shape)} like the density map, "
                    f"got {list(given.shape)}"
                )
        return density if region is None else density * region

    def _check_images(self, images: Tensor) -> None:
        if not isinstance(images, Tensor):
            raise TypeError(f"{self.name}: images must be a tensor, got {type(images).__name__}")
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"{self.name}: images must be [N,3,H,W] (RGB in [0,1]), got {list(images.shape)}"
            )
        expected = next((p.dtype for p in self.parameters() if p.is_floating_point()), None)
        if not images.is_floating_point() or (expected and images.dtype != expected):
            wanted = expected or torch.float32
            raise ValueError(f"{self.name}: images must be {wanted} in [0,1], got {images.dtype}")
        if not self.training:  # augmentations may leave the range
            check_values(self.name, "images", images)
        if min(images.shape[2:]) < self.minimum_side:
            raise ValueError(
                f"{self.name}: images must be at least {self.minimum_side}x{self.minimum_side} "
                f"pixels, got {images.shape[2]}x{images.shape[3]}"
            )


MODELS: Registry[type[CounterModel]] = Registry("model")
"""Every published counter by its public name; filled by the imports of ``pycc.models``."""
