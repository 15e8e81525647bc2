"""VIA: its shapes, its project, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.labelled import add_images

import pycc.data


def write(root: Path, shapes: list[object], *, project: bool = True) -> Path:
    add_images(root, "a.png", "b.png")
    regions = [{"shape_attributes": shape, "region_attributes": {}} for shape in shapes]
    images = {
        "a.png-1": {"filename": "a.png", "size": -1, "regions": {}, "file_attributes": {}},
        "b.png-1": {"filename": "b.png", "size": -1, "regions": regions, "file_attributes": {}},
    }
    content = {"_via_settings": {}, "_via_img_metadata": images} if project else images
    (root / "via.json").write_text(json.dumps(content))
    return root


SHAPES = [
    ({"name": "point", "cx": 3, "cy": "4.5"}, [3, 4.5]),
    ({"name": "rect", "x": 2, "y": 3, "width": 5, "height": 4}, [4.5, 5]),
    ({"name": "circle", "cx": 3, "cy": 4, "r": 9.5}, [3, 4]),
    ({"name": "ellipse", "cx": 3, "cy": 4, "rx": 9.5, "ry": 2}, [3, 4]),
]


@pytest.mark.parametrize("project", [True, False])
def test_shapes(tmp_path: Path, project: bool) -> None:
    write(tmp_path, [shape for shape, _ in SHAPES], project=project)
    samples = pycc.data.open(tmp_path)
    assert [sample.count for sample in samples] == [0, 4]
    assert samples[1].points.tolist() == [point for _, point in SHAPES]


def test_an_image_that_occurs_twice(tmp_path: Path) -> None:
    write(tmp_path, [])
    text = (tmp_path / "via.json").read_text().replace("a.png-1", "b.png-1")
    (tmp_path / "via.json").write_text(text)
    with pytest.raises(ValueError, match=r"via\.json: .*the key 'b\.png-1' occurs twice"):
        pycc.data.open(tmp_path)


def test_regions_of_version_1(tmp_path: Path) -> None:
    write(tmp_path, [], project=False)
    content = json.loads((tmp_path / "via.json").read_text())
    content["b.png-1"]["regions"] = {"0": {"shape_attributes": SHAPES[0][0]}}
    (tmp_path / "via.json").write_text(json.dumps(content))
    assert [sample.count for sample in pycc.data.open(tmp_path)] == [0, 1]


@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        ({"name": "polygon", "all_points_x": [1]}, "expected point, rect, circle or ellipse, got"),
        ({"name": "point", "cx": 3}, "point without 'cy'"),
        ({"name": "point", "cx": 3, "cy": None}, "not a number"),
        ({"name": "point", "cx": 3, "cy": "nan"}, "must be finite"),
        (None, "expected an object"),
    ],
)
def test_an_image_with_a_shape_that_is_no_head(tmp_path: Path, shape: object, problem: str) -> None:
    write(tmp_path, [SHAPES[0][0], shape])
    message = rf"via\.json: image 'b\.png': region 2: {problem}"
    with pytest.raises(ValueError, match=message):
        pycc.data.open(tmp_path)
    with pytest.warns(UserWarning, match=message):
        assert pycc.data.open(tmp_path, on_error="skip").names == ["a"]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ('b.png,1,"{""name"": ""point"""', "line 2: region_shape_attributes is not JSON"),
        ("b.png", "line 2: expected 3 cells with a filename"),
        (',1,"{}"', "line 2: expected 3 cells with a filename"),
        ('b.png,1,"[1]"', "image 'b.png': region 1: expected an object"),
    ],
)
def test_broken_rows(tmp_path: Path, row: str, problem: str) -> None:
    add_images(tmp_path, "b.png")
    header = "filename,file_size,region_shape_attributes"
    (tmp_path / "via.csv").write_text(f"{header}\n{row}\n")
    with pytest.raises(ValueError, match=r"via\.csv: ") as raised:
        pycc.data.open(tmp_path)
    assert problem in str(raised.value)
