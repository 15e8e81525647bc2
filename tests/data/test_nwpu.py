"""NWPU-Crowd in its published layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import pycc.data


def add(root: Path, name: str, points: list[list[float]] | None) -> None:
    Image.new("RGB", (20, 10)).save(root / "images" / f"{name}.jpg")
    if points is not None:
        content = {
            "img_id": f"{name}.jpg",
            "human_num": len(points),
            "boxes": [[x - 1, y - 1, x + 1, y + 1] for x, y in points],
            "points": points,
        }
        (root / "jsons" / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture
def nwpu(tmp_path: Path) -> Path:
    root = tmp_path / "NWPU-Crowd"
    for folder in ("images", "jsons", "mats"):
        (root / folder).mkdir(parents=True)
    for number in range(1, 8):
        heads = [[1.5, 2.5]] * (number - 1)
        add(root, f"{number:04d}", heads if number < 6 else None)
    (root / "train.txt").write_text("0003 1 2 \n0001 0 0 \n0002 1 3 \n")
    (root / "val.txt").write_text("0004 0 1\n\n0005 2 1\n")
    (root / "test.txt").write_text("0006 0 1\n0007 2 1\n")
    return root


def test_the_lists_are_the_splits(nwpu: Path) -> None:
    train = pycc.data.open(nwpu, split="train")
    assert train.name == "NWPU-Crowd/train"
    assert train.names == ["0001", "0002", "0003"]
    assert [sample.count for sample in train] == [0, 1, 2]
    assert train[1].points.tolist() == [[1.5, 2.5]]
    assert train[1].roi is None
    assert pycc.data.open(nwpu, split="val").names == ["0004", "0005"]
    with pytest.raises(ValueError, match="has splits train, val, test, got 'all'"):
        pycc.data.open(nwpu, split="all")


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_the_test_set_has_no_annotation(nwpu: Path, on_error: str) -> None:
    with pytest.raises(
        pycc.data.NotAnnotatedError,
        match=r"test\.txt: none of its images has an annotation .* train and val have theirs"
        r".* use annotated=False",
    ):
        pycc.data.open(nwpu, split="test", on_error=on_error)
    # If some of it is there, the other annotations are missing.
    (nwpu / "jsons" / "0006.json").write_text('{"points": []}')
    with pytest.raises(ValueError, match=r"0007\.jpg: image without annotation"):
        pycc.data.open(nwpu, split="test")
    for name in ("0004", "0005"):  # that of the other sets is published: here it is missing
        (nwpu / "jsons" / f"{name}.json").unlink()
    with pytest.raises(ValueError, match=r"0004\.jpg: image without annotation"):
        pycc.data.open(nwpu, split="val")


def test_the_images_of_the_test_set_alone(nwpu: Path) -> None:
    test = pycc.data.open(nwpu, split="test", annotated=False)
    assert test.name == "NWPU-Crowd/test"
    assert test.names == ["0006", "0007"]
    assert test.origin == "nwpu"
    assert test.groups is None
    for sample in test:
        with pytest.raises(ValueError, match=f"{sample.name}: not annotated"):
            _ = sample.count
    with (nwpu / "test.txt").open("a") as file:
        file.write("0099 1 1\n")
    with pytest.raises(ValueError, match=r"test\.txt: line 3: '0099' has no image"):
        pycc.data.open(nwpu, split="test", annotated=False)


def test_what_is_missing_is_named(nwpu: Path) -> None:
    (nwpu / "images" / "0001.jpg").unlink()
    (nwpu / "jsons" / "0002.json").unlink()
    (nwpu / "train.txt").write_text("0003 1\n0001 0\n0002 1\n0099 1\n")
    with pytest.raises(ValueError, match=r"train\.txt: line 4: '0099' has neither image nor"):
        pycc.data.open(nwpu, split="train")
    with pytest.warns(UserWarning, match="skipped") as warned:
        assert pycc.data.open(nwpu, split="train", on_error="skip").names == ["0003"]
    assert [str(w.message).replace(str(nwpu), "NWPU") for w in warned] == [
        "skipped: NWPU/train.txt: line 4: '0099' has neither image nor annotation",
        "skipped: NWPU/jsons/0001.json: annotation without image",
        "skipped: NWPU/images/0002.jpg: image without annotation, expected 0002.json in "
        "NWPU/jsons; to count or attack the images alone use annotated=False (--unannotated)",
    ]
    (nwpu / "val.txt").unlink()
    with pytest.raises(ValueError, match="NWPU-Crowd: has splits train, test, got 'val'"):
        pycc.data.open(nwpu, split="val")


def test_a_folder_of_a_labelling_tool_is_a_plain_folder(tmp_path: Path) -> None:
    """Its list holds paths, not names of images: names of folders do not show the layout."""
    for folder in ("images", "jsons", "marks"):
        (tmp_path / folder).mkdir()
    for number, heads in ((1, [[1.5, 2.5]]), (2, [])):
        add(tmp_path, f"{number:04d}", heads)
    (tmp_path / "train.txt").write_text("images/0001.jpg\nimages/0002.jpg\n")
    for annotated in (True, False):
        dataset = pycc.data.open(tmp_path, split="test", annotated=annotated)
        assert dataset.names == ["0001", "0002"]
        assert dataset.origin == ""
    assert [sample.count for sample in pycc.data.open(tmp_path)] == [1, 0]
    (tmp_path / "train.txt").write_text("0001 0 0\n")
    assert pycc.data.open(tmp_path, split="train").names == ["0001"]
    with pytest.raises(ValueError, match="has splits train, got 'test'"):
        pycc.data.open(tmp_path, split="test")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"0001\n0002\n0001 2\n", "line 3: '0001' is in line 1 too"),
        (b"\n \n", "lists no image"),
        (b"\xff\xfe", "expected UTF-8 text"),
    ],
)
def test_a_bad_list_is_refused(nwpu: Path, content: bytes, problem: str) -> None:
    (nwpu / "train.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"train\.txt: {problem}"):
        pycc.data.open(nwpu, split="train")


def test_broken_annotation_is_named_and_skipped(nwpu: Path) -> None:
    (nwpu / "jsons" / "0002.json").write_text('{"boxes": []}')
    dataset = pycc.data.open(nwpu, split="train")
    with pytest.raises(ValueError, match=r"0002\.json: expected a list"):
        dataset[1]
    with pytest.warns(UserWarning, match=r"skipped: .*0002\.json"):
        rest = pycc.data.open(nwpu, split="train", on_error="skip")
    assert rest.names == ["0001", "0003"]
