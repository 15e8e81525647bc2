"""A defended counter in an attack computes what the patch changes, and defends it anew."""

from __future__ import annotations

import pytest
import torch
from support.completions import model_of
from support.marks import long

from pycc import data, defense, models
from pycc.grid import reached_window
from pycc.local import Box, Local


@pytest.mark.parametrize("box", [Box(0, 0, 8, 12), Box(40, 52, 61, 70), Box(83, 110, 95, 125)])
@pytest.mark.parametrize("draws", [*long(1), 2])
@pytest.mark.parametrize("kind", ["masked", "completed", "alarmed", "cells", "blocks"])
def test_it_is_the_full_image(kind: str, box: Box, draws: int) -> None:
    counter = models.load("mcnn-synthetic")
    if kind == "masked":
        counter = defense.masked(defense.clipped(counter), patch_size=12, allowance=1.5)
    elif kind == "completed":
        counter = defense.clipped(counter)
        reach = reached_window(12, counter.stride, counter.receptive_field)
        counter = defense.completed(counter, patch_size=12, completion=model_of(0, reach, step=2))
    elif kind == "alarmed":
        counter = defense.clipped(counter)
        model = model_of(0, reached_window(12, counter.stride, counter.receptive_field), step=2)
        counter = defense.alarmed(counter, patch_size=12, completion=model, margin=0.5)
    elif kind == "cells":
        caps = torch.rand(23, 31, generator=torch.Generator().manual_seed(2)) * 0.1 + 1e-3
        counter = defense.clipped(counter, caps)
    else:
        counter = defense.clipped(counter, 0.05, block_cap=0.5, block=5)
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, 95, 125, generator=generator)
    pixels = torch.rand(2 * draws, 3, *box.shape, generator=generator).requires_grad_()
    local = Local(counter, images, box)
    changed = images.repeat_interleave(draws, 0).clone()
    changed[..., *box.slices] = pixels
    full, part = counter(changed), local(pixels)
    torch.testing.assert_close(part, full, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(local.clean, counter(images))
    weight = torch.rand(full.shape, generator=generator)
    gradients = [torch.autograd.grad((m * weight).sum(), pixels)[0] for m in (full, part)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("box", [Box(0, 0, 8, 12), Box(40, 52, 61, 70), Box(83, 110, 95, 125)])
@pytest.mark.parametrize(
    ("unit", "k", "budget"),
    [("pixel", 30, 2**24), ("pixel", 1500, 150_000), ("element", 4000, 2**24)],
)
def test_ablated_draws_are_those_of_the_full_image(
    unit: str, k: int, budget: int, box: Box
) -> None:
    """Whichever draws keep pixels of the box, and however many are counted at once."""
    counter = defense.ablated(
        models.load("mcnn-synthetic"), k, draws=5, fill=(0.4, 0.5, 0.3), unit=unit, budget=budget
    )
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, 95, 125, generator=generator)
    pixels = torch.rand(4, 3, *box.shape, generator=generator).requires_grad_()
    local = Local(counter, images, box)
    assert local.follows_layers
    assert local.cells.shape < (23, 31)
    changed = images.repeat_interleave(2, 0).clone()
    changed[..., *box.slices] = pixels
    full, part = counter(changed), local(pixels)
    clean = counter(images)
    torch.testing.assert_close(part, full[..., *local.cells.slices], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(local.clean, clean[..., *local.cells.slices], rtol=1e-4, atol=1e-7)
    elsewhere = (full - clean.repeat_interleave(2, 0)).detach()
    elsewhere[..., *local.cells.slices] = 0.0
    assert float(elsewhere.abs().max()) <= 1e-7
    weight = torch.rand(part.shape, generator=generator)
    there = full[..., *local.cells.slices]
    gradients = [torch.autograd.grad((m * weight).sum(), pixels)[0] for m in (there, part)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


def test_draws_beyond_the_budget_are_not_kept_at_once() -> None:
    counter = defense.ablated(models.load("mcnn-synthetic"), 1500, draws=5, fill=0.5, budget=40_000)
    assert not Local(counter, torch.rand(2, 3, 95, 125), Box(40, 52, 61, 70)).follows_layers


def test_what_no_draw_shows_changes_nothing() -> None:
    """Two pixels of the image are kept, none of them in the box."""
    counter = defense.ablated(models.load("mcnn-synthetic"), 1, draws=2, fill=0.5)
    images = torch.rand(1, 3, 95, 125, generator=torch.Generator().manual_seed(1))
    box = Box(40, 52, 44, 56)
    local = Local(counter, images, box)
    pixels = torch.rand(1, 3, 4, 4).requires_grad_()
    result = local(pixels)
    torch.testing.assert_close(result, local.clean)
    (gradient,) = torch.autograd.grad(result.sum(), pixels)
    assert not gradient.any()


def test_a_counter_that_knows_nothing_is_asked_anew() -> None:
    counter = defense.two_mask(models.load("mcnn-synthetic"), patch_size=12, masks=4, fill=0.5)
    assert counter.around(torch.rand(1, 3, 64, 64), Box(0, 0, 8, 8)) is None


@pytest.mark.parametrize("colour", [0.0, 1.0])
def test_rounding_makes_no_cell_negative(colour: float) -> None:
    """A flat patch empties cells: what is left of them after a sum of changes is not below 0."""
    counter = defense.masked(
        defense.clipped(models.load("mcnn-synthetic")), patch_size=12, allowance=1.5
    )
    box = Box(30, 40, 50, 60)
    for seed in range(3):
        image = data.open("synthetic", shape=(96, 128), seed=seed)[0].image[None]
        local = Local(counter, image, box)
        changed = image.clone()
        changed[..., *box.slices] = colour
        with torch.no_grad():
            torch.testing.assert_close(
                local(changed[..., *box.slices]), counter(changed), rtol=1e-4, atol=1e-6
            )
