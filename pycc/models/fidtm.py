"""FIDTM as a counter: heads are the local maxima of a map, relative to the image's own maximum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pycc.models.base import MODELS
from pycc.models.convention import Convention, Kind, convention
from pycc.models.dace import single
from pycc.models.fidtm_net import FIDTMNet, fidt, peaks, soft_peaks
from pycc.models.heads import heads_of
from pycc.models.hrnet import adopt_hrnet
from pycc.models.options import choice
from pycc.models.points import CELLS, Cells, PointCounter
from pycc.models.recipe import Crop, Optimiser, Recipe


@MODELS.register("fidtm")
class FIDTM(PointCounter):
    """FIDTM (HRNet-W48) as a counter of stride 1; 66,584,049 parameters.

    A pixel holds one person where the network's map has a head: a local maximum of 3x3 pixels of at
    least 100/255 of the image's own maximum. So a single bright spot raises the bar for all heads
    of an image: in a crowd whose heads are near 0.8, one spot of 2.1 is then counted alone. No
    counter that sums a density has this weakness. ``heads`` returns the points.

    * ``cells``: ``"points"`` counts heads. The gradient of such a count is 0 nearly everywhere, so
      that of a smooth stand-in takes its place; ``"scores"`` also counts the stand-in, another
      number.
    * ``averaged``: whether the map is averaged over 3x3 pixels before heads are sought, as the
      published training does for UCF-QNRF (and the published test does not).
    * ``input``, ``mean``, ``std``: the input convention, see ``pycc.models.convention.Convention``;
      by default ImageNet standardisation.

    The image's maximum depends on the whole image, so ``receptive_field`` is None. The loss is the
    published one, the sum over pixels of the squared difference from the focal inverse distance
    transform of the heads. A fresh network has PyTorch's initialisation; ``pycc.models.load``
    accepts HRNet-W48 trained on ImageNet for its trunk.
    """

    name = "fidtm"
    minimum_side = 4
    adjustable = frozenset({"cells", "averaged"})
    most_per_cell = 1.0
    caution = (
        "heads are compared with the image's own maximum: one bright spot can erase all others "
        "(pycc attack --objective erase)"
    )
    net: FIDTMNet

    def __init__(
        self,
        *,
        cells: Cells = "points",
        averaged: bool = False,
        input: Kind | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        choice("fidtm", "cells", cells, CELLS)
        choice("fidtm", "averaged", averaged, (True, False))
        super().__init__(
            FIDTMNet(),
            stride=1,
            receptive_field=None,
            convention=convention("fidtm", input, Convention("rgb_standard"), mean=mean, std=std),
        )
        self.cells, self.averaged = cells, averaged

    def density(self, output: object) -> Tensor:
        """Convert the network's map [N,1,H,W] to people per pixel."""
        assert isinstance(output, Tensor)
        soft = soft_peaks(output, averaged=self.averaged)
        return self.people(lambda: peaks(output, averaged=self.averaged), soft)

    @torch.no_grad()
    def heads(self, images: Tensor) -> list[Tensor]:
        """Locate the heads of images [N,3,H,W] (RGB in [0,1]): [M,2] (x, y) in pixels for each.

        Each is the upper left corner of its pixel. ValueError and TypeError as for the counter
        itself.
        """
        self._check_images(images)
        chosen = peaks(self.net(self.preprocess(images)), averaged=self.averaged)
        return [found[0].nonzero().flip(1).to(images.dtype) for found in chosen]

    def loss(
        self,
        images: Tensor,
        target: Tensor,
        *,
        points: Sequence[Tensor] | None = None,
        region: Tensor | None = None,
    ) -> Tensor:
        """Compute the published loss of images [N,3,H,W]: the mean of each image's, a scalar.

        ``points`` are the heads of each image, [M,2] (x, y) in its pixels (None: those of
        ``target`` [N,1,H,W], heads per pixel). The published loss is the sum over a batch.
        ValueError for a target or region of another shape, and for bad points.
        """
        self._check_images(images)
        maps = single(self.net(self.preprocess(images)))
        self._within(maps, target, region)
        known = heads_of("fidtm", images, target, points, stride=1)
        shape = (images.shape[2], images.shape[3])
        wanted = torch.stack([fidt(heads.each(), shape) for heads in known])[:, None].to(maps)
        squares = torch.square(maps - wanted)
        if region is not None:
            squares = squares * region
        return squares.sum((1, 2, 3)).mean()

    def recipe(self) -> Recipe:
        """Return the published recipe; the trunk starts from HRNet-W48 trained on ImageNet."""
        return Recipe(
            source="dk-liang/FIDTM",
            optimisers=(Optimiser("adam", 1e-4, weight_decay=5e-4),),
            epochs=3000,
            batch=16,
            density={"": "dots"},
            down_sampling="sum",
            crop=Crop("fixed", size=(256, 256)),
            flip=0.5,
            notes=(
                "images with a side below 256 pixels are left out; here they are black beyond",
                "two heads in one pixel cancel each other in the target, by 8-bit arithmetic; here "
                "they are one",
                "the code validates on the test set, every 10 epochs from 200 on",
            ),
        )

    def options(self) -> dict[str, object]:
        """Return the keyword arguments that build this counter again; JSON values only."""
        return {"cells": self.cells, "averaged": self.averaged, **self.convention.options()}

    @classmethod
    def recognise(cls, state: Mapping[str, Tensor]) -> dict[str, object] | None:
        """Recognise the published keys: HRNet's trunk and two transposed convolutions."""
        keys = {"stage4.0.fuse_layers.0.3.0.weight", "last_layer.3.weight", "last_layer.5.weight"}
        return {} if keys <= set(state) else None

    def adopt(self, state: Mapping[str, Tensor]) -> str | None:
        """Take the trunk from HRNet-W48 trained on ImageNet."""
        is_counter = self.recognise(state) is not None
        return None if is_counter else adopt_hrnet(self.net, state)
