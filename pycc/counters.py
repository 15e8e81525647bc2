"""Questions about any counter: its device and type, its identity, its count of a sample.

Everything that other packages need to know of a counter besides its call is here, so that there is
one answer for modules, defended counters and plain callables.
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

__all__ = ["count_of", "density_in_roi", "device_of", "frozen", "identity", "like_of"]


def like_of(counter: Counter | nn.Module) -> Tensor:
    """Return a tensor of the device and floating-point type that a counter's images should have.

    It is the first floating-point parameter or buffer of a module, or a float32 scalar on the CPU
    for a counter without any.

    >>> like_of(torch.nn.Conv2d(3, 1, 1).double()).dtype
    torch.float64
    """
    state = [*counter.parameters(), *counter.buffers()] if isinstance(counter, nn.Module) else []
    return next((tensor for tensor in state if tensor.is_floating_point()), torch.zeros(()))


def device_of(counter: Counter | nn.Module) -> torch.device:
    """Return the device that a counter's images should be on.

    >>> device_of(torch.nn.Conv2d(3, 1, 1))
    device(type='cpu')
    """
    return like_of(counter).device


@contextmanager
def frozen(counter: Counter) -> Iterator[None]:
    """Keep a counter in eval mode without parameter gradients; restore both afterwards.

    A counter that is not a module is left unchanged.

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
    """Return a SHA-256 of a counter: of its class, geometry, weights and count of a fixed image.

    The count, to four digits, covers what the weights do not hold, such as a function in a closure.

    >>> from pycc import models
    >>> counter = models.load("mcnn-synthetic")
    >>> identity(counter) == identity(models.load("mcnn-synthetic"))
    True
    >>> identity(counter) == identity(models.create("mcnn"))
    False
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
        except (ValueError, RuntimeError):  # the counter does not take this size
            return "nothing"


@torch.no_grad()
def density_in_roi(counter: Counter, sample: Sample) -> Tensor:
    """Compute the density map [1,h,w] of a sample, zero outside its region of interest.

    A cell that the region's border cuts keeps the share of it that lies inside (``pycc.grid``).
    Errors name the image.

    >>> from pycc import data, models
    >>> sample = data.open("synthetic", split="test", shape=(96, 128), heads=20)[0]
    >>> list(density_in_roi(models.load("mcnn-synthetic"), sample).shape)
    [1, 24, 32]
    """
    with naming(sample.name, sample.image.shape):
        density = counter(sample.image[None].to(like_of(counter)))
    return in_region(density, sample.roi, counter.stride)[:, 0]


def count_of(counter: Counter, sample: Sample) -> float:
    """Count the people inside a sample's region of interest with a counter in eval mode.

    >>> from pycc import data, models
    >>> sample = data.open("synthetic", split="test", shape=(96, 128), heads=20)[0]
    >>> round(count_of(models.load("mcnn-synthetic"), sample))
    23
    """
    return float(density_in_roi(counter, sample).double().sum())
