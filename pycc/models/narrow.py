"""A narrow counter: each of its cells depends on 32 pixels only, so a patch reaches few of them.

The effect of a patch on a sum of cells grows with the area that its pixels reach: p pixels and the
receptive field. With a field of 32 pixels instead of MCNN's 72, a patch of 81 pixels reaches little
more than half of the cells that it reaches in MCNN, one of 20 pixels a quarter. The columns are
MCNN's up to their second pooling; one 3x3 convolution then combines a cell with its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pycc.models.base import MODELS, CounterModel
from pycc.models.convention import Convention
from pycc.models.mcnn import MCNNNet
from pycc.models.recipe import Crop, Optimiser, Recipe, Schedule

_STRIDE = 4
# Column 1: 9, pooling 10, +6·2 = 22, pooling 24; the head's 3x3 adds 2·4.
_RECEPTIVE_FIELD = 32
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


@MODELS.register("narrow")
class Narrow(CounterModel):
    """MCNN's columns up to their second pooling, and a head that sees 3x3 cells.

    Grey input of 0…255, stride 4, receptive field 32; cells are positive. ``columns``: whether
    these are trained ("train") or fixed ("keep", the default): MCNN's, taken from its weights by
    ``adopt``. The loss compares counts of blocks of 2, 8, 32 and 64 cells a side: errors squared
    and divided by the network's own count of the block plus a constant. That is the scale of a
    Poisson number's error, so dense blocks do not outweigh all others. If the errors were divided
    by the annotated count (Neyman's chi-squared instead of Pearson's), sums would come out too
    small: the best prediction for y of 0 or 2, weighted by 1 / y, lies near 0. This network is not
    published; it is made for certificates (``pycc.certify.masked``).
    """

    name = "narrow"
    minimum_side = _STRIDE

    def __init__(self, *, columns: str = "keep") -> None:
        if columns not in ("keep", "train"):
            raise ValueError(f"narrow: columns must be 'keep' or 'train', got {columns!r}")
        super().__init__(
            NarrowNet(),
            stride=_STRIDE,
            receptive_field=_RECEPTIVE_FIELD,
            scale=_PEOPLE,
            convention=Convention("gray255"),
        )
        self.columns = columns
        for name in _COLUMNS:
            getattr(self.net, name).requires_grad_(columns == "train")

    def options(self) -> dict[str, object]:
        """Return the keyword arguments that build this counter again; JSON values only."""
        return {"columns": self.columns}

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
        """Return this package's recipe, which starts from MCNN's columns."""
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
        """Recognise its head and its normalised features."""
        keys = {"norm.running_mean", "head.0.weight", "branch1.0.conv.weight"}
        return {} if keys <= set(state) else None

    def adopt(self, state: Mapping[str, Tensor]) -> str | None:
        """Take the columns of grey MCNN weights, up to their second pooling."""
        current = self.net.state_dict()
        wanted = {name: value for name, value in current.items() if name.startswith("branch")}
        if not wanted.keys() <= state.keys() or any(
            state[name].shape != value.shape for name, value in wanted.items()
        ):
            return None
        current.update({name: state[name] for name in wanted})
        self.net.load_state_dict(current)
        return "the columns of MCNN up to their second pooling"
