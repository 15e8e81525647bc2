"""P2PNet as a counter: a cell's people are its proposals of a head that are accepted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pycc.models import vgg
from pycc.models.base import MODELS
from pycc.models.convention import Convention, Kind, convention
from pycc.models.heads import heads_of
from pycc.models.options import choice, is_number, shown
from pycc.models.p2pnet_loss import p2pnet_loss
from pycc.models.p2pnet_net import PERIOD, PROPOSALS, STRIDE, Backbone, Maps, P2PNetNet, Proposals
from pycc.models.points import CELLS, Cells, PointCounter
from pycc.models.recipe import Crop, Optimiser, Recipe

_PADDINGS = (128, PERIOD)
# Pixels beyond its cell that a proposal depends on. VGG-16 sees 196 pixels up to stride 16, and
# four 3x3 convolutions at stride 8 add 64. Two cells share a place of stride 16: one sees 122
# pixels before itself and 130 after, the other 130 and 122.
_REACH = 130
_ACCEPTED = 0.5
"""A proposal whose score is above this is a head."""


@MODELS.register("p2pnet")
class P2PNet(PointCounter):
    """P2PNet (two by two proposals per cell) as a counter of stride 8; 21,579,344 parameters.

    A cell of 8x8 pixels holds four proposals of a head, each with a score; those above 0.5 are
    heads. So cells are whole numbers from 0 to 4, whatever the image shows (``most_per_cell``), and
    a head belongs to the cell of its proposal, not to the one in which its point lies. ``heads``
    returns the points.

    * ``backbone``: ``"vgg16_bn"`` (published) or ``"vgg16"``, without batch normalisation.
    * ``cells``: ``"points"`` counts heads. The gradient of such a count is 0 nearly everywhere, so
      that of the sum of the four scores takes its place, for attacks and training through the map.
      ``"scores"`` also counts that sum, which is differentiable and another number.
    * ``padding``: sides are padded to multiples of this, below and on the right, with the mean
      colour: 128, as for the published errors, or 16, the least. Proposals beyond the image's own
      cells are no heads here; the published evaluation counts them (``net`` returns them).
      The published demonstration resizes images to multiples of 128 instead: resize them before.
    * ``point_weight``: weight of the points' term in the loss: 2e-4, the paper's; 0
      reproduces the published code, which omits the term by mistake.
    * ``input``, ``mean``, ``std``: the input convention, see ``pycc.models.convention.Convention``;
      by default ImageNet standardisation.

    A proposal depends on a square of 260 pixels; which ones alternates between even and odd cells,
    and ``receptive_field`` is the square that holds both. An image moved by an odd number of cells
    is counted differently (``period``), and so is a part of an image.

    A fresh network has PyTorch's initialisation; ``pycc.models.load`` accepts torchvision's VGG-16
    with batch normalisation (or without, for ``"vgg16"``) for its backbone.
    """

    name = "p2pnet"
    minimum_side = STRIDE
    adjustable = frozenset({"cells", "padding", "point_weight"})
    most_per_cell = float(PROPOSALS)
    net: P2PNetNet

    def __init__(
        self,
        *,
        backbone: Backbone = "vgg16_bn",
        cells: Cells = "points",
        padding: int = 128,
        point_weight: float = 2e-4,
        input: Kind | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        choice("p2pnet", "backbone", backbone, ("vgg16_bn", "vgg16"))
        choice("p2pnet", "cells", cells, CELLS)
        choice("p2pnet", "padding", padding, _PADDINGS)
        if not is_number(point_weight) or not 0 <= point_weight < math.inf:
            raise ValueError(
                f"p2pnet: point_weight must be a number of at least 0, got {shown(point_weight)}"
            )
        super().__init__(
            P2PNetNet(backbone),
            stride=STRIDE,
            receptive_field=STRIDE + 2 * _REACH,
            period=PERIOD,
            convention=convention("p2pnet", input, Convention("rgb_standard"), mean=mean, std=std),
        )
        self.backbone, self.cells, self.padding = backbone, cells, padding
        self.point_weight = float(point_weight)

    def run(self, x: Tensor) -> Maps:
        """Compute the network's maps of x [N,3,H,W], padded, for the cells of the image."""
        height, width = x.shape[2:]
        padded = functional.pad(x, (0, -width % self.padding, 0, -height % self.padding))
        return self.net.maps(padded).cut(-(-height // STRIDE), -(-width // STRIDE))

    def density(self, output: object) -> Tensor:
        """Convert the network's maps to people per cell [N,1,h,w]."""
        assert isinstance(output, Maps)
        scores = torch.sigmoid(output.logits[:, 1::2] - output.logits[:, ::2])  # [N,4,h,w]
        summed = scores.sum(1, keepdim=True)
        return self.people(lambda: (scores > _ACCEPTED).sum(1, keepdim=True), summed)

    def increasing(self, output: object) -> Tensor:
        """Sum all values of the network's maps by cell: this shows what a cell depends on."""
        assert isinstance(output, Maps)
        return torch.cat(output, 1).sum(1, keepdim=True)

    @torch.no_grad()
    def heads(self, images: Tensor) -> list[Tensor]:
        """Locate the heads of images [N,3,H,W] (RGB in [0,1]): [M,2] (x, y) in pixels for each.

        They are as many as the map counts. A point may lie outside its cell, and outside the image.
        ValueError and TypeError as for the counter itself.
        """
        self._check_images(images)
        logits, points = Proposals.of(self.run(self.preprocess(images)))
        accepted = torch.sigmoid(logits[..., 1] - logits[..., 0]) > _ACCEPTED
        return [where[chosen] for where, chosen in zip(points, accepted, strict=True)]

    def loss(
        self,
        images: Tensor,
        target: Tensor,
        *,
        points: Sequence[Tensor] | None = None,
        region: Tensor | None = None,
    ) -> Tensor:
        """Compute the paper's loss of images [N,3,H,W]: the mean of each image's, a scalar.

        ``points`` are the heads of each image, [M,2] (x, y) in its pixels (None: those of
        ``target`` [N,1,h,w], heads per cell, in the centres of their cells). See
        ``pycc.models.p2pnet_loss``; the published code divides by the sums of a batch instead of an
        image's. ValueError for a target or region of another shape, and for bad points.
        """
        self._check_images(images)
        maps = self.run(self.preprocess(images))
        self._within(self.density(maps), target, region)
        known = heads_of("p2pnet", images, target, points, stride=STRIDE)
        logits, where = Proposals.of(Maps(*(values.float() for values in maps)))
        weight = logits.new_ones(logits.shape[:2])
        if region is not None:
            weight = region.to(weight).flatten(1).repeat_interleave(PROPOSALS, 1)
        losses = []
        for row, heads in enumerate(known):
            one = slice(row, row + 1)
            terms = p2pnet_loss(logits[one], where[one], [heads.each()], weight=weight[one])
            losses.append(terms.scores + self.point_weight * terms.places)
        return torch.stack(losses).mean()

    def recipe(self) -> Recipe:
        """Return the published recipe; the backbone starts from VGG-16 trained on ImageNet."""
        return Recipe(
            source="TencentYoutuResearch/CrowdCounting-P2PNet",
            optimisers=(Optimiser("adam", 1e-4, backbone=0.1),),
            epochs=3500,
            batch=32,
            density={"": "dots"},
            down_sampling="sum",
            crop=Crop("scaled", number=4, size=(128, 128), scale=(1 / 1.3, 1 / 0.7)),
            flip=0.5,
            clip=0.1,
            notes=(
                "the code declares a weight decay of 1e-4 and does not pass it to Adam",
                "the term of the points never enters the code's loss, by a wrong name; the paper's "
                "2e-4 is used here (point_weight=0 leaves it out)",
                "8 images, of each 4 crops of one scale and flip; here each crop draws its own",
                "the code draws the image's scale, 0.7 to 1.3, here the crop's, its inverse",
                "the code validates on the test set, every 5 epochs",
            ),
        )

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Return those of VGG-16, which learn at a tenth of the rate."""
        return [*self.net.backbone.parameters()]

    def options(self) -> dict[str, object]:
        """Return the keyword arguments that build this counter again; JSON values only."""
        return {
            "backbone": self.backbone,
            "cells": self.cells,
            "padding": self.padding,
            "point_weight": self.point_weight,
            **self.convention.options(),
        }

    @classmethod
    def recognise(cls, state: Mapping[str, Tensor]) -> dict[str, object] | None:
        """Recognise the published keys; without batch normalisation there are no statistics."""
        keys = {"backbone.body1.0.weight", "classification.output.weight", "fpn.P4_1.weight"}
        if not keys <= set(state):
            return None
        norm = "backbone.body1.1.running_mean" in state
        return {"backbone": "vgg16_bn" if norm else "vgg16"}

    def adopt(self, state: Mapping[str, Tensor]) -> str | None:
        """Take the backbone from torchvision's VGG-16 (``features.N.weight``)."""
        return vgg.adopt_vgg(self.net.backbone.layers(), state)
