"""An attack that begins where a certificate is reached: places, and how near it comes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pycc import attack, certify, defense
from pycc.certify import CalibratedNumber, Calibration, certificates
from pycc.certify.weakest import WeakestPlaces
from pycc.defense.windows import window_of, window_sums
from pycc.types import Sample

PATCH, ALLOWANCE = 4, 0.5


class Bright(nn.Module):
    """Each cell of 2x2 pixels counts the light of its own 6x6 pixels; nothing else can move it."""

    stride, receptive_field = 2, 6

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.full((1, 3, 6, 6), 1 / 108))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        padded = nn.functional.pad(images, (2, 2, 2, 2))
        return nn.functional.conv2d(padded, self.kernel, stride=2)


def scene(seed: int) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    image = 0.2 + 0.6 * torch.rand(3, 20, 26, generator=generator)
    image = nn.functional.avg_pool2d(image[None], 5, 1, 2)[0]
    points = torch.rand(9, 2, generator=generator, dtype=torch.float64) * 20
    return Sample(f"scene {seed}", (image * 255).round() / 255, points)


def calibration(counters: int = 1) -> Calibration:
    return Calibration(tuple(
        CalibratedNumber("allowance", ALLOWANCE, "here", 1, PATCH, number)
        for number in range(counters)
    ))  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("objective", ["over", "under"])
def test_a_patch_there_reaches_the_window_of_the_interval(objective: str, seed: int) -> None:
    """The cells that it moves are a window, of all windows that with most or fewest people."""
    sample, counter = scene(seed), Bright()
    candidates = WeakestPlaces(counter, calibration()).candidates(
        certificates["additive"](), objective
    )
    assert candidates is not None
    ((y, x),) = candidates(sample, PATCH)
    image = sample.image[None]
    shown = image.clone()
    shown[..., y : y + PATCH, x : x + PATCH] = 1.0
    cells = counter(image)[0, 0]
    moved = (counter(shown)[0, 0] - cells).abs() > 1e-6
    window = window_of(counter, PATCH, (20, 26), (10, 13))
    sums = window_sums(cells[None], window)[0]
    rows, columns = moved.any(1), moved.any(0)
    assert (int(rows.sum()), int(columns.sum())) == window
    first = int(rows.nonzero()[0]), int(columns.nonzero()[0])
    assert float(sums[first]) == float(sums.min() if objective == "over" else sums.max())


@pytest.mark.parametrize("objective", ["over", "under"])
def test_places_lie_in_the_image_and_follow_the_window(objective: str) -> None:
    sample, counter = scene(1), Bright()
    for method in ("masked", "additive"):
        places = WeakestPlaces(counter, calibration()).candidates(certificates[method](), objective)
        assert places is not None
        for y, x in places(sample, PATCH):
            assert 0 <= y <= 20 - PATCH
            assert 0 <= x <= 26 - PATCH
    weakest = WeakestPlaces(counter, calibration())
    assert weakest.candidates(certificates["two-mask"](), objective) is None


def test_a_mixture_has_places_of_each_part() -> None:
    both = defense.mixed([Bright(), defense.clipped(Bright(), 0.4)])
    weakest = WeakestPlaces(both, calibration(2))
    candidates = weakest.candidates(certificates["masked"](), "over")
    assert candidates is not None
    assert len(candidates(scene(2), PATCH)) == 2


@pytest.mark.parametrize("objective", ["over", "under"])
def test_an_attack_there_moves_the_count_within_its_interval(objective: str) -> None:
    sample, counter = scene(3), Bright()
    victim = defense.masked(counter, patch_size=PATCH, allowance=ALLOWANCE, straight_through=True)
    bound = certify.masked(counter, sample.image, patch_size=PATCH, allowance=ALLOWANCE)
    apam = attack.APAM(
        patch_size=PATCH, steps=20, step_size=0.3, objective=objective, transform="none",
        smoothness=0.0, location="worst",
    )  # fmt: skip
    done = attack.run(
        victim, [sample], apam, pgd=None, checks=False, compare=False, save_images=False,
        candidates=WeakestPlaces(counter, calibration()).candidates(
            certificates["masked"](), objective
        ),
    )  # fmt: skip
    counts = {record["condition"]: record["count"] for record in done.run.records}
    assert set(counts) == {"clean", "apam"}  # without baselines
    assert bound.low <= counts["apam"] <= bound.high
    end = bound.high if objective == "over" else bound.low
    # Cells at a window's rim see little of the patch: not all of the way.
    assert (counts["apam"] - counts["clean"]) / (end - counts["clean"]) > 0.1
