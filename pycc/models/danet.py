"""DA-Net, a counter with deformable convolutions in its side outputs.

Zou et al., "DA-Net: Learning the Fine-Grained Density Distribution With Deformation Aggregation
Network", IEEE Access 2018. Its trunk resembles VGG. After each of four blocks a deformable
convolution makes a map, and the maps are summed with learned weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pycc.models import initial
from pycc.models.backbone import take
from pycc.models.base import MODELS, CounterModel
from pycc.models.convention import CHANNELS, Convention, Kind, convention
from pycc.models.recipe import Crop, Optimiser, Recipe
from pycc.ops import deform_conv, deform_conv_reference

# Channels of the 3x3 convolutions of each block.
BLOCKS: dict[int, tuple[int, ...]] = {
    1: (64, 64),
    2: (128, 128),
    3: (256, 256, 256),
    4: (512, 512, 512),
    5: (512, 512, 512),
    6: (256, 128, 64),
    7: (32, 16, 8),
    8: (4, 2, 1),
}
_POOLED = (1, 2, 3, 4)
_VGG16 = (1, 2, 3, 4, 5)
"""Blocks with VGG-16's convolutions."""
_SIDES = (4, 5, 6, 7)
"""Blocks with a side output (in block 4, after the pooling)."""
_STRIDE = 2 ** len(_POOLED)
_OFFSETS = 18
"""Vertical and horizontal offsets of the nine taps of a 3x3 kernel."""


class Deformable(nn.Module):
    """A 3x3 deformable convolution to one channel, without bias; ``pycc.ops.deform_conv``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # Holds the kernel under its published key; it is never called.
        self.conv_kernel = nn.Conv2d(channels, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        """Compute [N,1,h,w] of x [N,C,h,w] and offset [N,18,h,w], in cells.

        The compiled kernels are float32. In float64, which is used for measurements, the pure-torch
        twin is used; in half precision (autocast too) this layer computes in float32.
        """
        kernel = self.conv_kernel.weight
        if x.dtype == torch.float64:
            return deform_conv_reference(x, offset, kernel)
        return deform_conv(x.float(), offset.float(), kernel.float()).to(x.dtype)


class DANetNet(nn.Module):
    """The published network: x [N,1,H,W] -> [N,1,h,w], h = ceil(H / 16), w = ceil(W / 16).

    With three ``channels`` instead of one its first five blocks are VGG-16's.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        for level in (*_SIDES, max(BLOCKS)):
            self.register_parameter(f"w{level}", nn.Parameter(torch.ones(1)))
        for block, widths in BLOCKS.items():
            for index, outputs in enumerate(widths, start=1):
                self.add_module(f"conv{block}_{index}", nn.Conv2d(channels, outputs, 3, padding=1))
                channels = outputs
        for level in _SIDES:
            features = BLOCKS[level][-1]
            self.add_module(f"offsets{level}", nn.Conv2d(features, _OFFSETS, 3, padding=1))
            self.add_module(f"conv{level}", Deformable(features))

    def side(self, level: int, x: Tensor) -> Tensor:
        """Compute the side output [N,1,h,w] of a block's output ``x``; not negative."""
        offset = self.get_submodule(f"offsets{level}")(x)
        side: Tensor = functional.relu(self.get_submodule(f"conv{level}")(x, offset))
        return side

    def forward(self, x: Tensor) -> Tensor:
        """Compute the map of x [N,1 or 3,H,W] in the weights' convention; may be negative."""
        total = x.new_zeros(())
        for block, widths in BLOCKS.items():
            for index in range(1, len(widths) + 1):
                x = functional.relu(self.get_submodule(f"conv{block}_{index}")(x))
            if block in _POOLED:
                x = functional.max_pool2d(x, 2, ceil_mode=True)
            if block in _SIDES:
                total = total + self.get_parameter(f"w{block}") * self.side(block, x)
        return total + self.get_parameter(f"w{max(BLOCKS)}") * x


