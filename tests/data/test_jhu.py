"""JHU-Crowd++ in its published layout."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

import pycc.data
from pycc.data.jhu import read_points


@pytest.fixture
def jhu(tmp_path: Path) -> Path:
    root = tmp_path / "jhu_crowd_v2.0"
    for split, numbers in (("train", (1, 2, 10)), ("val", (3,)), ("test", (4, 5))):
        for folder in ("images", "gt"):
            (root / split / folder).mkdir(parents=True)
        (root / split / "image_labels.txt").write_text("0001,2,marathon,0,0\n")
        for number in numbers:
            Image.new("RGB", (20, 10)).save(root / split / "images" / f"{number:04d}.jpg")
            lines = "12 7 30 32 1 0\n" * (number - 1)
            (root / split / "gt" / f"{number:04d}.txt").write_text(lines)
    return root


def test_splits_and_one_of_them(jhu: Path) -> None:
    train = pycc.data.open(jhu, split="train")
    assert train.name == "jhu_crowd_v2.0/train"
    assert train.names == ["0001", "0002", "0010"]
    assert [sample.count for sample in train] == [0, 1, 9]
    assert train[1].points.tolist() == [[12.0, 7.0]]
    assert train[0].points.shape == (0, 2)
    assert pycc.data.open(jhu).names == ["0004", "0005"]
    assert pycc.data.open(jhu / "val", split="test").names == ["0003"]
    with pytest.raises(ValueError, match="has splits train, val, test, got 'all'"):
        pycc.data.open(jhu, split="all")
    shutil.rmtree(jhu / "test")
    with pytest.raises(ValueError, match="has splits train, val, got 'test'"):
        pycc.data.open(jhu)


def test_a_split_without_annotation_is_reported(jhu: Path) -> None:
    for path in (jhu / "test" / "gt").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"0004\.jpg: image without annotation"):
        pycc.data.open(jhu)
    (jhu / "test" / "gt").rmdir()
    with pytest.raises(
        pycc.data.NotAnnotatedError,
        match="test: images without annotation, there is no folder gt; train and val have "
        "it; to count or attack the images alone use annotated=False",
    ):
        pycc.data.open(jhu, on_error="skip")
    test = pycc.data.open(jhu, annotated=False)
    assert (test.name, test.names) == ("jhu_crowd_v2.0/test", ["0004", "0005"])
    assert test.origin == "jhu"
    assert not any(sample.annotated for sample in test)
    (jhu / "val" / "gt").rename(jhu / "val" / "truth")
    with pytest.raises(ValueError, match="val/gt: cannot read the folder") as raised:
        pycc.data.open(jhu, split="val")
    assert not isinstance(raised.value, pycc.data.NotAnnotatedError)


def test_what_is_missing_is_named(jhu: Path) -> None:
    (jhu / "train" / "gt" / "0002.txt").unlink()
    with pytest.raises(ValueError, match=r"0002\.jpg: image without annotation"):
        pycc.data.open(jhu, split="train")
    with pytest.warns(UserWarning, match="skipped"):
        assert len(pycc.data.open(jhu, split="train", on_error="skip")) == 2
    for path in (jhu / "val").glob("*/0003.*"):
        path.unlink()
    with pytest.raises(ValueError, match="val/images: no images"):
        pycc.data.open(jhu, split="val")


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("", []),
        ("\n", []),
        ("1 2 3 4 1 0", [[1, 2]]),
        ("1 2 3 4 1 0 \r\n\r\n5.5  6\t7 8 3 1\n", [[1, 2], [5.5, 6]]),
    ],
)
def test_points_are_read(tmp_path: Path, text: str, points: list) -> None:
    (tmp_path / "1.txt").write_text(text, newline="")
    points_read = read_points(tmp_path / "1.txt")
    assert points_read.shape == (len(points), 2)
    assert points_read.tolist() == points


@pytest.mark.parametrize(
    "line", ["1 2", "1 2 3 4 1 0 9", "1,2,3,4,1,0", "1 2 3 4 nan 0", "1_0 2 3 4 1 0"]
)
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "1.txt").write_text(f"1 2 3 4 1 0\n{line}\n")
    with pytest.raises(ValueError, match=r"1\.txt: line 2: expected numbers x y w h") as raised:
        read_points(tmp_path / "1.txt")
    assert str(raised.value).endswith(f"got {line!r}")


def test_other_bytes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_bytes(b"\xff\xfe1")
    with pytest.raises(ValueError, match=r"1\.txt: expected UTF-8 text"):
        read_points(tmp_path / "1.txt")
