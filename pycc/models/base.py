"""The base class of all counters of this package, with its checks and loss, and the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn

from pycc.checks import check_values
from pycc.grid import check_cells
from pycc.models.convention import Convention
from pycc.models.options import is_number, shown
from pycc.models.recipe import NoRecipeError, Recipe
from pycc.registry import Registry

_MOST_SCALE = 1e6


class CounterModel(nn.Module):
    """A published network, wrapped so that it counts people in RGB images in [0,1].

    ``net`` is the published network in its own input convention; its state-dict keys are the
    published ones without the prefix of the training wrapper. A counter computes
    ``density(run(preprocess(images)))``, where ``run`` calls the network. A new model sets ``name``
    and ``minimum_side``, passes its network, geometry and input convention to ``__init__``, and
    overrides ``preprocess``, ``run``, ``density``, ``loss``, ``recipe``, ``options``, ``recognise``
    and ``adopt`` where the defaults do not fit.

    ValueError for a ``stride`` or ``receptive_field`` that is not a positive integer, for a
    ``period`` that is not a multiple of the stride (None: the stride), and for a ``scale`` that is
    not a number above 0 and at most a million.

    >>> class Luminance(CounterModel):
    ...     name = "luminance"
    >>> counter = Luminance(nn.Conv2d(3, 1, 4, stride=4), stride=4, receptive_field=4)
    >>> list(counter(torch.rand(2, 3, 16, 24)).shape)
    [2, 1, 4, 6]
    """

    name: ClassVar[str] = ""
    """Public name, under which the class is registered."""
    minimum_side: int = 1
    """Smallest height and width, in pixels, that give a map of at least one cell."""
    adjustable: ClassVar[frozenset[str]] = frozenset()
    """Options that do not depend on the weights and may be changed when weights are loaded."""
    not_in_keys: ClassVar[Mapping[str, tuple[object, ...]]] = {}
    """Options that leave no trace in the keys of weights, with the values that the probe image may
    distinguish (empty: none)."""
    unused: ClassVar[tuple[str, ...]] = ()
    """Starts of keys in published files whose tensors no output depends on; loading leaves these
    out."""
    most_per_cell: float | None = None
    """People that no cell exceeds, whatever the image shows; None: the network sets no limit."""
    caution: ClassVar[str | None] = None
    """A weakness of the network that other counters do not have, in one line; ``pycc models check``
    reports it."""
    origin: str = "fresh"
    """The source of the weights, as ``pycc.models.load`` recognised it."""
    metadata: Mapping[str, object] = MappingProxyType({})
    """The weights metadata, if there is any (``pycc.models.metadata``)."""

    def __init__(
        self,
        net: nn.Module,
        *,
        stride: int,
        receptive_field: int | None,
        period: int | None = None,
        scale: float = 1.0,
        convention: Convention = Convention("rgb_unit"),  # noqa: B008  (frozen)
    ) -> None:
        super().__init__()
        if type(stride) is not int or stride < 1:
            raise ValueError(
                f"{self.name}: stride must be an integer of at least 1, got {shown(stride)}"
            )
        if receptive_field is not None and (
            type(receptive_field) is not int or receptive_field < 1
        ):
            raise ValueError(
                f"{self.name}: receptive_field must be an integer of at least 1 or None, "
                f"got {shown(receptive_field)}"
            )
        if period is not None and (type(period) is not int or period < 1 or period % stride):
            raise ValueError(
                f"{self.name}: period must be a multiple of the stride, {stride}, or None, "
                f"got {shown(period)}"
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
        self._period = stride if period is None else period
        self._receptive_field = receptive_field

    @property
    def stride(self) -> int:
        """Pixels per cell: the map of an [H,W] image is [H // stride, W // stride].

        Networks whose pooling rounds up keep a last, incomplete cell.
        """
        return self._stride

    @property
    def receptive_field(self) -> int | None:
        """Side in pixels of the square, centred on its cell, that one cell depends on, or None.

        Cell (i, j) covers the pixels ``stride*i … stride*i + stride - 1`` and likewise j. The
        square extends beyond the cell by at most ``(receptive_field - stride) / 2`` on each side.
        None if there is no such bound.
        """
        return self._receptive_field

    @property
    def period(self) -> int:
        """Pixels by which an image must move for its map to move with it; by default the stride.

        A larger one is a multiple of the stride: the network enlarges a coarser grid. Then the
        fields of cells lie differently from cell to cell (all within ``receptive_field``), a window
        of an image is not counted as it is in the image (``pycc.grid.window_field``), and the cells
        beyond a side's last whole period are 0 if the network does not compute them.
        """
        return self._period

    def preprocess(self, images: Tensor) -> Tensor:
        """Convert images [N,3,H,W], RGB in [0,1], to the network's convention; differentiable."""
        return self.convention(images)

    def run(self, x: Tensor) -> object:
        """Compute the argument of ``density`` from the network's input; by default ``net(x)``."""
        return self.net(x)

    def density(self, output: object) -> Tensor:
        """Convert the network's output to a map [N,1,h,w] in people per cell.

        By default it is multiplied by ``scale``.
        """
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

    def increasing(self, output: object) -> Tensor:
        """Convert the network's output to a map [N,1,h,w] that increases with each of its values.

        The receptive field is measured on it (``pycc.models.measure_receptive_field``); by default
        it is the density. A model whose density is a step function or a difference overrides it.
        """
        return self.density(output)

    def smooth(self) -> None:
        """Count by the differentiable function whose derivative the gradient is, from now on.

        By default nothing changes. A model that counts in whole numbers overrides this, so that its
        gradient can be compared with differences.
        """

    def forward(self, images: Tensor) -> Tensor:
        """Compute the density map [N,1,h,w], people per cell, of images [N,3,H,W] (RGB in [0,1]).

        The sum over a map is the count. ValueError for another rank, number of channels or element
        type, in eval mode for values outside [0,1], for an image smaller than ``minimum_side``, and
        for a network whose output contradicts ``stride``; TypeError if ``images`` is not a tensor.
        """
        self._check_images(images)
        height, width = images.shape[-2:]
        density = self._completed(self.density(self.run(self.preprocess(images))), height, width)
        check_cells(self.name, density.shape[2:], (height, width), self._stride)
        return density

    def _completed(self, density: Tensor, height: int, width: int) -> Tensor:
        """Append cells of 0 for those beyond the last whole period, if the network omits them."""
        most = self._period // self._stride - 1
        down, across = (
            min(max(0, size // self._stride - cells), most)
            for size, cells in ((height, density.shape[2]), (width, density.shape[3]))
        )
        return nn.functional.pad(density, (0, across, 0, down)) if down or across else density

    def loss(
        self,
        images: Tensor,
        target: Tensor,
        *,
        points: Sequence[Tensor] | None = None,
        region: Tensor | None = None,
    ) -> Tensor:
        """Compute the training loss, a scalar, for target [N,1,h,w] in people per cell.

        ``images`` are [N,3,H,W], RGB in [0,1]. The loss is the mean over images of each image's
        loss, even if that is a sum over cells. So a batch may be computed in parts, and by several
        processes. The default is the mean over cells of the squared error, as MCNN and DA-Net are
        trained; a model with another published loss overrides this. ``points`` are the heads of
        each image, [M,2] (x, y) in its pixels, for losses that need them. ``region`` [N,1,h,w] is
        the share of each cell, 0 to 1, that lies in the region of interest (None: all of it).
        Predictions outside it do not count as errors, and the target must be 0 there. ValueError
        for a target or region of another shape.
        """
        density = self._within(self(images), target, region)
        return nn.functional.mse_loss(density, target)

    def learns_from(self, counts: Callable[[], Sequence[float]]) -> None:
        """Prepare the loss for a training before it begins; by default nothing.

        ``counts()`` returns the number of people in each crop of the first epoch; it takes as long
        as loading them.
        """

    def recipe(self) -> Recipe:
        """Return how the published weights of this variant were trained.

        NoRecipeError if that is not published.
        """
        raise NoRecipeError(f"{self.name}: no published training recipe")

    def hidden_options(self) -> Mapping[str, tuple[object, ...]]:
        """Return those of ``not_in_keys`` that this counter's own keys do not show."""
        return self.not_in_keys

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Return the parameters for which a recipe may have another learning rate; default none."""
        return []

    def options(self) -> dict[str, object]:
        """Return the options with which ``create(name, **options)`` rebuilds this counter.

        They are JSON values.
        """
        return {}

    @classmethod
    def recognise(cls, state: Mapping[str, Tensor]) -> dict[str, object] | None:
        """Return the options under which ``state`` fits this model, or None.

        Its keys are the published ones, without prefix.
        """
        return None

    def reading(self, input: str) -> CounterModel | None:
        """Return a counter with the same counts for another input scale, or None."""
        return None

    def adopt(self, state: Mapping[str, Tensor]) -> str | None:
        """Copy a pre-trained backbone into the network.

        Returns a description of what was copied, or None if ``state`` holds no backbone.
        """
        return None

    def _within(self, density: Tensor, target: Tensor, region: Tensor | None) -> Tensor:
        """Check target and region, and return the density map [N,1,h,w] inside the region."""
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
"""All published counters by public name; filled by the imports of ``pycc.models``."""
