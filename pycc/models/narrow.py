"""A narrow counter: each of its cells depends on 32 pixels only, so a patch reaches few of them.

The effect of a patch on a sum of cells grows with the area that its pixels reach: p pixels and the
receptive field. With a field of 32 pixels instead of MCNN's 72, a patch of 81 pixels reaches little
more than half of the cells that it reaches in MCNN, one of 20 pixels a quarter. Two networks have
such a field: MCNN's columns up to their second pooling, after which one 3x3 convolution combines a
cell with its neighbours; and VGG-16's first six convolutions, after which each cell is counted by
itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pycc.models import vgg
from pycc.models.backbone import take
from pycc.models.base import MODELS, CounterModel
from pycc.models.convention import IMAGENET_RGB, Convention, convention
from pycc.models.mcnn import MCNNNet
from pycc.models.options import choice
from pycc.models.recipe import Crop, Optimiser, Recipe, Schedule

Variant = Literal["mcnn", "vgg"]

_CONVENTIONS: dict[Variant, Convention] = {"mcnn": Convention("gray255"), "vgg": IMAGENET_RGB}
_STRIDE = 4
# "mcnn", column 1: 9, pooling 10, +6·2 = 22, pooling 24; the head's 3x3 adds 2·4.
# "vgg": 3, 5; pooling 6, +4·2 = 14; pooling 16, +4·4 = 32; the head's 1x1 add nothing.
_RECEPTIVE_FIELD = 32
_LAYERS = 14
"""VGG-16's layers to conv3_2 and its ReLU."""
_EARLY_LAYERS = 10
"""Those to the second pooling."""
_COLUMNS = ("branch1", "branch2", "branch3")
_FEATURES = 32 + 40 + 48
_PEOPLE = 0.05
"""People per cell for an output of 1: about those of a dense crowd."""
_BLOCKS = (2, 8, 32, 64)
"""Sides in cells of the blocks whose counts the loss compares."""


class NarrowNet(nn.Module):
    """The network: x [N,1,H,W] in 0…255 -> [N,1,h,w], h and w the sides halved twice."""

    def __init__(self) -> None:
        super().__init__()
        mcnn = MCNNNet(1, named_blocks=True, final_relu=True)
        for name in _COLUMNS:
            column = getattr(mcnn, name)
            setattr(self, name, nn.Sequential(*list(column.children())[:4]))
        # The features of grey values of 0…255 differ a hundredfold from channel to channel.
        self.norm = nn.BatchNorm2d(_FEATURES, momentum=0.02, affine=False)
        nn.init.constant_(self.norm.running_var, 2500.0)  # type: ignore[arg-type]
        self.head = nn.Sequential(
            nn.Conv2d(_FEATURES, 96, 3, padding=1), nn.ReLU(),
            nn.Conv2d(96, 48, 1), nn.ReLU(),
            nn.Conv2d(48, 1, 1),
        )  # fmt: skip
        nn.init.constant_(self.head[4].bias, -3.0)  # type: ignore[arg-type]

    def features(self, x: Tensor) -> Tensor:
        """Compute [N,120,h,w] of the three columns, each channel standardised."""
        features: Tensor = self.norm(torch.cat([getattr(self, name)(x) for name in _COLUMNS], 1))
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Compute positive cells [N,1,h,w]."""
        cells: Tensor = functional.softplus(self.head(self.features(x)))
        return cells


class NarrowVGGNet(nn.Module):
    """The network on VGG-16: x [N,3,H,W], standardised RGB -> [N,1,h,w], halved twice."""

    def __init__(self) -> None:
        super().__init__()
        self.frontend = nn.Sequential(*list(vgg.frontend().children())[:_LAYERS])
        self.head = nn.Sequential(
            nn.Conv2d(vgg.channels(self.frontend), 128, 1), nn.ReLU(),
            nn.Conv2d(128, 64, 1), nn.ReLU(),
            nn.Conv2d(64, 1, 1),
        )  # fmt: skip
        nn.init.constant_(self.head[4].bias, -1.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Compute positive cells [N,1,h,w]."""
        cells: Tensor = functional.softplus(self.head(self.frontend(x)))
        return cells


