"""The published probabilities of randomized ablation, and what they do and do not show.

Wu et al., "Towards Adversarial Patch Analysis and Certified Defense against Crowd Counting" (APAM,
arXiv 2104.10868), keep k of the d entries of an image x and of its twin x' with a patch of n
entries (the same k in both), and compare the K largest cells of the two density maps: R of them are
common. Theorem 1 says, for every i in [0, k],

    C(n,k) / C(d,k)  <=  Pr(R = i)  <=  C(d-n,k) / C(d,k).

It does not hold: :func:`counterexample` breaks both sides with a counter that ignores its image.
The proof fails in four places.

* R = K is taken to mean that no entry that differs is kept. Only the reverse is true: what is not
  seen cannot change the map, but what is seen need not change it either.
* (13) bounds the probability that no differing entry is kept by C(d-n,k) / C(d,k) from above. A
  patch changes n entries *at most*, so that C(d-n,k) / C(d,k) is its bound from below.
* k, how many entries are kept, and K, how many cells are compared, are taken for one number; they
  have nothing to do with each other.
* (11) and (12) are about two values of i, and the theorem about every one: probabilities of k + 1
  values that add up to 1 cannot all be near 1, nor does a small one show that R = i is rare.

And R would not certify a count: a map that is multiplied by 10 has the same K largest cells.

What is true: Pr(R = K) >= Pr(both ablations identical) >= C(d-n,k) / C(d,k), and therefore
:func:`expected_overlap`. Bounds on counts are in the rest of this package.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pycc.certify._check import whole
from pycc.ops import ablate, log_probability_inside, log_probability_untouched, topk_overlap

PATCH_SIZES = (20, 40, 81, 163)
ENTRIES = 3 * 1024 * 700
RETAINED = 45
"""The sizes of Table 3: sides of the patches, d (an image of 1024 x 700 in colour) and k."""


def probability_untouched(d: int, n: int, k: int) -> float:
    """C(d-n,k) / C(d,k): k of d entries, drawn without replacement, miss n given ones.

    The paper's upper "Pr", to a relative 1e-12. 0 where it is impossible, and where it is below the
    least float64. ValueError unless 0 <= n <= d and 0 <= k <= d.

    >>> from pycc.certify import probability_untouched
    >>> round(probability_untouched(d=4, n=1, k=2), 12)  # of 6 pairs, 3 miss it
    0.5
    """
    return math.exp(float(log_probability_untouched(d, n, k)))


def probability_inside(d: int, n: int, k: int) -> float:
    """C(n,k) / C(d,k): k of d entries, drawn without replacement, all lie among n given ones.

    The paper's lower "Pr"; accuracy and errors as for :func:`probability_untouched`.

    >>> from pycc.certify import probability_inside
    >>> round(probability_inside(d=4, n=3, k=2), 12)  # of 6 pairs, 3 lie inside
    0.5
    """
    return math.exp(float(log_probability_inside(d, n, k)))


def expected_overlap(d: int, n: int, k: int) -> float:
    """A lower bound on E[R] / K, the expected share of the K largest cells that stay the largest.

    C(d-n,k) / C(d,k), rounded down: with that probability or more the draw shows none of the at
    most n entries that differ; then both ablations are identical, and so are their maps and their K
    largest cells (of equal cells those with the lower index). For any K, any function of the
    ablation and any content of the patch, with the same draw for both images. Within [0, 1]; it
    says nothing of the count. ValueError as for :func:`probability_untouched`.
    """
    least = math.exp(float(log_probability_untouched(d, n, k, rounding="down")))
    # exp is right to one unit in the last place; certain (1) and impossible (0) events are exact.
    return least if least in (0.0, 1.0) else least * (1.0 - 2.0**-51)


@dataclass(frozen=True)
class Row:
    """One column of the paper's Table 3."""

    patch_size: int
    """Side of the patch, pixels."""
    untouched: float
    inside: float


