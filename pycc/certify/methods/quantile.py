"""Certificate C1: a quantile of the counts of random ablations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pycc.certify._check import inside
from pycc.certify.ablations import kind_of, nonnegative, widened
from pycc.certify.calibration import Calibration
from pycc.certify.laws import exposure
from pycc.certify.maps import shape_of
from pycc.certify.methods.base import Certificate, CertifiedImage, certificates
from pycc.certify.quantile import quantile_bounds
from pycc.counters import check_eval
from pycc.defense.ablated_maps import Bands, Blocks, Kind, Pixels, ablated_counts
from pycc.defense.windows import check_patch
from pycc.settings import check_fields, flag
from pycc.types import Counter, Interval, Progress


def quantile(
    counter: Counter,
    image: Tensor,
    *,
    patch_size: int,
    k: int | None = None,
    band: int | None = None,
    block: int | None = None,
    fill: float | Sequence[float],
    draws: int = 1000,
    q: float = 0.5,
    alpha: float = 0.001,
    images: int = 1,
    patches: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> Interval:
    """Bound the q-quantile of the counts of ablated draws, for every attacked image (C1).

    Each draw keeps ``k`` random pixels of ``image`` [3,H,W], one ``band`` of this number of
    columns, or one ``block`` of this side. The rest is ``fill`` (one number or three, RGB in [0,1],
    usually the data set's mean). A draw shows a pixel of a patch of ``patch_size`` pixels with a
    probability of at most ``exposure``. The interval holds with probability 1 - ``alpha`` over the
    ``draws`` (for ``images`` intervals together), which are keyed by ``seed`` and must not be those
    that q, k or the counter were chosen with. It abstains on a side if a patch may touch too many
    draws. The certified counter predicts the exact quantile; ``pycc.defense.ablated`` estimates it
    (``estimate_interval`` covers the error).

    ValueError for a patch or k that does not fit into the image, a counter in train mode, and
    unless exactly one of ``k``, ``band`` and ``block`` is given.

    >>> from pycc import data, models
    >>> counter = models.load("mcnn-synthetic")
    >>> image = data.open("synthetic", shape=(96, 128))[0].image
    >>> interval = quantile(counter, image, patch_size=4, k=45, fill=0.45, draws=50, alpha=0.1)
    >>> interval.low <= interval.count <= interval.high
    True
    """
    check_eval("certify", counter)
    check_patch("certify", patch_size, shape_of(image))
    kind = kind_of(k, band, block)
    # Check the arguments before counting, which may take hours.
    bound = partial(
        quantile_of, shape=shape_of(image), patch_size=patch_size, kind=kind, q=q, alpha=alpha,
        images=images, patches=patches,
    )  # fmt: skip
    bound(torch.zeros(1))
    counts = ablated_counts(
        counter, image, kind, draws=draws, seed=seed, fill=fill, progress=progress
    )
    return bound(counts)


def quantile_of(
    counts: Tensor,
    shape: tuple[int, int],
    patch_size: int,
    kind: Kind,
    *,
    q: float = 0.5,
    alpha: float,
    images: int = 1,
    patches: int = 1,
) -> Interval:
    """Compute ``quantile`` from known counts [draws] of an image of ``shape`` (H, W)."""
    k, band, block = (
        kind.k if isinstance(kind, Pixels) else None,
        kind.width if isinstance(kind, Bands) else None,
        kind.side if isinstance(kind, Blocks) else None,
    )
    touched = exposure(shape, patch_size=patch_size, k=k, band=band, block=block, patches=patches)
    interval = quantile_bounds(nonnegative(counts), touched, q=q, alpha=alpha, images=images)
    return widened(interval)


@certificates.register("quantile")
@dataclass(frozen=True)
class Quantile(Certificate):
    """The median of the counts of draws that keep ``k`` random pixels.

    All intervals of a run hold together with probability 1 - ``alpha`` over its
    ``ablation_samples`` draws per image, which are keyed by the run's seed and the image's number.

    >>> from pycc.certify import Quantile
    >>> Quantile(alpha=0.01).settings()
    {'name': 'quantile', 'k': 45, 'ablation_samples': 1000, 'alpha': 0.01, 'patches': 1}
    """

    name = "quantile"
    needs_fill = True
    k: int = flag(45, "pixels that an ablation keeps")
    ablation_samples: int = flag(1000, "random ablations per image")
    alpha: float = flag(0.001, "error probability of all intervals of the run together")
    patches: int = flag(1, "patches in the image at once", advanced=True)

    def __post_init__(self) -> None:
        check_fields(type(self).__name__, self)
        self.check_positive("k", "ablation_samples", "patches")
        inside(self.name, "alpha", self.alpha)

    def check_image(self, name: str, shape: tuple[int, int]) -> None:
        """Raise ValueError for an image of fewer than k pixels."""
        Pixels(self.k).check(shape, name)

    def interval(
        self, counter: Counter, image: CertifiedImage, patch_size: int, calibration: Calibration
    ) -> Interval:
        """Return the interval; alpha is shared among all images and patch sizes of the run."""
        counts = image.ablated_counts(
            counter, self.k, self.ablation_samples, fill=calibration.colour,
            seed=image.seed + image.index,
        )  # fmt: skip
        return quantile_of(
            counts, image.shape, patch_size, Pixels(self.k), alpha=self.alpha,
            images=image.intervals, patches=self.patches,
        )  # fmt: skip
