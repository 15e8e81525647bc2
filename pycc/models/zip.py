"""ZIP (EBC-ZIP) as a counter: zero-inflated Poisson rates of blocks, on MobileNetV4.

Ma, Sanchez and Guha, "ZIP: Scalable Crowd Counting via Zero-Inflated Poisson Modeling".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pycc.models.augmentation import Augmentation, ColourJitter, GaussianBlur, PepperAndSalt
from pycc.models.base import MODELS, CounterModel
from pycc.models.beyond import folded
from pycc.models.convention import Convention, Kind, convention
from pycc.models.dace import single
from pycc.models.mobilenet_v4 import Size, adopt_mobilenet
from pycc.models.options import choice
from pycc.models.recipe import Crop, Optimiser, Recipe, Schedule
from pycc.models.zip_bins import BINS, BLOCKS, SIDES, Data, data_of
from pycc.models.zip_loss import zip_loss
from pycc.models.zip_net import ENCODER_STRIDE, Scores, ZIPNet, described

_SIZES: tuple[Size, ...] = ("p", "n", "t")
_CLIP = Convention(
    "rgb_standard",
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)
# A cell of "n" with blocks of 16 sees 551 pixels before it and 504 behind it, its neighbour 535 and
# 520: the farthest of all cells, on both sides.
_FIELDS: Mapping[tuple[Size, int], int] = {
    ("p", 8): 1110,
    ("p", 16): 1086,
    ("p", 32): 1038,
    ("n", 8): 1126,
    ("n", 16): 1118,
    ("n", 32): 1102,
    ("t", 8): 2134,
    ("t", 16): 2142,
    ("t", 32): 2158,
}


@MODELS.register("zip")
class ZIP(CounterModel):
    """ZIP on MobileNetV4 as a counter whose stride is the side of a block.

    * ``variant``: ``"p"`` (the default; 0.8 million parameters), ``"n"`` (3.4) or ``"t"`` (8.7, or
      10.5 with blocks of 8 or 16), which are MobileNetV4-S with half of the channels, -S and -M.
    * ``data``: the data set that gives the bins: ``"shanghaitech_a"`` (the default),
      ``"shanghaitech_b"``, ``"qnrf"``, ``"nwpu"``.
    * ``block``: 8, 16 or 32 pixels; by default the published one, 32 for "qnrf" and else 16.
    * ``input``, ``mean``, ``std``: the input convention, see ``pycc.models.convention.Convention``;
      by default RGB standardised with CLIP's mean and deviation. ``scale``: people for an output
      of 1.

    Files show all of it but the input: variant and block by their keys, the data set by the bins'
    counts, which are stored. (With blocks of 8, half precision makes those of "shanghaitech_a" and
    "qnrf" the same.) Published variants S and B, on other encoders, and files without the head of
    empty blocks (``zero_inflated: false``) are refused.

    The encoder's grid has cells of 32 pixels, at each border rounded up. So the network has up to
    ``32 // block - 1`` more rows or columns of cells than an image has blocks. They lie beyond it,
    see the zeros around it, and count: here their people are added to the image's last row or
    column, so that map and image keep their relation and the count is the published one. Images
    whose sides are multiples of 32 have no such cells. Published evaluations enlarge images with a
    side below the training crops' (224, or 672 for "qnrf" and "nwpu") to it; pycc counts them as
    they are.

    A cell of the network never exceeds the last bin's count; ``most_per_cell`` allows for those
    that are added up. ``receptive_field`` covers cells of all positions in the encoder's grid; it
    is larger than most images. A fresh network has PyTorch's initialisation;
    ``pycc.models.load`` accepts the encoder that timm published for ImageNet.
    """

    name = "zip"
    minimum_side = min(SIDES)
    net: ZIPNet

    def __init__(
        self,
        *,
        variant: Size = "p",
        data: Data = "shanghaitech_a",
        block: int | None = None,
        input: Kind | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        scale: float = 1.0,
    ) -> None:
        choice("zip", "variant", variant, _SIZES)
        choice("zip", "data", data, BLOCKS)
        choice("zip", "block", block, (None, *SIDES))
        side = BLOCKS[data] if block is None else block
        bins = BINS[data, side]
        super().__init__(
            ZIPNet(variant, bins, block=side),
            stride=side,
            receptive_field=_FIELDS[variant, side],
            period=ENCODER_STRIDE,
            scale=scale,
            convention=convention("zip", input, _CLIP, mean=mean, std=std),
        )
        self.variant, self.data, self.bins = variant, data, bins
        self.minimum_side = side
        self.most_per_cell = self.scale * bins.centers[-1] * (ENCODER_STRIDE // side) ** 2

    def run(self, x: Tensor) -> Scores:
        """Compute the logits of both heads of x [N,3,H,W]."""
        return self.net.scores(x)

    def density(self, output: object) -> Tensor:
        """Convert both heads' logits to people per block [N,1,h,w]."""
        assert isinstance(output, Scores)
        return super().density(self.net.people(output))

    def increasing(self, output: object) -> Tensor:
        """Sum the logits by cell: this shows what a cell depends on."""
        assert isinstance(output, Scores)
        return torch.cat(output, 1).sum(1, keepdim=True)

    def _completed(self, density: Tensor, height: int, width: int) -> Tensor:
        """Add the people of cells that lie beyond the image to its last row and column."""
        return folded(density, height, width, self.stride)

    def loss(
        self,
        images: Tensor,
        target: Tensor,
        *,
        points: Sequence[Tensor] | None = None,
        region: Tensor | None = None,
    ) -> Tensor:
        """Compute the published loss of images [N,3,H,W]: the mean of each image's, a scalar.

        ``target`` [N,1,h,w] are heads per block, whole numbers, sums of a dot map. Cells beyond the
        image are left out. See ``pycc.models.zip_loss``. ValueError for a target or region of
        another shape, and for values that are not whole numbers.
        """
        self._check_images(images)
        rows, columns = (-(-size // self.stride) for size in images.shape[2:])
        output = self.run(self.preprocess(images))
        density = self.density(output)[..., :rows, :columns]
        scores = Scores(*(single(logits)[..., :rows, :columns] for logits in output))
        density = self._within(single(density), target, region)
        with torch.autocast(density.device.type, enabled=False):
            rates = self.scale * self.net.rates(scores)
            return zip_loss(scores, rates, density, target, self.bins, region=region).total().mean()

    def recipe(self) -> Recipe:
        """Return the published recipe for the data set; the encoder starts from ImageNet."""
        large = self.data in ("qnrf", "nwpu")
        side = 672 if large else 448
        most = 2.5 if self.data == "shanghaitech_b" else 2.0
        changes: tuple[Augmentation, ...] = (
            ColourJitter(0.2, brightness=0.15, contrast=0.15, saturation=0.1),
            PepperAndSalt(0.5, pepper=1e-3, salt=1e-3),
        )
        if self.data == "nwpu":
            changes = (
                ColourJitter(0.2, brightness=0.2, contrast=0.2, saturation=0.15),
                GaussianBlur(0.2, kernel=5, sigma=(0.1, 5.0)),
                changes[1],
            )
        return Recipe(
            source="Yiming-M/ZIP",
            optimisers=(Optimiser("adam", 1e-4, weight_decay=1e-4),),
            epochs=1300,
            batch=8,
            density={"": "dots"},
            down_sampling="sum",
            schedule=Schedule(
                "cosine_restarts", period=5, factor=2.0, floor=1e-6,
                warmup=25, warmup_lr=1e-5, geometric=True,
            ),
            crop=Crop("scaled", size=(side, side), scale=(0.75, most), multiple=ENCODER_STRIDE),
            flip=0.5,
            augmentations=changes,
            notes=(
                "heads of one pixel merge in the target",
                "probabilities of the flip, the jitter and of salt and pepper are those of "
                "CLIP-EBC's code, by the same authors",
                "evaluated every quarter of an epoch, from epoch 100 or 150 on",
                "published errors are of half precision and of images that the authors resized",
            ),
        )  # fmt: skip

    def options(self) -> dict[str, object]:
        """Return the keyword arguments that build this counter again; JSON values only."""
        return {
            "variant": self.variant,
            "data": self.data,
            "block": self.stride,
            "scale": self.scale,
            **self.convention.options(),
        }

    @classmethod
    def recognise(cls, state: Mapping[str, Tensor]) -> dict[str, object] | None:
        """Recognise variant and block by the published keys, the data set by the bins' counts."""
        found = described(state)
        if found is None:
            return None
        size, block = found
        options: dict[str, object] = {"variant": size, "block": block}
        data = data_of(state["bin_centers"], block)
        return options if data is None else {**options, "data": data}

    def adopt(self, state: Mapping[str, Tensor]) -> str | None:
        """Take the encoder from timm's MobileNetV4 (``conv_stem.*``, ``blocks.*``)."""
        return adopt_mobilenet(self.net.backbone.encoder, state)
