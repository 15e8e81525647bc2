"""A counter from outside: its device and type, its identity, eval mode, and counting with it.

Everything that a part of this package needs to know of a counter besides its call lies here, so
that each question has one answer for modules, defended counters and plain callables alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pycc.checks import naming
from pycc.grid import in_region
from pycc.random import Stream
from pycc.ranks import exact
from pycc.runs import fingerprint
from pycc.types import Counter, Sample


def like_of(counter: Counter | nn.Module) -> Tensor:
    """A tensor of the device and floating-point type that a counter's images should have.

    The first floating-point parameter or buffer of a module; a float32 scalar on the CPU for a
    counter that holds none.

    >>> like_of(torch.nn.Conv2d(3, 1, 1).double()).dtype
    torch.float64
    """
    state = [*counter.parameters(), *counter.buffers()] if isinstance(counter, nn.Module) else []
    return next((tensor for tensor in state if tensor.is_floating_point()), torch.zeros(()))


def device_of(counter: Counter | nn.Module) -> torch.device:
    """The device that a counter's images should be on.

    >>> device_of(torch.nn.Conv2d(3, 1, 1))
    device(type='cpu')
    """
    return like_of(counter).device


@contextmanager
def frozen(counter: Counter) -> Iterator[None]:
    """Keep a counter in eval mode without parameter gradients; restore both afterwards.

    A counter that is not a module is left alone.

    >>> layer = torch.nn.Dropout()
    >>> with frozen(layer):
    ...     layer.training
    False
    >>> layer.training
    True
    """
    if not isinstance(counter, nn.Module):
        yield
        return
    modes = [(module, module.training) for module in counter.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in counter.parameters()]
    counter.eval()
    counter.requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, want in wanted:
            parameter.requires_grad_(want)


def identity(counter: Counter) -> str:
    """A SHA-256 of what a counter is: its kind, geometry, weights, and a count of a fixed image.

    The count, to four digits, stands for what the weights do not hold, such as a function in a
    closure.
    """
    kind = f"{type(counter).__module__}.{type(counter).__qualname__}"
    facts: list[tuple[str, Tensor | str]] = [
        ("kind", kind),
        ("geometry", f"{counter.stride} {counter.receptive_field}"),
    ]
    if isinstance(counter, nn.Module):
        facts += [(name, value) for name, value in counter.state_dict().items()]
    facts.append(("says", _fixed_count(counter)))
    return fingerprint(facts)


def _fixed_count(counter: Counter) -> str:
    image = torch.from_numpy(Stream(0, "identity").uniform(size=(1, 3, 64, 64)))
    with frozen(counter), exact(), torch.no_grad():
        try:
            return f"{float(counter(image.to(like_of(counter))).double().sum()):.3e}"
        except (ValueError, RuntimeError):  # an image of a size that it does not take
            return "nothing"


@torch.no_grad()
def density_in_roi(counter: Counter, sample: Sample) -> Tensor:
    """The density map [1,h,w] of a whole image, zero outside its region of interest.

    A cell that the region's border cuts keeps the share that lies inside (``pycc.grid``). Errors
    name the image.
    """
    with naming(sample.name, sample.image.shape):
        density = counter(sample.image[None].to(like_of(counter)))
    return in_region(density, sample.roi, counter.stride)[:, 0]


def count_of(counter: Counter, sample: Sample) -> float:
    """The people that a counter in eval mode counts inside an image's region of interest."""
    return float(density_in_roi(counter, sample).double().sum())
