"""Files of one image's points: arrays, text, and the folders that they may lie in."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from support.labelled import add_images

import pycc.data
from pycc.data.folder import has_annotations
from pycc.data.inspect import inspect
from pycc.data.points import read_points


@pytest.mark.parametrize("folder", ["points", "labels", "annotations", "jsons"])
@pytest.mark.parametrize(
    ("name", "text", "layout"),
    [
        ("a.csv", "y,x\n2,1\n", "folder"),
        ("a.json", '[["1", 2.0]]', "folder"),
        ("a.json", '{"shapes": [{"points": [[1, 2]], "shape_type": "point"}]}', "labelme"),
        ("a.json", '{"img_id": "a.jpg", "points": [{"x": 1, "y": 2}]}', "cclabeler"),
        ("a.txt", "1.0 2.0\n", "p2pnet"),
    ],
)
def test_folders_of_points(tmp_path: Path, folder: str, name: str, text: str, layout: str) -> None:
    add_images(tmp_path / "images", "a.png")
    for where in (tmp_path, tmp_path / "images"):
        (where / folder).mkdir()
        (where / folder / name).write_text(text)
        (where / folder / "classes.txt").write_text("head\n")
        assert pycc.data.open(tmp_path)[0].points.tolist() == [[1, 2]]
        assert inspect(tmp_path).layout == layout
        assert has_annotations(tmp_path, "all")
        (where / folder / name).unlink()
        assert not has_annotations(tmp_path, "all")
    (where / folder / "b.txt").write_text("1 2\n")
    with pytest.raises(ValueError, match=r"a\.png: image without annotation"):
        pycc.data.open(tmp_path)
    (where / folder / "a.txt").write_text("1 2\n")
    with pytest.raises(ValueError, match=r"b\.txt: annotation without image"):
        pycc.data.open(tmp_path)


def test_text_and_arrays_are_points_where_nothing_surer_is(tmp_path: Path) -> None:
    add_images(tmp_path, "a.png", "b.png", "c.png")
    (tmp_path / "a.csv").write_text("1,2\n")
    (tmp_path / "a.txt").write_text("a caption\n")
    np.save(tmp_path / "a.npy", np.ones((20, 40)))  # a density map
    (tmp_path / "b.txt").write_text("")
    np.save(tmp_path / "c.npy", np.array([[1.5, 2], [3, 4]], np.float32))
    (tmp_path / "notes.txt").write_text("no points")
    (tmp_path / "b.npy").mkdir()
    assert [sample.count for sample in pycc.data.open(tmp_path)] == [1, 0, 2]
    assert inspect(tmp_path).layout == "npy, p2pnet"
    (tmp_path / "b.npy").rmdir()
    (tmp_path / "b.npy").write_bytes((tmp_path / "c.npy").read_bytes())
    with pytest.raises(ValueError, match=r"b\.txt: one file expected per name"):
        pycc.data.open(tmp_path)


def test_other_text_and_arrays_beside_images_are_no_points(tmp_path: Path) -> None:
    """Captions, density maps and YOLO's boxes: the images are then not annotated."""
    add_images(tmp_path, "a.png", "b.png", "c.png")
    (tmp_path / "a.txt").write_text("a caption of two lines\nof words\n")
    (tmp_path / "c.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    np.save(tmp_path / "b.npy", np.ones((20, 40)))
    assert not has_annotations(tmp_path, "all")
    with pytest.raises(ValueError, match=r"a\.txt is there, but is not of this name and format"):
        pycc.data.open(tmp_path)
    (tmp_path / "labels").mkdir()
    for name in "abc":
        (tmp_path / "labels" / f"{name}.txt").write_text("0 0.5 0.5 0.1 0.1\n" * 2)
    with pytest.raises(ValueError, match=r"labels/a\.txt: five columns, as YOLO's boxes, which"):
        pycc.data.open(tmp_path)[0]


@pytest.mark.parametrize(
    ("array", "points"),
    [
        (np.array([[1, 2], [3, 4]], np.int16), [[1, 2], [3, 4]]),
        (np.array([[1, 2, 9.5]]), [[1, 2]]),
        (np.array([["1", "2.5"]]), [[1, 2.5]]),
        (np.zeros((0, 2)), []),
        (np.array([]), []),
    ],
)
def test_arrays(tmp_path: Path, array: np.ndarray, points: list) -> None:
    np.save(tmp_path / "a.npy", array)
    read = read_points(tmp_path / "a.npy")
    assert (read.tolist(), read.dtype, read.shape[1]) == (points, np.float64, 2)


class Trap:
    """An object that would write a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def saved(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (saved(np.ones((20, 40))), "expected an array of N x 2 numbers (x, y), got 20 x 40"),
        (saved(np.float64(3)), "expected an array of N x 2 numbers (x, y), got one number"),
        (saved(np.array([[1, np.nan]])), "point 1 must be finite"),
        (saved(np.array([["1", "two"]])), "expected numbers: "),
        (saved(np.array([[True, False]])), "expected an array of N x 2 numbers"),
        (saved(np.ones((3, 2)))[:-9], "cannot read the .npy file: "),
        (b"", "cannot read the .npy file: "),
        (b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999, "
         b"99999), }" + b" " * 32 + b"\n", "cannot read the .npy file: "),
    ],
)  # fmt: skip
def test_other_arrays_are_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npy: ") as raised:
        read_points(tmp_path / "a.npy")
    assert problem in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("dumps", [pickle.dumps, lambda trap: saved(np.array([[trap]]))])
def test_nothing_is_unpickled(tmp_path: Path, dumps) -> None:
    target = tmp_path / "written"
    (tmp_path / "a.npy").write_bytes(dumps(Trap(target)))
    with pytest.raises(ValueError, match=r"a\.npy: cannot read the \.npy file: .*allow_pickle"):
        read_points(tmp_path / "a.npy")
    assert not target.exists()
