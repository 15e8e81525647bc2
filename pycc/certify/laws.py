"""Distances between distributions of counts: the effect of a patch, and the error of a sample."""

from __future__ import annotations

import math
from fractions import Fraction

from pycc.certify._check import inside
from pycc.checks import check_whole
from pycc.ops import log_probability_untouched


def exposure(
    size: int | tuple[int, int],
    *,
    patch_size: int,
    k: int | None = None,
    band: int | None = None,
    block: int | None = None,
    wrap: bool = True,
    patches: int = 1,
    channels: int = 1,
) -> float:
    """Compute Delta, the probability that an ablated draw shows a pixel of the patch.

    Exactly one of ``k``, ``band`` and ``block`` determines what a draw keeps:

    * ``k`` of the d = H * W pixels, all channels of a pixel together, drawn without replacement.
      The draw misses the n = J * p^2 pixels of J patches with probability C(d - n, k) / C(d, k).
      With ``channels`` = C, k of the C * H * W array entries are kept instead, of which a patch
      contains C * p^2. (Keeping k pixels in each of C channels is a third case, which shows the
      patch about C times as often.)
    * a ``band`` of b columns, as high as the image, at one of W equally likely places if it wraps
      around the border; p + b - 1 of these touch the patch, so Delta = (p + b - 1) / W. For bands
      of rows pass the transposed size.
    * a ``block`` of b x b pixels, at one of H * W places; (p + b - 1)^2 of these touch the patch.

    Without ``wrap`` a band or block lies inside the image, at W - b + 1 places along an axis, of
    which p + b - 1 still touch a patch in the middle. J patches are touched at J times as many
    places.

    Args:
        size: (H, W); an int suffices for ``k`` (H * W) and for ``band`` (W).
        patch_size: p, the side of the square patch in pixels.
        k: number of kept pixels (entries), from 0 to all.
        band: b, 1 to W.
        block: b, 1 to the smaller side.
        wrap: whether bands and blocks wrap around the image's border.
        patches: J, at least 1.
        channels: C, if array entries are kept instead of pixels.

    Returns:
        Delta within [0, 1], rounded up, so that it is never too small.

    Raises:
        ValueError: a bad argument, such as a patch larger than the image, k above d, or two kinds
            of draws.
        TypeError: a size that is not a whole number.

    Source: Levine and Feizi, AAAI 2020 (pixels) and NeurIPS 2020 (bands and blocks).

    Example:
        >>> from pycc.certify import exposure
        >>> exposure((8, 32), patch_size=5, band=4)  # 5 + 4 - 1 of 32 places
        0.25
    """
    op = "exposure"
    given = {"k": k, "band": band, "block": block}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise ValueError(f"{op}: give exactly one of k, band and block, got {named or 'none'}")
    sizes = tuple(size) if isinstance(size, tuple | list) else (size,)
    both = isinstance(size, tuple | list)
    if both and len(sizes) != 2:
        raise ValueError(f"{op}: size must be (H, W) or a number, got {size!r}")
    sides = [check_whole(op, "size", length, 1) for length in sizes]
    side = check_whole(op, "patch_size", patch_size, 1)
    count = check_whole(op, "patches", patches, 1)
    if k is not None:
        return _pixels(op, sides, side, k, count, check_whole(op, "channels", channels, 1))
    if channels != 1:
        raise ValueError(f"{op}: channels is for k only, got {channels!r} with {named[0]}")
    if block is not None and not both:
        raise ValueError(f"{op}: size must be (H, W) with block, got {size!r}")
    _fits(op, side, min(sides), size)
    if band is not None:
        sides = sides[-1:]
    width = check_whole(op, named[0], given[named[0]], 1, min(sides))
    touched = places = 1
    for length in sides:
        positions = length if wrap else length - width + 1
        places *= positions
        touched *= min(side + width - 1, positions)
    return _rounded_up(min(Fraction(count * touched, places), Fraction(1)))


def _pixels(
    op: str, sides: list[int], patch_size: int, k: int, patches: int, channels: int
) -> float:
    pixels = math.prod(sides)
    longest = min(sides) if len(sides) == 2 else math.isqrt(pixels)
    _fits(op, patch_size, longest, tuple(sides))
    entries = channels * pixels
    kept = check_whole(op, "k", k, 0, entries)
    hidden = channels * min(patches * patch_size * patch_size, pixels)
    missed = float(log_probability_untouched(entries, hidden, kept, rounding="down"))
    # expm1 is exact to one unit in the last place; the factor adds two more.
    return min(1.0, -math.expm1(missed) * (1.0 + 2.0**-51))


def _fits(op: str, patch_size: int, longest: int, size: object) -> None:
    if patch_size > longest:
        raise ValueError(
            f"{op}: patch_size must fit into the image of {size}, got {patch_size} pixels"
        )


def _rounded_up(value: Fraction) -> float:
    nearest = float(value)
    return nearest if Fraction(nearest) >= value else math.nextafter(nearest, math.inf)


def sampling_error(draws: int, beta: float) -> float:
    """Bound the error of an empirical distribution function, with probability 1 - ``beta``.

    The bound sqrt(ln(2 / beta) / (2 draws)) on the largest error anywhere is due to Dvoretzky,
    Kiefer and Wolfowitz (1956), with the constant of Massart (1990). ValueError for fewer than one
    draw and for ``beta`` outside (0, 1).
    """
    op = "sampling_error"
    number = check_whole(op, "draws", draws, 1)
    return math.sqrt(math.log(2.0 / inside(op, "beta", beta)) / (2.0 * number))
