"""COCO: which point each annotation is, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.labelled import add_images

import pycc.data
from pycc.data.inspect import inspect

IMAGES = [{"id": "7", "file_name": "a.png"}, {"id": 8, "file_name": "b.png"}]
PERSON = {"id": 1, "name": "person", "keypoints": ["left_eye", "nose", "right_eye"]}


def write(root: Path, annotations: list[dict], *, images: list[dict] = IMAGES, **more) -> Path:
    add_images(root, "a.png", "b.png")
    rows = [{"id": n, "image_id": 8, "category_id": 1, **each}
            for n, each in enumerate(annotations)]  # fmt: skip
    content = {"images": images, "annotations": rows, "categories": [PERSON], **more}
    (root / "result.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize(
    ("annotation", "point"),
    [
        ({"bbox": [2, 3, 5, 4]}, [4.5, 5]),
        ({"bbox": ["2", "3.5", "0", "0"]}, [2, 3.5]),
        ({"keypoints": [1, 1, 2, 5, 6, 1, 9, 1, 2], "bbox": [0, 0, 30, 10]}, [5, 6]),
        ({"keypoints": [1, 1, 2, 0, 0, 0, 9, 2, 2], "bbox": [0, 0, 30, 10]}, [5, 1.5]),
        ({"keypoints": [0] * 9, "num_keypoints": 0, "bbox": [2, 3, 5, 4]}, [4.5, 5]),
        ({"keypoints": ["3.25", 4, 2], "category_id": 9}, [3.25, 4]),
    ],
)
def test_the_point_of_an_annotation(tmp_path: Path, annotation: dict, point: list) -> None:
    samples = pycc.data.open(write(tmp_path, [annotation]))
    assert [sample.points.tolist() for sample in samples] == [[], [point]]


@pytest.mark.parametrize(
    ("annotation", "problem"),
    [
        ({}, "annotation 1: expected a bbox or labelled keypoints"),
        ({"bbox": [1, 2, 3]}, "annotation 1: bbox must be 4 finite numbers, got [1, 2, 3]"),
        ({"bbox": [1, 2, 3, "x"]}, "annotation 1: bbox must be 4 finite numbers"),
        ({"bbox": [1, 2, float("nan"), 3]}, "annotation 1: bbox must be 4 finite numbers"),
        ({"bbox": {"x": 1}}, "annotation 1: bbox must be 4 finite numbers"),
        ({"keypoints": [1, 2]}, "annotation 1: keypoints must be 3 finite numbers each"),
        ({"keypoints": [0, 0, 0]}, "annotation 1: expected a bbox or labelled keypoints"),
    ],
)
def test_an_image_with_a_broken_annotation(tmp_path: Path, annotation: dict, problem: str) -> None:
    """It is refused whole: without the annotation its count would be wrong."""
    write(tmp_path, [{"bbox": [2, 3, 5, 4]}, annotation])
    with pytest.raises(ValueError, match=r"result\.json: image 'b\.png': ") as raised:
        pycc.data.open(tmp_path)
    assert problem in str(raised.value)
    with pytest.warns(UserWarning, match="skipped: "):
        assert pycc.data.open(tmp_path, on_error="skip").names == ["a"]


def test_ids(tmp_path: Path) -> None:
    box = {"bbox": [2, 3, 5, 4]}
    orphans = [{**box, "image_id": n} for n in (3, 4, 5, 6, None)]
    report = inspect(write(tmp_path, [box, *orphans, {**box, "image_id": "8"}]))
    (problem,) = report.splits[0].broken
    assert problem == (
        f"{tmp_path}/result.json: annotations of no image: annotation 1 (image_id 3), "
        "annotation 2 (image_id 4), annotation 3 (image_id 5) and 2 more"
    )
    assert [item.heads for item in report.splits[0].items] == [0, 2]
    write(tmp_path, [box], images=[*IMAGES, {"id": 8, "file_name": "c.png"}])
    with pytest.raises(ValueError, match=r"'b\.png' and 'c\.png' have the same id 8"):
        pycc.data.open(tmp_path)
    for image in ({"id": 9}, {"file_name": "c.png"}, {"id": 9, "file_name": 3}):
        write(tmp_path, [box], images=[*IMAGES, image])
        with pytest.raises(ValueError, match="expected id and file_name"):
            pycc.data.open(tmp_path)
    for content in ({"images": {}, "annotations": []}, {"images": [], "annotations": [1]}, []):
        text = json.dumps(content).replace("[]", '["images", "annotations"]')
        (tmp_path / "result.json").write_text(text)
        with pytest.raises(ValueError, match=r"result\.json: expected COCO's list of objects"):
            pycc.data.open(tmp_path)


def test_an_image_of_another_size_than_annotated(tmp_path: Path) -> None:
    """A turned or shrunk one: its points would lie elsewhere."""
    sizes = [{"width": 40, "height": 20}, {"width": 20, "height": 40}]
    images = [{**image, **size} for image, size in zip(IMAGES, sizes, strict=True)]
    samples = pycc.data.open(write(tmp_path, [], images=images))
    assert samples[0].count == 0
    message = (
        r"b\.png: has 40 x 20 pixels upright, but its annotation in .*result\.json is of 20 x 40"
    )
    for read in (samples.__getitem__, samples.points):
        with pytest.raises(ValueError, match=message):
            read(1)
    with pytest.warns(UserWarning, match=message):
        assert pycc.data.open(tmp_path, on_error="skip").names == ["a"]
    assert len(pycc.data.open(tmp_path, annotated=False)[1].image) == 3


@pytest.mark.parametrize("first", ["images", "annotations"])
def test_large_files_are_recognised(tmp_path: Path, first: str) -> None:
    """Their start and end do not show every key."""
    notes = "x" * (3 << 20)
    add_images(tmp_path, "a.png")
    lists = {
        "images": [{"file_name": "a.png", "id": 1, "notes": notes}],
        "annotations": [{"image_id": 1, "bbox": [1, 2, 2, 2], "notes": notes}],
    }
    other = {"images": "annotations", "annotations": "images"}[first]
    content = {first: lists[first], other: lists[other], "info": {}}
    (tmp_path / "large.json").write_text(json.dumps(content))
    assert [sample.count for sample in pycc.data.open(tmp_path)] == [1]


def test_groups_are_left_out_loudly(tmp_path: Path) -> None:
    write(tmp_path, [{"bbox": [2, 3, 5, 4]}, {"bbox": [0, 0, 30, 9], "iscrowd": 1}])
    with pytest.warns(UserWarning, match="left out 1 annotations of groups of unknown size"):
        assert pycc.data.open(tmp_path)[1].count == 1


@pytest.mark.parametrize(
    ("names", "counted", "message"),
    [
        (["car"], 1, ""),
        (["person", "car"], 1, "counts the label 'person'; left out 'car'"),
        (["person", "Head", "car"], 1, "counts the label 'Head'; left out 'car', 'person'"),
        (["adult", "child"], 2, "counts all labels as heads: 'adult', 'child'"),
    ],
)
def test_categories_in_use(tmp_path: Path, names: list[str], counted: int, message: str) -> None:
    categories = [{"id": n, "name": name} for n, name in enumerate([*names, "unused"])]
    rows = [{"bbox": [2, 3, 5, 4], "category_id": n} for n in range(len(names))]
    write(tmp_path, rows, categories=categories)
    if message:
        with pytest.warns(UserWarning, match=message):
            samples = pycc.data.open(tmp_path)
    else:
        samples = pycc.data.open(tmp_path)
    assert [sample.count for sample in samples] == [0, counted]
