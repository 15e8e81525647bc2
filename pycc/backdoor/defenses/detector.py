"""Blend-consistency: detect images with a trigger by their counts under superposition.

The form of STRIP for counts (Gao et al., "STRIP: A Defence Against Trojan Attacks on Deep Neural
Networks", ACSAC 2019); there, the class of a triggered image survives superposition.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from pycc.backdoor.poisoning.keys import names_of, shuffled
from pycc.counters import count_of
from pycc.settings import check_fields, flag
from pycc.types import Counter, Sample

_NORMAL = 1.4826
"""Standard deviation of a normal distribution in units of its median absolute deviation."""


@dataclass(frozen=True)
class Blended:
    """Counts of an image alone and of its superpositions with clean images.

    >>> from pycc import data, models
    >>> samples = data.open("synthetic", limit=3, shape=(64, 96))
    >>> detector = BlendConsistency(blends=2)
    >>> (blended,) = detector(models.load("mcnn-synthetic"), [samples[0]], samples)
    >>> len(blended.counts), blended.name == samples[0].name
    (2, True)
    """

    name: str
    count: float
    """People, of the image alone; at least 0."""
    counts: tuple[float, ...]
    """People, of each superposition; at least 0."""
    spread: float
    """Standard deviation of log(1 + count) over the superpositions: the score of STRIP's kind."""
    shift: float
    """Mean of log(1 + count) over them, less that of log(1 + expected count)."""


@dataclass(frozen=True)
class BlendConsistency:
    """Scores of images by their counts under superposition with clean images.

    An image x is superimposed with n clean ones z_j, which the seed and the names choose, resized
    to it: b_j = (1 - w) x + w z_j. The heads of both are then visible, so a counter c without a
    backdoor returns about v (c(x) + c(z_j)) at w = 1/2, with a visibility v that is nearly the same
    for all images. Both are counted as they are superimposed: z_j resized, and in the region of x.
    There are two scores. The direction in which a trigger moves them depends on the attack:

    * ``spread``, the standard deviation of l_j = log(1 + c(b_j)). A trigger that still works in
      every b_j and sets the count, or adds to it (minus: hardly anyone; add: 100 people more),
      hides the differences of the z_j: the spread is **lower** than without it, as entropy is in
      STRIP. A trigger that works in some b_j only, weakened by w, mixes two distributions of
      counts, log(factor) apart: the spread is **higher**. One that multiplies the count by the same
      factor in every b_j (multiply, divide) adds a constant to every l_j: the spread is
      **unchanged** and does not show it.
    * ``shift``, the mean of l_j - log(1 + (1 - w) c(x) + w c(z_j)). Without a backdoor it is log 2v
      for every x and z_j. With one, c(x) is the manipulated count. If the trigger still works in
      b_j, the people of z_j are manipulated too, and the shift moves in the direction of the attack
      (**up** for add and multiply, **down** for minus and divide). If it no longer works, only c(x)
      is manipulated, and the shift moves in the **other** direction.

    A detector therefore uses ``deviations``: the distance of a score, in either direction, from the
    scores of images known to be clean. ValueError for a field out of range.

    >>> from pycc import data, models
    >>> samples = data.open("synthetic", limit=3, shape=(64, 96))
    >>> detector = BlendConsistency(blends=2)
    >>> (blended,) = detector(models.load("mcnn-synthetic"), [samples[0]], samples)
    >>> blended.spread == float(np.log1p(blended.counts).std())
    True
    """

    blends: int = flag(16, "clean images that each image is superimposed with")
    weight: float = flag(0.5, "weight of the clean image in a superposition, inside (0,1)")

    def __post_init__(self) -> None:
        check_fields("blend-consistency", self)
        if self.blends < 2:
            raise ValueError(f"blend-consistency: blends must be at least 2, got {self.blends}")
        if not 0.0 < self.weight < 1.0:
            raise ValueError(f"blend-consistency: weight must lie inside (0,1), got {self.weight}")

    def __call__(
        self, counter: Counter, samples: Iterable[Sample], clean: Sequence[Sample], *, seed: int = 0
    ) -> Iterator[Blended]:
        """Yield the scores of each sample, in order.

        A counter that is a module should be in eval mode. The samples are superimposed with
        ``clean`` images; an image is never superimposed with itself, so that clean images can be
        scored too. People are counted in the sample's region of interest. ValueError unless there
        are more clean images than superpositions.
        """
        if len(clean) <= self.blends:
            raise ValueError(
                f"blend-consistency: clean must be more than {self.blends} images, got {len(clean)}"
            )
        backgrounds = _Backgrounds(counter, clean, names_of(clean))
        return (self._scored(backgrounds, sample, seed) for sample in samples)

    def _scored(self, backgrounds: _Backgrounds, sample: Sample, seed: int) -> Blended:
        count = _people(backgrounds.counter, sample)
        order = shuffled(backgrounds.names, f"blend-consistency, {sample.name}", seed=seed)
        counts: list[float] = []
        expected: list[float] = []
        for index in order:
            if len(counts) == self.blends:
                break
            other = backgrounds.clean[index]
            if other.image.shape == sample.image.shape and torch.equal(other.image, sample.image):
                continue
            under = replace(sample, image=_resized(other.image, sample.image))
            image = torch.lerp(sample.image, under.image, self.weight)
            counts.append(_people(backgrounds.counter, replace(sample, image=image)))
            alone = backgrounds.alone(index, under)
            expected.append((1.0 - self.weight) * count + self.weight * alone)
        if len(counts) < self.blends:
            raise ValueError(
                f"blend-consistency: {sample.name}: clean must hold {self.blends} other images, "
                f"got {len(counts)}"
            )
        logs = np.log1p(counts)
        shift = float((logs - np.log1p(expected)).mean())
        return Blended(sample.name, count, tuple(counts), float(logs.std()), shift)


