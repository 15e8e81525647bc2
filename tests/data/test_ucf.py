"""UCF_CC_50 and UCF-QNRF in their published layouts."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

import pycc.data
from pycc.data.ucf import read_points


def add(folder: Path, name: str, heads: int) -> None:
    folder.mkdir(exist_ok=True, parents=True)
    Image.new("L", (20, 10)).save(folder / f"{name}.jpg")
    scipy.io.savemat(folder / f"{name}_ann.mat", {"annPoints": np.full((heads, 2), 4.5)})


@pytest.fixture
def fifty(tmp_path: Path) -> Path:
    for number in range(1, 51):
        add(tmp_path / "UCF_CC_50", str(number), number)
    Image.new("L", (20, 10)).save(tmp_path / "UCF_CC_50" / "2_ann.png")  # the heads, drawn
    return tmp_path / "UCF_CC_50"


def test_five_folds_of_ten_in_file_order(fifty: Path) -> None:
    everything = pycc.data.open(fifty, split="all")
    assert everything.names == [str(n) for n in range(1, 51)]
    assert everything[6].count == 7
    assert everything[6].image.shape == (3, 10, 20)
    seen = []
    for fold in range(1, 6):
        test = pycc.data.open(fifty, split=f"test{fold}")
        train = pycc.data.open(fifty, split=f"train{fold}")
        assert len(test) == 10
        assert sorted(test.names + train.names) == sorted(everything.names)
        seen += test.names
    assert seen == everything.names
    assert pycc.data.open(fifty, split="test2").name == "UCF_CC_50/test2"


@pytest.mark.parametrize("split", ["test", "test0", "test6", "train", "val1", ""])
def test_another_split_is_named(fifty: Path, split: str) -> None:
    with pytest.raises(ValueError, match="has splits all, test1 to test5 and train1 to train5"):
        pycc.data.open(fifty, split=split)


def test_a_broken_item_moves_no_other_into_its_fold(fifty: Path) -> None:
    (fifty / "3_ann.mat").unlink()
    with pytest.raises(ValueError, match=r"3\.jpg: image without annotation"):
        pycc.data.open(fifty, split="test1")
    with pytest.warns(UserWarning, match="skipped"):
        assert len(pycc.data.open(fifty, split="test1", on_error="skip")) == 9
    with pytest.warns(UserWarning, match="skipped"):
        assert pycc.data.open(fifty, split="test2", on_error="skip").names[0] == "11"


def test_qnrf_and_one_split_of_it(tmp_path: Path) -> None:
    for folder, number in (("Train", 3), ("Test", 2)):
        for n in range(1, number + 1):
            add(tmp_path / "QNRF" / folder, f"img_{n:04d}", n)
    root = tmp_path / "QNRF"
    assert pycc.data.open(root).names == ["img_0001", "img_0002"]
    assert pycc.data.open(root, split="train").name == "QNRF/Train"
    assert [s.count for s in pycc.data.open(root / "Train", split="test")] == [1, 2, 3]
    with pytest.raises(ValueError, match="has splits train, test, got 'all'"):
        pycc.data.open(root, split="all")
    shutil.rmtree(root / "Test")
    for annotated in (True, False):
        with pytest.raises(ValueError, match="QNRF: has splits train, got 'test'"):
            pycc.data.open(root, annotated=annotated)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"other": np.ones((2, 2))}, "annPoints must be N x 2 numbers"),
        ({"annPoints": np.ones((2, 3))}, "N x 2 numbers, got 2 x 3"),
        ({"annPoints": np.array([[1.0, np.nan]])}, "must be finite"),
        ({"annPoints": np.array([["a", "b"]])}, "annPoints must be N x 2 numbers"),
    ],
)
def test_bad_annotations_are_named(tmp_path: Path, content: dict, message: str) -> None:
    scipy.io.savemat(tmp_path / "1_ann.mat", content)
    with pytest.raises(ValueError, match=f"1_ann.mat: .*{message}"):
        read_points(tmp_path / "1_ann.mat")


def test_nobody_is_a_count(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "1_ann.mat", {"annPoints": np.zeros((0, 0))})
    assert read_points(tmp_path / "1_ann.mat").shape == (0, 2)


def test_the_published_heads(shared: Path) -> None:
    folder = shared / "data" / "ucf_cc_50"
    dataset = pycc.data.open(folder, split="all")
    assert len(dataset) == 50
    total = sum(len(read_points(folder / f"{name}_ann.mat")) for name in dataset.names)
    assert total == 63_974
