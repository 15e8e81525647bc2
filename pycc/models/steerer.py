"""STEERER as a counter: HRNet-W48 and one counting head for four resolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from pycc.models.base import MODELS, CounterModel
from pycc.models.beyond import folded
from pycc.models.convention import Convention, Kind, convention
from pycc.models.dace import single
from pycc.models.heads import whole_heads
from pycc.models.hrnet import adopt_hrnet
from pycc.models.recipe import Crop, Optimiser, Recipe, Schedule
from pycc.models.steerer_loss import steerer_loss
from pycc.models.steerer_net import PERIOD, SteererNet


@MODELS.register("steerer")
class STEERER(CounterModel):
    """STEERER (HRNet-W48) as a counter of stride 1; 64,336,948 parameters.

    * ``scale``: people for an output of 1. Published trainings multiply densities by 100, so it is
      0.01; the code's own default is 200 (``scale=0.005``). Files do not show it.
    * ``input``, ``mean``, ``std``: the input convention, see ``pycc.models.convention.Convention``;
      by default ImageNet standardisation.

    The network takes sides that are multiples of 32. Other images are extended by black pixels,
    below and on the right, as in the published evaluation, which counts these too: their people are
    added to the image's last row or column, so that the count is the published one. That evaluation
    reduces images whose long side exceeds 2048 pixels (ShanghaiTech), 3072 (UCF-QNRF) or 4096
    (NWPU) to it; pycc counts them as they are.

    ``net`` returns four maps, finest first; the finest is counted. A pixel depends on up to 1534
    pixels beyond it, more than most images have, so ``receptive_field`` is None. A fresh network
    has PyTorch's initialisation; ``pycc.models.load`` accepts HRNet-W48 trained on ImageNet for its
    trunk. Published files hold a second copy of the head, the loss's kernel and layers that no
    output depends on; loading leaves these out. STEERER on other trunks is refused.
    """

    name = "steerer"
    minimum_side = PERIOD
    not_in_keys: ClassVar[Mapping[str, tuple[object, ...]]] = {"scale": (0.01, 0.005)}
    unused: ClassVar[tuple[str, ...]] = (
        "counter_copy.",
        "gaussian.gaussian.gkernel.",
        "upsample_module.multi_outputs.3.modulation_layer_small.",
        "upsample_module.multi_outputs.3.soft_mask.",
    )
    net: SteererNet

    def __init__(
        self,
        *,
        input: Kind | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        scale: float = 0.01,
    ) -> None:
        super().__init__(
            SteererNet(),
            stride=1,
            receptive_field=None,
            period=PERIOD,
            scale=scale,
            convention=convention("steerer", input, Convention("rgb_standard"), mean=mean, std=std),
        )

    def preprocess(self, images: Tensor) -> Tensor:
        """Extend images [N,3,H,W] by black to sides that the network takes, and convert them."""
        down, across = (-side % PERIOD for side in images.shape[2:])
        if down or across:
            images = functional.pad(images, (0, across, 0, down))
        return super().preprocess(images)

    def run(self, x: Tensor) -> Tensor:
        """Compute the finest map of x [N,3,H,W]."""
        return self.net.finest(x)

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

        ``target`` [N,1,H,W] are heads per pixel, whole numbers, a dot map. Cells beyond the image
        are left out. See ``pycc.models.steerer_loss``. ValueError for a target or region of another
        shape, and for values that are not whole numbers.
        """
        self._check_images(images)
        height, width = images.shape[2:]
        maps = [
            single(output)[..., : -(-height // 2**level), : -(-width // 2**level)]
            for level, output in enumerate(self.net(self.preprocess(images)))
        ]
        self._within(maps[0], target, region)
        dots = whole_heads("steerer.loss", target).to(maps[0])
        with torch.autocast(images.device.type, enabled=False):
            return steerer_loss(maps, dots, factor=1 / self.scale, region=region).mean()

    def recipe(self) -> Recipe:
        """Return the recipe for ShanghaiTech A; the trunk starts from HRNet-W48 on ImageNet."""
        return Recipe(
            source="taohan10200/STEERER",
            optimisers=(Optimiser("adamw", 1e-5, weight_decay=1e-2),),
            epochs=600,
            batch=12,
            density={"": "dots"},
            down_sampling="sum",
            schedule=Schedule(
                "cosine_restarts", period=590, floor=1e-7, warmup=10, warmup_lr=5e-7
            ),
            crop=Crop("scaled", size=(768, 768), scale=(0.5, 2.0), multiple=PERIOD),
            flip=0.5,
            notes=(
                "6 images on each of two GPUs; the code's batch norms see 6",
                "ShanghaiTech B: 300 epochs, batch 8 a GPU; UCF-QNRF: rate and decay 1e-4, 800 "
                "epochs; NWPU: rate 1e-4, decay 1e-5, 800; JHU-Crowd++: rate 1e-5, decay 1e-4, "
                "1000",
                "the coarser maps pass through a copy of the head whose weights are fixed",
                "published errors are of images whose long side was limited",
            ),
        )  # fmt: skip

    def options(self) -> dict[str, object]:
        """Return the keyword arguments that build this counter again; JSON values only."""
        return {"scale": self.scale, **self.convention.options()}

    @classmethod
    def recognise(cls, state: Mapping[str, Tensor]) -> dict[str, object] | None:
        """Recognise the published keys: HRNet's trunk, the head and the inheritance of features."""
        keys = {
            "backbone.stage4.0.branches.3.0.conv1.weight",
            "multi_counters.decoder.11.weight",
            "upsample_module.multi_outputs.3.modulation_layer_big.0.weight",
        }
        return {} if keys <= set(state) else None

    def adopt(self, state: Mapping[str, Tensor]) -> str | None:
        """Take the trunk from HRNet-W48 trained on ImageNet."""
        return adopt_hrnet(self.net.backbone, state)
