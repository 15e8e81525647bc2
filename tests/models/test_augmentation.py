"""Augmentations: how often they change an image, by how much, and what metadata states of them."""

from __future__ import annotations

import pytest
import torch

from pycc import models
from pycc.models.augmentation import (
    Augmentation,
    ColourJitter,
    Gamma,
    GaussianBlur,
    Grey,
    PepperAndSalt,
    UniformNoise,
    augmentations,
)
from pycc.models.families import untrained
from pycc.random import Stream

EXAMPLES: dict[str, Augmentation] = {
    example.name: example
    for example in (
        UniformNoise(0.5, levels=10.0),
        ColourJitter(0.5, brightness=0.1, contrast=0.1, saturation=0.1),
        GaussianBlur(0.5, kernel=5, sigma=(0.1, 5.0)),
        PepperAndSalt(0.5, pepper=0.01, salt=0.01),
        Gamma(0.5, exponent=(0.5, 1.5)),
        Grey(0.5),
    )
}


@pytest.mark.parametrize("name", augmentations.names())
def test_augmentations_happen_with_their_probability(name: str) -> None:
    image = torch.rand(3, 24, 32, generator=torch.Generator().manual_seed(1)) * 0.8 + 0.1
    changes = 0
    for step in range(60):
        changed = EXAMPLES[name](image, Stream(1, "test", step=step))
        assert changed.shape == image.shape
        assert float((changed - image).abs().mean()) < 0.2
        changes += not torch.equal(changed, image)
    assert 15 < changes < 45


def test_a_probability_lies_in_the_unit_interval() -> None:
    with pytest.raises(ValueError, match=r"uniform_noise: probability must lie in \[0,1\], got 2"):
        UniformNoise(2, levels=10.0)


def test_metadata_state_augmentations_and_repeats_by_name() -> None:
    assert models.create("cmtl").recipe().json()["augmentation"] == {
        "uniform_noise": {"probability": 0.5, "levels": 10.0, "of": 255.0}
    }
    assert models.create("csrnet").recipe().json()["augmentation"] == {"repeats_per_epoch": 4}
    assert models.create("mcnn").recipe().json()["augmentation"] == {}
    clip_ebc = untrained()["clip_ebc"].recipe()
    changes = clip_ebc.json()["augmentation"]
    assert isinstance(changes, dict)
    assert list(changes) == ["colour_jitter", "gaussian_blur", "pepper_and_salt"]
    assert changes["gaussian_blur"] == {"probability": 0.2, "kernel": 5, "sigma": (0.1, 5.0)}


def test_gamma_and_grey() -> None:
    image = torch.rand(3, 8, 9, generator=torch.Generator().manual_seed(1))
    squared = Gamma(1.0, exponent=(2.0, 2.0))(image, Stream(1, "test"))
    torch.testing.assert_close(squared, image**2)
    grey = Grey(1.0)(image, Stream(1, "test"))
    torch.testing.assert_close(
        grey, (0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]).expand(3, 8, 9)
    )
