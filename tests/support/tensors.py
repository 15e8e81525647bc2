"""Tensors for the tests of kernels: noise, views, and what compares to the bit."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

from pycc.random import Stream

INF, NAN = float("inf"), float("nan")
NEGATIVE_NAN = torch.tensor(0xFFC00001 - 2**32, dtype=torch.int32).view(torch.float32).item()

every_device = settings(
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
"""For @given beside the fixture ``device``, which is a constant; and on a machine of any load."""


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Uniform in [0, 1), float32."""
    return torch.from_numpy(Stream(seed, "noise").uniform(size=shape)).float()


def bits(tensor: Tensor) -> Tensor:
    """float32 or float64 as integers."""
    dtype = {4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.detach().resolve_neg().contiguous().view(dtype)


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bits, on any devices."""
    same_type = first.dtype == second.dtype
    return same_type and torch.equal(bits(first).cpu(), bits(second).cpu())


def transposed(tensor: Tensor) -> Tensor:
    """In memory the last axis comes first."""
    axes = tuple(reversed(range(tensor.ndim)))
    return tensor.permute(axes).contiguous().permute(axes)


def sliced(tensor: Tensor) -> Tensor:
    """Every second entry of a larger tensor, from the second on."""
    larger = tensor.new_full([2 * size + 1 for size in tensor.shape], 77)
    view = larger[tuple(slice(1, None, 2) for _ in tensor.shape)]
    return view.copy_(tensor)


def expanded(tensor: Tensor) -> Tensor:
    """The first of the first axis for all of them: the only view of other values."""
    return tensor[:1].expand_as(tensor) if tensor.ndim and len(tensor) else tensor


def negated(tensor: Tensor) -> Tensor:
    """Lazily negated and contiguous, so that contiguous() does not resolve it."""
    return tensor if tensor.dtype == torch.bool else torch._neg_view(-tensor.contiguous())


def same(tensor: Tensor) -> Tensor:
    return tensor


VIEWS: list[Callable[[Tensor], Tensor]] = [transposed, sliced, expanded, negated]
same_or_view = st.sampled_from([same, *VIEWS])
"""A function. Torch has no negative strides: flip copies."""


def views(tensor: Tensor) -> st.SearchStrategy[Tensor]:
    """The tensor itself or a view like it."""
    return same_or_view.map(lambda view: view(tensor))


def plain(tensor: Tensor) -> Tensor:
    """A copy that is no view."""
    return tensor.detach().resolve_neg().clone(memory_format=torch.contiguous_format)
