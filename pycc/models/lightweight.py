"""A small density head on any image backbone, torchvision- or timm-style."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pycc.models.base import CounterModel
from pycc.models.convention import Convention, Kind, convention

_SIDE = 256
"""Side of the picture that a backbone is tried on; a multiple of every usual stride."""


class _Lightweight(nn.Module):
    """Features of a backbone, and a density map made of them."""

    def __init__(self, backbone: nn.Module, level: int, channels: int, hidden: int) -> None:
        super().__init__()
        self.backbone, self.level = backbone, level
        self.head = nn.Sequential(
            nn.Conv2d(channels, hidden, 3, padding=1), nn.ReLU(), nn.Conv2d(hidden, 1, 1), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        density: Tensor = self.head(features_of(self.backbone, x, self.level))
        return density


def features_of(backbone: nn.Module, x: Tensor, level: int) -> Tensor:
    """The feature map [N,C,h,w] that a backbone makes of x [N,3,H,W].

    timm's ``forward_features`` where there is one; else torchvision's ``features`` part; else what
    calling the backbone gives. Of a list or tuple (timm's ``features_only``) the one at ``level``.
    """
    if callable(getattr(backbone, "forward_features", None)):
        found = backbone.forward_features(x)  # type: ignore[operator]
    elif isinstance(getattr(backbone, "features", None), nn.Module):
        found = backbone.features(x)  # type: ignore[operator]
    else:
        found = backbone(x)
    if isinstance(found, list | tuple):
        found = found[level]
    if not isinstance(found, Tensor) or found.ndim != 4:
        got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"lightweight: the backbone must give features [N,C,h,w], got {got}")
    return found


class Lightweight(CounterModel):
    """A backbone with a density head; made by ``lightweight``."""

    name = "lightweight"


def lightweight(
    backbone: nn.Module,
    *,
    level: int = -1,
    hidden: int = 64,
    receptive_field: int | None = None,
    input: Kind | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    scale: float = 1.0,
) -> CounterModel:
    """A counter on an image backbone: its features, a 3x3 and a 1x1 convolution, a ReLU.

    ``backbone`` is any network of torchvision (with ``features``) or timm (with
    ``forward_features``, or built with ``features_only=True``: then ``level`` chooses the map), or
    any module that maps images to features [N,C,h,w]. Its channels and stride are found by one
    pass over a blank picture of 256x256. The head is fresh (weights N(0, 0.01), biases 0), so the
    counter has to be trained (``hidden`` channels between its convolutions). ``input``, ``mean``
    and ``std`` as elsewhere (by default ImageNet standardisation); ``receptive_field`` as in
    ``wrap``. Features smaller than the stride promises (no padding at borders) are refused when
    the counter is called.

    TypeError for a backbone that is no module; ValueError for features of another kind, and for
    a stride that is not one whole number.
    """
    if not isinstance(backbone, nn.Module):
        raise TypeError(
            f"lightweight: backbone must be an nn.Module, got {type(backbone).__name__}"
        )
    mode = backbone.training
    backbone.eval()
    like = next((p for p in backbone.parameters() if p.is_floating_point()), torch.zeros(()))
    with torch.no_grad():
        try:
            found = features_of(backbone, torch.zeros(1, 3, _SIDE, _SIDE).to(like), level)
        except IndexError:
            raise ValueError(f"lightweight: the backbone has no level {level}") from None
        finally:
            backbone.train(mode)
    channels, height, width = found.shape[1:]
    if height != width or height < 1 or _SIDE % height:
        raise ValueError(
            f"lightweight: the stride must be one whole number, got features of {height}x{width} "
            f"for a picture of {_SIDE}x{_SIDE}"
        )
    net = _Lightweight(backbone, level, channels, hidden)
    for layer in net.head:
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    net.head.to(like)
    counter = Lightweight(
        net,
        stride=_SIDE // height,
        receptive_field=receptive_field,
        scale=scale,
        convention=convention("lightweight", input, Convention("rgb_standard"), mean=mean, std=std),
    )
    counter.minimum_side = _SIDE // height
    return counter
