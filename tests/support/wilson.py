"""What a share of trials says of a probability."""

from __future__ import annotations

import math

Z = 3.2905
"""Of a two-sided level of 99.9 %."""


def limits(hits: int, trials: int) -> tuple[float, float]:
    """Wilson's 99.9 % interval of a probability of which ``hits`` of ``trials`` were seen."""
    share, weight = hits / trials, Z * Z / trials
    centre = (share + weight / 2) / (1 + weight)
    half = math.sqrt(share * (1 - share) * weight + weight * weight / 4) / (1 + weight)
    return centre - half, centre + half


def not_below(hits: int, trials: int, probability: float) -> bool:
    """Whether so many hits do not speak against at least that probability."""
    return limits(hits, trials)[1] >= probability


def below(hits: int, trials: int, probability: float) -> bool:
    """Whether so many hits show that the probability is less."""
    return limits(hits, trials)[1] < probability
