"""Pixels outside the region of interest: unchanged, black, or blurred."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from scipy import ndimage
from torch import Tensor

from pycc.data.dataset import Dataset
from pycc.data.images import quantize
from pycc.types import Sample

Show = Literal["keep", "black", "blur"]
SHOW = get_args(Show)
"""The choices."""
_SIGMA = 10.0
"""Of the blurring Gaussian, in pixels: about a head of WorldExpo'10."""


class Outside(Dataset):
    """The samples of a data set, with nobody visible outside their region of interest.

    ``black`` multiplies the image by the region, as the mask-aware networks are trained on
    WorldExpo'10. ``blur`` keeps the low frequencies, so that the border is not a hard edge. Images
    are multiples of 1/255, as image files store them. Samples without a region are unchanged; so
    are all names, points, regions, order, origin and groups. ValueError for another choice.
    """

    def __init__(self, samples: Dataset, show: Show) -> None:
        if show not in SHOW:
            raise ValueError(f"outside: must be one of {', '.join(SHOW)}, got {show!r}")
        self.samples, self.show = samples, show
        self.name = samples.name if show == "keep" else f"{samples.name}, {show} outside"
        self.names = list(samples.names)
        self.origin, self.groups = samples.origin, samples.groups

    def _load(self, index: int) -> Sample:
        return hide_outside(self.samples[index], self.show)

    def points(self, index: int) -> Tensor:
        """Return the head annotations [N,2] of a sample, as its data set has them."""
        return self.samples.points(index)


def hide_outside(sample: Sample, show: Show) -> Sample:
    """Return a sample that shows nobody outside its region of interest; see ``Outside``."""
    if sample.roi is None or show == "keep":
        return sample
    hidden = _blurred(sample.image) if show == "blur" else torch.zeros_like(sample.image)
    points = sample.points if sample.annotated else None
    return Sample(sample.name, torch.where(sample.roi, sample.image, hidden), points, sample.roi)


def _blurred(image: Tensor) -> Tensor:
    planes = ndimage.gaussian_filter(image.numpy(), (0.0, _SIGMA, _SIGMA), mode="nearest")
    return quantize(torch.from_numpy(planes).clamp(0.0, 1.0))
