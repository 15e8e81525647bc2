"""The number of pixels that a counter may be given at once within a limit of memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pycc.counters import frozen, like_of
from pycc.grid import minimum_side
from pycc.types import Counter, Sample

_SIDE = 256
WORKSPACE = 2.0
"""Memory that a count takes, as a multiple of its tensors: convolutions reorder what they read and
write. Measured on the CPU: 1.0 to 1.8."""
_READING = 27
"""Bytes per pixel while a picture is read: 8-bit values, and two copies as float32."""
_known: WeakKeyDictionary[nn.Module, float] = WeakKeyDictionary()


class _Held(TorchDispatchMode):
    """Follows the bytes of tensors that operators make, and the most that are held at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0
        self._live: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self._live:
                    self._live[key] = storage.nbytes()
                    weakref.finalize(storage, self._live.pop, key, 0)
        self.most = max(self.most, sum(self._live.values()))
        return result


def bytes_per_pixel(counter: Counter) -> float:
    """The memory that a count takes per pixel of its image, in bytes, with ``WORKSPACE``.

    Measured once for each counter, on a small image.
    """
    if isinstance(counter, nn.Module) and counter in _known:
        return _known[counter]
    side = max(_SIDE, minimum_side(counter))
    image = torch.full((1, 3, side, side), 0.5).to(like_of(counter))
    with frozen(counter), torch.no_grad(), _Held() as held:
        counter(image)
    needed = WORKSPACE * float(held.most) / side**2
    if isinstance(counter, nn.Module):
        _known[counter] = needed
    return needed


def pixels_within(gigabytes: float, counter: Counter, sample: Sample) -> int:
    """Pixels that ``counter`` may be given at once so that ``sample`` is counted within a limit.

    What the image itself and its map take is subtracted first. ValueError, with what is needed,
    for a limit that reading the image exceeds.
    """
    pixels = sample.image[0].numel()
    cells = pixels / counter.stride**2
    if _READING * pixels > gigabytes * 1e9:
        raise ValueError(
            f"{sample.name}: --max-memory {gigabytes:g}: reading the image alone takes "
            f"{_READING * pixels / 1e9:.2g} GB; allow more"
        )
    held = 3 * 4 * (pixels + cells)  # the image, and three copies of its map
    return int((gigabytes * 1e9 - held) / bytes_per_pixel(counter))
