"""Three counters on VGG-19: Bayesian Loss, DM-Count and Generalized Loss.

Ma et al., "Bayesian Loss for Crowd Count Estimation with Point Supervision", ICCV 2019; Wang et
al., "Distribution Matching for Crowd Counting" (DM-Count), NeurIPS 2020; Wan et al., "A Generalized
Loss Function for Crowd Counting and Localization", CVPR 2021. Their networks differ in how features
are enlarged and in the last operation, and above all in their losses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pycc.models import initial, vgg
from pycc.models.base import MODELS, CounterModel
from pycc.models.bayesian import bayesian_loss
from pycc.models.convention import Convention, Kind, convention
from pycc.models.dace import dm_loss, single
from pycc.models.heads import Heads, heads_of, whole_heads
from pycc.models.options import choice
from pycc.models.recipe import Recipe
from pycc.models.unbalanced import generalized_loss
from pycc.models.vgg19_recipes import BAYESIAN, DM_COUNT, GENERALIZED

Variant = Literal["bl", "dm_count", "generalized_loss"]

_VARIANTS: tuple[Variant, ...] = ("bl", "dm_count", "generalized_loss")
HEAD = (256, 128)
"""Channels of the 3x3 convolutions behind the enlargement."""
_STRIDE = 8
_GRID = 16
"""Pixels per cell of the trunk, whose features are enlarged twice."""
_DM_TRANSPORT = 0.1 * DM_COUNT.batch
"""Weight of DM-Count's transport for one image: published is 0.1 for the sum over a batch."""
_RECIPES: Mapping[Variant, Recipe] = {
    "bl": BAYESIAN,
    "dm_count": DM_COUNT,
    "generalized_loss": GENERALIZED,
}
# Beyond a cell on each side: 150 pixels through the bilinear enlargement, 142 through the other.
_FIELDS: Mapping[Variant, int] = {"bl": 308, "dm_count": 308, "generalized_loss": 292}