@MODELS.register("narrow")
class Narrow(CounterModel):
    """A counter of stride 4 and receptive field 32, in two variants; cells are positive.

    * ``variant``: ``"mcnn"`` has MCNN's columns up to their second pooling and a head that sees 3x3
      cells, for grey input of 0…255; ``"vgg"`` VGG-16's layers to conv3_2 and a head of 1x1
      convolutions, for standardised RGB (1,186,625 parameters).
    * ``columns``: whether the early layers are trained ("train") or fixed ("keep", the default):
      MCNN's columns, or VGG-16's layers to conv2_2, taken from weights by ``adopt``.
    * ``mean``, ``std``: three numbers each, for "vgg" only; by default ImageNet's.

    The loss compares counts of blocks of 2, 8, 32 and 64 cells a side: errors squared
    and divided by the network's own count of the block plus a constant. That is the scale of a
    Poisson number's error, so dense blocks do not outweigh all others. If the errors were divided
    by the annotated count (Neyman's chi-squared instead of Pearson's), sums would come out too
    small: the best prediction for y of 0 or 2, weighted by 1 / y, lies near 0. These networks are
    not published; they are made for certificates (``pycc.certify``).
    """

    name = "narrow"
    minimum_side = _STRIDE

    def __init__(
        self,
        *,
        variant: Variant = "mcnn",
        columns: str = "keep",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        choice("narrow", "variant", variant, _CONVENTIONS)
        choice("narrow", "columns", columns, ("keep", "train"))
        super().__init__(
            NarrowNet() if variant == "mcnn" else NarrowVGGNet(),
            stride=_STRIDE,
            receptive_field=_RECEPTIVE_FIELD,
            scale=_PEOPLE,
            convention=convention("narrow", None, _CONVENTIONS[variant], mean=mean, std=std),
        )
        self.variant, self.columns = variant, columns
        for part in self._early_layers():
            part.requires_grad_(columns == "train")
        if variant == "vgg":
            # Twice as fast on CPUs with wide vectors; in a state dict only the strides differ.
            self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _early_layers(self) -> list[nn.Module]:
        if isinstance(self.net, NarrowVGGNet):
            return list(self.net.frontend.children())[:_EARLY_LAYERS]
        return [getattr(self.net, name) for name in _COLUMNS]

    def options(self) -> dict[str, object]:
        """Return the keyword arguments that build this counter again; JSON values only."""
        shared: dict[str, object] = {"variant": self.variant, "columns": self.columns}
        if self.variant == "mcnn":
            return shared
        return {**shared, "mean": list(self.convention.mean), "std": list(self.convention.std)}

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Return VGG-16's parameters; the recipe's rate for "mcnn" is the same in all layers."""
        return list(self.net.frontend.parameters()) if isinstance(self.net, NarrowVGGNet) else []

    def loss(
        self,
        images: Tensor,
        target: Tensor,
        *,
        points: Sequence[Tensor] | None = None,
        region: Tensor | None = None,
    ) -> Tensor:
        """Compute squared errors of block counts, for ``target`` [N,1,h,w] in people per cell."""
        density = self._within(self(images), target, region)
        total: Tensor = density.new_zeros(())
        for side in _BLOCKS:
            if side > min(density.shape[2:]):
                continue
            area = side * side
            error = functional.avg_pool2d(density - target, side) * area
            people = functional.avg_pool2d(density.detach(), side) * area
            weight = (1.0 if side < 32 else 2.0) / side
            total = total + weight * torch.mean(error.square() / (people + 0.05 * side))
        return total

    def recipe(self) -> Recipe:
        """Return this package's recipe, which starts from MCNN's columns or VGG-16's layers."""
        if self.variant == "vgg":
            return Recipe(
                source="pycc",
                optimisers=(Optimiser("adam", 1e-3, backbone=0.1),),
                epochs=10,
                batch=8,
                density={"": "dots"},
                down_sampling="sum",
                schedule=Schedule("cosine_restarts", period=10, floor=1e-5),
                crop=Crop("scaled", number=4, size=(256, 256), scale=(0.7, 1.4)),
                flip=0.5,
                validation_share=0.1,
                ema=0.995,
                clip=1.0,
            )
        return Recipe(
            source="pycc",
            optimisers=(Optimiser("adam", 2e-3),),
            epochs=160,
            batch=6,
            density={"": "svishwa_window"},
            down_sampling="sum",
            schedule=Schedule("cosine_restarts", period=160, floor=1e-5),
            crop=Crop("fixed", size=(256, 256)),
            flip=0.5,
            validation_share=0.1,
            ema=0.995,
            clip=1.0,
        )

    @classmethod
    def recognise(cls, state: Mapping[str, Tensor]) -> dict[str, object] | None:
        """Recognise its head, after its normalised features or VGG-16's layers to conv3_2."""
        keys = set(state)
        if {"norm.running_mean", "head.0.weight", "branch1.0.conv.weight"} <= keys:
            return {"variant": "mcnn"}
        layers = {"frontend.0.weight", "frontend.12.weight", "head.0.weight"}
        is_vgg = layers <= keys and "frontend.14.weight" not in keys
        return {"variant": "vgg"} if is_vgg else None

    def adopt(self, state: Mapping[str, Tensor]) -> str | None:
        """Take the early layers of other weights.

        For "mcnn" the columns of grey MCNN weights, up to their second pooling; for "vgg" the first
        layers of CSRNet's front end (``frontend.N.weight``), or of torchvision's VGG-16
        (``features.N.weight``).
        """
        if isinstance(self.net, NarrowVGGNet):
            return _adopt_vgg(self.net.frontend, state)
        current = self.net.state_dict()
        wanted = {name: value for name, value in current.items() if name.startswith("branch")}
        if not wanted.keys() <= state.keys() or any(
            state[name].shape != value.shape for name, value in wanted.items()
        ):
            return None
        current.update({name: state[name] for name in wanted})
        self.net.load_state_dict(current)
        return "the columns of MCNN up to their second pooling"


def _adopt_vgg(front: nn.Sequential, state: Mapping[str, Tensor]) -> str | None:
    if not any(key.startswith("frontend.") for key in state):
        return vgg.adopt_vgg(front, state)
    keys = {key: f"frontend.{key}" for key in front.state_dict()}
    take("narrow", front, state, keys, trunk="the front end is that of CSRNet")
    return "the layers of CSRNet's front end to conv3_2"
