"""Beyond 2^31 elements: what would go wrong if an index had 32 bits."""

from __future__ import annotations

import pytest
import torch

from pycc.ops import ablate, ablation_indices

pytestmark = [pytest.mark.slow, pytest.mark.large]

SIDE = 1024
ROWS = 2**31 // SIDE**2 + 2  # of SIDE x SIDE: the last begins beyond 2^31 elements
GIGABYTES = 4 * ROWS * SIDE**2 / 1e9


def test_ablations_of_many_draws(device, needs_memory) -> None:
    needs_memory(device, 1.3 * GIGABYTES)
    images = torch.rand(1, 1, SIDE, SIDE).to(device)
    images += 1.0
    images.requires_grad_()
    for k in (100, SIDE**2 // 2 + 1):
        ablated = ablate(images, k, seed=1, fill=0.0, draws=ROWS)
        assert ablated.numel() > 2**31
        for row in (0, 2**31 // SIDE**2 - 1, ROWS - 1):
            kept = ablated[row].detach().flatten().nonzero().flatten().cpu()
            assert torch.equal(kept, ablation_indices(SIDE**2, k, seed=1, draw=row))
        # Its own values as gradient: of each pixel, as often as it is kept.
        (grad,) = torch.autograd.grad(ablated, images, ablated.detach())
        times = (grad / images.detach()).double()
        assert abs(float(times.sum()) / (k * ROWS) - 1) < 1e-3
        del ablated, grad


def test_one_image_of_many_pixels(device, needs_memory) -> None:
    side = 46_352  # 2^31 pixels and a few
    needs_memory(device, 2.3 * 4 * side**2 / 1e9)
    images = torch.full((1, 1, side, side), 2.0, device=device)
    ablated = ablate(images, 1000, seed=1, fill=0.0)
    indices = ablation_indices(side**2, 1000, seed=1, device=device)
    assert int(indices[-1]) > 2**31 - 10**7
    assert bool((ablated.view(-1)[indices] == 2.0).all())
    assert float(ablated.view(-1)[: 2**30].sum()) == 2.0 * int((indices < 2**30).sum())
