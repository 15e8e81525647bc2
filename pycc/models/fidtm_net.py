"""FIDTM's network, and its rule that turns a map into heads.

Liang et al., "Focal Inverse Distance Transform Maps for Crowd Localization", IEEE TMM 2022.
"""

from __future__ import annotations

import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from pycc.models import hrnet

HIDDEN = 64
"""Channels between the two transposed convolutions."""
SHARE = 100 / 255
"""Share of an image's maximum that a local maximum must reach to be a head."""
LEAST = 0.1
"""An image whose maximum is below this has no heads."""
_SOFTNESS = 0.05
"""Width, as a share of the image's maximum, of the smooth steps that gradients are taken from."""


class FIDTMNet(hrnet.HRNet):
    """The published network: x [N,3,H,W] -> map [N,1,H,W], about 1 at heads; it may be negative.

    66,584,049 parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        channels = sum(hrnet.WIDTHS)
        self.last_layer = nn.Sequential(
            nn.Conv2d(channels, channels, 1),
            nn.BatchNorm2d(channels, momentum=0.01),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(channels, HIDDEN, 4, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(HIDDEN, 1, 4, stride=2, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Compute the map of x, RGB standardised as for ImageNet."""
        finest, *others = self.features(x)
        joined = torch.cat([finest, *(hrnet.resized(other, finest) for other in others)], 1)
        enlarged: Tensor = self.last_layer(joined)
        height, width = x.shape[2:]
        top, left = (enlarged.shape[2] - height) // 2, (enlarged.shape[3] - width) // 2
        return enlarged[..., top : top + height, left : left + width]


def peaks(maps: Tensor, *, averaged: bool = False) -> Tensor:
    """Find the heads of maps [N,1,h,w]: True where a pixel is one.

    A head is a local maximum of 3x3 pixels that is above 0 and at least 100/255 of the image's
    maximum; every pixel of a plateau is one. An image whose maximum is below 0.1 has none.
    ``averaged`` takes both from the mean of 3x3 pixels, but the image's maximum from the map
    itself, as the published training does for UCF-QNRF.

    >>> maps = torch.zeros(1, 1, 3, 5)
    >>> maps[..., 1, 1], maps[..., 1, 3] = 1.0, 0.5
    >>> peaks(maps).nonzero()[:, 2:].tolist()
    [[1, 1], [1, 3]]
    """
    top = _largest(maps)
    if averaged:
        maps = functional.avg_pool2d(maps, 3, stride=1, padding=1)
    highest = maps == functional.max_pool2d(maps, 3, stride=1, padding=1)
    return highest & (maps >= SHARE * top) & (maps > 0) & (top >= LEAST)


def soft_peaks(maps: Tensor, *, averaged: bool = False) -> Tensor:
    """Compute a smooth stand-in [N,1,h,w] for ``peaks``: a product of sigmoids in place of steps.

    It is 1 at a local maximum far above the image's share, and has a gradient by the image's
    maximum too, since all heads depend on it.

    >>> maps = torch.zeros(1, 1, 3, 5)
    >>> maps[..., 1, 1], maps[..., 1, 3] = 1.0, 0.5
    >>> [round(float(value), 2) for value in soft_peaks(maps)[0, 0, 1]]
    [0.0, 1.0, 0.0, 0.9, 0.0]
    """
    top = _largest(maps)
    scale = _SOFTNESS * top.clamp(min=LEAST)
    if averaged:
        maps = functional.avg_pool2d(maps, 3, stride=1, padding=1)
    highest = functional.max_pool2d(maps, 3, stride=1, padding=1)
    local = 2.0 * torch.sigmoid((maps - highest) / scale)
    share = torch.sigmoid((maps - SHARE * top) / scale)
    return local * share * torch.sigmoid((top - LEAST) / scale)


def _largest(maps: Tensor) -> Tensor:
    return maps.amax((2, 3), keepdim=True)


def fidt(points: Tensor, shape: tuple[int, int]) -> Tensor:
    """Compute the focal inverse distance transform [h,w] of heads [M,2] (x, y), in pixels.

    A pixel at a distance of d to the nearest head is 1 / (1 + d^(0.02 d + 0.75)), and 0 below 0.01.
    A head is the pixel (max(1, int(y)), max(1, int(x))).

    >>> [round(float(value), 3) for value in fidt(torch.tensor([[2.5, 1.0]]), (3, 5))[1]]
    [0.366, 0.5, 1.0, 0.5, 0.366]
    """
    away = torch.ones(shape, dtype=torch.bool)
    if not len(points):
        return torch.zeros(shape)
    column, row = points.detach().cpu().long().clamp(min=1).unbind(1)
    away[row.clamp(max=shape[0] - 1), column.clamp(max=shape[1] - 1)] = False
    distance = torch.from_numpy(ndimage.distance_transform_edt(away.numpy()))
    values = 1.0 / (1.0 + distance ** (0.02 * distance + 0.75))
    return torch.where(values < 0.01, 0.0, values).float()
