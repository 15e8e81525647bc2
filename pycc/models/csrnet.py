"""CSRNet, dilated convolutions behind a VGG-16 front end, in its two published variants.

Li et al., "CSRNet: Dilated Convolutional Neural Networks for Understanding the Highly Congested
Scenes", CVPR 2018.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional

from pycc.models import initial, vgg
from pycc.models.base import MODELS, CounterModel
from pycc.models.convention import C3_RGB, Convention, Kind, convention
from pycc.models.options import choice
from pycc.models.recipe import Crop, Optimiser, Recipe

Variant = Literal["leeyeehoo", "commissarma", "c3"]

_CONVENTIONS: dict[Variant, Convention] = {
    "leeyeehoo": Convention("rgb_standard"),
    "commissarma": Convention("rgb_standard", (0.5,) * 3, (0.225,) * 3),
    "c3": C3_RGB,
}
_SCALES: dict[Variant, float] = {"leeyeehoo": 1.0, "commissarma": 1.0, "c3": 1 / 100}
# The front end's 92 pixels and six times 4 cells of 8 pixels.
_RECEPTIVE_FIELD = vgg.FIELD + len(vgg.BACKEND) * 4 * vgg.STRIDE


class CSRNetNet(nn.Module):
    """The published network: x [N,3,H,W] -> [N,1,h,w], h = H // 8, w = W // 8.

    With ``enlarge`` the map is enlarged eight times each way by nearest neighbour, as in variants
    trained on full-resolution density.
    """

    def __init__(self, *, enlarge: bool) -> None:
        super().__init__()
        self.frontend = vgg.frontend()
        self.backend = vgg.backend(vgg.channels(self.frontend))
        self.output_layer = nn.Conv2d(vgg.BACKEND[-1], 1, 1)
        self.enlarge = enlarge

    def cells(self, x: Tensor) -> Tensor:
        """Compute the map before any enlargement."""
        density: Tensor = self.output_layer(self.backend(self.frontend(x)))
        return density

    def forward(self, x: Tensor) -> Tensor:
        """Compute the map of x [N,3,H,W] in the weights' convention; values may be negative."""
        cells = self.cells(x)
        if not self.enlarge:
            return cells
        return functional.interpolate(cells, scale_factor=float(vgg.STRIDE), mode="nearest")


