"""The folders of the crowd labeller."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.labelled import add_images

import pycc.data
from pycc.data.inspect import inspect

BOX = {"sx": 2, "sy": 3, "ex": 7, "ey": 7}


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Two images; the first with a point and a box, the second with nobody."""
    add_images(tmp_path / "images", "1.jpg", "2.jpg")
    for name, points, boxes in (("1", [{"x": 1.5, "y": "2"}], [BOX]), ("2", [], [])):
        write(tmp_path, name, img_id=f"{name}.jpg", human_num=len(points + boxes), boxes=boxes,
              points=points)  # fmt: skip
        (tmp_path / "marks").mkdir(exist_ok=True)
        (tmp_path / "marks" / f"{name}.json").write_text(json.dumps([1] * 256))
    return tmp_path


def write(root: Path, name: str, **content: object) -> None:
    (root / "jsons").mkdir(exist_ok=True)
    (root / "jsons" / f"{name}.json").write_text(json.dumps(content))


def test_points_and_boxes_are_people(labelled: Path) -> None:
    samples = pycc.data.open(labelled)
    assert samples[0].points.tolist() == [[1.5, 2], [4.5, 5]]
    assert samples[1].points.shape == (0, 2)
    report = inspect(labelled)
    assert (report.layout, report.intact) == ("cclabeler", True)


def test_boxes_of_the_points_are_not_counted_twice(labelled: Path) -> None:
    """As NWPU-Crowd, which was labelled with this tool, has them."""
    write(labelled, "1", img_id="1.jpg", human_num=1, points=[[3, 4]], boxes=[[2, 3, 4, 5]])
    assert pycc.data.open(labelled)[0].points.tolist() == [[3, 4]]


def test_the_tools_own_picture_is_left_out_loudly(labelled: Path) -> None:
    add_images(labelled / "images", "default.jpg")
    with pytest.warns(UserWarning, match=r"left out default\.jpg, which the labeller shows"):
        assert pycc.data.open(labelled).names == ["1", "2"]
    write(labelled, "default", points=[])
    assert pycc.data.open(labelled).names == ["1", "2", "default"]


def test_incomplete_images_are_named(labelled: Path) -> None:
    marks = labelled / "marks" / "1.json"
    marks.write_text(json.dumps([1] * 6 + [0] * 250))
    samples = pycc.data.open(labelled)
    with pytest.warns(UserWarning, match=r"1\.json: incomplete: 6 of 256 blocks are marked"):
        assert samples[0].count == 2
    marks.write_text("[0, 0]")  # this labeller does not use marks
    assert samples[0].count == 2
    marks.write_text("{}")
    with pytest.raises(ValueError, match=r"marks/1\.json: expected a list of 256"):
        samples[0]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"points": {}}, r"1\.json: expected {\"points\": "),
        ({"points": [], "boxes": {"a": 1}}, r"1\.json: boxes must be a list"),
        ({"points": [], "boxes": [{"sx": 1}]}, r"1\.json: box 1: expected numbers sx, sy, ex, ey"),
        ({"points": [{"x": 1}]}, r"1\.json: point 1: expected \[x, y\]"),
    ],
)
def test_what_is_broken_is_named(labelled: Path, content: dict, problem: str) -> None:
    write(labelled, "1", img_id="1.jpg", **content)
    with pytest.raises(ValueError, match=problem):
        pycc.data.open(labelled)[0]
