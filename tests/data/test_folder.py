import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pycc.data
from pycc.data.dataset import data_fingerprint
from pycc.data.points import read_points

RED = np.full((30, 40, 3), (255, 0, 0), np.uint8)


@pytest.fixture
def crowd(tmp_path: Path) -> Path:
    """Three images: CSV beside, JSON beside, CSV in points/."""
    for name in ("img_2.png", "img_10.jpg", "img_1.PNG"):
        Image.fromarray(RED).save(tmp_path / name)
    (tmp_path / "img_2.csv").write_text("1.5,2\n39.9,29.9\n")
    (tmp_path / "img_10.json").write_text("[[3, 4.25]]")
    (tmp_path / "points").mkdir()
    (tmp_path / "points" / "img_1.csv").write_text("x,y\n")
    (tmp_path / "notes.txt").write_text("not part of the data")
    (tmp_path / ".hidden.csv").write_text("not part of the data")
    return tmp_path


def test_samples_in_numeric_order(crowd: Path) -> None:
    dataset = pycc.data.open(crowd)
    assert dataset.name == crowd.name
    assert dataset.names == ["img_1", "img_2", "img_10"]
    assert [sample.name for sample in dataset] == dataset.names
    assert [sample.count for sample in dataset] == [0, 2, 1]
    assert dataset[1].points.tolist() == [[1.5, 2.0], [39.9, 29.9]]
    assert dataset[-1].points.tolist() == [[3.0, 4.25]]
    assert dataset[0].points.shape == (0, 2)
    for index, sample in enumerate(dataset):
        assert sample.image.shape == (3, 30, 40)
        assert sample.points.dtype == torch.float64
        assert sample.roi is None
        assert torch.equal(dataset.points(index), sample.points)
    assert [sample.name for sample in dataset[1:]] == ["img_2", "img_10"]
    with pytest.raises(IndexError):
        dataset[3]


def test_limit(crowd: Path) -> None:
    assert pycc.data.open(crowd, limit=2).names == ["img_1", "img_2"]
    assert len(pycc.data.open(str(crowd), limit=9)) == 3
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        pycc.data.open(crowd, limit=0)


@pytest.mark.parametrize(
    ("name", "text", "points"),
    [
        ("a.csv", "", []),
        ("a.csv", "1,2", [[1, 2]]),
        ("a.csv", "\ufeff X , Y \r\n1, 2\r\n\r\n 3.5,4e1 \r\n", [[1, 2], [3.5, 40]]),
        ("a.csv", '"1","2"\n', [[1, 2]]),
        ("a.csv", "id, Y, label, X\n7,2,a b,1\n8,4,,3.5\n", [[1, 2], [3.5, 4]]),
        ("a.txt", "1 2\n\n3.5\t 4 \n", [[1, 2], [3.5, 4]]),
        ("a.txt", "", []),
        ("a.txt", "y x\n2, 1\n", [[1, 2]]),
        ("a.json", '[["1", "2"], [" 3.5", 4]]', [[1, 2], [3.5, 4]]),
        ("a.json", '{"points": [{"y": 2, "x": "1"}]}', [[1, 2]]),
        ("a.json", "[]", []),
        ("a.json", '{"points": [[1, 2], [3.5, 4]], "source": "x"}', [[1, 2], [3.5, 4]]),
    ],
)
def test_points_are_read(tmp_path: Path, name: str, text: str, points: list) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", newline="")
    read = read_points(path)
    assert read.shape == (len(points), 2)
    assert read.tolist() == points


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("a.csv", "1,2\nx,y\n", "line 2: expected two numbers x,y, got 'x,y'"),
        ("a.csv", "y,z\n1,2\n", "line 1: expected two numbers x,y, got 'y,z'"),
        ("a.csv", "id,y,x\n1,2,3\n1,2\n", "line 3: expected id,y,x, got '1,2'"),
        ("a.csv", "1,2\n3,four\n", "line 2: expected two numbers x,y, got '3,four'"),
        ("a.csv", "1;2\n", "line 1: expected two numbers x,y, got '1;2'"),
        ("a.csv", "1_0,2\n", "line 1: expected two numbers x,y, got '1_0,2'"),
        ("a.csv", "1,2,3\n", "line 1: expected two numbers"),
        ("a.csv", "1,\n", "line 1: expected two numbers"),
        ("a.csv", "1,2\nnan,3\n", "point 2 must be finite, got [nan, 3.0]"),
        ("a.csv", "1,inf\n", "point 1 must be finite"),
        ("a.json", "[[1, 2]", "not a JSON file"),
        ("a.json", "[" * 100_000, "not a JSON file"),
        ("a.json", "{}", "expected a list of [x, y]"),
        ("a.json", '{"points": {"x": 1}}', "expected a list of [x, y]"),
        ("a.json", "[[1, 2], [3]]", "point 2: expected [x, y], got [3]"),
        ("a.json", "[[1, true]]", "point 1: expected [x, y]"),
        ("a.json", '[["1", "two"]]', 'point 1: expected [x, y], got ["1", "two"]'),
        ("a.json", '[{"x": 1}]', 'point 1: expected [x, y], got {"x": 1}'),
        ("a.json", "[[NaN, 2]]", "point 1 must be finite"),
        ("a.json", json.dumps([[10**400, 1]]), "point 1: number too large"),
    ],
)
def test_bad_points_name_the_file(tmp_path: Path, name: str, text: str, problem: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=name) as error:
        read_points(path)
    assert problem in str(error.value)
    assert "\n" not in str(error.value)
    Image.fromarray(RED).save(tmp_path / "a.png")
    dataset = pycc.data.open(tmp_path)
    with pytest.raises(ValueError, match=name):
        dataset[0]


