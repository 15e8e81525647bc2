"""Logarithms of probabilities of random subsets, with outward rounding for certificates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from pycc.ops import _check, _native

_UNTOUCHED, _INSIDE = "untouched", "inside"
ROUNDINGS = ("down", "nearest", "up")
MAX_POPULATION = 1 << 52
"""Largest d: sums of two sizes are then exact in float64."""

_LEAST_PROBABILITY = 2.0**-1022
"""The least positive float64 that is not subnormal."""

_Log = Callable[..., Tensor]


def _checked(op: str, **sizes: int | Tensor) -> tuple[list[Tensor], tuple[int, ...]]:
    """Return the sizes as int64 tensors on one device, and the shape that they broadcast to.

    The values of tensors are not read.
    """
    tensors = [value for value in sizes.values() if isinstance(value, Tensor)]
    device = tensors[0].device if tensors else torch.device("cpu")
    checked = []
    for name, value in sizes.items():
        if isinstance(value, Tensor):
            _check.is_tensor(op, name, value, "of integers")
            _check.typed(op, name, value, torch.int64, torch.int32)
            _check.on_device(op, name, value, device, "the other tensors")
            _check.not_meta(op, name, value)
            checked.append(value.resolve_neg().to(torch.int64))
        else:
            size = _check.integer(op, name, value, 0, MAX_POPULATION)
            checked.append(torch.full((), size, dtype=torch.int64, device=device))
    return checked, _broadcast(op, list(sizes), checked)


def _broadcast(op: str, names: Sequence[str], tensors: Sequence[Tensor]) -> tuple[int, ...]:
    try:
        return np.broadcast_shapes(*(tuple(tensor.shape) for tensor in tensors))
    except ValueError:
        listed = ", ".join(str(list(tensor.shape)) for tensor in tensors)
        raise ValueError(f"{op}: {', '.join(names)} must broadcast, got {listed}") from None


def _domain_kept(op: str, result: Tensor, sizes: Sequence[Tensor]) -> Tensor:
    """Return ``result``; on the CPU raise ValueError for a NaN, which means bad sizes."""
    if result.device.type != "cpu" or not math.isnan(_check.extremes(result)[0]):
        return result
    rule = "0 <= n <= d, 0 <= k <= d and d <= 2^52"
    raise _out_of_bounds(op, rule, result.isnan(), **dict(zip("dnk", sizes, strict=True)))


def _out_of_bounds(op: str, rule: str, where: Tensor, **sizes: Tensor) -> ValueError:
    """Make an error that names the first sizes that break the rule."""
    at = where.nonzero()[0].tolist()
    values = (f"{name}={int(size.expand(where.shape)[tuple(at)])}" for name, size in sizes.items())
    place = f" at {at}" if at else ""
    return ValueError(f"{op}: sizes must satisfy {rule}, got {', '.join(values)}{place}")


def _compiled(
    op: str, event: str, d: int | Tensor, n: int | Tensor, k: int | Tensor, rounding: str
) -> Tensor:
    sizes, shape = _checked(op, d=d, n=n, k=k)
    _check.choice(op, "rounding", rounding, ROUNDINGS)
    # A single value is passed once: a copy for every result would cost as much as the results.
    operands = [size if size.numel() == 1 else size.expand(shape).contiguous() for size in sizes]
    out = torch.empty(shape, dtype=torch.float64, device=sizes[0].device)
    module = _native.module()
    population, given, drawn = (int(operand.numel() != 1) for operand in operands)
    steps = module.Steps(population=population, given=given, drawn=drawn, count=out.numel())
    how = (steps, module.Event[event], module.Rounding[rounding])
    _native.run("log_probability", out.device, out, *operands, *how)
    return _domain_kept(op, out, sizes)


def log_probability_untouched(
    d: int | Tensor, n: int | Tensor, k: int | Tensor, *, rounding: str = "nearest"
) -> Tensor:
    """Compute log(C(d-n,k) / C(d,k)): k of d entries, drawn without replacement, avoid n entries.

    With d = 3*1024*700 scalar entries of an image, a p x p patch of n = 3*p^2 entries and k = 45
    retained entries, the probability is the upper row of Table 3 of Wu et al. (APAM, arXiv
    2104.10868): 0.9752, 0.9043, 0.6611, 0.1827 for p = 20, 40, 81, 163. It is a lower bound on the
    probability that an image and its patched version have the same ablation. It decreases in n and
    in k and is symmetric in the two, to the bit.

    Takes constant time for any size, without cancellation. A difference of ``lgamma`` in float64
    loses as many digits as the logarithms of the factorials have before the decimal point: its
    error is up to 1e-5 at d = 10^9 and 1e-8 at d = 2*10^6.

    Args:
        d: number of entries, 0 to 2^52; an int, or an int64 or int32 tensor. d, n and k broadcast
            together.
        n: number of given entries, 0 to d.
        k: number of drawn entries, 0 to d.
        rounding: ``nearest``: within 5e-13 of the exact value for every probability above 1e-323,
            and within about 4 * 2^-53 of the logarithm in any case. ``down`` and ``up``: a proven
            bound, exp(down) <= C(d-n,k)/C(d,k) <= exp(up), within 1e-12 of the exact value for
            probabilities above 1e-130 and within 2e-12 above 1e-323. The quantile certificate of
            randomized ablation takes ``down``, so that its delta = -expm1(down) is not too small;
            an upper bound on a probability takes ``up``.

    Returns:
        float64 on the tensors' device (cpu for ints), of the broadcast shape, at most 0. Exactly 0
        if the event is certain (n = 0 or k = 0, also for d = 0) and -infinity if it is impossible
        (n + k > d), under every rounding. Not differentiable. The same bits on every device.

    Raises:
        ValueError: sizes out of bounds. The values of tensors on a CUDA device are not read, which
            would synchronise with the device: there the result is NaN instead.
        TypeError: a size that is neither an int nor a tensor.

    Example:
        >>> import torch
        >>> from pycc import ops
        >>> n = 3 * torch.tensor([20, 40, 81, 163]) ** 2
        >>> ops.log_probability_untouched(3 * 1024 * 700, n, 45).exp().numpy().round(4).tolist()
        [0.9752, 0.9043, 0.6611, 0.1827]
    """
    if _native.use_reference():
        return log_probability_untouched_reference(d, n, k, rounding=rounding)
    return _compiled("log_probability_untouched", _UNTOUCHED, d, n, k, rounding)


def log_probability_inside(
    d: int | Tensor, n: int | Tensor, k: int | Tensor, *, rounding: str = "nearest"
) -> Tensor:
    """Compute log(C(n,k) / C(d,k)): k of d entries, drawn without replacement, lie among n given.

    The probability is the lower row of Table 3 of Wu et al. (APAM, arXiv 2104.10868): 1.7266e-147,
    4.0072e-120, 1.7745e-92, 3.9699e-65 for p = 20, 40, 81, 163. It increases in n and decreases in
    k. The result equals ``log_probability_untouched(d, d - n, k)`` to the bit; arguments, accuracy
    and errors are those of :func:`log_probability_untouched`.

    Returns:
        float64, of the broadcast shape, at most 0. Exactly 0 if the event is certain (k = 0 or
        n = d) and -infinity if it is impossible (k > n), under every rounding.

    Example:
        >>> from pycc import ops
        >>> f"{ops.log_probability_inside(3 * 1024 * 700, 3 * 20**2, 45).exp():.3e}"
        '1.727e-147'
    """
    if _native.use_reference():
        return log_probability_inside_reference(d, n, k, rounding=rounding)
    return _compiled("log_probability_inside", _INSIDE, d, n, k, rounding)


def log_probability_untouched_reference(
    d: int | Tensor, n: int | Tensor, k: int | Tensor, *, rounding: str = "nearest"
) -> Tensor:
    """Compute :func:`log_probability_untouched` in pure torch, to the same bits.

    Example:
        >>> from pycc import ops
        >>> float(ops.log_probability_untouched_reference(10, 0, 3))
        0.0
    """
    return _twin("log_probability_untouched", _UNTOUCHED, d, n, k, rounding)


def log_probability_inside_reference(
    d: int | Tensor, n: int | Tensor, k: int | Tensor, *, rounding: str = "nearest"
) -> Tensor:
    """Compute :func:`log_probability_inside` in pure torch, to the same bits.

    Example:
        >>> from pycc import ops
        >>> float(ops.log_probability_inside_reference(10, 2, 3))
        -inf
    """
    return _twin("log_probability_inside", _INSIDE, d, n, k, rounding)


_ATANH = [1.0 / (2 * term + 3) for term in range(16)]
_LN2 = (float.fromhex("0x1.62e42fefa2p-1"), float.fromhex("0x1.9ef35793c7673p-41"))  # high, low
_STIRLING = [1 / 12, 1 / 360, 1 / 1260, 1 / 1680, 1 / 1188, 691 / 360360]
STIRLING_ERROR = [
    0.0,
    0.08106146679532726,
    0.0413406959554093,
    0.02767792568499834,
    0.020790672103765093,
    0.016644691189821193,
    0.013876128823070748,
    0.01189670994589177,
    0.010411265261972096,
    0.009255462182712733,
    0.00833056343336287,
    0.007573675487951841,
    0.00694284010720953,
    0.006408994188004207,
    0.0059513701127588475,
    0.005554733551962801,
]
"""ln x! - ((x+1/2) ln x - x + ln(2 pi)/2) for integers x below 16; 0 for x = 0."""


def _atanh_series(z: Tensor) -> Tensor:
    series = torch.full_like(z, _ATANH[-1])
    for coefficient in reversed(_ATANH[:-1]):
        series = coefficient + z * series
    return series


def _logarithm(halvings: Tensor, w: Tensor) -> Tensor:
    """Return halvings * ln 2 + 2 atanh(w)."""
    twice, z = w + w, w * w
    return halvings * _LN2[0] + (twice + (twice * z * _atanh_series(z) + halvings * _LN2[1]))


def _exponent(x: Tensor) -> Tensor:
    return x.view(torch.int64) >> 52


def _halved(x: Tensor, times: Tensor) -> Tensor:
    """Return x / 2^times, by the exponent bits of x."""
    return (x.view(torch.int64) - (times << 52)).view(torch.float64)


def _log_ratio(c: Tensor, a: Tensor) -> Tensor:
    """Return ln(c/a) for integers 1 <= a <= c."""
    exponents = _exponent(c) - _exponent(a)
    exponents = exponents - (_halved(a, -exponents) > c).to(torch.int64)
    s = _halved(a, -exponents)
    return _logarithm(exponents.to(torch.float64), (c - s) / (c + s))


def _log_sum(total: Tensor, q: Tensor) -> Tensor:
    """Return ln(1+q); ``total`` is 1+q."""
    exponent = _exponent(total) - 1023
    over = torch.where(exponent == 0, q, _halved(total, exponent) - 1.0)
    return _logarithm(exponent.to(torch.float64), over / (2.0 + over))


def _small_phi(x: Tensor, m: Tensor) -> Tensor:
    """Return (x-m) ln(1-m/x) + m for m <= x/2."""
    w = m / (x + (x - m))
    return m * w * (1.0 - (1.0 - w) * w * _atanh_series(w * w))


def _stirling_error(x: Tensor) -> Tensor:
    table = x.new_tensor(STIRLING_ERROR)
    inverse = 1.0 / x.clamp_min(16.0)
    z = inverse * inverse
    series = torch.full_like(x, _STIRLING[-1])
    for coefficient in reversed(_STIRLING[:-1]):
        series = coefficient - z * series
    return torch.where(x < 16, table[x.clamp_max(15).long()], inverse * series)


def _twin(
    op: str, event: str, d: int | Tensor, n: int | Tensor, k: int | Tensor, rounding: str
) -> Tensor:
    """Repeat the arithmetic of csrc/ops/log_probability.h, which derives it, in the same order."""
    sizes, shape = _checked(op, d=d, n=n, k=k)
    direction = _check.choice(op, "rounding", rounding, ROUNDINGS) - 1
    all_, given, drawn = (size.expand(shape) for size in sizes)
    valid = (all_ >= 0) & (all_ <= MAX_POPULATION)
    valid &= (given >= 0) & (given <= all_) & (drawn >= 0) & (drawn <= all_)
    avoided = all_ - given if event == _INSIDE else given
    certain = (avoided == 0) | (drawn == 0)
    ordinary = valid & ~certain & (drawn <= all_ - avoided)
    x, y = torch.where(ordinary, avoided, 1), torch.where(ordinary, drawn, 1)
    m, b = torch.minimum(x, y).to(torch.float64), torch.maximum(x, y).to(torch.float64)
    population = torch.where(ordinary, all_, 2).to(torch.float64)
    a, c = population - b, population - m
    r = a - m
    rest = r.clamp_min(1.0)

    first = m * _log_ratio(population, a)
    near = r + r > a
    direct = r * _log_ratio(a, rest)
    second = torch.where(near, _small_phi(a, m), m - direct)
    third = _small_phi(population, m)

    q = b * m / (population * rest)
    half = 0.5 * _log_sum(torch.where(r == 0, 2.0 * math.pi * (m * c) / population, 1.0 + q), q)
    delta_a, delta_c, delta_r, delta_d = (_stirling_error(x) for x in (a, c, r, population))
    small = half + (delta_a - delta_r) + (delta_c - delta_d)
    value = small - (first + (second - third))

    error_bound = 2.0**-53 * (
        5.0 * (first + third)
        + torch.where(near, 7.0 * second, 3.5 * second + 4.0 * direct)
        + 13.0 * (half + (delta_a + delta_r) + (delta_c + delta_d))
        - 2.0 * value
    )
    rounded = (value + direction * error_bound).clamp_max(0.0)
    result = torch.where(ordinary, rounded, torch.where(certain, 0.0, -math.inf).to(rounded))
    return _domain_kept(op, torch.where(valid, result, math.nan), sizes)


def largest_count(
    log_probability: _Log, d: int | Tensor, k: int | Tensor, probability: float | Tensor
) -> Tensor:
    """Compute ``largest_untouched`` with this function for the probability: kernel or twin."""
    op = "largest_untouched"
    (population, drawn), _ = _checked(op, d=d, k=k)
    bad = (population < 0) | (population > MAX_POPULATION) | (drawn < 0) | (drawn > population)
    if bool(bad.any()):
        raise _out_of_bounds(op, "0 <= k <= d <= 2^52", bad, d=population, k=drawn)
    wanted = _probability(op, probability, population.device)
    shape = _broadcast(op, ["d", "k", "probability"], [population, drawn, wanted])
    below, above = _log_bounds(wanted)

    most = (population - drawn).expand(shape)
    low, high = torch.zeros_like(most), most + 1  # proven at low, not proven at high
    while bool((high - low > 1).any()):
        middle = (low + high) >> 1
        reached = log_probability(population, middle, drawn, rounding="down") >= above
        low, high = torch.where(reached, middle, low), torch.where(reached, high, middle)
    # At low + 1 the inequality is proven false, or the bounds leave it open.
    following = torch.minimum(low + 1, population)
    undecided = log_probability(population, following, drawn, rounding="up") >= below
    population, drawn, wanted = (tensor.expand(shape) for tensor in (population, drawn, wanted))
    for place in ((low < most) & undecided).nonzero().tolist():
        at = tuple(place)
        low[at] = _settled(int(population[at]), int(low[at]), int(drawn[at]), float(wanted[at]))
    return low


def _probability(op: str, probability: object, device: torch.device) -> Tensor:
    """Return ``probability`` as a float64 tensor on ``device``; it must be in [2^-1022, 1].

    Subnormal numbers are refused because a processor may be set to flush them to 0.
    """
    if isinstance(probability, Tensor):
        _check.is_tensor(op, "probability", probability, "or a number")
        _check.typed(op, "probability", probability, torch.float64)
        _check.on_device(op, "probability", probability, device, "d and k")
        _check.not_meta(op, "probability", probability)
        least, most = _check.extremes(probability)
        if probability.numel() and not (least >= _LEAST_PROBABILITY and most <= 1.0):
            raise ValueError(
                f"{op}: probability must be within [{_LEAST_PROBABILITY:g}, 1], "
                f"got {least:g} to {most:g}"
            )
        return probability.detach()
    number = _check.number(op, "probability", probability, _LEAST_PROBABILITY, 1.0)
    return torch.full((), number, dtype=torch.float64, device=device)


def _log_bounds(p: Tensor) -> tuple[Tensor, Tensor]:
    """Return bounds below and above ln p, with room for an error of torch.log of 2 ulp."""
    log_p = p.log()
    return log_p * (1.0 + 2.0**-50), log_p * (1.0 - 2.0**-50)


def _settled(d: int, n: int, k: int, probability: float) -> int:
    """Return the largest n' >= n with C(d-n',k) / C(d,k) >= probability, by integer arithmetic.

    The bounds leave only a few n' undecided: the logarithm changes by k/d or more from one n' to
    the next, and the bounds differ by some units in its last place.
    """
    numerator, denominator = probability.as_integer_ratio()

    def does(n: int) -> bool:
        # C(d-n,k) / C(d,k) is the product of (d-b-i) / (d-i) over i below m.
        m, b = min(n, k), max(n, k)
        return math.perm(d - b, m) * denominator >= numerator * math.perm(d, m)

    while n < d - k and does(n + 1):
        n += 1
    return n


def largest_untouched(d: int | Tensor, k: int | Tensor, probability: float | Tensor) -> Tensor:
    """Find the largest n with C(d-n,k) / C(d,k) >= probability: the entries that may change.

    The comparison with the float64 ``probability`` is exact. It bisects over proven bounds, and
    uses integers of any length for elements that the bounds leave undecided, namely if the ratio
    for some n equals ``probability`` to 15 digits. Such an element takes some milliseconds if
    min(n,k) is 5,000, a second at 10^5, minutes at 10^6.

    Args:
        d: number of entries, 0 to 2^52; an int, or an int64 or int32 tensor. All arguments
            broadcast together.
        k: number of drawn entries, 0 to d.
        probability: within [2^-1022, 1], so not subnormal; a number or a float64 tensor.

    Returns:
        int64 on the tensors' device, of the broadcast shape, 0 to d - k; d if k = 0. Synchronises
        with the device.

    Raises:
        ValueError, TypeError: a bad argument; sizes out of bounds also on CUDA.

    Example:
        >>> from pycc import ops
        >>> n = int(ops.largest_untouched(1000, 10, 0.5))
        >>> [bool(ops.log_probability_untouched(1000, m, 10).exp() >= 0.5) for m in (n, n + 1)]
        [True, False]
    """
    return largest_count(log_probability_untouched, d, k, probability)


def largest_untouched_reference(
    d: int | Tensor, k: int | Tensor, probability: float | Tensor
) -> Tensor:
    """Compute :func:`largest_untouched` from :func:`log_probability_untouched_reference`.

    Example:
        >>> from pycc import ops
        >>> int(ops.largest_untouched_reference(10, 1, 0.5))  # (10 - n) / 10 >= 0.5
        5
    """
    return largest_count(log_probability_untouched_reference, d, k, probability)
