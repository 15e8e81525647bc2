"""Log probabilities of random subsets: the kernel against exact integers and log-gamma."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.special import gammaln
from timer import Row, check, seconds
from torch import Tensor

from pycc.ops import log_probability_untouched, log_probability_untouched_reference
from pycc.random import Stream

IMAGE = 3 * 1024 * 700
COUNT = 4_000_000


def exact(n: int, k: int) -> float:
    """Use integers of any length, like the published script, but without its float division."""
    chosen, possible = math.comb(IMAGE - n, k), math.comb(IMAGE, k)
    shift = possible.bit_length() - chosen.bit_length()
    return math.log((chosen << max(shift, 0)) / possible) - max(shift, 0) * math.log(2.0)


def torch_lgamma(n: Tensor, k: int) -> Tensor:
    rest = torch.lgamma(IMAGE + 1.0 - n) - torch.lgamma(IMAGE + 1.0 - k - n)
    return rest + math.lgamma(IMAGE + 1.0 - k) - math.lgamma(IMAGE + 1.0)


def against_integers(k: int, target: float | None) -> list[Row]:
    n = torch.from_numpy(Stream(0, "bench").integers(IMAGE // 2, COUNT))
    few, buffer = n[:8].tolist(), torch.empty(COUNT, dtype=torch.float64)
    check(log_probability_untouched(IMAGE, n[:8], k), np.array([exact(x, k) for x in few]), 1e-14)
    slow = seconds(lambda: [exact(x, k) for x in few]) / len(few) * COUNT
    subject, name = f"log probability, k = {k:,}, {COUNT:,} values", "log_probability_untouched"
    time, size = seconds(lambda: log_probability_untouched(IMAGE, n, k)), n.nbytes * 2
    note, fill = f"{len(few)} values timed, scaled", seconds(lambda: buffer.fill_(0.5))
    return [
        Row(subject, name, time, "exact integers", slow, target, note, size),
        Row(subject, name, time, "fill of the result", fill, bytes=size, limit=True),
    ]


def rows() -> list[Row]:
    k = 45
    n = torch.from_numpy(Stream(0, "bench").integers(IMAGE // 2, COUNT))
    array, reals = n.numpy(), n.double()

    def kernel() -> Tensor:
        return log_probability_untouched(IMAGE, n, k)

    def by_scipy() -> Tensor:
        rest = gammaln(IMAGE + 1.0 - array) - gammaln(IMAGE + 1.0 - k - array)
        return torch.from_numpy(rest + gammaln(IMAGE + 1.0 - k) - gammaln(IMAGE + 1.0))

    def twin() -> Tensor:
        return log_probability_untouched_reference(IMAGE, n, k)

    check(kernel(), torch_lgamma(reals, k), 1e-6)  # the error of lgamma, not of the kernel
    check(kernel(), by_scipy(), 1e-6)
    check(kernel(), twin(), 0.0)
    integers = against_integers(k, None)
    subject, name = integers[0].subject, integers[0].kernel
    time, size = seconds(kernel), n.nbytes * 2
    outward = seconds(lambda: log_probability_untouched(IMAGE, n, k, rounding="down"))
    lgamma = seconds(lambda: torch_lgamma(reals, k))
    limit, budget = "budget of 20 million values a second", COUNT / 20e6
    return [
        *against_integers(5000, 1000),
        *integers,
        Row(subject, name, time, limit, budget, 1.0, bytes=size),
        Row(subject, f"{name} down", outward, limit, budget, 1.0, bytes=size),
        Row(subject, name, time, "torch.lgamma", lgamma, bytes=size),
        Row(subject, name, time, "scipy gammaln", seconds(by_scipy), bytes=size),
        Row(subject, name, time, "twin", seconds(twin, budget=2.0), bytes=size),
    ]
