"""CMTL, the cascaded multi-task network: a density map and the class of the whole crowd.

Sindagi and Patel, "CNN-based Cascaded Multi-task Learning of High-level Prior and Density
Estimation for Crowd Counting", AVSS 2017; as svishwa/crowdcount-cascaded-mtl publishes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pycc.models import initial
from pycc.models.augmentation import UniformNoise
from pycc.models.base import MODELS, CounterModel
from pycc.models.convention import C3_RGB, CHANNELS, Convention, Kind, convention
from pycc.models.options import choice, is_number, shown
from pycc.models.recipe import Crop, Optimiser, Recipe

Variant = Literal["svishwa", "c3"]

CLASSES = 10
"""Classes of crowds, by their count."""
_PERIOD = 4
"""Pixels after which the network's grid of poolings and transposed convolutions repeats."""
_PRIOR_SIDE = 32
# Base 9, 7: 15 pixels; prior column 9: 23; pooling 24, +6·2 = 36; 38, +6·4 = 62, +6·4 = 86 (the
# other column's 64 lie inside); two 3x3: 102. The four pixels of a cell read the cells to both
# sides through the first transposed convolution, but not beyond through the second: 102 + 2·4.
_RECEPTIVE_FIELD = 110
_CLASS_WEIGHT = 1e-4
_RANGE = (0.0, 100.0)
"""Smallest and largest count if nothing is known of the training set."""


