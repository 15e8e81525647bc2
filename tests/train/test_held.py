"""Errors on whole images: by group where a data set names any, and never of what is no number."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pycc.train.held import measured, split
from pycc.train.step import NotFiniteError
from pycc.types import Sample


class Scenes(list[Sample]):
    """Six samples of three scenes with 0 to 5 heads."""

    groups = ("S1", "S3", "S1", "S2", "S3", "S1")

    def __init__(self) -> None:
        super().__init__(
            Sample(f"frame-{n}", torch.full((3, 8, 8), n / 10), torch.ones(n, 2)) for n in range(6)
        )


class Two:
    """Counts two people in every image."""

    stride, receptive_field = 4, 4

    def __init__(self, broken: float | None = None) -> None:
        self.broken = broken

    def __call__(self, images: Tensor) -> Tensor:
        value = float("nan") if float(images[0, 0, 0, 0]) == self.broken else 0.5
        return torch.full((1, 1, 2, 2), value)


def test_scenes_have_their_errors_and_these_a_mean() -> None:
    """As WorldExpo'10 is published: the mean of scenes, not of frames."""
    errors = measured(Two(), Scenes())
    assert errors.mae == (2 + 1 + 0 + 1 + 2 + 3) / 6
    assert errors.mae_by_group == {"S1": 5 / 3, "S2": 1.0, "S3": 1.5}
    assert errors.mae_over_groups == pytest.approx((5 / 3 + 1.0 + 1.5) / 3)
    assert measured(Two(), Scenes(), [4, 0]).mae_by_group == {"S1": 2.0, "S3": 2.0}
    assert measured(Two(), list(Scenes())).mae_by_group is None


@pytest.mark.parametrize("held", [[99], [0, 0], [-1]])
def test_images_held_back_are_different_ones_of_the_set(held: list[int]) -> None:
    with pytest.raises(ValueError, match="held must be different indices of 6 images"):
        split(Scenes(), 0.0, 0, held)


def test_counts_that_are_no_numbers_are_named() -> None:
    broken = float(Scenes()[3].image[0, 0, 0])
    with pytest.raises(NotFiniteError, match=r"^counts are not finite \(frame-3\)$"):
        measured(Two(broken), Scenes())
    assert measured(Two(broken), Scenes(), [0, 1]).images == 2
