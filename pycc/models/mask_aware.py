"""Mask-aware networks: density regressors that receive a predicted mask of where people are.

Jiang, Lu, Lei and Liu, "Mask-aware networks for crowd counting", IEEE Transactions on Circuits and
Systems for Video Technology, 2019. There is no public code: choices that the text leaves open are
made here and documented in place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pycc.models import initial, vgg
from pycc.models.base import MODELS, CounterModel
from pycc.models.convention import Convention, Kind, convention
from pycc.models.mask_aware_net import (
    DESIGNS,
    STRIDES,
    Backbone,
    MaskAwareNet,
    OwnBackbone,
    Variant,
    VGGBackbone,
    mask_loss,
    receptive_field,
)
from pycc.models.options import choice, is_number, shown
from pycc.models.recipe import Crop, Optimiser, Recipe, Schedule

MaskLoss = Literal["bce", "focal"]

_CONVENTIONS: dict[Backbone, Convention] = {
    "own": Convention("gray255"),
    "csr": Convention("rgb_standard"),
}
_WIDTH = 160
_MASK_FEATURES = (64, 128, 256)
_MOST_CHANNELS = 4096
_MOST_LAYERS = 16
_UNIT = 100.0
"""Factor on densities in the loss: on 192x160 crops the mean over cells is then about five times
the paper's sum over pixels, and similar in size to the mask's loss."""


@MODELS.register("mask_aware")
class MaskAware(CounterModel):
    """A mask-aware network, or one of the baselines of its paper, as a counter.

    * ``variant``: how the density regressor uses the mask. ``"solution1"``: its map is multiplied
      by the true mask in training, by the predicted binary one otherwise; ``"solution2"``: by the
      predicted probability; ``"solution3"``: by the predicted binary one, with the gradient of the
      probability (straight-through, eq. 4); ``"solution4"``, ``"solution5"`` (the paper's best):
      convolutions make features of the true (otherwise the predicted binary) mask, or of the
      probability, which are concatenated to the image's. ``"baseline1"``, ``"baseline2"``: no mask,
      and a deeper regressor; ``"baseline3"``: solution 5 whose first head is trained on density
      instead. Parameters with the own backbone: 3,482,050 (solutions 1-3), 5,031,618 (4, 5,
      baseline 3), 2,891,713, 4,071,873 (baselines 1, 2).
    * ``backbone``: ``"own"`` (stride 4, trained from scratch) or ``"csr"`` (stride 8, VGG-16's
      first ten convolutions, which ``pycc.models.load`` of VGG-16 weights or ``adopt`` fills;
      11,545,410 parameters with solution 5).
    * ``width``: channels inside the own backbone's multi-scale units, 160 by default.
    * ``mask_features``: channels of the convolutions that make features of the mask (solutions 4,
      5, baseline 3); by default 64, 128, 256.
    * ``mask_loss``: ``"bce"`` (the paper's experiments) or ``"focal"`` with exponent ``gamma``;
      ``alpha`` weights the density's loss. They are used in training only.
    * ``input``, ``mean``, ``std``: the input convention, see ``pycc.models.convention.Convention``;
      by default ``"gray255"`` for the own backbone and RGB standardised as for ImageNet for csr.
    * ``scale``: people per cell for an output of 1.

    In train mode a call without ``loss`` has no true mask: solutions 1 and 4 then use the predicted
    binary one, as in eval mode. A fresh network has the published initialisation, weights N(0,
    0.01), biases 0 (VGG-16's part too, until weights are adopted).
    """

    name = "mask_aware"
    minimum_side = STRIDES["own"]
    adjustable = frozenset({"mask_loss", "gamma", "alpha"})
    not_in_keys: ClassVar[Mapping[str, tuple[object, ...]]] = {"variant": ()}

    def __init__(
        self,
        *,
        variant: Variant = "solution5",
        backbone: Backbone = "own",
        width: int | None = None,
        mask_features: Sequence[int] | None = None,
        mask_loss: MaskLoss = "bce",
        gamma: float = 2.0,
        alpha: float = 1.0,
        input: Kind | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        scale: float = 1.0,
    ) -> None:
        choice(self.name, "variant", variant, DESIGNS)
        choice(self.name, "backbone", backbone, STRIDES)
        choice(self.name, "mask_loss", mask_loss, ("bce", "focal"))
        self._check_number("gamma", gamma)
        self._check_number("alpha", alpha)
        design = DESIGNS[variant]
        if width is not None and backbone != "own":
            raise ValueError(f"{self.name}: width belongs to backbone 'own', got {backbone!r}")
        if mask_features is not None and design.fusion != "convolutions":
            raise ValueError(
                f"{self.name}: mask_features belong to solutions 4, 5 and baseline 3, "
                f"got variant {variant!r}"
            )
        inner = _WIDTH if width is None else width
        if not _is_channels(inner):
            raise ValueError(
                f"{self.name}: width must be an integer in 1…{_MOST_CHANNELS}, got {shown(width)}"
            )
        features = _MASK_FEATURES if mask_features is None else mask_features
        if (
            not isinstance(features, list | tuple)
            or not 1 <= len(features) <= _MOST_LAYERS
            or not all(_is_channels(channels) for channels in features)
        ):
            raise ValueError(
                f"{self.name}: mask_features must be 1 to {_MOST_LAYERS} integers in "
                f"1…{_MOST_CHANNELS}, got {shown(mask_features)}"
            )
        super().__init__(
            MaskAwareNet(
                OwnBackbone(inner) if backbone == "own" else VGGBackbone(),
                design,
                mask_features=features,
            ),
            stride=STRIDES[backbone],
            receptive_field=receptive_field(backbone, design, features),
            scale=scale,
            convention=convention(self.name, input, _CONVENTIONS[backbone], mean=mean, std=std),
        )
        self.minimum_side = STRIDES[backbone]
        self.variant, self.backbone, self.design = variant, backbone, design
        self.width, self.mask_features = inner, tuple(features)
        self.mask_loss, self.gamma, self.alpha = mask_loss, float(gamma), float(alpha)
        initial.gaussian(self.net)

    def _check_number(self, option: str, value: object) -> None:
        if not is_number(value) or not 0 <= value < math.inf:  # type: ignore[operator]
            raise ValueError(
                f"{self.name}: {option} must be a finite number of at least 0, got {shown(value)}"
            )

    def loss(
        self,
        images: Tensor,
        target: Tensor,
        *,
        points: Sequence[Tensor] | None = None,
        region: Tensor | None = None,
    ) -> Tensor:
        """Compute the first head's loss + ``alpha`` · the density's (eq. 3), both means over cells.

        For images [N,3,H,W] and density ``target`` [N,1,h,w] in people per cell, made by sums over
        cells of a kernel with bounded support (otherwise the mask is 1 everywhere). The density's
        loss is the squared error (eq. 2) of density times 100. The mask's, for M = [target > 0], is
        binary cross-entropy or the focal loss. Baseline 3 has the density's loss in place of the
        mask's; baselines 1 and 2 have no first loss. In train mode solutions 1 and 4 use M; then no
        gradient of the density's loss reaches their mask head.
        """
        self._check_images(images)
        assert isinstance(self.net, MaskAwareNet)
        features = self.net.backbone(self.preprocess(images))
        self._within(features[:, :1], target, region)
        mask = (target > 0).to(features.dtype)
        output, first = self.net.heads(features, mask if self.training else None)
        total = self.alpha * self._error(output, target, region)
        if first is None:
            return total
        if self.design.head == "density":
            return total + self._error(first, target, region)
        gamma = self.gamma if self.mask_loss == "focal" else 0.0
        return total + mask_loss(first, mask, gamma=gamma, region=region)

    def _error(self, output: Tensor, target: Tensor, region: Tensor | None) -> Tensor:
        """Compute the mean squared error, per cell, of density x100."""
        density = self._within(self.density(output), target, region)
        return torch.square(_UNIT * (density - target)).mean()

    def recipe(self) -> Recipe:
        """Return the paper's recipe; batch, epochs and momentum are not in it."""
        source = "Jiang et al., Mask-aware networks for crowd counting, section III-F"
        schedule = Schedule("step", period=20, factor=0.1)
        notes: tuple[str, ...] = (
            "equation (3) and the composition before it swap arguments: read r(g(b(I)), b(I)) and "
            "L_m(g(b(I)), M) + alpha L_r(r(g(b(I)), b(I)), D)",
            "focal loss in III-D, 'standard cross-entropy for all the experiments' in III-F; "
            "IV-D finds no difference",
            "the abstract promises five data sets, the experiments show three",
            "not given: momentum (0.9 here), the number of epochs (100), alpha (1, mean losses on "
            "density x100), the Gaussian (here 15x15 pixels, sigma 4; it must end somewhere)",
        )
        if self.backbone == "csr":
            return Recipe(
                source=source,
                optimisers=(Optimiser("sgd", 1e-5, momentum=0.9),),
                epochs=100,
                batch=1,
                density={"": "svishwa_window"},
                down_sampling="sum",
                schedule=schedule,
                notes=(
                    *notes,
                    "Adam instead of SGD where all images have one size",
                    "VGG-16 without CSRNet's dilated back end, since the paper calls it cheaper "
                    "than CSRNet; the adapter to 256 channels is chosen here",
                ),
            )
        return Recipe(
            source=source,
            optimisers=(
                Optimiser("adam", 1e-5),
                Optimiser("sgd", 1e-5, momentum=0.9, from_epoch=10),
            ),
            epochs=100,
            batch=8,
            density={"": "svishwa_window"},
            down_sampling="sum",
            schedule=schedule,
            crop=Crop("fixed", number=200, size=(160, 192)),
            flip=0.5,
            crops={"ucf_cc_50": 60},
            notes=(
                *notes,
                "crops of 192x160 (taken as width x height): 200 per image of ShanghaiTech, 60 of "
                "UCF_CC_50, whose five folds are averaged; not given for WorldExpo'10",
                "Adam before the 11th epoch (counted from 1), then SGD; the batch (8 here) is not "
                "given",
                "the multi-scale unit is in a figure only; width 160 and three convolutions on the "
                "mask come closest below the 5.1 million parameters that the text states",
            ),
        )

    def options(self) -> dict[str, object]:
        """Return the keyword arguments that build this counter again; JSON values only."""
        options: dict[str, object] = {"variant": self.variant, "backbone": self.backbone}
        if self.backbone == "own":
            options["width"] = self.width
        if self.design.fusion == "convolutions":
            options["mask_features"] = list(self.mask_features)
        training = {"mask_loss": self.mask_loss, "gamma": self.gamma, "alpha": self.alpha}
        return {**options, **training, **self.convention.options(), "scale": self.scale}

    @classmethod
    def recognise(cls, state: Mapping[str, Tensor]) -> dict[str, object] | None:
        """Recognise backbone, widths and variant by keys and shapes.

        Solutions 1-3 have the same keys, and so have 4, 5 and baseline 3. The best of each by the
        paper's tables is assumed, solution 2 and solution 5, unless the options name another.
        """
        width = state.get("backbone.unit1.short.0.weight")
        is_own = width is not None and "backbone.unit2.short.0.weight" in state
        if not is_own and not {"backbone.vgg.0.weight", "backbone.adapter.0.weight"} <= set(state):
            return None
        options: dict[str, object] = {"backbone": "own" if is_own else "csr"}
        if is_own and width is not None and width.ndim == 4 and _is_channels(width.shape[0]):
            options["width"] = width.shape[0]
        if "mask.0.weight" not in state:
            deeper = "density.4.weight" in state
            return {"variant": "baseline2" if deeper else "baseline1", **options}
        if "mask_features.0.weight" not in state:
            return {"variant": "solution2", **options}
        layers = (state.get(f"mask_features.{2 * index}.weight") for index in range(_MOST_LAYERS))
        channels = [layer.shape[0] for layer in layers if layer is not None and layer.ndim == 4]
        if channels and all(_is_channels(number) for number in channels):
            options["mask_features"] = channels
        return {"variant": "solution5", **options}

    def adopt(self, state: Mapping[str, Tensor]) -> str | None:
        """Take csr's backbone from torchvision's VGG-16 (``features.N.weight``)."""
        assert isinstance(self.net, MaskAwareNet)
        if not isinstance(self.net.backbone, VGGBackbone):
            return None
        return vgg.adopt_vgg(self.net.backbone.vgg, state)


def _is_channels(value: object) -> bool:
    return type(value) is int and 1 <= value <= _MOST_CHANNELS
