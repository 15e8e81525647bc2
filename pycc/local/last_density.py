"""The map of the image that was counted last, for those who ask about one image again and again."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn

from pycc.types import Counter


class LastDensityCache:
    """A counter's map of images, without gradient; the last one is kept.

    Given again for the same images, type and weights alone: a weight that was written to since is
    told by its version. What is no module may depend on anything and is asked each time.
    """

    def __init__(self, counter: Counter) -> None:
        self.counter = counter
        self._last: tuple[Tensor, list[tuple[int, int]], Tensor] | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Density [N,1,h,w] of images [N,3,H,W]; not to be written to."""
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