def test_undecodable_text_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"1,2\n\xff\xfe\n")
    with pytest.raises(ValueError, match=r"a\.csv: expected UTF-8 text"):
        read_points(tmp_path / "a.csv")


def test_points_outside_are_dropped_and_counted(tmp_path: Path) -> None:
    Image.fromarray(RED).save(tmp_path / "a.png")
    (tmp_path / "a.csv").write_text("0,0\n39.99,29.99\n40,5\n5,30\n-0.01,5\n5,-3\n")
    dataset = pycc.data.open(tmp_path)
    with pytest.warns(UserWarning, match=r"a\.csv: dropped 4 of 6 points outside the image") as w:
        sample = dataset[0]
    assert len(w) == 1
    assert sample.points.tolist() == [[0, 0], [39.99, 29.99]]
    with pytest.warns(UserWarning, match="dropped 4 of 6"):
        assert len(dataset.points(0)) == 2


def test_points_are_of_the_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RED).save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "a.csv").write_text("29,39\n")
    sample = pycc.data.open(tmp_path)[0]
    assert sample.image.shape == (3, 40, 30)
    assert sample.count == 1


def test_pairing_is_checked_before_any_work(crowd: Path) -> None:
    Image.fromarray(RED).save(crowd / "alone.png")
    with pytest.raises(ValueError, match=r"alone\.png: image without annotation"):
        pycc.data.open(crowd)
    with pytest.warns(UserWarning, match=r"skipped: .*alone\.png: image without annotation"):
        assert len(pycc.data.open(crowd, on_error="skip")) == 3
    (crowd / "alone.png").rename(crowd / "alone.csv")
    with pytest.raises(ValueError, match=r"alone\.csv: annotation without image"):
        pycc.data.open(crowd)


def test_two_files_of_one_name_are_refused(crowd: Path) -> None:
    (crowd / "points" / "img_2.json").write_text("[]")
    with pytest.raises(ValueError, match=r"img_2\.json: one file expected per name"):
        pycc.data.open(crowd)
    (crowd / "points" / "img_2.json").unlink()
    Image.fromarray(RED).save(crowd / "img_2.bmp")
    with pytest.raises(ValueError, match=r"img_2\.png: one file expected per name"):
        pycc.data.open(crowd)


def test_broken_items_are_skipped_with_a_warning_each(crowd: Path) -> None:
    intact = (crowd / "img_10.jpg").read_bytes()
    (crowd / "img_10.jpg").write_bytes(intact[:-40])
    (crowd / "img_2.csv").write_text("1,two")
    dataset = pycc.data.open(crowd)
    assert len(dataset) == 3
    assert dataset[0].name == "img_1"
    for index, name in ((1, r"img_2\.csv"), (2, r"img_10\.jpg")):
        with pytest.raises(ValueError, match=name):
            dataset[index]
    with pytest.warns(UserWarning, match="skipped") as warned:
        rest = pycc.data.open(crowd, on_error="skip")
    assert [str(w.message).split(":")[1].split("/")[-1] for w in warned] == [
        "img_2.csv",
        "img_10.jpg",
    ]
    assert rest.names == ["img_1"]
    (crowd / "points" / "img_1.csv").write_text("?")
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(ValueError, match="no sample can be read"),
    ):
        pycc.data.open(crowd, on_error="skip")


def test_limit_counts_whole_samples(crowd: Path) -> None:
    (crowd / "points" / "img_1.csv").write_text("?")
    with pytest.warns(UserWarning, match=r"skipped: .*img_1\.csv"):
        assert pycc.data.open(crowd, on_error="skip", limit=1).names == ["img_2"]


