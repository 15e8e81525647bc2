"""A data set at another resolution: images resized by one factor, annotations with them."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from pycc.data.dataset import Dataset
from pycc.data.images import quantize
from pycc.grid import heads_in
from pycc.types import Sample


class Scaled(Dataset):
    """The samples of a data set, their images resized by ``factor``.

    Images are resized bilinearly with antialiasing to sides of round(factor * side), at least 1,
    and rounded to multiples of 1/255, as image files store them. Points move by the ratio of the
    sides, so that none leaves its image. A pixel is in the region of interest if at least half of
    it was, or if a counted head lies in it, so that no head is lost. Names, order, origin and
    groups are unchanged. ValueError for a factor that is not above 0 and finite.
    """

    def __init__(self, samples: Dataset, factor: float) -> None:
        if not 0.0 < factor < math.inf:
            raise ValueError(f"scaled: factor must be above 0 and finite, got {factor}")
        self.samples, self.factor = samples, float(factor)
        self.name = f"{samples.name}, scaled by {factor:g}"
        self.names = list(samples.names)
        self.origin, self.groups = samples.origin, samples.groups

    def _load(self, index: int) -> Sample:
        sample = self.samples[index]
        before = (sample.image.shape[1], sample.image.shape[2])
        after = (self._side(before[0]), self._side(before[1]))
        points = _moved(sample.points, before, after) if sample.annotated else None
        return Sample(
            sample.name,
            quantize(_resized(sample.image, after)),
            points,
            None if sample.roi is None else _region(sample, points, after),
        )

    def _side(self, side: int) -> int:
        return max(1, round(self.factor * side))


def _moved(points: Tensor, before: tuple[int, int], after: tuple[int, int]) -> Tensor:
    """Move points [N,2] (x, y) from an image of sides ``before`` to one of sides ``after``."""
    # In this order no rounding moves a point to the far edge, where it would no longer count.
    new, old = (torch.tensor([w, h], dtype=torch.float64) for h, w in (after, before))
    return points * new / old


def _resized(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize planes [C,H,W] -> [C,h,w]."""
    resized: Tensor = functional.interpolate(
        planes[None], size, mode="bilinear", align_corners=False, antialias=True
    )
    return resized[0]


def _region(sample: Sample, points: Tensor | None, after: tuple[int, int]) -> Tensor:
    assert sample.roi is not None
    counted = torch.zeros(0, 2)
    if points is not None:
        counted = points[heads_in(sample.points, sample.roi)]
    return resized_region(sample.roi, counted, after)


def resized_region(roi: Tensor, heads: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a region of interest [H,W] bool to another size (h, w): [h,w] bool.

    A pixel is in it if at least half of it was, or if one of ``heads`` lies in it. ``heads`` are
    those that the region holds: [N,2] (x, y) in pixels of the new size; so no head is lost.
    """
    resized = _resized(roi.to(torch.float32)[None], size)[0] >= 0.5
    column, row = heads.long().unbind(1)
    resized[row, column] = True
    return resized