def table_3(
    patch_sizes: Sequence[int] = PATCH_SIZES,
    *,
    d: int = ENTRIES,
    k: int = RETAINED,
    channels: int = 3,
) -> list[Row]:
    """Table 3 of the paper: both probabilities for square patches of n = channels * p^2 entries.

    The defaults are the sizes behind the published digits, of which those of the lower row are cut
    off, not rounded, after the fifth. ValueError for a patch of more than d entries and for k
    outside [0, d].
    """
    rows = []
    for patch_size in patch_sizes:
        side = whole("table_3", "patch_size", patch_size, 1)
        n = whole("table_3", "channels", channels, 1) * side**2
        rows.append(Row(patch_size, probability_untouched(d, n, k), probability_inside(d, n, k)))
    return rows


@dataclass(frozen=True)
class Counterexample:
    """Theorem 1 beside what two counters do; shares are of the draws."""

    upper: float
    """C(d-n,k) / C(d,k), which the theorem says that no Pr(R = i) exceeds."""
    full: float
    """Share with R = K of the counter that ignores its image: 1."""
    lower: float
    """C(n,k) / C(d,k), which the theorem says that no Pr(R = i) falls below."""
    rarest: float
    """The least share of any R = i, i <= K, of the same counter: 0."""
    scaled_overlap: float
    """E[R] / K of the counter whose map is ten times larger where it sees the patch: 1."""
    scaled_clean: float
    """What that counter says of the clean ablations, people."""
    scaled_attacked: float
    """The most that it says of an attacked ablation, people."""


def counterexample(*, draws: int = 1000, seed: int = 0) -> Counterexample:
    """Two counters on which Theorem 1 of the paper fails, run on ablations of one small image.

    An image of 16 x 16 pixels (d = 768), a white patch of 4 x 4 (n = 48), k = K = 8, and ``draws``
    ablations as the paper makes them: array entries, the same ones of both images.

    A counter whose map ignores the image has R = K in every draw: Pr(R = K) = 1 exceeds the upper
    bound 0.59, and Pr(R = i) = 0 for all other i is less than the lower bound. A counter whose map
    grows tenfold where it sees the patch has R = K in every draw too: the overlap is perfect, and
    the count ten times too high. ValueError for fewer than one draw.

    >>> from pycc.certify import counterexample
    >>> result = counterexample(draws=50)
    >>> result.full > result.upper, result.rarest < result.lower
    (True, True)
    """
    side, patch_size, k = 16, 4, 8
    d, n = 3 * side * side, 3 * patch_size * patch_size
    clean = torch.full((1, 3, side, side), 0.5)
    attacked = clean.clone()
    attacked[:, :, 6 : 6 + patch_size, 6 : 6 + patch_size] = 1.0
    whole("counterexample", "draws", draws, 1)
    ablated = [
        ablate(image, k, seed=seed, fill=0.0, draws=draws, unit="element")
        for image in (clean, attacked)
    ]
    first, second = (_constant(images) for images in ablated)
    overlaps = topk_overlap(first, second, k)
    shares = torch.bincount(overlaps, minlength=k + 1).double() / draws
    before, after = (_scaled(images) for images in ablated)
    return Counterexample(
        upper=probability_untouched(d, n, k),
        full=float(shares[k]),
        lower=probability_inside(d, n, k),
        rarest=float(shares.min()),
        scaled_overlap=float(topk_overlap(before, after, k).double().mean()) / k,
        scaled_clean=float(before.sum((1, 2, 3)).max()),
        scaled_attacked=float(after.sum((1, 2, 3)).max()),
    )


def _constant(images: Tensor) -> Tensor:
    """A density map [N,1,4,4] of 12 people that does not depend on images [N,3,H,W]."""
    cells = torch.arange(16.0).reshape(1, 1, 4, 4) / 10.0
    return cells.expand(len(images), 1, 4, 4)


def _scaled(images: Tensor) -> Tensor:
    """The same map, and ten times as much where anything white is seen."""
    white = images.amax((1, 2, 3)) > 0.9
    return _constant(images) * torch.where(white, 10.0, 1.0)[:, None, None, None]
