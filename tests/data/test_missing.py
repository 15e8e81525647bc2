"""Folders that are nearly a data set: what the error names, and what is opened after all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import scipy.io
from PIL import Image

import pycc.data


def add(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (20, 10)).save(folder / name)
    return folder


def problem(root: Path, **options: str) -> str:
    with pytest.raises(ValueError, match=r"\S") as raised:
        pycc.data.open(root, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_the_files_that_were_looked_for(tmp_path: Path) -> None:
    add(tmp_path, "a.jpg")
    text = problem(tmp_path)
    assert text == (
        f"{tmp_path}/a.jpg: image without annotation, expected a.csv or a.json in {tmp_path}; "
        "to count or attack the images alone use annotated=False (--unannotated)"
    )
    (tmp_path / "points").mkdir()
    assert f"expected a.csv or a.json in {tmp_path} or {tmp_path}/points" in problem(tmp_path)


@pytest.mark.parametrize(
    "name", ["a.npz", "a.mat", "a.xml", "GT_a.mat", "a.jpg.csv", "points/a.mat"]
)
def test_annotation_of_another_format(tmp_path: Path, name: str) -> None:
    add(tmp_path, "a.jpg")
    (tmp_path / "points").mkdir()
    (tmp_path / name).write_text("")
    assert f"; {tmp_path / name} is there, but is not of this name and format" in problem(tmp_path)


def test_a_coco_file_beside_the_folder_of_images(tmp_path: Path) -> None:
    images = add(tmp_path / "images", "a.jpg")
    (tmp_path / "annotations").mkdir()
    content = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []}
    (tmp_path / "annotations" / "train.json").write_text(json.dumps(content))
    assert f"; {tmp_path} is laid out as coco: open that folder" in problem(images)
    assert [sample.count for sample in pycc.data.open(tmp_path)] == [0]


def test_points_beside_the_folder_of_images(tmp_path: Path) -> None:
    images = add(tmp_path / "images", "a.jpg")
    (tmp_path / "points").mkdir()
    (tmp_path / "points" / "a.csv").write_text("1,2\n3,4\n")
    text = problem(images)
    assert f"{tmp_path}/points/a.csv lies beside the folder: open {tmp_path}" in text
    assert [sample.count for sample in pycc.data.open(tmp_path)] == [2]
    images.rename(tmp_path / "photos")
    assert f"{tmp_path}/points/a.csv is there, but is not looked for" in problem(
        tmp_path / "photos"
    )


def test_a_folder_inside_a_published_layout(tmp_path: Path) -> None:
    split = tmp_path / "part_A" / "test_data"
    images = add(split / "images", "IMG_1.jpg")
    (split / "ground-truth").mkdir()
    (split / "ground-truth" / "GT_IMG_1.mat").touch()
    assert f"; {split} is laid out as shanghaitech: open that folder" in problem(images)


def test_published_layouts_name_their_files(tmp_path: Path) -> None:
    add(tmp_path, "1.jpg", "2.jpg")
    scipy.io.savemat(tmp_path / "1_ann.mat", {"annPoints": [[1.0, 2.0]]})
    (tmp_path / "2.csv").write_text("1,2")
    assert problem(tmp_path, split="all").startswith(
        f"{tmp_path}/2.jpg: image without annotation, expected 2_ann.mat in {tmp_path}; "
        f"{tmp_path}/2.csv is there, but is not of this name and format; to count"
    )


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    root = tmp_path / "ShanghaiTech"
    for part in ("part_A", "part_B"):
        for split in ("train_data", "test_data"):
            add(root / part / split / "images", "IMG_1.jpg")
            (root / part / split / "ground-truth").mkdir()
            (root / part / split / "ground-truth" / "GT_IMG_1.mat").touch()
    return root


def test_the_parent_of_data_sets_names_them(parts: Path) -> None:
    (parts / "annotation_alone" / "train_data" / "ground-truth").mkdir(parents=True)
    sets = "part_A (shanghaitech), part_B (shanghaitech)"
    assert problem(parts) == f"{parts}: open one of the data sets in it: {sets}"
    deep = ", ".join(f"{parts.name}/{name}" for name in sets.split(", "))
    assert problem(parts.parent).endswith(f"open one of the data sets in it: {deep}")
    add(parts / "own", "a.png")
    (parts / "own" / "a.csv").write_text("1,2")
    assert [sample.count for sample in pycc.data.open(parts, split="own")] == [1]
    assert problem(parts, split="test").endswith(
        f"has splits own, got 'test'; open one of the data sets in it: {sets}"
    )


def test_a_labelling_tools_folder(tmp_path: Path) -> None:
    """images/, jsons/ and marks/, but no list of a split: not NWPU-Crowd."""
    add(tmp_path / "images", "0001.jpg", "0002.jpg")
    add(tmp_path / "marks", "0001.png")
    (tmp_path / "jsons").mkdir()
    for name in ("0001", "0002"):
        (tmp_path / "jsons" / f"{name}.json").write_text('{"points": [[1, 2]]}')
    assert [sample.count for sample in pycc.data.open(tmp_path)] == [1, 1]
    (tmp_path / "jsons" / "0002.json").write_text('{"heads": []}')
    dataset = pycc.data.open(tmp_path)
    with pytest.raises(ValueError, match=r"0002\.json: expected a list of \[x, y\]"):
        dataset[1]
    alone = pycc.data.open(tmp_path, annotated=False)
    assert alone.names == ["0001", "0002"]
    assert alone.origin == ""
    assert not alone[1].annotated
    (tmp_path / "train.txt").write_text("0001 1 1\n")
    assert pycc.data.open(tmp_path, split="train").origin == "nwpu"


@pytest.mark.parametrize("folder", ["gt", "train_frame", "ground_truth"])
def test_a_name_alone_is_no_layout(tmp_path: Path, folder: str) -> None:
    add(tmp_path / "images", "a.jpg")
    (tmp_path / "images" / "a.csv").write_text("1,2\n")
    add(tmp_path / folder, "drawn.png")
    dataset = pycc.data.open(tmp_path)
    assert (dataset.origin, dataset.names, dataset[0].count) == ("", ["a"], 1)


def test_splits_may_hold_images_and_points(tmp_path: Path) -> None:
    for split, heads in (("train", 1), ("test", 2)):
        add(tmp_path / split / "images", "a.jpg")
        (tmp_path / split / "points").mkdir()
        (tmp_path / split / "points" / "a.csv").write_text("1,2\n" * heads)
    for split, heads in (("train", 1), ("test", 2)):
        assert [sample.count for sample in pycc.data.open(tmp_path, split=split)] == [heads]