class VGG19Net(nn.Module):
    """The published network: x [N,3,H,W] -> [N,1,2*(H//16),2*(W//16)]; 21,499,457 parameters.

    ``"bl"`` enlarges bilinearly with aligned corners and ends in the absolute value,
    ``"generalized_loss"`` enlarges by nearest neighbour and ends likewise, ``"dm_count"`` enlarges
    as "bl" and ends in a ReLU; it returns the map and the map divided by its sum.
    """

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.variant = variant
        trunk = vgg.trunk_19()
        channels, layers = vgg.channels(trunk), list[nn.Module]()
        for outputs in HEAD:
            layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.ReLU(inplace=True)]
            channels = outputs
        last = nn.Conv2d(channels, 1, 1)
        # The order of the keys is the published one.
        if variant == "generalized_loss":
            self.reg_layer = nn.Sequential(*layers, last)
            self.features = trunk
            return
        self.features = trunk
        self.reg_layer = nn.Sequential(*layers)
        if variant == "dm_count":
            self.density_layer = nn.Sequential(last, nn.ReLU())
        else:
            self.reg_layer.append(last)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Compute the map of x [N,3,H,W], standardised RGB; values are not negative."""
        features = self.features(x)
        if self.variant == "generalized_loss":
            features = functional.interpolate(features, scale_factor=2.0, mode="nearest")
        else:
            features = functional.interpolate(
                features, scale_factor=2.0, mode="bilinear", align_corners=True
            )
        cells: Tensor = self.reg_layer(features)
        if self.variant != "dm_count":
            return cells.abs()
        cells = self.density_layer(cells)
        return cells, cells / (cells.sum((1, 2, 3), keepdim=True) + 1e-6)


@MODELS.register("vgg19")
class VGG19(CounterModel):
    """VGG-19 with a head of three convolutions as a counter of stride 8; 21,499,457 parameters.

    * ``variant``: ``"bl"`` (Bayesian Loss, the default), ``"dm_count"`` (DM-Count),
      ``"generalized_loss"``. Keys show "dm_count". Those of the other two are the same; files that
      their trainings wrote differ in the order of the entries, which is used as a hint and is lost
      where a file was sorted or converted.
    * ``input``, ``mean``, ``std``, ``scale``: as for other counters; by default ImageNet
      standardisation and 1.

    ``net`` returns the published network's output; that of "dm_count" is the map and the map
    divided by its sum.

    The trunk's grid has 16 pixels and the map 8. So, first, of a side that is 8 to 15 more than a
    multiple of 16 the network counts only that multiple, and the last cell is 0 here. Second, cells
    differ in the pixels that they depend on: those of even number on 150 pixels before and 142
    behind the cell, those of odd number the reverse (in "generalized_loss" 134 and 142, or 142 and
    134); ``receptive_field`` covers both. Third, a window of an image is not counted as it is in
    the image. The bilinear enlargement shifts the centre of what a cell sees from 4 pixels behind
    it, at the left and top border, to 4 before it at the right and bottom.

    A fresh network has torchvision's initialisation of VGG and torch's of the head (N(0, 0.01) for
    "generalized_loss"); ``pycc.models.load`` accepts VGG-19 weights for its trunk.
    """

    name = "vgg19"
    minimum_side = _GRID
    not_in_keys = {"variant": ("bl", "generalized_loss")}  # noqa: RUF012

    def __init__(
        self,
        *,
        variant: Variant = "bl",
        input: Kind | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        scale: float = 1.0,
    ) -> None:
        choice("vgg19", "variant", variant, _VARIANTS)
        super().__init__(
            VGG19Net(variant),
            stride=_STRIDE,
            receptive_field=_FIELDS[variant],
            period=_GRID,
            scale=scale,
            convention=convention("vgg19", input, Convention("rgb_standard"), mean=mean, std=std),
        )
        self.variant = variant
        assert isinstance(self.net, VGG19Net)
        initial.he(self.net.features)
        if variant == "generalized_loss":
            initial.gaussian(self.net.reg_layer)

    def run(self, x: Tensor) -> Tensor:
        """Compute the network's map [N,1,2*(H//16),2*(W//16)]."""
        output = self.net(x)
        cells: Tensor = output[0] if isinstance(output, tuple) else output
        return cells

    def loss(
        self,
        images: Tensor,
        target: Tensor,
        *,
        points: Sequence[Tensor] | None = None,
        region: Tensor | None = None,
        heads: Sequence[Heads] | None = None,
    ) -> Tensor:
        """Compute the variant's published loss, a scalar; a mean over images.

        ``target`` [N,1,h,w] are heads per cell. ``points`` are the heads of each image, [M,2]
        (x, y) in its pixels (None: the target's, in the centres of their cells). ``heads`` are, in
        their place, heads whose box overlaps the crop, each with the share that it counts for;
        "dm_count" takes only whole ones. It compares the counts, 0.01 x the normalised maps and
        0.1 x 10 x the transport to heads, which is published as a sum over batches of 10.
        ValueError for a target or region of another shape, for bad points, and of "dm_count" for a
        target that does not hold numbers of heads.
        """
        density = self._within(self(images), target, region)
        if heads is None:
            heads = heads_of("vgg19", images, target, points, stride=_STRIDE)
        with torch.autocast(density.device.type, enabled=False):
            return self._loss_of(single(density), target, heads, max(images.shape[2:]))

    def _loss_of(
        self, density: Tensor, target: Tensor, heads: Sequence[Heads], crop: int
    ) -> Tensor:
        if self.variant == "bl":
            return bayesian_loss(density, heads, stride=_STRIDE)
        if self.variant == "generalized_loss":
            return generalized_loss(density, heads, crop=crop, stride=_STRIDE)
        each = [known.each().to(density) for known in heads]
        dots = whole_heads("vgg19.loss", target).to(density)
        return dm_loss(density, dots, each, transport=_DM_TRANSPORT, stride=_STRIDE)

    def recipe(self) -> Recipe:
        """Return the recipe of the variant's authors."""
        return _RECIPES[self.variant]

    def options(self) -> dict[str, object]:
        """Return the keyword arguments that build this counter again; JSON values only."""
        return {"variant": self.variant, "scale": self.scale, **self.convention.options()}

    def hidden_options(self) -> Mapping[str, tuple[object, ...]]:
        """Return the variant for those two whose keys are the same."""
        return {} if self.variant == "dm_count" else self.not_in_keys

    @classmethod
    def recognise(cls, state: Mapping[str, Tensor]) -> dict[str, object] | None:
        """Recognise the published keys, and by their order which of two variants wrote them."""
        if not {"features.0.weight", "reg_layer.0.weight"} <= state.keys():
            return None
        if "density_layer.0.weight" in state:
            return {"variant": "dm_count"}
        first = next(key for key in state if key.startswith(("features.", "reg_layer.")))
        return {"variant": "generalized_loss" if first.startswith("reg_layer.") else "bl"}

    def adopt(self, state: Mapping[str, Tensor]) -> str | None:
        """Take the trunk from torchvision's VGG-19 (``features.N.weight``)."""
        assert isinstance(self.net, VGG19Net)
        return vgg.adopt_vgg(self.net.features, state, network="VGG-19")
