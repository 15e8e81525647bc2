"""SFANet and M-SFANet: counters whose maps have half the resolution of the image.

Zhu et al., "Dual Path Multi-Scale Fusion Networks with Attention for Crowd Counting", 2019;
Thanasutives et al., "Encoder-Decoder Based Convolutional Neural Networks with Multi-Scale-Aware
Modules for Crowd Counting", ICPR 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pycc.models import initial, sfanet_net, vgg
from pycc.models.augmentation import Gamma, Grey
from pycc.models.base import MODELS, CounterModel
from pycc.models.bayesian import bayesian_loss
from pycc.models.convention import Convention, Kind, convention
from pycc.models.dace import single
from pycc.models.heads import Heads, heads_of
from pycc.models.options import choice
from pycc.models.recipe import Boxes, Crop, Optimiser, Recipe
from pycc.models.sfanet_net import PERIOD, AttentionNet, MSFANetNet, MSFANetQNRFNet, SFANetNet

Variant = Literal["sfanet", "m_sfanet", "m_sfanet_qnrf"]

_NETS: dict[Variant, Callable[[], nn.Module]] = {
    "sfanet": SFANetNet,
    "m_sfanet": MSFANetNet,
    "m_sfanet_qnrf": MSFANetQNRFNet,
}
_STRIDE = 2
# What a cell depends on repeats every 16 pixels: 120 to 134 pixels before the cell's first one and
# 120 to 134 after its last. The square covers all of them.
_RECEPTIVE_FIELD = 270
_PEOPLE_PER_PIXEL = 1e-3
"""The density above which the attention should be 1."""
_ATTENTION_WEIGHT = 0.1


@MODELS.register("sfanet")
class SFANet(CounterModel):
    """SFANet and M-SFANet as counters of stride 2; SFANet has 17,002,054 parameters.

    * ``variant``: ``"sfanet"`` (VGG-16 with batch norm, an attention that weighs the features of
      the density; also what LWCC ships), ``"m_sfanet"`` (the same with atrous pyramid and context
      module, for ShanghaiTech; 22,904,390 parameters), ``"m_sfanet_qnrf"`` (VGG-19 without norm or
      attention, absolute value at the end; 28,618,113 parameters).
    * ``resize``: 16 resizes the sides of an image to the nearest multiples of 16 before counting,
      as the published evaluation does; each cell's people are then spread over the cells of the
      image, which keeps the count. None, the default, counts images without resizing.
    * ``input``, ``mean``, ``std``, ``scale``: as for other counters; by default ImageNet
      standardisation and 1.

    The networks take sides that are multiples of 16, or one more. Other images are extended at the
    lower and right border by zeros of the network's input (the mean colour by default), and the
    cells beyond the image are dropped.

    ``net`` returns (density, attention), of "m_sfanet_qnrf" the density alone. Cells of the first
    two variants may be negative. A cell of "sfanet" depends on up to 134 pixels beyond it on each
    side, which differs from cell to cell with a period of 16 pixels. Enlargements with aligned
    corners mix other shares at every place and for every size, so a map does not move with its
    image, and no window can replace the image. M-SFANet averages over the whole image, and its
    ``receptive_field`` is None.

    The loss of the first two is an image's sum of squared errors plus 0.1 times that of the binary
    cross-entropy of the attention; that of "m_sfanet_qnrf" is ``pycc.models.bayesian``'s. A fresh
    network has weights N(0, 0.01), biases 0; ``pycc.models.load`` accepts torchvision's VGG-16
    (with or without batch norm) or, for the last, VGG-19.

    >>> counter = SFANet().eval()
    >>> with torch.no_grad():
    ...     list(counter(torch.rand(1, 3, 32, 50)).shape)
    [1, 1, 16, 25]
    """

    name = "sfanet"
    minimum_side = PERIOD
    adjustable = frozenset({"resize"})

    def __init__(
        self,
        *,
        variant: Variant = "sfanet",
        resize: int | None = None,
        input: Kind | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        scale: float = 1.0,
    ) -> None:
        choice("sfanet", "variant", variant, _NETS)
        choice("sfanet", "resize", resize, (None, PERIOD))
        bounded = variant == "sfanet" and resize is None
        super().__init__(
            _NETS[variant](),
            stride=_STRIDE,
            receptive_field=_RECEPTIVE_FIELD if bounded else None,
            period=PERIOD,
            scale=scale,
            convention=convention("sfanet", input, Convention("rgb_standard"), mean=mean, std=std),
        )
        self.variant, self.resize = variant, resize
        initial.gaussian(self.net)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the density map [N,1,H//2,W//2] of images [N,3,H,W]; see ``CounterModel``.

        In train mode ``resize`` has no effect, since images are crops then.
        """
        if self.resize is None or self.training:
            return super().forward(images)
        self._check_images(images)
        height, width = images.shape[2:]
        sides = [max(PERIOD, round(side / PERIOD) * PERIOD) for side in (height, width)]
        resized = functional.interpolate(
            images, sides, mode="bilinear", align_corners=False, antialias=True
        )
        return _spread(super().forward(resized.clamp(0.0, 1.0)), height // 2, width // 2)

    def run(self, x: Tensor) -> Tensor:
        """Compute the map [N,1,H//2,W//2] of x [N,3,H,W]."""
        output = self.net(_extended(x))
        return _cut(output[0] if isinstance(output, tuple) else output, x)

    def loss(
        self,
        images: Tensor,
        target: Tensor,
        *,
        points: Sequence[Tensor] | None = None,
        region: Tensor | None = None,
        heads: Sequence[Heads] | None = None,
    ) -> Tensor:
        """Compute the variant's loss for ``target`` [N,1,h,w] in people per cell, a scalar.

        The attention's target is 1 in cells of more than 0.001 people per pixel; in the published
        code it is that of pixels, averaged over each cell. For "m_sfanet_qnrf" ``target`` are heads
        per cell, ``points`` the heads of each image, [M,2] (x, y) in its pixels (None: the
        target's, in the centres of their cells), and ``heads``, in their place, those that each
        crop is counted for. The others use neither.
        """
        if not isinstance(self.net, AttentionNet):
            density = self._within(self(images), target, region)
            if heads is None:
                heads = heads_of("sfanet", images, target, points, stride=_STRIDE)
            with torch.autocast(density.device.type, enabled=False):
                return bayesian_loss(single(density), heads, distance="difference", stride=_STRIDE)
        self._check_images(images)
        x = self.preprocess(images)
        output, scores = (_cut(part, x) for part in self.net.logits(_extended(x)))
        density = self._within(self.density(output), target, region)
        crowded = (target > _STRIDE**2 * _PEOPLE_PER_PIXEL).to(scores)
        entropy = functional.binary_cross_entropy_with_logits(
            scores, crowded, weight=region, reduction="none"
        )
        attention = entropy.sum((1, 2, 3)).mean()
        return vgg.sum_of_squares(density, target) + _ATTENTION_WEIGHT * attention

    def recipe(self) -> Recipe:
        """Return the recipe of the variant's authors; "m_sfanet" has that of SFANet."""
        return _qnrf_recipe() if self.variant == "m_sfanet_qnrf" else _sfanet_recipe(self.variant)

    def options(self) -> dict[str, object]:
        """Return the keyword arguments that build this counter again; JSON values only."""
        return {
            "variant": self.variant,
            "resize": self.resize,
            "scale": self.scale,
            **self.convention.options(),
        }

    @classmethod
    def recognise(cls, state: Mapping[str, Tensor]) -> dict[str, object] | None:
        """Recognise the variant: M-SFANet has ``spm.can``, the one for UCF-QNRF no ``amp``."""
        if not {"vgg.conv1_1.conv.weight", "dmp.conv1.conv.weight"} <= set(state):
            return None
        if "spm.can.bottleneck.weight" not in state:
            return {"variant": "sfanet"}
        attends = "amp.conv1.conv.weight" in state
        return {"variant": "m_sfanet" if attends else "m_sfanet_qnrf"}

    def adopt(self, state: Mapping[str, Tensor]) -> str | None:
        """Take the trunk from torchvision's VGG-16 or VGG-19 (``features.N.weight``)."""
        assert isinstance(self.net, AttentionNet | MSFANetQNRFNet)
        return sfanet_net.adopt_trunk(self.net.vgg, state)


def _extended(x: Tensor) -> Tensor:
    """Extend x [N,3,H,W] by zeros to sides that the networks take."""
    down, across = (-side % PERIOD if side % PERIOD > 1 else 0 for side in x.shape[2:])
    return functional.pad(x, (0, across, 0, down)) if down or across else x


def _cut(cells: Tensor, x: Tensor) -> Tensor:
    """Drop the cells of a map [N,1,h,w] that lie beyond the image x [N,3,H,W]."""
    height, width = (side // _STRIDE for side in x.shape[2:])
    if tuple(cells.shape[2:]) == (height, width):
        return cells
    return cells[..., :height, :width]


def _spread(density: Tensor, height: int, width: int) -> Tensor:
    """Spread the people of each cell [N,1,h,w] over the cells [N,1,height,width] that it covers."""

    def shares(cells: int, wanted: int) -> Tensor:
        edges = torch.arange(wanted + 1, dtype=torch.float64) * (cells / wanted)
        own = torch.arange(cells, dtype=torch.float64)
        ends = torch.minimum(edges[1:, None], own + 1) - torch.maximum(edges[:-1, None], own)
        return ends.clamp(min=0.0).to(density)

    rows, columns = shares(density.shape[2], height), shares(density.shape[3], width)
    return rows @ density @ columns.T


def _sfanet_recipe(variant: Variant) -> Recipe:
    notes: tuple[str, ...] = (
        "heads of one pixel merge in the density map but count in the ground truth",
        "images of ShanghaiTech A whose short side is below 512 are enlarged to 512 in training "
        "only; images and maps are scaled by 0.8 to 1.2 before the crop: not done here",
        "grey images with probability 0.1 for ShanghaiTech A only",
        "the option for the learning rate is ignored by the code",
        "evaluated on the test set after every epoch, and the best is kept",
    )
    if variant == "m_sfanet":
        notes = ("no training of M-SFANet for ShanghaiTech is published: that of SFANet", *notes)
    return Recipe(
        source="pxq0312/SFANet-crowd-counting",
        optimisers=(Optimiser("adam", 1e-4),),
        epochs=500,
        batch=8,
        density={"": "fixed5_reflect"},
        down_sampling="sum",
        crop=Crop("fixed", size=(400, 400), multiple=PERIOD),
        flip=0.5,
        augmentations=(Gamma(0.3, exponent=(0.5, 1.5)), Grey(0.1)),
        notes=notes,
    )


def _qnrf_recipe() -> Recipe:
    return Recipe(
        source="Pongpisit-Thanasutives/Variations-of-SFANet-for-Crowd-Counting",
        optimisers=(Optimiser("adam", 5e-4, weight_decay=1e-4),),
        epochs=1200,
        batch=5,
        density={"": "dots"},
        down_sampling="sum",
        crop=Crop("fixed", size=(512, 512), multiple=PERIOD),
        flip=0.5,
        boxes={"": Boxes(1.0, 4.0, 128.0, share=0.3)},
        notes=(
            "Lookahead (6 steps, 0.5) around Adam in the published code; Adam alone here",
            "images are prepared and cropped as Bayesian Loss's",
            "validated from epoch 600 on, every 5 epochs",
            "the published script imports a file that its repository lacks",
        ),
    )