@MODELS.register("csrnet")
class CSRNet(CounterModel):
    """CSRNet as a counter of stride 8; 16,263,489 parameters.

    * ``variant``: ``"leeyeehoo"`` (the authors; also what PAP and Adv-Crowd attack: map at stride
      8, ImageNet standardisation), ``"commissarma"`` (trained on full-resolution density, so a cell
      holds 64 times the network's value; mean 0.5, standard deviation 0.225), ``"c3"``
      (C-3-Framework: the same enlargement, density x100, ShanghaiTech A's mean and deviation).
      Their keys are the same except for C-3-Framework's prefix ``CCN.``: weights of "commissarma"
      loaded as "leeyeehoo" count 64 times too few people, which the probe image shows.
    * ``input``, ``mean``, ``std``: the input convention, see ``pycc.models.convention.Convention``;
      by default the variant's.
    * ``scale``: people for an output of 1 (of a pixel, if the map is enlarged); 1/100 for "c3".

    ``net`` returns the published network's output; the counter's own map is the one before the
    enlargement, which only repeats it. A fresh network has the published initialisation, weights
    N(0, 0.01), biases 0; ``pycc.models.load`` accepts VGG-16 weights for its front end. The loss is
    the published one, the sum over cells (or pixels, if the map is enlarged) of the squared error.
    """

    name = "csrnet"
    minimum_side = vgg.STRIDE
    not_in_keys: ClassVar = {"variant": tuple(_CONVENTIONS)}

    def __init__(
        self,
        *,
        variant: Variant = "leeyeehoo",
        input: Kind | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        scale: float | None = None,
    ) -> None:
        choice("csrnet", "variant", variant, _CONVENTIONS)
        super().__init__(
            CSRNetNet(enlarge=variant != "leeyeehoo"),
            stride=vgg.STRIDE,
            receptive_field=_RECEPTIVE_FIELD,
            scale=_SCALES[variant] if scale is None else scale,
            convention=convention("csrnet", input, _CONVENTIONS[variant], mean=mean, std=std),
        )
        self.variant = variant
        initial.gaussian(self.net)

    def run(self, x: Tensor) -> Tensor:
        """Compute the network's map [N,1,h,w] at stride 8."""
        assert isinstance(self.net, CSRNetNet)
        return self.net.cells(x)

    def density(self, output: object) -> Tensor:
        """Convert a map at stride 8 to people per cell.

        A map that the variant enlarges counts each cell 64 times.
        """
        cells = super().density(output)
        return cells * float(vgg.STRIDE**2) if self.variant != "leeyeehoo" else cells

    def loss(
        self,
        images: Tensor,
        target: Tensor,
        *,
        points: Sequence[Tensor] | None = None,
        region: Tensor | None = None,
    ) -> Tensor:
        """Compute an image's sum of squared errors for ``target`` [N,1,h,w], people per cell.

        A cell has 8x8 pixels. The result is the mean over images of these sums: the published loss,
        whose batches hold one image. If the published sum is over pixels, a target that is constant
        in each cell is assumed: the sum is then equal up to a constant that does not depend on the
        network.
        """
        squares = vgg.sum_of_squares(self._within(self(images), target, region), target)
        return squares / float(vgg.STRIDE**2) if self.variant != "leeyeehoo" else squares

    def recipe(self) -> Recipe:
        """Return the recipe of the variant's authors; C-3-Framework's is not public in full."""
        if self.variant == "leeyeehoo":
            return Recipe(
                source="leeyeehoo/CSRNet-pytorch",
                optimisers=(Optimiser("sgd", 1e-7, momentum=0.95, weight_decay=5e-4),),
                epochs=400,
                batch=1,
                density={"": "csrnet_adaptive", "shanghaitech_b": "fixed15_reflect"},
                down_sampling="cubic8",
                repeats=4,
                notes=(
                    "crops and flips of the code are never run; the paper gives lr 1e-6, 9 crops",
                    "the steps of the learning rate all multiply by 1",
                    "the validation notebook feeds 255·RGB minus means, unlike training",
                ),
            )
        if self.variant == "commissarma":
            return Recipe(
                source="CommissarMa/CSRNet-pytorch",
                optimisers=(Optimiser("adam", 1e-5),),
                epochs=1999,
                batch=1,
                density={"": "csrnet_raw", "shanghaitech_b": "shhb15"},
                down_sampling="sum",
                crop=Crop("whole", multiple=16),
                flip=0.5,
                notes=(
                    "images are cut at the top left to multiples of 16",
                    "the published loss is per pixel: up to a constant that of sums over cells",
                    "Mall: kernels of sigma int(15 / perspective)",
                ),
            )
        return super().recipe()

    def options(self) -> dict[str, object]:
        """Return the keyword arguments that build this counter again; JSON values only."""
        return {"variant": self.variant, "scale": self.scale, **self.convention.options()}

    @classmethod
    def recognise(cls, state: Mapping[str, Tensor]) -> dict[str, object] | None:
        """Recognise the published keys; all variants share them, so the authors' is the default."""
        complete = "frontend.0.weight" in state and "backend.0.weight" in state
        other = any(key.startswith(("context.", "conv1_1.")) for key in state)
        return {"variant": "leeyeehoo"} if complete and not other else None

    def adopt(self, state: Mapping[str, Tensor]) -> str | None:
        """Take the front end from torchvision's VGG-16 (``features.N.weight``)."""
        assert isinstance(self.net, CSRNetNet)
        return vgg.adopt_vgg(self.net.frontend, state)
