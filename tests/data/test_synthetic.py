from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pycc.data
from pycc.data import load_image, save_image
from pycc.data.dataset import data_fingerprint
from pycc.data.synthetic import SPLITS, scene

SMALL = (120, 160)


def test_a_scene_is_a_function_of_its_key() -> None:
    first = scene(3, 5, shape=SMALL)
    scene(1, 1, shape=SMALL, heads=60)
    again = scene(3, 5, shape=SMALL)
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.points, again.points)
    others = [scene(4, 5, shape=SMALL), scene(3, 6, shape=SMALL)]
    others += [scene(3, 5, shape=SMALL, split=split) for split in ("val", "test")]
    for other in others:
        assert other.name != first.name
        assert not torch.equal(other.image, first.image)
        assert not torch.equal(other.points[:20], first.points[:20])


def test_splits_share_no_scene() -> None:
    names: set[str] = set()
    for split in SPLITS:
        names.update(pycc.data.open("synthetic", split=split, count=50).names)
    assert len(names) == 150
    backdrops = {
        scene(0, index, shape=(64, 64), heads=0, split=split).image.numpy().tobytes()
        for split in SPLITS
        for index in range(8)
    }
    assert len(backdrops) == 24


@settings(max_examples=20)
@given(
    height=st.integers(64, 300),
    width=st.integers(64, 300),
    index=st.integers(0, 10_000),
    heads=st.none() | st.integers(0, 40),
)
def test_every_scene_is_well_formed(height: int, width: int, index: int, heads: int | None) -> None:
    sample = scene(11, index, shape=(height, width), heads=heads)
    assert sample.image.shape == (3, height, width)
    assert sample.image.dtype == torch.float32
    assert sample.points.dtype == torch.float64
    assert sample.points.shape == (sample.count, 2)
    assert bool((sample.points >= 0).all())
    assert bool((sample.points < torch.tensor([width, height])).all())
    if heads is None:
        assert 20 <= sample.count <= max(20, height * width // 384)
    else:
        assert sample.count == heads


def test_an_8_bit_file_keeps_a_scene_exactly(tmp_path: Path) -> None:
    sample = scene(0, 0, shape=SMALL)
    save_image(tmp_path / "a.png", sample.image)
    assert torch.equal(load_image(tmp_path / "a.png"), sample.image)


@pytest.mark.long
def test_numbers_of_heads_spread_over_20_to_800() -> None:
    counts = np.array([scene(2, index).count for index in range(25)])
    assert counts.min() >= 20
    assert counts.max() <= 800
    assert len(set(counts)) > 15
    # Log-uniform: about a third below 70, a third above 230.
    assert 2 <= (counts < 70).sum() <= 16
    assert 2 <= (counts > 230).sum() <= 16


def test_full_scenes_keep_all_their_heads() -> None:
    for index in range(3):
        sample = scene(5, index, heads=800)
        assert sample.count == 800
        assert len(np.unique(sample.points.numpy(), axis=0)) == 800


def test_people_are_really_there_where_they_are_annotated() -> None:
    for index in range(5):
        crowd, empty = scene(9, index, heads=25), scene(9, index, heads=0)
        # The same place without people, so whatever differs is people.
        changed = (crowd.image != empty.image).any(0)
        x, y = crowd.points.long().T
        # A pole or a tree may stand before the middle of some heads.
        assert float(changed[y, x].float().mean()) > 0.8
        above = int(crowd.points[:, 1].min()) - 36
        assert not bool(changed[: max(0, above)].any())
        assert float(changed.float().mean()) < 0.5


def test_heads_grow_towards_the_viewer() -> None:
    # Neighbours stand further apart, in pixels, in the lower part of a full scene.
    for index in range(4):
        points = scene(6, index, heads=600).points
        gap = torch.cdist(points, points).fill_diagonal_(float("inf")).min(1).values
        low = points[:, 1] > points[:, 1].median()
        assert float(gap[low].median()) > float(gap[~low].median())


def test_bad_scenes_are_refused() -> None:
    with pytest.raises(ValueError, match="shape must be at least 64 x 64, got 63 x 80"):
        scene(0, 0, shape=(63, 80))
    with pytest.raises(ValueError, match="split must be one of train, val, test, got 'dev'"):
        scene(0, 0, split="dev")
    with pytest.raises(ValueError, match="heads must be at least 0, got -1"):
        scene(0, 0, heads=-1)
    with pytest.raises(ValueError, match="3000 heads do not fit into 64 x 64 pixels"):
        scene(0, 0, shape=(64, 64), heads=3000)


def test_open_gives_scenes() -> None:
    dataset = pycc.data.open("synthetic", split="val", seed=4, shape=SMALL, count=7, heads=30)
    assert dataset.name == "synthetic/val"
    assert len(dataset) == 7
    wanted = scene(4, 2, shape=SMALL, heads=30, split="val")
    assert dataset[2].name == dataset.names[2] == wanted.name
    assert torch.equal(dataset[2].image, wanted.image)
    assert torch.equal(dataset.points(2), wanted.points)
    assert len(pycc.data.open("synthetic", limit=3)) == 3
    assert len(pycc.data.open("synthetic", count=2, limit=3)) == 2


def test_fingerprint_follows_every_option() -> None:
    def fingerprint(split: str = "test", **options) -> str:
        options = {"shape": SMALL, "heads": 20, "count": 2, **options}
        return str(data_fingerprint(pycc.data.open("synthetic", split=split, **options)))

    base = fingerprint()
    assert fingerprint() == base
    changed = {
        fingerprint(seed=1),
        fingerprint(split="val"),
        fingerprint(shape=(72, 96)),
        fingerprint(heads=30),
        fingerprint(count=3),
    }
    assert len(changed | {base}) == 6


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="split must be one of train, val, test, got 'all'"):
        pycc.data.open("synthetic", split="all")
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        pycc.data.open("synthetic", count=0)
    with pytest.raises(ValueError, match="shape must be at least 64 x 64"):
        pycc.data.open("synthetic", shape=(8, 8))
