"""Input conventions of networks: one name for each published one, and the conversion to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from pycc.models.options import choice, is_number, shown

Kind = Literal["gray255", "gray_half", "gray_unit", "rgb255", "rgb_unit", "rgb_standard"]

CHANNELS: dict[Kind, int] = {
    "gray255": 1,
    "gray_half": 1,
    "gray_unit": 1,
    "rgb255": 3,
    "rgb_unit": 3,
    "rgb_standard": 3,
}
_LEVELS = {"gray255": 255.0, "gray_unit": 1.0, "rgb255": 255.0, "rgb_unit": 1.0}
"""The value of white, for the kinds whose black is 0."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of R, G, B in [0,1] that torchvision's weights expect."""
LUMA = (0.299, 0.587, 0.114)
"""ITU-R 601 weights of R, G, B, as PIL's mode "L" and OpenCV's grey conversion use."""

_MOST = float(torch.finfo(torch.float32).max)
"""The largest finite number that preprocessing can use."""


@dataclass(frozen=True)
class Convention:
    """The conversion from RGB in [0,1] to a network's own input; differentiable.

    ``"gray255"`` grey 0…255; ``"gray_half"`` grey, (x - 127.5) / 128; ``"gray_unit"`` grey in
    [0,1]; ``"rgb255"`` RGB 0…255; ``"rgb_unit"`` RGB in [0,1]; ``"rgb_standard"`` RGB in [0,1],
    standardised with ``mean`` and ``std``. Grey is 0.299 R + 0.587 G + 0.114 B.

    >>> Convention("gray255")(torch.ones(1, 3, 2, 2)).squeeze().tolist()
    [[255.0, 255.0], [255.0, 255.0]]
    """

    kind: Kind
    mean: tuple[float, float, float] = IMAGENET[0]
    std: tuple[float, float, float] = IMAGENET[1]

    def __call__(self, images: Tensor) -> Tensor:
        """Convert images [N,3,H,W] (RGB in [0,1]) to network input [N,1 or 3,H,W]."""
        x = images
        if CHANNELS[self.kind] == 1:
            red, green, blue = images.unbind(1)
            x = (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue).unsqueeze(1)
        if self.kind == "rgb_standard":
            mean = images.new_tensor(self.mean).view(3, 1, 1)
            return (x - mean) / images.new_tensor(self.std).view(3, 1, 1)
        if self.kind in ("gray255", "gray_half", "rgb255"):
            x = x * 255.0
        if self.kind == "gray_half":
            x = (x - 127.5) / 128.0
        return x

    def factor(self, kind: str) -> float | None:
        """Return the factor on kernels with which input of ``kind`` gives equal results, or None.

        Only levels of 0…255 and of [0,1] differ by a factor alone: zeros at the border stay zeros.
        """
        if kind not in _LEVELS or self.kind not in _LEVELS:
            return None
        if CHANNELS[self.kind] != CHANNELS[cast("Kind", kind)]:
            return None
        return _LEVELS[self.kind] / _LEVELS[kind]

    def options(self) -> dict[str, object]:
        """Return the options ``input`` and, if they are used, ``mean`` and ``std``; JSON values."""
        if self.kind != "rgb_standard":
            return {"input": self.kind}
        return {"input": self.kind, "mean": list(self.mean), "std": list(self.std)}


IMAGENET_RGB = Convention("rgb_standard")
"""RGB standardised as torchvision's weights expect it."""
C3_RGB = Convention(
    "rgb_standard",
    (0.410824894905, 0.370634973049, 0.359682112932),
    (0.278580576181, 0.26925137639, 0.27156367898),
)
"""RGB standardised as C-3-Framework does for ShanghaiTech A, with the statistics that it
measured."""


def convention(
    model: str,
    input: object,
    default: Convention,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Convention:
    """Return the convention that a model's options request; None means ``default``'s.

    ValueError, in the name of ``model``, for an unknown kind, for a kind with another number of
    channels than the default's, and for a mean or standard deviation that is invalid or not used.
    """
    if input is not None:
        choice(model, "input", input, CHANNELS)
    kind = default.kind if input is None else cast("Kind", input)
    if CHANNELS[kind] != CHANNELS[default.kind]:
        raise ValueError(
            f"{model}: this variant has {CHANNELS[default.kind]} input channels, "
            f"input {input!r} gives {CHANNELS[kind]}"
        )
    if kind != "rgb_standard" and (mean is not None or std is not None):
        raise ValueError(f"{model}: mean and std belong to input 'rgb_standard', got {kind!r}")
    return Convention(
        kind, _three(model, "mean", mean, default.mean), _three(model, "std", std, default.std)
    )


def _three(
    model: str, what: str, values: Sequence[float] | None, default: tuple[float, float, float]
) -> tuple[float, float, float]:
    if values is None:
        return default
    if (
        not isinstance(values, list | tuple)
        or len(values) != 3
        or not all(is_number(value) and abs(value) <= _MOST for value in values)
    ):
        raise ValueError(f"{model}: {what} must be three finite numbers, got {shown(values)}")
    if what == "std" and min(values) <= 0:
        raise ValueError(f"{model}: std must be positive, got {shown(values)}")
    return float(values[0]), float(values[1]), float(values[2])
