from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pycc.attack import APAM, PGD, run
from pycc.attack.evaluation.builder import CleanCounts, Member, ProblemBuilder
from pycc.attack.evaluation.checked import SampleCache, check_samples
from pycc.data import quantize
from pycc.types import Sample

pytestmark = pytest.mark.command


class Linear(nn.Module):
    """A map whose count grows with red and falls with green, and does not see blue."""

    stride, receptive_field = 1, 1

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :1] - 0.5 * images[:, 1:2] + 0 * images[:, 2:]


class Teeth(nn.Module):
    """Likes what lies between two levels of 8 bits best: rounding undoes any gain."""

    stride, receptive_field = 1, 1

    def forward(self, images: Tensor) -> Tensor:
        return (1 - (2 * math.pi * 255 * (images + 0.0004)).cos())[:, :1]


def attacked(chosen: PGD, counter: Any, sample: Sample, wanted: APAM | None = None) -> Tensor:
    wanted = wanted or APAM(patch_size=4, objective="over")
    if isinstance(counter, nn.Module):
        counter.eval().requires_grad_(False)
    checked = check_samples([sample], [wanted], counter.stride, seed=0)
    stage = ProblemBuilder([Member(counter)], SampleCache([sample]), CleanCounts())
    return chosen.attack(stage, checked.items[0], wanted)


def count(counter: Any, image: Tensor) -> float:
    with torch.no_grad():
        return float(counter(image[None]).double().sum())


def levels(image: Tensor) -> Tensor:
    """In 255ths, which it must be made of."""
    whole = (image.double() * 255).round()
    assert torch.equal(image, quantize(image))
    return whole


def unseen(make) -> Sample:
    return make(shape=(16, 20))


@settings(max_examples=25)
@given(
    epsilon=st.one_of(
        st.floats(1e-4, 0.2),
        st.integers(1, 255).map(lambda k: k / 255),
        st.sampled_from([0.0039, 0.00393, 0.5, 0.999, 1.0, 3.999 / 255]),
    ),
    steps=st.integers(0, 6),
    seed=st.integers(0, 20),
)
def test_epsilon_holds_in_eight_bits(epsilon: float, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    image = quantize(torch.rand(3, 12, 12, generator=generator))
    image[:, :2, :2], image[:, 2:4, 2:4] = 0.0, 1.0
    clean = Sample("scene", image, torch.tensor([[3.0, 4.0]], dtype=torch.float64))
    attacked_image = attacked(PGD(epsilon, steps), Linear(), clean)
    change = levels(attacked_image) - levels(image)
    assert float(change.abs().max()) <= 255 * epsilon + 1e-9
    if steps == 0:
        assert torch.equal(attacked_image, image)
    elif steps >= 2:
        # Each pixel goes as far as whole levels allow: no rounding loses one.
        most = math.floor(255 * epsilon + 1e-9)
        whole = levels(image)
        assert torch.equal(change[0], (whole[0] + most).clamp(max=255) - whole[0])
        assert torch.equal(change[1], (whole[1] - most).clamp(min=0) - whole[1])
        assert torch.all(change[2] == 0)


def test_an_epsilon_below_one_level_changes_nothing(sample, tiny) -> None:
    clean = unseen(sample)
    assert torch.equal(attacked(PGD(0.9 / 255, 5), tiny(), clean), quantize(clean.image))


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_with_epsilon_one_the_image_is_at_the_attackers_will(steps: int, sample) -> None:
    attacked_image = attacked(PGD(1.0, steps), Linear(), unseen(sample))
    assert torch.all(attacked_image[0] == 1)
    assert torch.all(attacked_image[1] == 0)
    under = attacked(
        PGD(1.0, steps), Linear(), unseen(sample), APAM(patch_size=4, objective="under")
    )
    assert torch.all(under[0] == 0)
    assert torch.all(under[1] == 1)


def test_each_objective_moves_the_count_its_way(tiny, sample) -> None:
    counter, clean = tiny(), sample()
    chosen = PGD(8 / 255, 6)
    before = count(counter.eval(), quantize(clean.image))
    counts = {
        objective: count(counter, attacked(chosen, counter, clean, APAM(objective=objective)))
        for objective in ("over", "under", "density")
    }
    assert counts["under"] < before - 1
    assert counts["over"] > before + 1
    wanted = APAM(objective="target", target_count=before + 0.5)
    near = count(counter, attacked(PGD(8 / 255, 30), counter, clean, wanted))
    assert abs(near - before - 0.5) < 0.25


def test_more_room_and_more_steps_do_more(tiny, sample) -> None:
    counter, clean = tiny(), sample()
    counts = [count(counter.eval(), quantize(clean.image))]
    counts += [
        count(counter, attacked(PGD(epsilon / 255, steps), counter, clean))
        for epsilon, steps in ((2, 6), (8, 6), (32, 12))
    ]
    assert counts == sorted(counts)
    assert counts[0] < counts[1]


@pytest.mark.parametrize("steps", [1, 2, 5, 8])
@pytest.mark.parametrize("epsilon", [1.5 / 255, 4.3 / 255])
@pytest.mark.parametrize("objective", ["over", "under"])
def test_the_image_as_stored_is_never_worse_for_the_attacker(
    steps: int, epsilon: float, objective: str, tiny, sample
) -> None:
    sign = 1 if objective == "over" else -1
    for counter in (tiny(), Teeth()):
        clean = unseen(sample)
        wanted = APAM(patch_size=4, objective=objective)
        attacked_image = attacked(PGD(epsilon, steps), counter, clean, wanted)
        assert sign * (count(counter, attacked_image) - count(counter, quantize(clean.image))) >= 0


def test_pixels_outside_the_region_are_left_alone(tiny, sample) -> None:
    """None of them is in the field of a cell that counts."""
    clean = sample(region=True)
    attacked_image = attacked(PGD(8 / 255, 4), tiny(), clean)
    change = (attacked_image != quantize(clean.image)).any(0)
    assert change[5:, 40:].float().mean() > 0.9
    assert not change[:, :12].any()


def test_a_run_has_it_once_an_image_beside_all_patches(tiny, sample) -> None:
    attacks = [APAM(patch_size=size, steps=1, objective="over") for size in (4, 8)]
    samples = [sample(), sample(1)]
    done = run(tiny(), samples, attacks, pgd=PGD(8 / 255, 3), checks=False)
    records = [r for r in done.run.records if r["condition"] == "pgd"]
    assert [(r["index"], r["patch_size"], r["area"]) for r in records] == [
        (0, None, 1),
        (1, None, 1),
    ]
    for record, each in zip(records, samples, strict=True):
        counter = tiny()
        image = attacked(PGD(8 / 255, 3), counter, each)
        assert record["count"] == pytest.approx(count(counter, image), rel=1e-6)
    without = run(tiny(), samples, attacks, pgd=None, checks=False)
    assert "pgd" not in {r["condition"] for r in without.run.records}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"epsilon": 0.0}, r"PGD: epsilon must be in \(0,1\], got 0.0"),
        ({"epsilon": 1.1}, r"PGD: epsilon must be in \(0,1\], got 1.1"),
        ({"epsilon": -0.1}, "PGD: epsilon must be in"),
        ({"epsilon": math.nan}, "PGD: epsilon must be in"),
        ({"steps": -1}, "PGD: steps must be at least 0, got -1"),
    ],
)
def test_bad_fields(fields: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        PGD(**fields)
