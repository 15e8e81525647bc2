"""WorldExpo'10 in its published layout: scenes, and regions of interest."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import pycc.data
from pycc.data.dataset import data_fingerprint
from pycc.data.scaled import Scaled
from pycc.data.subset import Subset
from pycc.data.worldexpo import TEST_SCENES, polygon, read_points, read_region

SQUARE = [(2.0, 1.0), (10.0, 1.0), (10.0, 5.0), (2.0, 5.0)]
HEADS = [[2.0, 1.0], [9.9, 4.9], [10.0, 3.0], [5.0, 5.0], [0.5, 0.5]]
"""Two inside the square, three outside."""


def save_region(folder: Path, vertices: list[tuple[float, float]]) -> None:
    x, y = (np.array(values, np.float64)[:, None] for values in zip(*vertices, strict=True))
    scipy.io.savemat(
        folder / "roi.mat", {"maskVerticesXCoordinates": x, "maskVerticesYCoordinates": y}
    )


def add_frame(frames: Path, labels: Path, name: str, points: object) -> None:
    frames.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 10)).save(frames / f"{name}.jpg")
    content = {"point_position": points, "point_num": np.array([[len(np.atleast_1d(points))]])}
    scipy.io.savemat(labels / f"{name}.mat", content)


@pytest.fixture
def expo(tmp_path: Path) -> Path:
    """Two training scenes, five test scenes of two frames; the second frame of each is empty."""
    root = tmp_path / "worldexpo"
    for scene, number in (("100010", 2), ("104242", 1)):
        labels = root / "train_label" / scene
        for n in range(number):
            name = f"{scene}{'-_'[number - 1]}S2010.split.106_{n + 1}"
            add_frame(root / "train_frame", labels, name, np.array(HEADS))
        save_region(labels, SQUARE)
    for scene in TEST_SCENES:
        frames, labels = root / "test_frame" / scene, root / "test_label" / scene
        add_frame(frames, labels, f"{scene}_S2010_9", np.array(HEADS))
        add_frame(frames, labels, f"{scene}_S2010_10", np.zeros((0, 0)))
        save_region(labels, SQUARE)
    return root


def test_splits_and_scenes(expo: Path) -> None:
    train = pycc.data.open(expo, split="train")
    assert train.names == [
        "100010_S2010.split.106_1",
        "100010_S2010.split.106_2",
        "104242-S2010.split.106_1",
    ]
    everything = pycc.data.open(expo)
    assert everything.name == "worldexpo/test"
    assert len(everything) == 10
    seen = []
    for number, scene in enumerate(TEST_SCENES, start=1):
        part = pycc.data.open(expo, split=scene)
        assert part.names == [f"{scene}_S2010_9", f"{scene}_S2010_10"]
        assert part.name == pycc.data.open(expo, split=f"S{number}").name == f"worldexpo/{scene}"
        seen += part.names
    assert seen == everything.names
    with pytest.raises(ValueError, match=r"has splits train, test, 104207, .* got 'S6'"):
        pycc.data.open(expo, split="S6")
    shutil.rmtree(expo / "test_frame")
    for split in ("test", "S1"):
        with pytest.raises(ValueError, match="has splits train, got"):
            pycc.data.open(expo, split=split)


def test_only_heads_in_the_region_count(expo: Path) -> None:
    dataset = pycc.data.open(expo, split="S1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample = dataset[0]
    assert sample.points.tolist() == HEADS[:2]
    assert sample.roi is not None
    assert sample.roi.dtype == torch.bool
    assert sample.roi.shape == (10, 20)
    expected = torch.zeros(10, 20, dtype=torch.bool)
    expected[1:5, 2:10] = True
    assert torch.equal(sample.roi, expected)
    assert torch.equal(dataset.points(0), sample.points)
    empty = dataset[1]
    assert empty.count == 0
    assert empty.points.shape == (0, 2)
    assert empty.roi is not None


def test_the_scenes_are_the_groups(expo: Path) -> None:
    train, test = (pycc.data.open(expo, split=split) for split in ("train", "test"))
    assert train.groups == ["100010", "100010", "104242"]
    assert test.groups == [scene for scene in TEST_SCENES for _ in range(2)]
    assert test.origin == "worldexpo10"
    assert pycc.data.open(expo, split="S2").groups == ["200608", "200608"]
    assert pycc.data.open(expo, limit=3).groups == ["104207", "104207", "200608"]
    part = Subset(test, [9, 0])
    assert part.groups == ["500717", "104207"]
    assert Scaled(part, 0.5).groups == part.groups
    # Known without a look at a picture.
    (expo / "test_frame" / "200608" / "200608_S2010_9.jpg").write_bytes(b"broken")
    assert pycc.data.open(expo).groups == test.groups
    with pytest.warns(UserWarning, match="skipped"):
        assert pycc.data.open(expo, on_error="skip").groups == [*test.groups[:2], *test.groups[3:]]


def test_frames_without_annotation_keep_their_region(expo: Path) -> None:
    annotated = pycc.data.open(expo, split="S1")[0]
    for path in (expo / "test_label" / "104207").glob("*S2010*.mat"):
        path.unlink()
    with pytest.raises(ValueError, match="image without annotation"):
        pycc.data.open(expo, split="S1")
    dataset = pycc.data.open(expo, split="S1", annotated=False)
    sample = dataset[0]
    assert not sample.annotated
    assert sample.roi is not None
    assert annotated.roi is not None
    assert torch.equal(sample.roi, annotated.roi)
    scaled = Scaled(dataset, 0.5)[0]
    assert not scaled.annotated
    assert scaled.roi is not None
    assert int(scaled.roi.sum()) < int(sample.roi.sum())
    before = data_fingerprint(dataset)
    save_region(expo / "test_label" / "104207", SQUARE[:3])
    assert data_fingerprint(dataset) != before


def test_points_outside_the_image_are_reported(expo: Path) -> None:
    path = expo / "test_label" / "104207" / "104207_S2010_9.mat"
    scipy.io.savemat(path, {"point_position": np.array([*HEADS, [20.0, 3.0]])})
    dataset = pycc.data.open(expo, split="S1")
    with pytest.warns(UserWarning, match="dropped 1 of 6 points outside the image of 20 x 10"):
        assert dataset[0].count == 2


def test_the_fingerprint_follows_the_region(expo: Path) -> None:
    before = data_fingerprint(pycc.data.open(expo, split="S1"))
    assert data_fingerprint(pycc.data.open(expo, split="S1")) == before
    save_region(expo / "test_label" / "104207", SQUARE[:3])
    assert data_fingerprint(pycc.data.open(expo, split="S1")) != before


def test_what_is_missing_is_named(expo: Path) -> None:
    (expo / "train_label" / "104242" / "104242-S2010.split.106_1.mat").rename(
        expo / "train_label" / "100010" / "104242-S2010.split.106_1.mat"
    )
    with pytest.raises(ValueError, match=r"100010/104242-S.*: annotation without image"):
        pycc.data.open(expo, split="train")
    with pytest.warns(UserWarning, match="skipped") as warned:
        assert len(pycc.data.open(expo, split="train", on_error="skip")) == 2
    assert len(warned) == 2
    shutil.rmtree(expo / "test_label" / "200608")
    with pytest.raises(ValueError, match=r"200608_S2010_9\.jpg: image without annotation"):
        pycc.data.open(expo)
    shutil.rmtree(expo / "test_frame" / "200702")
    with pytest.raises(ValueError, match="200702: cannot read the folder"):
        pycc.data.open(expo, split="S3")


def test_a_scene_without_region_is_skipped_image_by_image(expo: Path) -> None:
    (expo / "test_label" / "202201" / "roi.mat").unlink()
    dataset = pycc.data.open(expo, split="S4")
    with pytest.raises(ValueError, match=r"202201/roi\.mat: cannot read the file"):
        dataset[0]
    with pytest.warns(UserWarning, match=r"skipped: .*202201/roi\.mat") as warned:
        assert len(pycc.data.open(expo, on_error="skip")) == 8
    assert len(warned) == 2


@pytest.mark.parametrize(
    ("x", "y", "problem"),
    [
        ([1.0, 2.0], [1.0, 2.0], "expected three vertices or more, got 2 x and 2 y"),
        ([1.0, 2.0, 3.0], [1.0, 2.0], "expected three vertices or more, got 3 x and 2 y"),
        ([1.0, 2.0, np.nan], [1.0, 2.0, 3.0], "maskVerticesXCoordinates must be finite"),
        ([1.0, 2.0, 3.0], "abc", "maskVerticesYCoordinates must be numbers"),
        ([30.0, 40.0, 40.0], [1.0, 1.0, 9.0], "covers no pixel of 20 x 10"),
        ([1.0, 5.0, 9.0], [1.0, 1.0, 1.0], "covers no pixel"),
    ],
)
def test_a_bad_region_is_refused(tmp_path: Path, x: object, y: object, problem: str) -> None:
    content = {"maskVerticesXCoordinates": x, "maskVerticesYCoordinates": y}
    scipy.io.savemat(tmp_path / "roi.mat", content)
    with pytest.raises(ValueError, match=rf"roi\.mat: .*{problem}"):
        read_region(tmp_path / "roi.mat", 10, 20)


def test_bad_points_are_named(tmp_path: Path) -> None:
    for content in ({"other": 1.0}, {"point_position": np.ones((2, 3))}):
        scipy.io.savemat(tmp_path / "1.mat", content)
        with pytest.raises(ValueError, match=r"1\.mat: point_position must be N x 2 numbers"):
            read_points(tmp_path / "1.mat")


def test_pixels_belong_by_their_centre() -> None:
    region = polygon(np.array([(0.6, 0.4), (3.4, 0.4), (3.4, 2.6), (0.6, 2.6)]), 4, 5)
    expected = np.zeros((4, 5), bool)
    expected[0:3, 1:3] = True
    assert np.array_equal(region, expected)
    everything = polygon(np.array([(-9.0, -9.0), (50.0, -9.0), (50.0, 50.0), (-9.0, 50.0)]), 4, 5)
    assert everything.all()


corner = st.tuples(st.floats(-5, 25), st.floats(-5, 15))


@given(corner, corner, corner)
def test_a_triangle_is_the_cut_of_three_half_planes(a, b, c) -> None:
    rows, columns = np.mgrid[:10, :20] + 0.5
    sides = [
        (q[0] - p[0]) * (rows - p[1]) - (q[1] - p[1]) * (columns - p[0])
        for p, q in ((a, b), (b, c), (c, a))
    ]
    inside = np.all([side > 0 for side in sides], 0) | np.all([side < 0 for side in sides], 0)
    clear = np.all([np.abs(side) > 1e-6 for side in sides], 0)
    region = polygon(np.array([a, b, c]), 10, 20)
    assert np.array_equal(region[clear], inside[clear])


@given(corner, corner, corner, corner)
def test_turned_or_closed_it_is_the_same_polygon(a, b, c, d) -> None:
    region = polygon(np.array([a, b, c, d]), 10, 20)
    assert np.array_equal(region, polygon(np.array([c, d, a, b]), 10, 20))
    closed = polygon(np.array([a, b, c, d, a]), 10, 20)
    assert np.array_equal(region, closed)
