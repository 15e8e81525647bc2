"""labelme's files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.labelled import add_images

import pycc.data
from pycc.data.inspect import inspect


def write(root: Path, shapes: object, **more: object) -> Path:
    add_images(root, "a.png")
    content = {"version": "5.4.1", "shapes": shapes, "imagePath": "a.png", **more}
    (root / "a.json").write_text(json.dumps(content))
    return root


def shape(points: object, kind: str | None = "point", label: str = "p") -> dict:
    return {"label": label, "points": points, "shape_type": kind}


def test_shapes(tmp_path: Path) -> None:
    corners = [[2, 3], [7, 3], [7, 7], [2, 7]]
    shapes = [
        shape([[1.5, "2"]]), shape([[3, 4]], None), shape([[1, 1], [2, 2]], "points"),
        shape(corners[::2], "rectangle"), shape(corners, "rectangle"),
        shape([[5, 6], [9, 9]], "circle"),
    ]  # fmt: skip
    expected = [[1.5, 2], [3, 4], [1, 1], [2, 2], [4.5, 5], [4.5, 5], [5, 6]]
    (sample,) = pycc.data.open(write(tmp_path, shapes))
    assert sample.points.tolist() == expected
    assert inspect(tmp_path).layout == "labelme"
    (sample,) = pycc.data.open(write(tmp_path, []))
    assert sample.points.shape == (0, 2)


@pytest.mark.parametrize("path", ["/etc/hostname", "../secret.png", "C:\\a.png", 3])
def test_the_path_of_the_image_is_not_followed(tmp_path: Path, path: object) -> None:
    add_images(tmp_path, "secret.png", size=(50, 30))
    (sample,) = pycc.data.open(write(tmp_path / "in", [shape([[1, 2]])], imagePath=path))
    assert (sample.name, list(sample.image.shape), sample.count) == ("a", [3, 20, 40], 1)


@pytest.mark.parametrize(
    ("shapes", "problem"),
    [
        ({}, "expected labelme's list of shapes"),
        ([1], "shape 1: expected an object"),
        ([shape([[1, 2]]), shape([[1, 2]] * 3, "polygon")], "shape 2: expected one of point, "),
        ([shape([[1, 2], [3, 4]])], "shape 1: expected one point, got 2"),
        ([shape([])], "shape 1: expected a list of points"),
        ([shape([[1]])], "shape 1: point 1: expected [x, y], got [1]"),
        ([shape([[1, float("inf")]])], "shape 1: point 1 must be finite"),
    ],
)
def test_what_is_no_head_is_refused(tmp_path: Path, shapes: object, problem: str) -> None:
    samples = pycc.data.open(write(tmp_path, shapes))
    with pytest.raises(ValueError, match=r"a\.json: ") as raised:
        samples[0]
    assert str(raised.value).count("a.json") == 1
    assert problem in str(raised.value)


def test_labels(tmp_path: Path) -> None:
    write(tmp_path, [shape([[1, 2]], label="head"), shape([[3, 4]], label="bag")])
    with pytest.warns(UserWarning, match=r"a\.json: counts the label 'head'; left out 'bag'"):
        assert pycc.data.open(tmp_path)[0].count == 1
