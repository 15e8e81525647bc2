"""Certificate C1': the median of the counts of ablations that are fixed in advance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pycc import defense
from pycc.certify.ablations import kind_of, nonnegative, widened
from pycc.certify.calibration import Calibration
from pycc.certify.fixed import fixed_ablations_bounds
from pycc.certify.maps import shape_of
from pycc.certify.methods.base import Certificate, CertifiedImage, certificates
from pycc.counters import check_eval
from pycc.defense.ablated_maps import Kind, Pixels, ablated_counts
from pycc.defense.retained import most_touched
from pycc.defense.windows import check_patch
from pycc.settings import check_fields, flag
from pycc.types import Counter, Interval, Progress


def fixed_ablations(
    counter: Counter,
    image: Tensor,
    *,
    patch_size: int,
    k: int | None = None,
    band: int | None = None,
    block: int | None = None,
    fill: float | Sequence[float],
    draws: int | None = 101,
    patches: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> Interval:
    """Bound the median count over fixed ablated draws, for every attacked image (C1').

    ``image`` is [3,H,W], RGB in [0,1]. The interval covers ``patches`` patches of ``patch_size``
    pixels at once. The draws are those of ``quantile``, but ``seed`` may be public: the interval
    depends on the largest number of draws that a patch can touch (``most_touched``) and is
    deterministic. Bands and blocks with ``draws`` None are kept once at every place. The defended
    counter is ``pycc.defense.ablated``, ``banded`` or ``blocked`` with ``combine="median"`` and the
    same draws and seed, which predicts the lower of two middle counts.

    ValueError for a patch or draw that does not fit into the image, a counter in train mode, and
    unless exactly one of ``k``, ``band`` and ``block`` is given.

    >>> from pycc import data, models
    >>> counter = models.load("mcnn-synthetic")
    >>> image = data.open("synthetic", shape=(96, 128))[0].image
    >>> interval = fixed_ablations(counter, image, patch_size=4, k=45, fill=0.45, draws=31)
    >>> interval.low <= interval.count <= interval.high
    True
    """
    check_eval("certify", counter)
    check_patch("certify", patch_size, shape_of(image))
    kind = kind_of(k, band, block)
    counts = ablated_counts(
        counter, image, kind, draws=draws, seed=seed, fill=fill, progress=progress
    )
    return fixed_of(
        counts, shape_of(image), patch_size, kind, draws=draws, patches=patches, seed=seed
    )


def fixed_of(
    counts: Tensor,
    shape: tuple[int, int],
    patch_size: int,
    kind: Kind,
    *,
    draws: int | None,
    patches: int = 1,
    seed: int,
) -> Interval:
    """Compute ``fixed_ablations`` from known counts of an image of ``shape`` (H, W)."""
    hits = most_touched(kind, shape, patch_size=patch_size, draws=draws, seed=seed)
    interval = fixed_ablations_bounds(nonnegative(counts), hits, patches=patches, median="lower")
    return widened(interval)


@certificates.register("fixed-ablations")
@dataclass(frozen=True)
class FixedAblations(Certificate):
    """The median of the counts of ``ablation_samples`` fixed draws that keep ``k`` pixels each.

    The draws are keyed by the run's seed and are the same for every image. Deterministic.

    >>> from pycc.certify import FixedAblations
    >>> FixedAblations(k=100).settings()
    {'name': 'fixed-ablations', 'k': 100, 'ablation_samples': 1000, 'patches': 1}
    """

    name = "fixed-ablations"
    needs_fill = True
    k: int = flag(45, "pixels that an ablation keeps")
    ablation_samples: int = flag(1000, "random ablations per image")
    patches: int = flag(1, "patches in the image at once", advanced=True)

    def __post_init__(self) -> None:
        check_fields(type(self).__name__, self)
        self.check_positive("k", "ablation_samples", "patches")

    def check_image(self, name: str, shape: tuple[int, int]) -> None:
        """Raise ValueError for an image of fewer than k pixels."""
        Pixels(self.k).check(shape, name)

    def interval(
        self, counter: Counter, image: CertifiedImage, patch_size: int, calibration: Calibration
    ) -> Interval:
        """Return the interval, from the number of draws that a patch can touch."""
        counts = image.ablated_counts(
            counter, self.k, self.ablation_samples, fill=calibration.colour, seed=image.seed
        )
        return fixed_of(
            counts, image.shape, patch_size, Pixels(self.k), draws=self.ablation_samples,
            patches=self.patches, seed=image.seed,
        )  # fmt: skip

    def defended(
        self, counter: Counter, patch_size: int, calibration: Calibration, *, seed: int
    ) -> Counter:
        """Return ``pycc.defense.ablated`` with the median of the same draws."""
        return defense.ablated(
            counter, self.k, draws=self.ablation_samples, fill=calibration.colour,
            combine="median", seed=seed,
        )  # fmt: skip
