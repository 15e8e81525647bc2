"""Annotation files of many images: which images are read, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.labelled import add_images

import pycc.data
from pycc.commands import main
from pycc.data.folder import has_annotations
from pycc.data.inspect import inspect
from pycc.data.target import targets

Points = list[tuple[float, float]]


def coco(images: list[tuple[str, Points]]) -> str:
    rows = [
        {"id": 100 * index + n, "image_id": index, "category_id": 1, "bbox": [x - 1, y - 2, 2, 4]}
        for index, (_, points) in enumerate(images)
        for n, (x, y) in enumerate(points)
    ]
    names = [{"id": index, "file_name": name} for index, (name, _) in enumerate(images)]
    return json.dumps({"images": names, "annotations": rows, "categories": []})


def via(images: list[tuple[str, Points]]) -> str:
    return json.dumps({
        f"{name}{index}": {
            "filename": name, "size": index, "file_attributes": {},
            "regions": [{"shape_attributes": {"name": "point", "cx": x, "cy": y}}
                        for x, y in points],
        } for index, (name, points) in enumerate(images)
    })  # fmt: skip


def via_csv(images: list[tuple[str, Points]]) -> str:
    lines = ["#filename,file_size,region_count,region_shape_attributes"]
    for index, (name, points) in enumerate(images):
        shapes = [f'{{""name"":""point"",""cx"":{x},""cy"":{y}}}' for x, y in points] or ["{}"]
        lines += [f'"{name}",{index},{len(points)},"{shape}"' for shape in shapes]
    return "\n".join(lines)


def cvat(images: list[tuple[str, Points]]) -> str:
    inside = "".join(
        f'<image id="{index}" name="{name}">'
        + "".join(f'<points label="head" points="{x},{y}"/>' for x, y in points)
        + "</image>"
        for index, (name, points) in enumerate(images)
    )
    return f"<annotations><version>1.1</version>{inside}</annotations>"


WRITERS: dict[str, tuple[str, Callable[[list[tuple[str, Points]]], str]]] = {
    "coco": ("all.json", coco),
    "via": ("all.json", via),
    "via_csv": ("all.csv", via_csv),
    "cvat": ("all.xml", cvat),
}
HEADS: list[tuple[str, Points]] = [("b.png", [(3.5, 4.25), (39.5, 0)]), ("a.png", [])]
each_format = pytest.mark.parametrize("name", WRITERS)


@pytest.fixture
def street(tmp_path: Path) -> Path:
    return add_images(tmp_path / "street", "a.png", "b.png")


def put(root: Path, name: str, images: list[tuple[str, Points]], place: str = "") -> Path:
    file, text = WRITERS[name]
    path = root / place / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(text(images), "utf-8")
    return path


@each_format
@pytest.mark.parametrize("place", ["", "annotations", "labels", "points"])
def test_points_are_read(street: Path, name: str, place: str) -> None:
    put(street, name, HEADS, place)
    samples = pycc.data.open(street, split="any")
    assert samples.names == ["a", "b"]
    assert samples[0].points.shape == (0, 2)
    assert samples[1].points.tolist() == [[3.5, 4.25], [39.5, 0]]
    assert len(samples.points(1)) == 2
    assert (samples.origin, inspect(street).layout) == ("", name)
    assert has_annotations(street, "all")
    alone = pycc.data.open(street, annotated=False)
    assert (alone.names, alone[1].annotated) == (["a", "b"], False)


@each_format
def test_images_may_lie_apart(tmp_path: Path, name: str) -> None:
    add_images(tmp_path / "images", "a.png", "b.png")
    put(tmp_path, name, HEADS, "annotations")
    assert [sample.count for sample in pycc.data.open(tmp_path)] == [0, 2]
    put(tmp_path, name, [(f"images\\{file}", points) for file, points in HEADS], "annotations")
    assert [sample.count for sample in pycc.data.open(tmp_path)] == [0, 2]
    put(tmp_path, name, [(f"../images/{file}", points) for file, points in HEADS], "annotations")
    assert [sample.count for sample in pycc.data.open(tmp_path)] == [0, 2]


@each_format
@pytest.mark.parametrize(
    "file",
    [
        "{out}/secret.png",
        "../secret.png",
        "images/../../secret.png",
        "C:\\secret.png",
        "..\\secret.png",
        "\\\\host\\secret.png",
    ],
)
def test_nothing_outside_the_folder_is_read(street: Path, name: str, file: str) -> None:
    add_images(street.parent, "secret.png")
    file = file.format(out=street.parent)
    path = put(street, name, [*HEADS, (file, [(1, 1)])])
    with pytest.raises(ValueError, match=r"an absolute path|leads out of|no such file") as raised:
        pycc.data.open(street)
    assert str(raised.value).startswith(f"{path}: image ")
    assert "\n" not in str(raised.value)
    with pytest.warns(UserWarning, match="skipped: ") as warned:
        samples = pycc.data.open(street, on_error="skip")
    assert (samples.names, len(warned)) == (["a", "b"], 1)


@each_format
def test_images_listed_twice_or_missing_are_refused(street: Path, name: str) -> None:
    path = put(street, name, [*HEADS, ("./b.png", [(1, 1)])])
    with pytest.raises(ValueError, match=r"image './b\.png': is listed twice"):
        pycc.data.open(street)
    with pytest.warns(UserWarning, match="is listed twice"):
        assert pycc.data.open(street, on_error="skip").names == ["a"]
    put(street, name, [*HEADS, ("c.png", [])])
    report = inspect(street)
    assert report.splits[0].broken == [f"{path}: image 'c.png': no such file in {street}"]


@each_format
def test_images_that_no_file_lists_are_named(street: Path, name: str) -> None:
    add_images(street / "more", "c.png")
    put(street, name, HEADS[:1])
    with pytest.warns(UserWarning, match=r"left out 2 images .*: a\.png, more/c\.png") as warned:
        assert pycc.data.open(street).names == ["b"]
    assert len(warned) == 1
    assert pycc.data.open(street, annotated=False).names == ["a", "b", "c"]


@each_format
def test_broken_files_end_in_one_line(
    street: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = put(street, name, HEADS)
    text = path.read_text()
    path.write_text(text[:-6])
    out = street.parent / "out"
    for argv in (["inspect", str(street)], ["convert", str(street), str(out)]):
        assert main("data", argv) == 2
        message = capsys.readouterr().err
        assert message.startswith(f"error: {path}: ")
        assert message.count("\n") == 1
    assert not out.exists()
    path.write_bytes(text.encode().replace(b"b.png", b"b\xff.png"))
    with pytest.raises(ValueError, match=r"expected UTF-8 text|not an XML file: not well-formed"):
        pycc.data.open(street)


@each_format
def test_several_files_are_splits(tmp_path: Path, name: str) -> None:
    add_images(tmp_path / "images", "a.png", "b.png")
    suffix, text = Path(WRITERS[name][0]).suffix, WRITERS[name][1]
    for split, image in (("train", HEADS[0]), ("val", HEADS[1])):
        (tmp_path / f"instances_{split}{suffix}").write_text(text([image]))
    assert pycc.data.open(tmp_path, split="train").names == ["b"]
    assert pycc.data.open(tmp_path, split="val").name == f"{tmp_path.name}/val"
    assert pycc.data.open(tmp_path, split="val", annotated=False).names == ["a"]
    with pytest.raises(ValueError, match="has splits train, val, got 'trian'; did you mean"):
        pycc.data.open(tmp_path, split="trian")


def test_folders_of_several_formats_are_splits(tmp_path: Path) -> None:
    for split in WRITERS:
        add_images(tmp_path / split, "a.png", "b.png")
        put(tmp_path / split, split, HEADS)
        assert [each.count for each in pycc.data.open(tmp_path, split=split)] == [0, 2]
    assert inspect(tmp_path).layout == "coco, cvat, via, via_csv"


def test_equal_stems_are_told_apart(tmp_path: Path) -> None:
    for folder in ("left", "right"):
        add_images(tmp_path / folder, "a.png")
    put(tmp_path, "coco", [("right/a.png", [(1, 1)]), ("left/a.png", [])])
    samples = pycc.data.open(tmp_path)
    assert [(each.name, each.count) for each in samples] == [("left_a", 0), ("right_a", 1)]


@pytest.mark.parametrize("layout", targets.names())
@pytest.mark.parametrize("source", WRITERS)
def test_every_format_becomes_every_other(street: Path, source: str, layout: str) -> None:
    put(street, source, HEADS)
    out = street.parent / "out"
    argv = ["convert", str(street), str(out), "--layout", layout, "--split", "test"]
    assert main("data", argv) == 0
    new = pycc.data.open(out, split="test")
    assert [each.points.tolist() for each in new] == [[], [[3.5, 4.25], [39.5, 0]]]
    for before, after in zip(pycc.data.open(street), new, strict=True):
        assert before.image.equal(after.image)


@pytest.mark.parametrize("layout", ["coco", "via", "labelme"])
def test_real_heads_come_back(shared: Path, tmp_path: Path, layout: str) -> None:
    root = shared / "data" / "shanghaitech" / "part_A"
    argv = ["convert", str(root), str(tmp_path / "out"), "--layout", layout, "--split", "test"]
    assert main("data", [*argv, "--max-images", "3"]) == 0
    old = pycc.data.open(root, split="test", limit=3)
    new = pycc.data.open(tmp_path / "out", split="test")
    assert [sample.count for sample in new] == [172, 1111, 297]
    for before, after in zip(old, new, strict=True):
        assert before.points.equal(after.points)
        assert before.image.equal(after.image)
