"""Probabilities of random subsets as fractions, and cases to compare on."""

from __future__ import annotations

import math
import random
from decimal import Decimal, localcontext
from fractions import Fraction

import torch
from hypothesis import strategies as st
from support.tensors import views
from torch import Tensor


def terms(d: int, n: int, k: int) -> tuple[int, int]:
    """Numerator (0 where it is impossible) and denominator of C(d-n,k) / C(d,k)."""
    m, b = min(n, k), max(n, k)
    return math.perm(max(d - b, 0), m), math.perm(d, m)


def ratio(d: int, n: int, k: int) -> Fraction:
    return Fraction(*terms(d, n, k))


def log_ratio(d: int, n: int, k: int) -> Decimal:
    """ln of a ratio that is not 0, to 60 digits, from the first 256 bits of its terms."""
    top, bottom = terms(d, n, k)
    over, under = (max(x.bit_length() - 256, 0) for x in (top, bottom))
    with localcontext() as context:
        context.prec = 60
        quotient = Decimal(top >> over) / Decimal(bottom >> under)
        return quotient.ln() + (over - under) * Decimal(2).ln()


def columns(triples: list[tuple[int, int, int]]) -> list[Tensor]:
    return list(torch.tensor(triples).unbind(1))


def triples(count: int, most: int = 3000) -> list[tuple[int, int, int]]:
    """Possible events in all regimes, with min(n,k) up to ``most``."""
    rng, found = random.Random(1), []

    def size(high: int) -> int:
        return min(high, int(2 ** rng.uniform(0, math.log2(high + 1))))

    while len(found) < count:
        d = int(2 ** rng.uniform(1, rng.choice([6, 12, 21, 30, 52])))
        m = size(min(most, d // 2))
        little_left = max(1, d - m - size(30))
        in_between = min(d - m, int(d * rng.uniform(0, 40) / m) + 1)
        any_size = rng.randint(1, d - m)
        other = rng.choice([size(d - m), any_size, d - m, little_left, in_between, m])
        found.append(rng.choice([(d, m, other), (d, other, m)]))
    return found


@st.composite
def problems(draw: st.DrawFn, *ranges: tuple[int, int]) -> list[int | Tensor]:
    """Sizes that broadcast: numbers, views of any strides, 64 and 32 bits, impossible events."""
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    rng = random.Random(draw(st.integers(0, 2**32)))
    sizes: list[int | Tensor] = []
    for low, high in ranges:
        form = draw(st.sampled_from(["int", "tensor", "row", "expanded"]))
        own = {"row": shape[-1:], "int": [], "expanded": [1] * len(shape)}.get(form, shape)
        values = torch.tensor([rng.randint(low, high) for _ in range(math.prod(own))])
        values = values.reshape(own).to(draw(st.sampled_from([torch.int64, torch.int32])))
        if form == "expanded":
            values = values.expand(shape)
        sizes.append(values.item() if form == "int" else draw(views(values)))
    return sizes
