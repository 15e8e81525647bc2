"""What of a map lies in a region of interest."""

from __future__ import annotations

import pytest
import torch

from pycc.data import in_region


def test_cells_count_by_the_share_of_their_pixels() -> None:
    mask = torch.zeros(8, 13, dtype=torch.bool)
    mask[:4, :6] = True
    density = torch.ones(2, 1, 2, 3)
    found = in_region(density, mask)
    assert found[0, 0].tolist() == [[1.0, 0.5, 0.0], [0.0, 0.0, 0.0]]
    assert torch.equal(found[0], found[1])
    assert in_region(density, None) is density
    # Of a last, incomplete cell only the pixels that are there can be inside.
    assert in_region(torch.ones(1, 1, 2, 4), torch.ones(8, 13, dtype=torch.bool))[
        0, 0, 0
    ].tolist() == [1.0, 1.0, 1.0, 0.25]


def test_a_mask_of_another_image_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a mask of about"):
        in_region(torch.ones(1, 1, 2, 3), torch.ones(8, 40, dtype=torch.bool))
