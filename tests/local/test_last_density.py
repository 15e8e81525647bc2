"""A remembered map is that of the images and weights at hand, never of others."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from pycc.local import LastDensityCache


class Counted(nn.Module):
    """One convolution that counts how often it is asked."""

    stride, receptive_field = 1, 3

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 3, padding=1)
        self.register_buffer("offset", torch.zeros(()))
        self.asked = 0

    def forward(self, images: Tensor) -> Tensor:
        self.asked += 1
        density: Tensor = self.conv(images) + self.offset
        return density


def images(seed: int = 0) -> Tensor:
    return torch.rand(1, 3, 9, 11, generator=torch.Generator().manual_seed(seed))


def test_the_same_images_are_counted_once() -> None:
    counter = Counted()
    known = LastDensityCache(counter)
    first = known(images())
    assert not first.requires_grad
    torch.testing.assert_close(known(images()), first, rtol=0, atol=0)
    assert counter.asked == 1


def test_other_images_are_counted_anew() -> None:
    counter = Counted()
    known = LastDensityCache(counter)
    shown = images()
    known(shown)
    for change in (
        images(1),
        shown.double().float() + 1e-6,
        shown[..., :10],
        shown.expand(2, -1, -1, -1),
    ):
        with torch.no_grad():
            assert torch.equal(known(change), counter(change))
    # The images that were shown may be written to afterwards.
    known(shown)
    shown.mul_(0.5)
    with torch.no_grad():
        assert torch.equal(known(shown), counter(shown))


def test_changed_weights_and_buffers_are_seen() -> None:
    counter = Counted()
    known, optimiser = LastDensityCache(counter), torch.optim.SGD(counter.parameters(), 0.1)
    seen = [known(images())]
    counter(images()).sum().backward()
    optimiser.step()
    seen.append(known(images()))
    counter.offset.add_(1.0)
    seen.append(known(images()))
    counter.load_state_dict(Counted().state_dict())
    seen.append(known(images()))
    counter.double().float()
    with torch.no_grad():
        assert torch.equal(known(images()), counter(images()))
    assert all(not torch.equal(a, b) for a, b in pairwise(seen))


def test_what_is_no_module_is_asked_each_time() -> None:
    calls: list[int] = []

    class Plain:
        stride, receptive_field = 1, 1

        def __call__(self, images: Tensor) -> Tensor:
            calls.append(1)
            return images[:, :1]

    known = LastDensityCache(Plain())
    known(images())
    known(images())
    assert len(calls) == 2