@dataclass(frozen=True, eq=False)
class _Backgrounds:
    """The clean images of superpositions, each counted once by the counter."""

    counter: Counter
    clean: Sequence[Sample]
    names: Sequence[str]
    _counts: dict[tuple[int, torch.Size], float] = field(default_factory=dict)

    def alone(self, index: int, under: Sample) -> float:
        """People in clean image ``index`` as it is superimposed: ``under``, resized."""
        if under.roi is not None:  # another region for each image
            return _people(self.counter, under)
        key = index, under.image.shape
        if key not in self._counts:
            self._counts[key] = _people(self.counter, under)
        return self._counts[key]


def leave_one_out_deviations(scores: ArrayLike) -> NDArray[np.float64]:
    """The deviation [N] of each of [N] clean scores from the others, as of ``deviations``.

    Each is compared with the others alone, as a detector without it would. ValueError for fewer
    than two.
    """
    known = np.asarray(scores, np.float64)
    if known.ndim != 1 or len(known) < 2:
        raise ValueError(f"deviations: scores must be at least two [N], got {list(known.shape)}")
    return np.concatenate(
        [deviations(known[n : n + 1], np.delete(known, n)) for n in range(len(known))]
    )


def deviations(scores: ArrayLike, clean: ArrayLike) -> NDArray[np.float64]:
    """Compute the absolute deviation of each of [N] scores from the median of clean ones [M].

    The unit is the median absolute deviation of the clean scores times 1.4826, which for a normal
    distribution is its standard deviation. If the clean scores are all equal, the deviation of any
    other score is infinite. ValueError unless scores are finite and there are clean ones.

    >>> deviations([3.0, 13.0], clean=[1.0, 2.0, 3.0, 4.0, 5.0]).round(2).tolist()
    [0.0, 6.74]
    """
    tested, known = (np.asarray(values, np.float64) for values in (scores, clean))
    for name, values in (("scores", tested), ("clean", known)):
        if values.ndim != 1 or not np.isfinite(values).all():
            raise ValueError(f"deviations: {name} must be finite numbers [N], got {values}")
    if not len(known):
        raise ValueError("deviations: clean must hold at least one score, got none")
    middle = np.median(known)
    unit = _NORMAL * np.median(np.abs(known - middle))
    distances = np.abs(tested - middle)
    if unit == 0.0:
        return np.where(distances == 0.0, 0.0, np.inf)
    return np.asarray(distances / unit)


def _people(counter: Counter, sample: Sample) -> float:
    """The count of a sample, at least 0: some counters return negative cells."""
    return max(0.0, count_of(counter, sample))


def _resized(image: Tensor, like: Tensor) -> Tensor:
    """An image [3,h,w] at the size of another."""
    if image.shape == like.shape:
        return image
    size = (like.shape[1], like.shape[2])
    enlarged: Tensor = functional.interpolate(
        image[None], size, mode="bilinear", align_corners=False, antialias=True
    )
    return enlarged[0].clamp(0.0, 1.0)
