from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pycc import attack
from pycc.attack import APAM
from pycc.attack.evaluation.baselines import baselines, fullest
from pycc.attack.evaluation.checked import CheckedImage, SampleCache, check_samples
from pycc.attack.patch import noise
from pycc.types import Sample


def run(*arguments: Any, **options: Any) -> attack.AttackRun:
    """``attack.run`` without what is tested elsewhere."""
    return attack.run(*arguments, **{"checks": False, "pgd": None, **options})


def of(name: str, side: int, samples: list[Sample], index: int = 0, seed: int = 0) -> Any:
    items = check_samples(samples, [], 4, seed=seed).items
    return baselines[name](
        side, seed=seed, item=items[index], items=items, samples=SampleCache(samples)
    )


def scene(name: str, points: list[tuple[float, float]], shape: tuple[int, int] = (40, 50),
          mask: Tensor | None = None) -> Sample:  # fmt: skip
    """Every pixel tells its place and, by blue, its image."""
    y, x = torch.meshgrid(*(torch.arange(float(size)) for size in shape), indexing="ij")
    blue = torch.full(shape, ord(name[0]) / 255)
    heads = torch.tensor(points, dtype=torch.float64).reshape(-1, 2)
    return Sample(name, torch.stack([y / 255, x / 255, blue]), heads, mask)


def origin(patch: Tensor) -> tuple[int, int]:
    """Where in its image a crop comes from."""
    y, x, _ = (patch[:, 0, 0] * 255).round().long().tolist()
    return y, x


@pytest.mark.parametrize(("name", "value"), [("grey", 0.5), ("black", 0.0)])
def test_flat_patches(name: str, value: float, sample) -> None:
    patch = of(name, 7, [sample()])
    assert patch.shape == (3, 7, 7)
    assert torch.all(patch == value)


def test_noise_is_keyed_by_seed_and_image(sample) -> None:
    samples = [sample(number) for number in range(3)]
    patches = [of("noise", 9, samples, index) for index in range(3)]
    patches += [of("noise", 9, samples, seed=1), APAM().start([0], 9, 0)[0]]
    for first in range(5):
        for other in range(first):
            assert not torch.equal(patches[first], patches[other])
    assert torch.equal(of("noise", 9, samples[:2], 1), patches[1])
    large = of("noise", 80, samples)
    assert float(large.min()) >= 0
    assert float(large.max()) < 1
    assert float(large.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(large.var()) == pytest.approx(1 / 12, abs=0.005)
    assert torch.equal(large, noise(80, seed=0, purpose="noise", image=0))


def held(points: np.ndarray, y: int, x: int, side: int) -> int:
    return sum(x <= px < x + side and y <= py < y + side for px, py in points)


@given(st.integers(0, 2**20), st.integers(1, 30), st.integers(1, 30))
def test_the_fullest_square_by_brute_force(seed: int, heads: int, side: int) -> None:
    height, width = 30, 44
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 1, (heads, 2)) * [width - 1e-6, height - 1e-6]
    y, x = fullest(points, (height, width), side)
    assert 0 <= y <= height - side
    assert 0 <= x <= width - side
    candidates = set()
    for px, py in points:
        left, top = round(px - side / 2), round(py - side / 2)
        candidates.add((min(max(top, 0), height - side), min(max(left, 0), width - side)))
    assert (y, x) in candidates
    assert held(points, y, x, side) == max(held(points, *place, side) for place in candidates)
    assert held(points, y, x, side) >= 1


def test_of_equal_squares_the_first_heads_is_taken() -> None:
    points = np.array([[30.0, 30.0], [10.0, 10.0]])
    assert fullest(points, (60, 60), 6) == (27, 27)
    assert fullest(points[::-1], (60, 60), 6) == (7, 7)


def test_squares_are_moved_inside_at_the_borders() -> None:
    for point, corner in [((0.0, 0.0), (0, 0)), ((49.9, 39.9), (30, 40)), ((1.0, 20.0), (15, 0))]:
        assert fullest(np.array([point]), (40, 50), 10) == corner
    assert fullest(np.array([[25.0, 20.0]]), (40, 40), 40) == (0, 0)