@MODELS.register("danet")
class DANet(CounterModel):
    """DA-Net as a counter of stride 16; 16,474,398 parameters.

    * ``input``, ``mean``, ``std``: the input convention, see ``pycc.models.convention.Convention``;
      by default the published one, ``"gray255"``. With three channels (``"rgb_standard"``, 1,152
      parameters more) the trunk can start from VGG-16, whose first layer reads colours.
    * ``scale``: people per cell for an output of 1; by default 1.

    The map of an [H,W] image has ceil(H / 16) x ceil(W / 16) cells. ``receptive_field`` is None:
    offsets are learned and unbounded, so for any weights some image moves a tap to any cell of the
    map; a cell depends on no fixed window. A fresh network has the published initialisation: all
    weights N(0, 0.01), those of the offsets too, biases 0, the weights of the sum 1. The loss is
    the published one, the mean squared error over cells. Deformable convolutions run in float32
    (also for half precision), and in float64 by their pure-torch twin.
    """

    name = "danet"
    minimum_side = 1  # the poolings keep a last, incomplete cell

    def __init__(
        self,
        *,
        input: Kind | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        scale: float = 1.0,
    ) -> None:
        colour = isinstance(input, str) and input.startswith("rgb")
        default = Convention("rgb_standard" if colour else "gray255")
        input_convention = convention("danet", input, default, mean=mean, std=std)
        super().__init__(
            DANetNet(CHANNELS[input_convention.kind]),
            stride=_STRIDE,
            receptive_field=None,
            scale=scale,
            convention=input_convention,
        )
        initial.gaussian(self.net)

    def recipe(self) -> Recipe:
        """Return the recipe of the code published with the paper."""
        return Recipe(
            source="BigTeacher-777/DA-Net",
            optimisers=(Optimiser("adam", 1e-5),),
            epochs=1001,
            batch=1,
            density={
                "": "svishwa_window",
                "shanghaitech_a": "danet_geometry",
                "ucf_cc_50": "danet_geometry",
            },
            down_sampling="linear16",
            crop=Crop("quarter_sides", number=100, multiple=_STRIDE),
            notes=(
                "from scratch: the branch that takes VGG-16 weights names a missing attribute",
                "every 10 epochs the code looks at the test images",
                "its readme says crops of 1/4 size; they have 1/4 of each side, 1/16 of the area",
                "down-sampling takes 4 of 256 pixels: with kernels so narrow, counts are noisy",
                "data loaded in advance is neither resized nor down-sampled",
                "its readme has no crops for the data sets of the fixed kernel",
            ),
        )

    def options(self) -> dict[str, object]:
        """Return the keyword arguments that build this counter again; JSON values only."""
        return {"scale": self.scale, **self.convention.options()}

    @classmethod
    def recognise(cls, state: Mapping[str, Tensor]) -> dict[str, object] | None:
        """Recognise the published keys; only this network has a deformable kernel."""
        if not any(f"conv{n}.conv_kernel.weight" in state for n in _SIDES):
            return None
        first = state.get("conv1_1.weight")
        colour = first is not None and first.ndim == 4 and first.shape[1] == 3
        return {"input": "rgb_standard"} if colour else {}

    def adopt(self, state: Mapping[str, Tensor]) -> str | None:
        """Take the first five blocks from torchvision's VGG-16, if the trunk reads colours."""
        if "features.0.weight" not in state:
            return None
        keys, index = {}, 0
        for block in _VGG16:
            for place in range(1, len(BLOCKS[block]) + 1):
                for value in ("weight", "bias"):
                    keys[f"conv{block}_{place}.{value}"] = f"features.{index}.{value}"
                index += 2  # with its ReLU
            index += 1  # a pooling
        trunk = "the first blocks are those of VGG-16 if input is 'rgb_standard'"
        read = take("danet", self.net, state, keys, trunk=trunk)
        return f"the 13 convolutions of VGG-16 ({read} of its tensors read)"
