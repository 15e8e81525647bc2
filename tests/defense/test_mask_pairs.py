"""The table of two masks equals the one that whole images give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.toys import Coarse, Plain, Tiny, Whole, pictures

from pycc.defense.mask_pairs import hidden, mask_boxes, two_mask_table
from pycc.local import Box
from pycc.types import Counter

FILL = (0.5, 0.25, 0.125)


def brute_force(counter: Counter, image: torch.Tensor, patch: int, masks: Any) -> torch.Tensor:
    boxes = mask_boxes((image.shape[1], image.shape[2]), patch_size=patch, masks=masks)
    table = torch.zeros(len(boxes), len(boxes), dtype=torch.float64)
    with torch.no_grad():
        for i, first in enumerate(boxes):
            for j, other in enumerate(boxes):
                covered = image.clone()
                for box in (first, other):
                    covered[:, box.top : box.bottom, box.left : box.right] = torch.tensor(FILL)[
                        :, None, None
                    ]
                table[i, j] = counter(covered[None]).double().sum()
    return table


@pytest.mark.parametrize("counter", [Tiny(), Plain(), Whole()], ids=lambda c: type(c).__name__)
@pytest.mark.parametrize(
    ("shape", "patch", "masks"),
    [
        ((60, 80), 5, 16),
        ((61, 83), 6, (4, 3)),
        ((24, 20), 7, 4),
        ((33, 90), 1, (2, 9)),
        ((21, 23), 21, 9),
        ((20, 20), 18, 36),
        ((40, 41), 9, 1),
    ],
)
def test_every_pair(shape: tuple[int, int], patch: int, masks: Any, counter: Counter) -> None:
    image = pictures(shape)[0]
    wanted = brute_force(counter, image, patch, masks)
    for budget in (1, 1 << 21):
        result = two_mask_table(
            counter, image, patch_size=patch, masks=masks, fill=FILL, budget=budget
        )
        torch.testing.assert_close(result, wanted, rtol=1e-6, atol=0)
    assert torch.equal(result, result.T)
    assert wanted.unique().numel() == len(wanted) * (len(wanted) + 1) // 2


def test_sums_of_changes_are_exact() -> None:
    """In float64 to its own rounding, where most pairs are sums."""
    counter, image = Tiny().double(), pictures((64, 66), dtype=torch.float64)[0]
    reported: list[tuple[int, int]] = []
    result = two_mask_table(
        counter,
        image,
        patch_size=3,
        masks=36,
        fill=FILL,
        progress=lambda *n: reported.append(n[:2]),
    )
    assert reported[0][0] > 300
    assert reported[-1] == (666, 666)
    wanted = brute_force(counter, image, 3, 36)
    assert float((result - wanted).abs().max()) < 1e-12 * float(wanted.max())


def test_a_smaller_field_would_be_wrong() -> None:
    counter, image = Tiny(receptive_field=2), pictures((64, 66))[0]
    result = two_mask_table(counter, image, patch_size=3, masks=36, fill=FILL)
    wanted = brute_force(counter, image, 3, 36)
    assert float((result - wanted).abs().max()) > 1e-5 * float(wanted.max())


def test_a_coarser_grid_is_counted_whole() -> None:
    """Windows would be wrong, although the field is as declared: pairs far apart are sums."""
    counter, image = Coarse().double(), pictures((64, 68), dtype=torch.float64)[0]
    wanted = brute_force(counter, image, 3, 16)
    result = two_mask_table(counter, image, patch_size=3, masks=16, fill=FILL)
    torch.testing.assert_close(result, wanted, rtol=1e-12, atol=0)
    counter.period = 2
    with pytest.raises(ValueError, match="must give the same cells for a window as for the image"):
        two_mask_table(counter, image, patch_size=3, masks=16, fill=FILL)


def test_less_is_looked_at_than_whole_images() -> None:
    seen = 0

    class Counting(Plain):
        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            nonlocal seen
            seen += images.numel() // 3
            return super().__call__(images)

    two_mask_table(Counting(), pictures((128, 160))[0], patch_size=9, masks=36, fill=FILL)
    assert seen * 5 < 666 * 128 * 160


@settings(max_examples=300)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.data())
def test_some_mask_hides_every_place(height: int, width: int, patch: int, data: Any) -> None:
    patch = min(patch, height, width)
    rows, columns = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    boxes = mask_boxes((height, width), patch_size=patch, masks=(rows, columns))
    assert 1 <= len(boxes) <= rows * columns
    assert all(box.clipped((height, width)) == box and not box.empty for box in boxes)
    for y in range(height - patch + 1):
        for x in range(width - patch + 1):
            place = Box(y, x, y + patch, x + patch)
            assert any(box.intersection(place) == place for box in boxes)


def test_masks_follow_the_rule() -> None:
    """ceil(688 / 6) = 115 and 81 + 114 = 195 down; ceil(944 / 6) = 158 and 238 across."""
    boxes = mask_boxes((768, 1024), patch_size=81)
    assert len(boxes) == 36
    assert [(box.top, box.bottom) for box in boxes[::6]] == [
        (0, 195), (115, 310), (230, 425), (345, 540), (460, 655), (575, 768),
    ]  # fmt: skip
    assert (boxes[5].left, boxes[5].right) == (790, 1024)


def test_hidden_keeps_the_rest() -> None:
    image = pictures()[0]
    box = mask_boxes((20, 24), patch_size=5, masks=4)[3]
    covered = hidden(image, [box], torch.tensor(FILL))
    assert torch.equal(covered[:, *box.slices].flatten(1).amax(1), torch.tensor(FILL))
    covered[:, *box.slices] = image[:, *box.slices]
    assert torch.equal(covered, image)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "patch": (
        {"patch_size": 21},
        "two_mask: patch_size must fit into the image of 20x24, got 21 pixels",
    ),
    "no patch": ({"patch_size": 0}, "two_mask: patch_size must be at least 1, got 0"),
    "not square": ({"masks": 35}, "two_mask: masks must be a square number or"),
    "none": ({"masks": (0, 3)}, "two_mask: masks must be at least 1, got 0"),
    "colour": ({"fill": -0.1}, "two_mask: fill must be"),
    "image": ({"image": pictures()}, "two_mask: image must be"),
    "budget": ({"budget": 0}, "two_mask: budget must be at least 1"),
    "train mode": ({"counter": Tiny().train()}, "two_mask: counter must be in eval mode"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    options, message = BAD[case]
    arguments: dict[str, Any] = {
        "counter": Tiny(),
        "image": pictures()[0],
        "patch_size": 5,
        "fill": 0.5,
    }
    with pytest.raises(ValueError, match=message) as error:
        two_mask_table(**{**arguments, **options})
    assert "\n" not in str(error.value)
