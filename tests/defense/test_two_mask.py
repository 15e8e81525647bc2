"""The count that two masks agree on, and its promise."""

from __future__ import annotations

import pytest
import torch
from support.toys import Plain, Tiny, Whole, pictures
from torch import Tensor

from pycc.defense import clipped, two_mask
from pycc.defense.mask_pairs import mask_boxes, two_mask_table
from pycc.types import Counter


@pytest.mark.parametrize("counter", [Tiny(), Plain(), Whole()], ids=lambda c: type(c).__name__)
def test_count_is_min_of_max(counter: Counter) -> None:
    images = pictures((28, 33), 3)
    with torch.no_grad():
        result = two_mask(counter, patch_size=5, masks=(3, 2), fill=0.5)(images)
    for image, cells in zip(images, result, strict=True):
        table = two_mask_table(counter, image, patch_size=5, masks=(3, 2), fill=0.5)
        count = float(cells.double().sum())
        assert count == pytest.approx(float(table.max(1).values.min()), rel=1e-6)
        assert float(table.min()) < count < float(table.max())


class Crowd:
    """People a cell of 2 x 2 pixels, as exact numbers: whatever is bright, seen from next door."""

    stride, receptive_field = 2, 6

    def __call__(self, images: Tensor) -> Tensor:
        seen = torch.nn.functional.avg_pool2d(images.sum(1, keepdim=True), 2)
        near = torch.nn.functional.max_pool2d(seen, 3, 1, 1)
        return (near * 64).round() - 40  # of both signs


class CrowdOfAll(Crowd):
    """The same without a declared field, times a factor that depends on every pixel."""

    receptive_field = None  # type: ignore[assignment]

    def __call__(self, images: Tensor) -> Tensor:
        return super().__call__(images) * (1 + (images.sum((1, 2, 3), keepdim=True) % 3).round())


@pytest.mark.command
@pytest.mark.parametrize(("counter", "trials"), [(Crowd(), 1500), (CrowdOfAll(), 700)])
def test_no_patch_leaves_the_clean_table(counter: Counter, trials: int) -> None:
    """C4: min A <= count <= max A for every patch; the numbers are whole, nothing is rounded."""
    generator = torch.Generator().manual_seed(8)
    shape, patch = (14, 17), 5
    defended = two_mask(counter, patch_size=patch, masks=4, fill=0.5)
    moved = 0
    for _ in range(trials // 100):
        image = torch.rand(3, *shape, generator=generator, dtype=torch.float64)
        table = two_mask_table(counter, image, patch_size=patch, masks=4, fill=0.5)
        low, high = float(table.min()), float(table.max())
        attacked = image.repeat(100, 1, 1, 1)
        for patched in attacked:
            y, x = (int(torch.randint(n - patch + 1, (), generator=generator)) for n in shape)
            content = torch.rand(3, patch, patch, generator=generator, dtype=torch.float64)
            style = int(torch.randint(3, (), generator=generator))
            patched[:, y : y + patch, x : x + patch] = (content, content.round(), content * 0)[
                style
            ]
        counts = defended(attacked).sum((1, 2, 3))
        assert low <= float(counts.min())
        assert float(counts.max()) <= high
        moved += int((counts != float(defended(image[None]).sum())).sum())
    assert moved > trials // 10


def test_the_promise_needs_masks_as_large_as_the_patch() -> None:
    """The test above would fail if it could: a larger patch does leave the table."""
    image = torch.full((1, 3, 14, 17), 0.5, dtype=torch.float64)
    table = two_mask_table(Crowd(), image[0], patch_size=3, masks=4, fill=0.5)
    image[..., 1:13, 1:16] = 1.0
    count = float(two_mask(Crowd(), patch_size=3, masks=4, fill=0.5)(image).sum())
    assert count > float(table.max())


def test_gradient_goes_through_the_masks_that_attain_it() -> None:
    image = pictures((14, 17), dtype=torch.float64).requires_grad_()
    counter = two_mask(Tiny().double(), patch_size=3, masks=4, fill=0.5)
    assert torch.autograd.gradcheck(counter, image, fast_mode=True)
    (slope,) = torch.autograd.grad(counter(image).sum(), image)
    still = (slope == 0).all(1)[0]
    boxes = mask_boxes((14, 17), patch_size=3, masks=4)
    assert any(bool(still[box.slices].all()) for box in boxes)
    assert not bool(still.all())


def test_geometry_and_nesting() -> None:
    counter = two_mask(clipped(Tiny(), 0.1), patch_size=5, masks=4, fill=0.5)
    assert counter.stride == 2
    assert counter.receptive_field is None
    assert float(counter(pictures()).detach().max()) <= 0.1


def test_two_mask_refuses() -> None:
    with pytest.raises(ValueError, match="two_mask: masks must be a square number or"):
        two_mask(Tiny(), patch_size=5, masks=12, fill=0.5)
    with pytest.raises(ValueError, match="two_mask: fill must be a number or three"):
        two_mask(Tiny(), patch_size=5, fill=255)
    with pytest.raises(ValueError, match="two_mask: patch_size must be at least 1, got 0"):
        two_mask(Tiny(), patch_size=0, fill=0.5)
    with pytest.raises(ValueError, match="two_mask: patch_size must fit into the image of 20x24"):
        two_mask(Tiny(), patch_size=21, fill=0.5)(pictures())
    with pytest.raises(ValueError, match=r"two_mask: images must hold .* got NaN or infinity"):
        two_mask(Tiny(), patch_size=5, fill=0.5)(pictures() / 0)
