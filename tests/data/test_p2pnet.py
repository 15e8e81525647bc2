"""P2PNet's lists."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.labelled import add_images

import pycc.data
from pycc.data.inspect import inspect


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Two splits; the second scene has nobody."""
    for split, text in (("train", "1.5 2\n3 4\n"), ("test", "")):
        folder = add_images(tmp_path / split / "scene01", "img01.jpg")
        (folder / "img01.txt").write_text(text)
        line = f"{split}/scene01/img01.jpg {split}/scene01/img01.txt\n"
        (tmp_path / f"{split}.list").write_text(line)
    return tmp_path


def test_lists_are_splits(scenes: Path) -> None:
    (sample,) = pycc.data.open(scenes, split="train")
    assert (sample.name, sample.points.tolist()) == ("img01", [[1.5, 2], [3, 4]])
    assert [sample.count for sample in pycc.data.open(scenes, split="test")] == [0]
    report = inspect(scenes)
    assert (report.layout, [split.name for split in report.splits]) == ("p2pnet", ["test", "train"])
    (scenes / "test.list").unlink()
    with pytest.warns(UserWarning, match=r"left out 1 image .*: test/scene01/img01\.jpg"):
        assert len(pycc.data.open(scenes, split="any")) == 1


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("train/scene01/img01.jpg", "line 2: expected IMAGE POINTS, got 'train/scene01/img01.jpg'"),
        ("train/scene01/img01.jpg a b", "line 2: expected IMAGE POINTS"),
        ("/etc/a.jpg train/scene01/img01.txt", "image '/etc/a.jpg' is an absolute path"),
        ("test/scene01/img01.jpg ../a.txt", "annotation '../a.txt'"),
        ("test/scene01/img01.jpg /etc/hostname", "annotation '/etc/hostname' is an absolute path"),
        ("test/scene01/img01.jpg gone.txt", "annotation 'gone.txt': no such file"),
        ("train/scene01/img01.jpg test/scene01/img01.txt", "is listed twice"),
    ],
)
def test_bad_lines(scenes: Path, line: str, problem: str) -> None:
    with (scenes / "train.list").open("a") as stream:
        stream.write(line)
    with pytest.raises(ValueError, match=r"train\.list: ") as raised:
        pycc.data.open(scenes, split="train")
    assert problem in str(raised.value)