def test_fingerprint_follows_the_content_used(crowd: Path) -> None:
    def fingerprint(**options) -> dict[str, int | str]:
        return data_fingerprint(pycc.data.open(crowd, **options))

    first = fingerprint()
    assert first.pop("images") == 3
    assert {len(str(digest)) for digest in first.values()} == {64}
    first = fingerprint()
    assert fingerprint() == first
    (crowd / "notes.txt").write_text("changed")
    assert fingerprint() == first
    assert fingerprint(limit=2) != first
    part = fingerprint(limit=2)
    (crowd / "img_10.json").write_text("[[3, 4.5]]")
    assert fingerprint() != first
    assert fingerprint(limit=2) == part
    (crowd / "img_10.json").write_text("[[3, 4.25]]")
    assert fingerprint() == first
    Image.fromarray(RED[:, :, ::-1]).save(crowd / "img_2.png")
    assert fingerprint() != first


def test_bad_folders(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("")
    (tmp_path / "empty").mkdir()
    for name, problem in (
        ("missing", "no such file or folder; built-in data sets: synthetic"),
        ("file", "cannot read the folder: Not a directory"),
        ("empty", "the folder is empty"),
        ("other", "neither images nor a known layout of folders in it$"),
    ):
        with pytest.raises(ValueError, match=f"{name}: {problem}"):
            pycc.data.open(tmp_path / name)


def test_pictures_further_down_are_named(tmp_path: Path) -> None:
    """The layout of YOLO: images/SPLIT beside labels/SPLIT."""
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / kind / split).mkdir(parents=True)
        Image.fromarray(RED).save(tmp_path / "images" / split / "1.jpg")
        (tmp_path / "labels" / split / "1.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(ValueError, match=(
        "a known layout of folders in it; pictures lie in images/train, images/val: "
        "open one of these folders"
    )):  # fmt: skip
        pycc.data.open(tmp_path, annotated=False)
    assert len(pycc.data.open(tmp_path / "images" / "train", annotated=False)) == 1


@pytest.mark.parametrize("inner", ["", "images"])
def test_folders_of_pictures_that_are_not_read_are_named(tmp_path: Path, inner: str) -> None:
    where = tmp_path / inner
    for name in ("cam1", "cam2/images", "points", "notes"):
        (where / name).mkdir(parents=True)
    Image.fromarray(RED).save(where / "a.png")
    (where / "points" / "a.csv").write_text("1,2")
    (where / "notes" / "a.txt").write_text("")
    assert len(pycc.data.open(tmp_path)) == 1  # warnings are errors
    for name in ("cam1", "cam2/images", "points"):
        Image.fromarray(RED).save(where / name / "b.png")
    message = f"{where}: left out the pictures of its folders cam1, cam2; open each of them, or "
    for annotated in (True, False):
        with pytest.warns(UserWarning, match=re.escape(message)) as warned:
            assert pycc.data.open(tmp_path, annotated=annotated).names == ["a"]
        assert len(warned) == 1


def test_an_unreadable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(ValueError, match="cannot read the folder: Permission denied"):
        pycc.data.open(tmp_path)


def test_bad_arguments(crowd: Path) -> None:
    with pytest.raises(ValueError, match="on_error must be 'raise' or 'skip', got 'ignore'"):
        pycc.data.open(crowd, on_error="ignore")
    with pytest.raises(ValueError, match="folders take no option, got seed"):
        pycc.data.open(crowd, seed=3)


def test_folders_in_it_are_splits(tmp_path: Path) -> None:
    for split, number in (("train", 3), ("test1", 2)):
        (tmp_path / split).mkdir()
        for n in range(number):
            Image.fromarray(RED).save(tmp_path / split / f"{n}.png")
            (tmp_path / split / f"{n}.json").write_text("[[1, 2]]")
    (tmp_path / "notes").mkdir()
    dataset = pycc.data.open(tmp_path, split="train")
    assert dataset.name == f"{tmp_path.name}/train"
    assert dataset.names == ["0", "1", "2"]
    assert len(pycc.data.open(tmp_path, split="test1")) == 2
    for split in ("test", "notes", ""):
        with pytest.raises(ValueError, match=f"has splits test1, train, got '{split}'"):
            pycc.data.open(tmp_path, split=split)
    Image.fromarray(RED).save(tmp_path / "own.png")  # now it is one split, whatever is in it
    (tmp_path / "own.csv").write_text("1,2")
    with pytest.warns(UserWarning, match="left out the pictures of its folders test1, train; open"):
        assert pycc.data.open(tmp_path, split="train").names == ["own"]
