"""Beyond 2^31 elements: what would go wrong if an index had 32 bits."""

from __future__ import annotations

import pytest
import torch

from pycc.ops import (
    ablate,
    ablation_indices,
    density_map,
    keep_windows,
    log_probability_untouched,
    mask_hits,
    max_window_sum,
    paste_patch,
    topk_overlap,
)

pytestmark = [pytest.mark.compiled, pytest.mark.large]

SIDE = 1024
ROWS = 2**31 // SIDE**2 + 2  # of SIDE x SIDE: the last begins beyond 2^31 elements
GIGABYTES = 4 * ROWS * SIDE**2 / 1e9
WIDE = 46_352  # 2^31 pixels and a few in a square


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
    needs_memory(device, 2.3 * 4 * WIDE**2 / 1e9)
    images = torch.full((1, 1, WIDE, WIDE), 2.0, device=device)
    ablated = ablate(images, 1000, seed=1, fill=0.0)
    indices = ablation_indices(WIDE**2, 1000, seed=1, device=device)
    assert int(indices[-1]) > 2**31 - 10**7
    assert bool((ablated.view(-1)[indices] == 2.0).all())
    assert float(ablated.view(-1)[: 2**30].sum()) == 2.0 * int((indices < 2**30).sum())


def test_many_windows(device, needs_memory) -> None:
    needs_memory(device, 2.3 * GIGABYTES if device.type == "cuda" else 1.3 * GIGABYTES)
    places = torch.arange(2 * ROWS, device=device).reshape(-1, 2)
    images = torch.rand(1, 1, SIDE, SIDE).to(device).requires_grad_()
    kept = keep_windows(images, places, (100, SIDE), fill=0.5)
    assert kept.numel() > 2**31
    expected = keep_windows(images.detach(), places[-2:], (100, SIDE), fill=0.5)
    assert torch.equal(kept[-2:].detach(), expected)
    (grad,) = torch.autograd.grad(kept, images, kept.detach().fill_(1.0))
    rows = (torch.arange(SIDE, device=device)[:, None] - places[:, 0]).remainder(SIDE) < 100
    assert torch.equal(grad[0, 0, :, 7], rows.sum(1).float())


def test_many_maps(device, needs_memory) -> None:
    needs_memory(device, 1.2 * GIGABYTES)
    maps = torch.zeros(ROWS + 1, SIDE, SIDE, device=device)
    assert maps[:-1].numel() > 2**31
    maps[-2:] = torch.rand(2, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).to(device)
    sums, places = max_window_sum(maps, (30, 40))
    alone = max_window_sum(maps[-2:], (30, 40))
    assert torch.equal(sums[-2:], alone[0])
    assert torch.equal(places[-2:], alone[1])
    overlap = topk_overlap(maps[:-1], maps[1:], SIDE)
    assert overlap[:-2].tolist() == [SIDE] * (ROWS - 2)  # zeros: the lowest indices of both
    assert torch.equal(overlap[-2:], topk_overlap(maps[-3:-1], maps[-2:], SIDE))

    images = maps[:, None]
    images[-1] = 0.0
    places = torch.zeros(ROWS + 1, 2, dtype=torch.long, device=device)
    places[-1] = torch.tensor([SIDE - 3, SIDE - 2])
    patch = torch.ones(1, 3, 2, device=device)
    assert paste_patch(images, patch, top_left=places, out=images)[-1].sum() == 6.0
    assert bool((images[-1, 0, -3:, -2:] == 1.0).all())


def test_one_map_of_many_pixels(device, needs_memory) -> None:
    needs_memory(device, 1.3 * 4 * WIDE**2 / 1e9)
    corner = torch.tensor([[WIDE - 1.0, WIDE - 1.0], [0.0, 0.0]], device=device)
    density = density_map(corner, 2.0, (WIDE, WIDE))
    assert float(density[-9:, -9:].sum()) == pytest.approx(float(density[:9, :9].sum()))
    assert float(density[9:-9].count_nonzero()) == 0
    sums, places = max_window_sum(density[None, WIDE - 50 :], (10, 10))
    assert places.tolist() == [[40, WIDE - 10]]
    assert float(sums) == pytest.approx(float(density[-10:, -10:].sum()), rel=1e-6)


def test_masks_of_many_pixels(device, needs_memory) -> None:
    needs_memory(device, 3.0)
    sets = torch.tensor([[WIDE**2 - 1, 0], [WIDE**2 - 2, WIDE**2 - 1]], device=device)
    assert mask_hits(sets, (WIDE, WIDE), 2).tolist() == [2, WIDE - 2, WIDE - 2]


def test_many_probabilities(device, needs_memory) -> None:
    needs_memory(device, 2 * 2 * GIGABYTES)
    n = torch.ones(2**31 + 1000, dtype=torch.int64, device=device)
    n[-1000:] = torch.arange(1000, device=device)
    got = log_probability_untouched(10**6, n, 45)[-1000:].cpu()
    assert torch.equal(got, log_probability_untouched(10**6, torch.arange(1000), 45))
