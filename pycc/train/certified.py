"""Training on the certified error: the loss |count - heads| + (high - low) / 2 of a defended count.

``high`` and ``low`` bound the defended count of every image that differs in one patch, so that the
loss is at least the mean of the two largest errors, above and below, that a patch can cause.
Certified training with the attaining windows is the method of BagCert (Metzen and Yatsura, ICLR
2021) for classifiers; here the bounds are those of sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pycc.counters import density_in_roi
from pycc.defense.masking import allowance_of, masked_bounds, masked_maps
from pycc.defense.windows import check_maps, window_of
from pycc.types import Counter, Sample

_CALIBRATION_IMAGES = 32
"""Training images, at most, that the allowance is calibrated on."""


@dataclass(frozen=True)
class CertifiedCounts:
    """Counts of a defended counter and their bounds, [N] float64 each, in people."""

    count: Tensor
    low: Tensor
    high: Tensor


class CertifiedRule(Protocol):
    """A defended count of density maps with its certified bounds."""

    def __call__(self, maps: Tensor, window: tuple[int, int]) -> CertifiedCounts:
        """Count maps [N,h,w], none of whose cells is negative; differentiable in the maps.

        ``window`` is the height and width in cells of what a patch can affect.
        """
        ...


@dataclass(frozen=True)
class MaskedRule:
    """The masked count of ``pycc.certify.masked``; subgradients at the windows that attain it.

    >>> counts = MaskedRule(allowance=1.0)(torch.tensor([[[5.0, 0.0, 4.0]]]), (1, 1))
    >>> counts.count.item(), round(counts.low.item(), 6), round(counts.high.item(), 6)
    (5.0, 1.0, 10.0)
    """

    allowance: float

    def __call__(self, maps: Tensor, window: tuple[int, int]) -> CertifiedCounts:
        """Count maps [N,h,w] with the fullest window reduced to the allowance."""
        bounds = masked_bounds(maps, window, self.allowance)
        count = masked_maps(maps, window, self.allowance).double().sum((1, 2))
        return CertifiedCounts(count, bounds.low, bounds.high)

    @classmethod
    def fitted(
        cls, counter: Counter, samples: Sequence[Sample], indices: Sequence[int], patch_size: int
    ) -> MaskedRule:
        """Choose the allowance of least certified error on up to 32 of the samples at indices."""
        step = -(-len(indices) // _CALIBRATION_IMAGES)
        maps, truths, windows = [], [], []
        for index in indices[::step]:
            sample = samples[index]
            (cells,) = _map(counter, sample)
            maps.append(cells)
            truths.append(float(sample.count))
            windows.append(_window(counter, patch_size, sample.image, cells))
        return cls(allowance_of(maps, truths, windows))


@dataclass(frozen=True)
class CertifiedError:
    """The certified error of counters under a patch, as a loss and as a count.

    >>> from pycc import models
    >>> pool = torch.nn.AvgPool2d(8)  # one person per white cell; a patch reaches four cells
    >>> counter = models.wrap(pool, preprocess=lambda x: x[:, :1], stride=8, receptive_field=8)
    >>> error = CertifiedError(MaskedRule(3.0), patch_size=8)
    >>> loss = error.loss(counter, torch.ones(1, 3, 32, 32), [14])
    >>> round(loss.item(), 6)  # 15 people, within 11 and 15
    3.0
    """

    rule: CertifiedRule
    patch_size: int
    """Side in pixels."""

    def loss(
        self,
        counter: Counter,
        images: Tensor,
        heads: Sequence[int],
        *,
        region: Tensor | None = None,
    ) -> Tensor:
        """Compute the mean over images of |count - heads| + (high - low) / 2, a scalar, in people.

        Args:
            counter: a counter with a bounded receptive field.
            images: [N,3,H,W], RGB in [0,1].
            heads: the number of heads in each image.
            region: [N,1,h,w], the share of each cell in the region of interest; None: all of it.

        Raises:
            ValueError: a counter without a bounded field, a patch that does not fit into the
                images, or cells that are negative or not finite.
        """
        density = counter(images)
        density = density if region is None else density * region
        maps = check_maps("train", density.float())
        counts = self.rule(maps, _window(counter, self.patch_size, images, maps))
        errors = (counts.count - counts.count.new_tensor(heads)).abs()
        return torch.mean(errors + (counts.high - counts.low) / 2)

    def worst_count(self, counter: Counter, sample: Sample) -> float:
        """Return the end of a sample's interval that is further from its number of heads.

        The error of this count is the certified error.
        """
        maps = _map(counter, sample)
        counts = self.rule(maps, _window(counter, self.patch_size, sample.image, maps))
        ends = float(counts.low), float(counts.high)
        return max(ends, key=lambda end: abs(end - sample.count))


def _map(counter: Counter, sample: Sample) -> Tensor:
    """Return the map [1,h,w] of a sample inside its region of interest."""
    return check_maps("train", density_in_roi(counter, sample)[:, None])


def _window(counter: Counter, patch_size: int, images: Tensor, maps: Tensor) -> tuple[int, int]:
    height, width = images.shape[-2:]
    return window_of(counter, patch_size, (height, width), (maps.shape[-2], maps.shape[-1]))
