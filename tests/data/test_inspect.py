"""What ``pycc.data.inspect`` finds: figures, all that is broken, images that are there twice."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from pycc.data.inspect import Report, inspect, table


def picture(seed: int, size: tuple[int, int] = (20, 10)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def add(folder: Path, name: str, seed: int, heads: int, size: tuple[int, int] = (20, 10)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    picture(seed, size).save(folder / f"{name}.png")
    (folder / f"{name}.json").write_text(json.dumps([[1.5, 2.5]] * heads))


@pytest.fixture
def crowd(tmp_path: Path) -> Path:
    """Three training images, two for testing, all different."""
    root = tmp_path / "crowd"
    add(root / "train", "a1", 1, 4)
    add(root / "train", "a2", 2, 0, size=(30, 8))
    add(root / "train", "a10", 3, 7)
    add(root / "test", "b1", 4, 2)
    add(root / "test", "b2", 5, 5)
    return root


def inspected(root: Path, **options) -> Report:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return inspect(root, **options)


def test_the_figures(crowd: Path) -> None:
    picture(1).convert("L").save(crowd / "train" / "a1.png")
    (crowd / "train" / "a10.json").write_text("[[1, 2], [20, 5], [-1, 3], [4, 4]]")
    report = inspected(crowd)
    assert report.intact
    assert report.layout == "folder"
    assert report.json() == {
        "path": str(crowd),
        "layout": "folder",
        "splits": {
            "test": {
                "images": 2,
                "heads": {"total": 7, "median": 3.5, "min": 2, "max": 5},
                "width": {"min": 20, "max": 20},
                "height": {"min": 10, "max": 10},
                "grey": 0,
                "without_heads": 0,
                "points_outside": 0,
                "with_region": 0,
                "broken": [],
                "not_annotated": None,
            },
            "train": {
                "images": 3,
                "heads": {"total": 6, "median": 2, "min": 0, "max": 4},
                "width": {"min": 20, "max": 30},
                "height": {"min": 8, "max": 10},
                "grey": 1,
                "without_heads": 1,
                "points_outside": 2,
                "with_region": 0,
                "broken": [],
                "not_annotated": None,
            },
        },
        "identical": [],
        "intact": True,
    }


def test_the_table(crowd: Path) -> None:
    lines = table(inspected(crowd)).splitlines()
    assert lines[0] == f"{crowd}, layout folder"
    assert lines[1].split() == ["test", "train"]
    cells = {line[:23].strip(): line[23:].split() for line in lines[2:-1]}
    assert cells["images"] == ["2", "3"]
    assert cells["heads"] == ["7", "11"]
    assert cells["heads per image"] == ["2…5", "0…7"]
    assert cells["width"] == ["20", "20…30"]
    assert lines[-1] == "verdict: intact"


def test_the_same_pixels_in_another_file_are_a_leak(crowd: Path) -> None:
    picture(3).save(crowd / "test" / "b2.bmp")  # pixels of train a10, other bytes
    (crowd / "test" / "b2.png").unlink()
    report = inspected(crowd)
    assert report.identical == [[("test", "b2"), ("train", "a10")]]
    assert not report.intact
    assert "leak: test b2 = train a10" in table(report)
    assert inspected(crowd, split="train").intact
    turned = picture(3).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    turned.save(crowd / "test" / "b2.bmp")
    assert inspected(crowd).intact


def test_pixels_of_another_shape_are_another_image(tmp_path: Path) -> None:
    for name, size in (("a", (8, 4)), ("b", (4, 8))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.json").write_text("[]")
    assert inspected(tmp_path).intact


def test_an_image_twice_in_one_split(crowd: Path) -> None:
    add(crowd / "train", "a11", 1, 9)
    add(crowd / "train", "a12", 1, 9)
    report = inspected(crowd)
    assert report.identical == [[("train", "a1"), ("train", "a11"), ("train", "a12")]]
    assert "repeated: train a1 = train a11 = train a12" in table(report)
    assert table(report).endswith("verdict: 0 broken, 1 more than once")


def test_all_that_is_broken_is_named(crowd: Path) -> None:
    train = crowd / "train"
    intact = (train / "a1.png").read_bytes()
    (train / "a1.png").write_bytes(intact[:-30])
    (train / "a2.json").write_text("[[1]]")
    (train / "a9.json").write_text("[]")
    (crowd / "test" / "b1.json").unlink()
    report = inspected(crowd)
    test, train_split = report.splits
    assert [problem.split("/")[-1].split(":")[0] for problem in train_split.broken] == [
        "a9.json",
        "a1.png",
        "a2.json",
    ]
    assert [item.name for item in train_split.items] == ["a10"]
    assert len(test.broken) == 1
    assert "b1.png: image without annotation" in test.broken[0]
    text = table(report)
    assert text.count("\nbroken: ") == 4
    assert text.endswith("verdict: 4 broken, 0 more than once")


def test_nothing_whole_has_no_figures(crowd: Path) -> None:
    for path in (crowd / "test").glob("*.json"):
        path.write_text("?")
    report = inspected(crowd, split="test")
    assert report.splits[0].json()["heads"] == {
        "total": 0,
        "median": None,
        "min": None,
        "max": None,
    }
    lines = [line.split() for line in table(report).splitlines()]
    assert ["heads", "per", "image", "-"] in lines
    assert ["median", "-"] in lines


def test_a_split_that_cannot_be_opened_is_broken_unless_it_is_the_only_one(tmp_path: Path) -> None:
    info = np.empty((1, 1), object)
    info[0, 0] = {"location": np.ones((3, 2)), "number": 3.0}
    for split in ("train", "test"):
        folder = tmp_path / f"{split}_data"
        for name in ("images", "ground-truth"):
            (folder / name).mkdir(parents=True)
        picture(len(split)).save(folder / "images" / "IMG_1.png")
        scipy.io.savemat(folder / "ground-truth" / "GT_IMG_1.mat", {"image_info": info})
    assert inspected(tmp_path).intact
    (tmp_path / "test_data" / "ground-truth").rename(tmp_path / "test_data" / "truth")
    report = inspected(tmp_path)
    assert [len(split.items) for split in report.splits] == [1, 0]
    assert "test_data: expected ground-truth or ground_truth" in report.splits[1].broken[0]
    with pytest.raises(ValueError, match="test_data: expected ground-truth"):
        inspected(tmp_path, split="test")


def test_a_split_without_annotation_is_not_broken(tmp_path: Path) -> None:
    for folder in ("images", "jsons"):
        (tmp_path / folder).mkdir()
    for number, split in enumerate(("train", "test"), start=1):
        picture(number).save(tmp_path / "images" / f"{number}.png")
        (tmp_path / f"{split}.txt").write_text(f"{number} 0 0\n")
    (tmp_path / "jsons" / "1.json").write_text('{"points": [[1, 1]]}')
    report = inspected(tmp_path)
    assert report.intact
    assert report.layout == "nwpu"
    assert "not annotated: test: " in table(report)
    assert "test.txt: none of its images" in str(report.splits[1].json()["not_annotated"])
    with pytest.raises(ValueError, match="none of its images has an annotation"):
        inspected(tmp_path, split="test")


def test_regions_are_reported_and_folds_are_no_leak(tmp_path: Path) -> None:
    expo, fifty = tmp_path / "expo", tmp_path / "fifty"
    (expo / "train_label" / "100010").mkdir(parents=True)
    (expo / "train_frame").mkdir()
    for n in (1, 2):
        picture(n).save(expo / "train_frame" / f"100010_{n}.png")
        points = {"point_position": np.array([[3.0, 3.0], [15.0, 3.0], [99.0, 3.0]])}
        scipy.io.savemat(expo / "train_label" / "100010" / f"100010_{n}.mat", points)
    corners = {"maskVerticesXCoordinates": [0, 9, 9], "maskVerticesYCoordinates": [0, 0, 9.0]}
    scipy.io.savemat(expo / "train_label" / "100010" / "roi.mat", corners)
    (split,) = inspected(expo).splits
    assert [(item.heads, item.outside, item.region) for item in split.items] == [(1, 1, True)] * 2
    fifty.mkdir()
    for n in range(1, 51):
        picture(n).save(fifty / f"{n}.png")
        scipy.io.savemat(fifty / f"{n}_ann.mat", {"annPoints": np.ones((n, 2))})
    report = inspected(fifty)
    assert [split.name for split in report.splits] == ["all"]
    assert report.intact


def test_what_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file or folder"):
        inspected(tmp_path / "none")
    with pytest.raises(ValueError, match="the folder is empty"):
        inspected(tmp_path)
    for folder in ("images", "jsons"):
        (tmp_path / folder).mkdir()
    with pytest.raises(ValueError, match="neither images nor a known layout"):
        inspected(tmp_path)


def test_progress_reaches_the_total(crowd: Path) -> None:
    (crowd / "train" / "a1.json").write_text("?")
    calls: list[tuple[float, float]] = []
    inspect(crowd, progress=lambda done, total, label: calls.append((done, total)))
    assert calls == [(n, 5) for n in range(1, 6)]


@pytest.mark.long
def test_the_known_leak_and_the_published_figures(shared: Path) -> None:
    report = inspected(shared / "data" / "shanghaitech" / "part_A")
    assert report.identical == [[("train", "IMG_121"), ("test", "IMG_98")]]
    train, test = report.splits
    assert not train.broken
    assert not test.broken
    assert sum(item.heads for item in (*train.items, *test.items)) == 162_413 + 78_862
    fifty = inspected(shared / "data" / "ucf_cc_50")
    assert fifty.intact
    assert fifty.splits[0].json()["points_outside"] == 5
    assert fifty.splits[0].json()["grey"] == 50
