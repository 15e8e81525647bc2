"""The published probabilities of randomized ablation, and why the published theorem is not sound.

Wu et al., "Towards Adversarial Patch Analysis and Certified Defense against Crowd Counting" (APAM,
arXiv 2104.10868), keep k of the d entries of an image x and of its patched version x', which
differs in n entries (the same k in both), and compare the K largest cells of the two density maps,
of which R are common. Theorem 1 claims, for every i in [0, k],

    C(n,k) / C(d,k)  <=  Pr(R = i)  <=  C(d-n,k) / C(d,k).

It does not hold: :func:`counterexample` violates both sides with a counter that ignores its image.
The proof has four errors.

* It treats R = K as equivalent to "no differing entry is kept". Only one direction is true: without
  a differing entry the map cannot change, but with one it need not change either.
* (13) bounds the probability that no differing entry is kept by C(d-n,k) / C(d,k) from above. Since
  a patch changes *at most* n entries, C(d-n,k) / C(d,k) is a bound from below.
* It confuses the number k of kept entries with the number K of compared cells; these are unrelated.
* (11) and (12) concern two values of i, the theorem every value: the probabilities of k + 1 values,
  which add up to 1, cannot all be near 1, and a small bound does not imply that R = i is rare.

Moreover, R does not certify a count: a map multiplied by 10 has the same K largest cells.

The sound statement is Pr(R = K) >= Pr(both ablations identical) >= C(d-n,k) / C(d,k), which gives
:func:`expected_overlap`. The other modules of this package bound counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pycc.checks import check_whole
from pycc.ops import ablate, log_probability_inside, log_probability_untouched, topk_overlap

PATCH_SIZES = (20, 40, 81, 163)
ENTRIES = 3 * 1024 * 700
RETAINED = 45
"""The sizes of Table 3: sides of the patches, d (an RGB image of 1024 x 700 pixels) and k."""


def probability_untouched(d: int, n: int, k: int) -> float:
    """Compute C(d-n,k) / C(d,k): k of d entries, drawn without replacement, avoid n given ones.

    It is the upper probability of the paper, to a relative accuracy of 1e-12; 0 if the event is
    impossible, or if the value is below the least float64. ValueError unless 0 <= n <= d and
    0 <= k <= d.

    >>> from pycc.certify import probability_untouched
    >>> round(probability_untouched(d=4, n=1, k=2), 12)  # of 6 pairs, 3 miss it
    0.5
    """
    return math.exp(float(log_probability_untouched(d, n, k)))


def probability_inside(d: int, n: int, k: int) -> float:
    """Compute C(n,k) / C(d,k): k of d entries, drawn without replacement, lie among n given ones.

    It is the lower probability of the paper; accuracy and errors are those of
    :func:`probability_untouched`.

    >>> from pycc.certify import probability_inside
    >>> round(probability_inside(d=4, n=3, k=2), 12)  # of 6 pairs, 3 lie inside
    0.5
    """
    return math.exp(float(log_probability_inside(d, n, k)))


def expected_overlap(d: int, n: int, k: int) -> float:
    """Bound from below E[R] / K, the expected share of the K largest cells that remain largest.

    The bound is C(d-n,k) / C(d,k), rounded down. With at least this probability a draw keeps none
    of the at most n entries that differ. Both ablations are then identical, and so are their maps
    and the K largest cells (of equal cells those with the lower index). It holds for any K, any
    function of the ablation and any content of the patch, if both images have the same draw. It
    lies within [0, 1] and does not bound the count. ValueError as for
    :func:`probability_untouched`.
    """
    least = math.exp(float(log_probability_untouched(d, n, k, rounding="down")))
    # exp is exact to one unit in the last place, and for certain (1) and impossible (0) events.
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
    """Compute Table 3 of the paper: both probabilities for patches of n = channels * p^2 entries.

    The defaults are the published sizes. The published digits of the lower row are truncated, not
    rounded, after the fifth. ValueError for a patch of more than d entries and for k outside
    [0, d].
    """
    rows = []
    for patch_size in patch_sizes:
        side = check_whole("table_3", "patch_size", patch_size, 1)
        n = check_whole("table_3", "channels", channels, 1) * side**2
        rows.append(Row(patch_size, probability_untouched(d, n, k), probability_inside(d, n, k)))
    return rows


@dataclass(frozen=True)
class Counterexample:
    """The bounds of Theorem 1 and the overlaps of two counters, as shares of the draws."""

    upper: float
    """C(d-n,k) / C(d,k), the upper bound of the theorem on every Pr(R = i)."""
    full: float
    """Share of draws with R = K for the counter that ignores its image: 1."""
    lower: float
    """C(n,k) / C(d,k), the lower bound of the theorem on every Pr(R = i)."""
    rarest: float
    """The least share of draws with R = i over all i <= K, for the same counter: 0."""
    scaled_overlap: float
    """E[R] / K for the counter whose map is ten times larger if it sees the patch: 1."""
    scaled_clean: float
    """The largest count of that counter for a clean ablation, people."""
    scaled_attacked: float
    """The largest count of that counter for an attacked ablation, people."""


def counterexample(*, draws: int = 1000, seed: int = 0) -> Counterexample:
    """Run two counters that violate Theorem 1 of the paper on ablations of one small image.

    The image has 16 x 16 pixels (d = 768) and the white patch 4 x 4 (n = 48); k = K = 8. As in the
    paper, an ablation keeps array entries, the same ones of both images.

    A counter whose map ignores the image has R = K in every draw: Pr(R = K) = 1 exceeds the upper
    bound 0.59, and Pr(R = i) = 0 for all other i is below the lower bound. A counter whose map is
    ten times larger if it sees the patch also has R = K in every draw: the overlap is perfect, but
    the count is ten times too high. ValueError for fewer than one draw.

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
    check_whole("counterexample", "draws", draws, 1)
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
    """Return a density map [N,1,4,4] of 12 people, whatever the images [N,3,H,W]."""
    cells = torch.arange(16.0).reshape(1, 1, 4, 4) / 10.0
    return cells.expand(len(images), 1, 4, 4)


def _scaled(images: Tensor) -> Tensor:
    """Return the same map, ten times larger for images with a white entry."""
    white = images.amax((1, 2, 3)) > 0.9
    return _constant(images) * torch.where(white, 10.0, 1.0)[:, None, None, None]
