"""CAN, the context-aware network, in its two published variants.

Liu, Salzmann and Fua, "Context-Aware Crowd Counting", CVPR 2019: features are averaged at several
scales, and learned weights decide at each place which scale matters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pycc.models import initial, vgg
from pycc.models.base import MODELS, CounterModel
from pycc.models.convention import Convention, Kind, convention
from pycc.models.options import choice
from pycc.models.recipe import Crop, Optimiser, Recipe

Variant = Literal["commissarma", "weizheliu"]

_VARIANTS: tuple[Variant, ...] = ("commissarma", "weizheliu")
SCALES = (1, 2, 3, 6)
"""Sides of the grids over which features are averaged."""


def _averaged(features: Tensor, side: int, convolution: nn.Module) -> Tensor:
    """Average features [N,C,h,w] over side x side regions, convolve, and resize them back."""
    averages = convolution(functional.adaptive_avg_pool2d(features, side))
    size = features.shape[-2:]
    return functional.interpolate(averages, size=size, mode="bilinear", align_corners=False)


class CANNet(nn.Module):
    """CommissarMa's network: one weight convolution per scale, no normalisation.

    x [N,3,H,W] -> [N,1,H//8,W//8]; 20,719,937 parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        self.frontend = vgg.frontend()
        channels = vgg.channels(self.frontend)
        for side in SCALES:
            for part in (1, 2):
                convolution = nn.Conv2d(channels, channels, 1, bias=False)
                self.add_module(f"conv{side}_{part}", convolution)
        self.backend = vgg.backend(2 * channels)
        self.output_layer = nn.Conv2d(vgg.BACKEND[-1], 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the map of x [N,3,H,W]; values may be negative."""
        features = self.frontend(x)
        fused, total = torch.zeros_like(features), torch.zeros_like(features)
        for side in SCALES:
            context = _averaged(features, side, self.get_submodule(f"conv{side}_1"))
            weight = torch.sigmoid(self.get_submodule(f"conv{side}_2")(context - features))
            fused, total = fused + weight * context, total + weight
        both = torch.cat([features, fused / (total + 1e-12)], 1)
        density: Tensor = self.output_layer(self.backend(both))
        return density


class Context(nn.Module):
    """The authors' context module, also M-SFANet's: one weight convolution for all scales."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            # The published keys count the pooling as the first of two parts.
            nn.Sequential(nn.AdaptiveAvgPool2d(side), nn.Conv2d(channels, channels, 1, bias=False))
            for side in SCALES
        )
        self.bottleneck = nn.Conv2d(2 * channels, channels, 1)
        self.weight_net = nn.Conv2d(channels, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Compute [N,C,h,w] of features [N,C,h,w]; not negative."""
        size = features.shape[-2:]
        fused, total = torch.zeros_like(features), torch.zeros_like(features)
        for scale in self.scales:
            context = functional.interpolate(
                scale(features), size=size, mode="bilinear", align_corners=False
            )
            weight = torch.sigmoid(self.weight_net(features - context))
            fused, total = fused + weight * context, total + weight
        both = torch.cat([fused / total, features], 1)
        return functional.relu(self.bottleneck(both))


class CANAuthorsNet(nn.Module):
    """The authors' network (weizheliu): batch normalisation in the back end.

    x [N,3,H,W] -> [N,1,H//8,W//8]; 18,103,489 parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        self.frontend = vgg.frontend()
        channels = vgg.channels(self.frontend)
        self.context = Context(channels)
        self.backend = vgg.backend(channels, norm=True)
        self.output_layer = nn.Conv2d(vgg.BACKEND[-1], 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the map of x [N,3,H,W]; values may be negative."""
        density: Tensor = self.output_layer(self.backend(self.context(self.frontend(x))))
        return density


@MODELS.register("can")
class CAN(CounterModel):
    """CAN as a counter of stride 8.

    * ``variant``: ``"commissarma"`` (the one that APAM attacks), ``"weizheliu"`` (the authors').
    * ``quadrants``: whether an image is counted as four separate quadrants in eval mode; by default
      as the variant does. The authors evaluate this way, and since features are averaged over the
      whole input, the result differs. The cut is at the multiple of 8 pixels below the middle,
      which is the middle for sides that are multiples of 16. For other sides the authors cut in the
      middle of a cell and count another map.
    * ``input``, ``mean``, ``std``, ``scale``: as for other counters; by default ImageNet
      standardisation and 1.

    Averages over the whole image reach every cell, so ``receptive_field`` is None. The published
    loader of "commissarma" resizes images to multiples of 8 first; here images are not resized. A
    fresh network has weights N(0, 0.01), biases 0; ``pycc.models.load`` accepts VGG-16 weights for
    its front end. The loss is the published one, an image's sum of squared errors over cells.
    """

    name = "can"
    minimum_side = vgg.STRIDE
    adjustable = frozenset({"quadrants"})

    def __init__(
        self,
        *,
        variant: Variant = "commissarma",
        quadrants: bool | None = None,
        input: Kind | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        scale: float = 1.0,
    ) -> None:
        choice("can", "variant", variant, _VARIANTS)
        if quadrants is not None:
            choice("can", "quadrants", quadrants, (True, False))
        super().__init__(
            CANNet() if variant == "commissarma" else CANAuthorsNet(),
            stride=vgg.STRIDE,
            receptive_field=None,
            scale=scale,
            convention=convention("can", input, Convention("rgb_standard"), mean=mean, std=std),
        )
        self.variant = variant
        self.quadrants = variant == "weizheliu" if quadrants is None else quadrants
        if self.quadrants:
            self.minimum_side = 2 * vgg.STRIDE  # a cell for each quadrant
        initial.gaussian(self.net)

    def run(self, x: Tensor) -> Tensor:
        """The network's map, of the whole or put together from the quadrants'."""
        if not self.quadrants or self.training:
            density: Tensor = self.net(x)
            return density
        top, left = (side // (2 * vgg.STRIDE) * vgg.STRIDE for side in x.shape[-2:])
        rows = [
            torch.cat([self.net(part[..., :left]), self.net(part[..., left:])], 3)
            for part in (x[..., :top, :], x[..., top:, :])
        ]
        return torch.cat(rows, 2)

    def loss(
        self,
        images: Tensor,
        target: Tensor,
        *,
        points: Sequence[Tensor] | None = None,
        region: Tensor | None = None,
    ) -> Tensor:
        """Compute an image's sum of squared errors for ``target`` [N,1,h,w], people per cell.

        The result is the mean over images of these sums: the published loss, whose batches hold one
        image.
        """
        return vgg.sum_of_squares(self._within(self(images), target, region), target)

    def recipe(self) -> Recipe:
        """Return the recipe of the variant's authors."""
        if self.variant == "commissarma":
            return Recipe(
                source="CommissarMa/Context-Aware_Crowd_Counting-pytorch",
                optimisers=(Optimiser("sgd", 1e-7, momentum=0.95),),
                epochs=20000,
                batch=1,
                density={"": "csrnet_raw"},
                down_sampling="linear8",
                crop=Crop("whole", multiple=8),
                flip=0.5,
                notes=("the number of epochs is nominal", "images are resized to multiples of 8"),
            )
        return Recipe(
            source="weizheliu/Context-Aware-Crowd-Counting",
            optimisers=(Optimiser("adam", 1e-4, weight_decay=5e-4),),
            epochs=1000,
            batch=26,
            density={"": "fixed15_reflect"},
            down_sampling="cubic8",
            crop=Crop("quadrant"),
            flip=0.2,
            notes=("for ShanghaiTech B, whose images have one size",),
        )

    def options(self) -> dict[str, object]:
        """Return the keyword arguments that build this counter again; JSON values only."""
        return {
            "variant": self.variant,
            "quadrants": self.quadrants,
            "scale": self.scale,
            **self.convention.options(),
        }

    @classmethod
    def recognise(cls, state: Mapping[str, Tensor]) -> dict[str, object] | None:
        """Recognise the variant by its keys: the authors' begin with ``context.``."""
        if any(key.startswith("context.") for key in state):
            return {"variant": "weizheliu"}
        if any(f"conv{side}_1.weight" in state for side in SCALES) and "frontend.0.weight" in state:
            return {"variant": "commissarma"}
        return None

    def adopt(self, state: Mapping[str, Tensor]) -> str | None:
        """Take the front end from torchvision's VGG-16 (``features.N.weight``)."""
        assert isinstance(self.net, CANNet | CANAuthorsNet)
        return vgg.adopt_vgg(self.net.frontend, state)
