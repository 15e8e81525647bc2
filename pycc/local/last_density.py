"""A cache of the density map of the last image, for repeated evaluation of one image."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn

from pycc.types import Counter


class LastDensityCache:
    """A counter that returns its map without gradient and keeps the last map.

    The kept map is returned only for equal images of the same dtype and device and unmodified
    weights; a modified weight is detected by torch's version counter. A counter that is not a
    module may depend on anything and is evaluated each time.

    Example:
        >>> import torch
        >>> from pycc.local import LastDensityCache
        >>> counter = LastDensityCache(torch.nn.Conv2d(3, 1, 1))
        >>> image = torch.rand(1, 3, 4, 4)
        >>> counter(image) is counter(image.clone())
        True
    """

    def __init__(self, counter: Counter) -> None:
        self.counter = counter
        self._last: tuple[Tensor, list[tuple[int, int]], Tensor] | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Return the density [N,1,h,w] of images [N,3,H,W]; the caller must not modify it."""
        with torch.no_grad():
            if not isinstance(self.counter, nn.Module) or torch.is_inference_mode_enabled():
                return self.counter(images)
            state = chain(self.counter.parameters(), self.counter.buffers())
            versions = [(tensor.data_ptr(), tensor._version) for tensor in state]
            if self._last is not None and self._last[1] == versions:
                before = self._last[0]
                same = before.dtype == images.dtype and before.device == images.device
                if same and before.shape == images.shape and torch.equal(before, images):
                    return self._last[2]
            density = self.counter(images)
            self._last = (images.detach().clone(), versions, density)
            return density
