"""A small density head on any image backbone of torchvision or timm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pycc.counters import like_of
from pycc.models import initial
from pycc.models.base import CounterModel
from pycc.models.convention import Convention, Kind, convention

_SIDE = 256
"""Side of the image on which a backbone is tried; a multiple of every usual stride."""


class _Lightweight(nn.Module):
    """A backbone's features, and a head that makes a density map of them."""

    def __init__(self, features: _Features, channels: int, hidden: int) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Sequential(
            nn.Conv2d(channels, hidden, 3, padding=1), nn.ReLU(), nn.Conv2d(hidden, 1, 1), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        density: Tensor = self.head(self.features(x))
        return density


class _Features(nn.Module):
    """The feature map [N,C,h,w] that a backbone makes of x [N,3,H,W].

    It is the output of the submodule ``layer`` if one is given; else of timm's ``forward_features``
    if it exists; else of torchvision's ``features`` part; else of the backbone. Of a list or tuple
    (timm's ``features_only``) it is the one at ``level``.
    """

    def __init__(
        self, backbone: nn.Module, level: int, layer: str | None, channels_last: bool
    ) -> None:
        super().__init__()
        self.backbone, self.level, self.channels_last = backbone, level, channels_last
        self._outputs: list[object] = []
        self.layer = layer
        if layer is not None:
            try:
                part = backbone.get_submodule(layer)
            except AttributeError:
                raise ValueError(f"lightweight: the backbone has no layer {layer!r}") from None
            part.register_forward_hook(lambda _, __, output: self._outputs.append(output))

    def forward(self, x: Tensor) -> Tensor:
        features = self._output(x)
        if isinstance(features, list | tuple):
            features = features[self.level]
        if not isinstance(features, Tensor) or features.ndim != 4:
            got = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(
                f"lightweight: the backbone must give features [N,C,h,w], got {got}; "
                "name a layer that does"
            )
        return features.permute(0, 3, 1, 2) if self.channels_last else features

    def _output(self, x: Tensor) -> object:
        if self.layer is not None:
            self._outputs.clear()
            self.backbone(x)
            return self._outputs.pop()
        if callable(getattr(self.backbone, "forward_features", None)):
            return self.backbone.forward_features(x)  # type: ignore[operator]
        if isinstance(getattr(self.backbone, "features", None), nn.Module):
            return self.backbone.features(x)  # type: ignore[operator]
        return self.backbone(x)


class Lightweight(CounterModel):
    """A backbone with a density head; made by ``lightweight``."""

    name = "lightweight"


def lightweight(
    backbone: nn.Module,
    *,
    level: int = -1,
    layer: str | None = None,
    channels_last: bool = False,
    hidden: int = 64,
    receptive_field: int | None = None,
    input: Kind | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    scale: float = 1.0,
) -> CounterModel:
    """Make a counter on an image backbone: its features, a 3x3 and a 1x1 convolution, a ReLU.

    ``backbone`` is any network of torchvision (with ``features``; for a ResNet use
    ``layer="layer3"``) or timm (with ``forward_features``, or built with ``features_only=True``:
    then ``level`` chooses the map), or any module that maps images to features [N,C,h,w], or
    [N,h,w,C] with ``channels_last`` (Swin). Its channels and stride are measured in one pass over a
    blank image of 256x256 pixels. The head is fresh (weights N(0, 0.01), biases 0; ``hidden``
    channels between its convolutions), so the counter must be trained. ``input``, ``mean`` and
    ``std`` are the input convention (by default ImageNet standardisation); ``receptive_field`` is
    as in ``wrap``. Features smaller than the stride requires (no padding at borders) raise
    ValueError when the counter is called.

    TypeError for a backbone that is not a module; ValueError for features of another kind, and for
    a stride that is not one whole number.

    >>> counter = lightweight(nn.Conv2d(3, 8, 16, stride=16))
    >>> counter.stride, list(counter(torch.rand(1, 3, 64, 96)).shape)
    (16, [1, 1, 4, 6])
    """
    if not isinstance(backbone, nn.Module):
        raise TypeError(
            f"lightweight: backbone must be an nn.Module, got {type(backbone).__name__}"
        )
    if type(hidden) is not int or hidden < 1:
        raise ValueError(f"lightweight: hidden must be an integer of at least 1, got {hidden!r}")
    features = _Features(backbone, level, layer, channels_last)
    mode = backbone.training
    backbone.eval()
    like = like_of(backbone)
    with torch.no_grad():
        try:
            blank = features(torch.zeros(1, 3, _SIDE, _SIDE).to(like))
        except IndexError:
            raise ValueError(f"lightweight: the backbone has no level {level}") from None
        finally:
            backbone.train(mode)
    channels, height, width = blank.shape[1:]
    if height != width or height < 1 or _SIDE % height:
        raise ValueError(
            f"lightweight: the stride must be one whole number, got features of {height}x{width} "
            f"for an image of {_SIDE}x{_SIDE}"
        )
    net = _Lightweight(features, channels, hidden)
    initial.gaussian(net.head)
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