def test_the_crowd_comes_from_the_next_image_that_has_one() -> None:
    samples = [
        scene("a", [(9, 9), (9, 10)]),
        scene("b", []),
        scene("c", [(3, 3)], shape=(8, 50)),  # too small
        scene("d", [(5, 5), (30, 20), (31, 21)]),
        scene("e", [(90, 90), (-1, 5)]),  # heads outside the image
    ]
    with pytest.warns(UserWarning, match="e: 2 points outside the image"):
        patches = [of("crowd", 10, samples, index) for index in range(5)]
    sources = [3, 3, 3, 0, 0]
    for index, (patch, source) in enumerate(zip(patches, sources, strict=True)):
        assert source != index
        y, x = origin(patch)
        assert torch.equal(patch, samples[source].image[:, y : y + 10, x : x + 10])
    assert origin(patches[0]) == (15, 25)
    assert origin(patches[3]) == (4, 4)


def test_heads_outside_the_region_are_no_crowd() -> None:
    mask = torch.zeros(40, 50, dtype=torch.bool)
    mask[:, 25:] = True
    other = scene("b", [(5, 5), (6, 6), (7, 7), (40, 20)], mask=mask)
    assert origin(of("crowd", 6, [scene("a", []), other])) == (17, 37)


@pytest.mark.parametrize(
    "others",
    [
        [],
        [scene("b", [])],
        [scene("b", [(3, 3)], shape=(9, 50)), scene("c", [(3, 3)], shape=(50, 9))],
    ],
)
def test_without_another_crowd_there_is_none(others: list[Sample]) -> None:
    assert of("crowd", 10, [scene("a", [(20, 20), (21, 21)]), *others]) is None


def test_the_crop_is_a_copy() -> None:
    samples = [scene("a", []), scene("b", [(20, 20)])]
    before = samples[1].image.clone()
    of("crowd", 10, samples).zero_()
    assert torch.equal(samples[1].image, before)


@pytest.mark.command
@pytest.mark.parametrize("count", [1, 2])
def test_a_run_leaves_out_what_there_is_not(count: int, tiny, sample) -> None:
    done = run(tiny(), [sample(n) for n in range(count)], APAM(patch_size=10, steps=1))
    wanted = ["clean", "grey", "black", "noise", *["crowd"] * (count > 1), "apam"]
    assert [row.condition for row in done.summary.rows] == wanted
    assert all(row.images == count for row in done.summary.rows)


def test_a_run_measures_them_as_they_are(tiny, sample) -> None:
    """At the attack's place and in its shape, rounded to 8 bits."""
    counter, samples = tiny().eval(), [sample(0), sample(1)]
    chosen = APAM(patch_size=14, steps=0, shape="disc", location="given", top_left=(3, 41))
    done = run(counter, samples, chosen)
    mask = chosen.patch_mask(14).bool()
    records = {(r["index"], r["condition"]): r for r in done.run.records}
    for name in baselines.names():
        for index in (0, 1):
            image = samples[index].image.clone()
            patch = of(name, 14, samples, index)
            image[:, 3:17, 41:55][:, mask] = patch[:, mask]
            image = (image * 255).round() / 255
            with torch.no_grad():
                count = float(counter(image[None]).double().sum())
            record = records[index, name]
            assert record["count"] == pytest.approx(count, rel=1e-5)
            assert record["top_left"] == [3, 41]
            assert record["area"] == pytest.approx(float(mask.sum()) / (64 * 80))
            assert "file" not in record


def test_images_are_not_kept_of_patches_that_nobody_optimised(tmp_path: Path, tiny, sample) -> None:
    run(tiny(), [sample(0), sample(1)], APAM(patch_size=10, steps=0), out=tmp_path / "run")
    kept = {file.name.split(".")[1] for file in (tmp_path / "run" / "images").iterdir()}
    assert kept == {"clean", "apam-10"}


def test_items_are_found_by_their_number() -> None:
    """Whatever their place in the list."""
    samples = [scene("a", [(9, 9)]), scene("b", [(20, 20)]), scene("c", [(30, 30)])]
    items: tuple[CheckedImage, ...] = check_samples(samples, [], 4, seed=0).items
    part = (items[2], items[0])
    patch = baselines["crowd"](6, seed=0, item=items[0], items=part, samples=SampleCache(samples))
    assert origin(patch) == (27, 27)