class _Block(nn.Module):
    """A layer under its published key, and its activation with its own slope."""

    def __init__(self, key: str, layer: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.key = key
        self.add_module(key, layer)
        self.relu = activation

    def forward(self, x: Tensor) -> Tensor:
        activated: Tensor = self.relu(self.get_submodule(self.key)(x))
        return activated


def _conv(inputs: int, outputs: int, side: int) -> _Block:
    return _Block("conv", nn.Conv2d(inputs, outputs, side, padding=side // 2), nn.PReLU())


def _fc(inputs: int, outputs: int) -> _Block:
    return _Block("fc", nn.Linear(inputs, outputs), nn.PReLU())


class CMTLNet(nn.Module):
    """The published network: x [N,channels,H,W] -> (map [N,1,4h,4w], class scores [N,10]).

    h and w are the sides halved twice, rounded down each time; 2,453,619 parameters for grey.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        pool = nn.MaxPool2d(2)
        self.base_layer = nn.Sequential(_conv(channels, 16, 9), _conv(16, 32, 7))
        self.hl_prior_1 = nn.Sequential(
            _conv(32, 16, 9), pool, _conv(16, 32, 7), pool, _conv(32, 16, 7), _conv(16, 8, 7)
        )
        self.hl_prior_2 = nn.Sequential(nn.AdaptiveMaxPool2d(_PRIOR_SIDE), _conv(8, 4, 1))
        self.hl_prior_fc1 = _fc(4 * _PRIOR_SIDE**2, 512)
        self.hl_prior_fc2 = _fc(512, 256)
        self.hl_prior_fc3 = _fc(256, CLASSES)
        self.de_stage_1 = nn.Sequential(
            _conv(32, 20, 7), pool, _conv(20, 40, 5), pool, _conv(40, 20, 5), _conv(20, 10, 5)
        )
        last = _Block("conv", nn.Conv2d(8, 1, 1), nn.ReLU())
        self.de_stage_2 = nn.Sequential(
            _conv(18, 24, 3),
            _conv(24, 32, 3),
            nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1),
            nn.PReLU(),
            nn.ConvTranspose2d(16, 8, 4, stride=2, padding=1),
            nn.PReLU(),
            last,
        )

    def map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the density map, and the prior's features, from which the classes follow."""
        base = self.base_layer(x)
        prior = self.hl_prior_1(base)
        density: Tensor = self.de_stage_2(torch.cat([prior, self.de_stage_1(base)], 1))
        return density, prior

    def scores(self, prior: Tensor) -> Tensor:
        """Compute class scores [N,10] from the prior's features.

        The scores too pass a PReLU, as published.
        """
        x = self.hl_prior_2(prior).flatten(1)
        x = functional.dropout(self.hl_prior_fc1(x), training=self.training)
        x = functional.dropout(self.hl_prior_fc2(x), training=self.training)
        scores: Tensor = self.hl_prior_fc3(x)
        return scores

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the density map at full resolution and class scores of x [N,channels,H,W]."""
        density, prior = self.map(x)
        return density, self.scores(prior)


@MODELS.register("cmtl")
class CMTL(CounterModel):
    """CMTL as a counter.

    * ``variant``: ``"svishwa"`` (grey 0…255), ``"c3"`` (C-3-Framework: RGB, density x100).
    * ``stride``: 4 sums the network's full-resolution map over 4x4 pixels; 1 returns the map
      unchanged. The network's grid repeats every 4 pixels, so only cells of 4 pixels depend on the
      same window at every place. At stride 1 there is no fixed window and ``receptive_field`` is
      None. Where the published map is smaller than the image (sides that are not multiples of 4),
      the last rows and columns are 0.
    * ``count_range``: smallest and largest count of the training crops, which is divided into ten
      classes, and ``class_weights``, one per class; both for the loss only. The trainer determines
      what is not given (``learns_from``); otherwise the range is 0 to 100, and all classes weigh
      the same.
    * ``input``, ``mean``, ``std``, ``scale``: as for other counters.

    The density map does not depend on the class scores. ``net`` returns both. The loss is the
    published one: mean squared error over pixels plus 0.0001 times the weighted binary
    cross-entropy between the softmax of the scores and the true class.
    """

    name = "cmtl"
    minimum_side = _PERIOD
    adjustable = frozenset({"stride", "count_range", "class_weights"})

    def __init__(
        self,
        *,
        variant: Variant = "svishwa",
        stride: int = _PERIOD,
        count_range: Sequence[float] | None = None,
        class_weights: Sequence[float] | None = None,
        input: Kind | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        scale: float | None = None,
    ) -> None:
        choice("cmtl", "variant", variant, ("svishwa", "c3"))
        choice("cmtl", "stride", stride, (1, _PERIOD))
        default = Convention("gray255") if variant == "svishwa" else C3_RGB
        input_convention = convention("cmtl", input, default, mean=mean, std=std)
        super().__init__(
            CMTLNet(CHANNELS[input_convention.kind]),
            stride=stride,
            receptive_field=_RECEPTIVE_FIELD if stride == _PERIOD else None,
            scale=(1.0 if variant == "svishwa" else 1 / 100) if scale is None else scale,
            convention=input_convention,
        )
        self.variant = variant
        self.count_range = self.class_weights = None
        if count_range is not None:
            self.count_range = _numbers("count_range", count_range, 2)
            if not self.count_range[1] > self.count_range[0]:
                raise ValueError(f"cmtl: count_range must rise, got {shown(count_range)}")
        if class_weights is not None:
            self.class_weights = _numbers("class_weights", class_weights, CLASSES)
        initial.gaussian(self.net, linear=True)

    def run(self, x: Tensor) -> Tensor:
        """Compute the network's map [N,1,H,W] at full resolution; 0 for pixels that it lacks."""
        assert isinstance(self.net, CMTLNet)
        return self._fitted(self.net.map(x)[0], x.shape)

    def density(self, output: object) -> Tensor:
        """Convert a map of full resolution to people per cell."""
        pixels = super().density(output)
        if self.stride == 1:
            return pixels
        return functional.avg_pool2d(pixels, _PERIOD) * float(_PERIOD**2)

    def loss(
        self,
        images: Tensor,
        target: Tensor,
        *,
        points: Sequence[Tensor] | None = None,
        region: Tensor | None = None,
    ) -> Tensor:
        """Compute the published loss for ``target`` [N,1,h,w], people per cell.

        The target has the counter's stride. At stride 4 the squared error is that of 4x4 sums,
        averaged over cells; stride 1 gives the published error per pixel. An image's class follows
        from its target's sum: min(9, round(count / ((largest - smallest) / 10))).
        """
        assert isinstance(self.net, CMTLNet)
        self._check_images(images)
        x = self.preprocess(images)
        pixels, prior = self.net.map(x)
        density = self._within(self.density(self._fitted(pixels, x.shape)), target, region)
        least, most = self.count_range or _RANGE
        tenth = (most - least) / CLASSES
        classes = (target.sum((1, 2, 3)) / tenth).round().clamp(0, CLASSES - 1).long()
        # At the weights' precision, even under autocast, since probabilities may be near 0.
        with torch.autocast(images.device.type, enabled=False):
            exact = prior.to(next(self.net.parameters()).dtype)
            entropy = functional.binary_cross_entropy(
                torch.softmax(self.net.scores(exact), 1),
                functional.one_hot(classes, CLASSES).to(exact.dtype),
                weight=exact.new_tensor(self.class_weights or [1.0 / CLASSES] * CLASSES),
            )
        return functional.mse_loss(density, target) + _CLASS_WEIGHT * entropy

    def learns_from(self, counts: Callable[[], Sequence[float]]) -> None:
        """Determine the classes from the counts of a training's crops, unless they were given.

        If all crops hold the same number of people there are no classes, and nothing is changed.
        """
        if self.count_range is None:
            people = counts()
            if max(people) > min(people):
                self.count_range = (float(min(people)), float(max(people)))
                if self.class_weights is None:
                    self.class_weights = tuple(class_weights(people))

    @staticmethod
    def _fitted(pixels: Tensor, shape: torch.Size) -> Tensor:
        rows, columns = shape[-2] - pixels.shape[-2], shape[-1] - pixels.shape[-1]
        return functional.pad(pixels, (0, columns, 0, rows))

    def recipe(self) -> Recipe:
        """Return the recipe of svishwa/crowdcount-cascaded-mtl."""
        if self.variant != "svishwa":
            return super().recipe()
        return Recipe(
            source="svishwa/crowdcount-cascaded-mtl",
            optimisers=(Optimiser("adam", 1e-5),),
            epochs=2001,
            batch=1,
            density={"": "svishwa_window"},
            down_sampling=None if self.stride == 1 else "sum",
            crop=Crop("quarter_sides", number=9, multiple=8),
            flip=0.5,
            augmentations=(UniformNoise(0.5, levels=10.0),),
            validation_share=0.1,
            notes=(
                "the published loss is per pixel: stride=1",
                "the noise is added in grey levels and not clipped",
                "training keeps the full resolution, testing compares sums with the quarter's",
                "results differ from the paper's, whose code was another",
            ),
        )

    def options(self) -> dict[str, object]:
        """Return the keyword arguments that build this counter again; JSON values only."""
        return {
            "variant": self.variant,
            "stride": self.stride,
            "count_range": None if self.count_range is None else list(self.count_range),
            "class_weights": None if self.class_weights is None else list(self.class_weights),
            "scale": self.scale,
            **self.convention.options(),
        }

    @classmethod
    def recognise(cls, state: Mapping[str, Tensor]) -> dict[str, object] | None:
        """Recognise the published keys; C-3-Framework's network has three input channels."""
        first = state.get("base_layer.0.conv.weight")
        if first is None:
            return {} if "de_stage_2.6.conv.weight" in state else None
        return {"variant": "c3" if first.ndim == 4 and first.shape[1] == 3 else "svishwa"}


def class_weights(counts: Sequence[float]) -> list[float]:
    """Compute the published weights of the ten classes from the counts [N] of a training set.

    A class weighs 1 minus its share of the images; the weights are then scaled to sum to 1.
    ValueError for no counts, or counts that are all equal.
    """
    if len(counts) == 0 or not max(counts) > min(counts):
        raise ValueError(f"cmtl: class_weights needs different counts, got {shown(list(counts))}")
    tenth = (max(counts) - min(counts)) / CLASSES
    images = torch.zeros(CLASSES, dtype=torch.float64)
    for count in counts:
        images[min(CLASSES - 1, round(count / tenth))] += 1
    weights = 1 - images / len(counts)
    return [float(weight) for weight in weights / weights.sum()]


def _numbers(option: str, values: object, number: int) -> tuple[float, ...]:
    if (
        not isinstance(values, list | tuple)
        or len(values) != number
        or not all(is_number(value) and 0 <= value < 1e12 for value in values)
    ):
        raise ValueError(f"cmtl: {option} must be {number} numbers from 0 on, got {shown(values)}")
    return tuple(float(value) for value in values)
