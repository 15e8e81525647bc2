"""Exported data sets, opened again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import pycc.data
from pycc.data import export as exporting
from pycc.data.export import export, export_samples
from pycc.types import Sample


def picture(seed: int, size: tuple[int, int] = (40, 20)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def crowd(tmp_path: Path) -> Path:
    """Two splits; JPEG and PNG, points between pixels and at the far corner."""
    root = tmp_path / "crowd"
    for number, (split, name) in enumerate(
        (("train", "a2.jpg"), ("train", "a10.png"), ("test", "b1.jpeg"), ("test", "b2.bmp"))
    ):
        (root / split).mkdir(parents=True, exist_ok=True)
        picture(number, (40 + number, 20)).save(root / split / name)
        points = [[0.1 + n, 19.999999999] for n in range(number + 1)]
        (root / split / name).with_suffix(".json").write_text(json.dumps(points))
    return root


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def assert_same(old: pycc.data.Dataset, new: pycc.data.Dataset) -> None:
    assert len(old) == len(new)
    for before, after in zip(old, new, strict=True):
        assert torch.equal(before.image, after.image)
        assert torch.equal(before.points, after.points)


def test_as_a_folder(crowd: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    written = export(crowd, out)
    assert [(each.split, each.images, each.heads, each.resized) for each in written] == [
        ("test", 2, 7, 0),
        ("train", 2, 3, 0),
    ]
    assert [each.folder for each in written] == [out / "test", out / "train"]
    names = ("test/b1.jpg", "test/b2.bmp", "train/a2.jpg", "train/a10.png")
    assert files(out) == {*names, *(f"{name.split('.')[0]}.json" for name in names)}
    for split in ("train", "test"):
        old, new = pycc.data.open(crowd, split=split), pycc.data.open(out, split=split)
        assert old.names == new.names
        assert_same(old, new)
    assert (out / "train" / "a2.jpg").read_bytes() == (crowd / "train" / "a2.jpg").read_bytes()
    assert (out / "test" / "b2.bmp").read_bytes() == (crowd / "test" / "b2.bmp").read_bytes()
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_as_shanghaitech(crowd: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(crowd, out, layout="shanghaitech")
    assert files(out) == {
        "test_data/ground-truth/GT_IMG_1.mat",
        "test_data/ground-truth/GT_IMG_2.mat",
        "test_data/images/IMG_1.jpg",
        "test_data/images/IMG_2.png",
        "train_data/ground-truth/GT_IMG_1.mat",
        "train_data/ground-truth/GT_IMG_2.mat",
        "train_data/images/IMG_1.jpg",
        "train_data/images/IMG_2.png",
    }
    for split in ("train", "test"):
        new = pycc.data.open(out, split=split)
        assert new.name == f"out/{split}_data"
        assert_same(pycc.data.open(crowd, split=split), new)
    kept = (out / "train_data" / "images" / "IMG_2.png").read_bytes()
    assert kept == (crowd / "train" / "a10.png").read_bytes()
    # As the published code reads it.
    info = scipy.io.loadmat(out / "test_data" / "ground-truth" / "GT_IMG_2.mat")["image_info"]
    location, number = info[0, 0][0, 0][0], info[0, 0][0, 0][1]
    assert location.shape == (4, 2)
    assert location.dtype == np.float64
    assert number.tolist() == [[4]]


@pytest.mark.parametrize("layout", exporting.targets.names())
def test_smaller_images(crowd: Path, tmp_path: Path, layout: str) -> None:
    out = tmp_path / "out"
    (written,) = export(crowd, out, split="train", layout=layout, max_side=40)
    assert written.resized == 1
    old, new = pycc.data.open(crowd, split="train"), pycc.data.open(out, split="train")
    assert [sample.count for sample in old] == [sample.count for sample in new]
    assert torch.equal(old[0].image, new[0].image)
    assert new[1].image.shape == (3, 20, 40)
    assert torch.equal(new[1].points[:, 0], old[1].points[:, 0] * 40 / 41)
    assert torch.equal(new[1].points[:, 1], old[1].points[:, 1])


def test_a_smooth_picture_keeps_its_place(tmp_path: Path) -> None:
    """A light spot stays under its point: image and points shrink alike."""
    rows, columns = np.mgrid[:120, :160] + 0.5
    spot = 255 * np.exp(-((columns - 100.0) ** 2 + (rows - 40.0) ** 2) / 200)
    Image.fromarray(spot.astype(np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.csv").write_text("100,40\n")
    export(tmp_path, tmp_path / "out", max_side=64)
    sample = pycc.data.open(tmp_path / "out", split="all")[0]
    assert sample.image.shape == (3, 48, 64)
    grey = sample.image[0].double()
    rows, columns = np.mgrid[:48, :64] + 0.5
    centre = [float((grey * torch.from_numpy(at)).sum() / grey.sum()) for at in (columns, rows)]
    assert centre == pytest.approx(sample.points[0].tolist(), abs=0.1)
    assert sample.points.tolist() == [[40, 16]]


@given(
    st.integers(2, 60),
    st.integers(2, 60),
    st.integers(1, 60),
    st.floats(0, 1, exclude_max=True),
    st.booleans(),
)
def test_no_point_leaves_its_image(height, width, side, share, edge) -> None:
    x = np.nextafter(width, 0) if edge else share * width
    points = torch.tensor([[x, share * height]], dtype=torch.float64)
    sample = exporting.shrink(Sample("a", torch.rand(3, height, width), points), side)
    rows, columns = sample.image.shape[1:]
    assert max(rows, columns) == min(side, max(height, width))
    assert 0 <= sample.points[0, 0] < columns
    assert 0 <= sample.points[0, 1] < rows


def test_turned_images_are_written_upright(tmp_path: Path) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    root.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(1).save(root / "a.png", exif=exif)
    (root / "a.csv").write_text("19,39\n")
    export(root, out, layout="shanghaitech")
    with Image.open(out / "all_data" / "images" / "IMG_1.png") as written:
        assert written.size == (20, 40)
        assert 0x0112 not in written.getexif()
    assert_same(pycc.data.open(root), pycc.data.open(out / "all_data"))


def test_limit_and_one_split(crowd: Path, tmp_path: Path) -> None:
    (written,) = export(crowd, tmp_path / "out", split="test", limit=1)
    assert (written.split, written.images) == ("test", 1)
    assert files(tmp_path / "out") == {"test/b1.jpg", "test/b1.json"}


def test_a_folder_that_holds_something_is_refused(crowd: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export(crowd, out, limit=1)
    before = files(out)
    for where in (out, crowd, crowd / "train" / "a2.jpg"):
        with pytest.raises(ValueError, match="expected a new or an empty folder"):
            export(crowd, where)
    assert files(out) == before


def test_nothing_is_left_of_a_failed_export(
    crowd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (crowd / "train" / "a10.json").write_text("?")
    with pytest.raises(ValueError, match=r"a10\.json: not a JSON file"):
        export(crowd, out)
    assert not files(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["crowd", "out"]
    with pytest.warns(UserWarning, match=r"skipped: .*a10\.json"):
        written = export(crowd, out, on_error="skip")
    assert [each.images for each in written] == [2, 1]

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "save_image", stop)
    with pytest.raises(KeyboardInterrupt):
        export(crowd, tmp_path / "other", split="test", max_side=10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["crowd", "out"]


@pytest.mark.parametrize("layout", ["folder", "shanghaitech"])
def test_nobody_is_written_and_read(crowd: Path, tmp_path: Path, layout: str) -> None:
    (crowd / "train" / "a10.json").write_text("[]")
    export(crowd, tmp_path / "out", layout=layout)
    old, new = pycc.data.open(crowd, split="train"), pycc.data.open(tmp_path / "out", split="train")
    assert [sample.count for sample in new] == [sample.count for sample in old]
    (empty,) = (sample for sample in new if sample.count == 0)
    assert empty.annotated
    assert empty.points.shape == (0, 2)


def test_nobody_in_the_published_form(tmp_path: Path) -> None:
    sample = Sample("one", torch.zeros(3, 4, 6), torch.zeros(0, 2, dtype=torch.float64))
    export_samples({"train": [sample]}, tmp_path / "out", layout="shanghaitech")
    path = tmp_path / "out" / "train_data" / "ground-truth" / "GT_IMG_1.mat"
    info = scipy.io.loadmat(path)["image_info"][0, 0][0, 0]
    assert info["location"].shape == (0, 2)
    assert info["number"].tolist() == [[0.0]]


def test_what_is_unknown_or_out_of_range_is_refused(crowd: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown layout to export 'nwpu'; known: folder, npy, "):
        export(crowd, tmp_path / "other", layout="nwpu")
    for options in ({"limit": 0}, {"max_side": 0}):
        with pytest.raises(ValueError, match="must be at least 1, got 0"):
            export(crowd, tmp_path / "other", **options)
    for split in ("..", "../crowd", "a/b", "", ".a"):  # a folder of one split serves as any
        with pytest.raises(ValueError, match="split must be a plain name"):
            export(crowd / "train", tmp_path / "other", split=split)


def test_regions_of_interest_are_refused(tmp_path: Path) -> None:
    labels = tmp_path / "expo" / "train_label" / "100010"
    labels.mkdir(parents=True)
    (tmp_path / "expo" / "train_frame").mkdir()
    picture(1).save(tmp_path / "expo" / "train_frame" / "100010_1.png")
    scipy.io.savemat(labels / "100010_1.mat", {"point_position": np.ones((2, 2))})
    corners = {"maskVerticesXCoordinates": [0, 9, 9], "maskVerticesYCoordinates": [0, 0, 9]}
    scipy.io.savemat(labels / "roi.mat", corners)
    with pytest.raises(ValueError, match=r"100010_1\.png: has a region of interest"):
        export(tmp_path / "expo", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_splits_without_annotation_are_left_out_loudly(tmp_path: Path) -> None:
    root, out = tmp_path / "nwpu", tmp_path / "out"
    for folder in ("images", "jsons"):
        (root / folder).mkdir(parents=True)
    for number, split in enumerate(("val", "test"), start=1):
        picture(number).save(root / "images" / f"{number}.jpg")
        (root / f"{split}.txt").write_text(f"{number} 0 0\n")
    with pytest.raises(pycc.data.NotAnnotatedError, match="none of its images has an annotation"):
        export(root, out, split="test")
    (root / "jsons" / "1.json").write_text('{"points": [[1, 1]]}')
    with pytest.warns(UserWarning, match=r"left out: .*test\.txt: none of its images"):
        (written,) = export(root, out)
    assert written.split == "val"


def test_real_images_come_back(shared: Path, tmp_path: Path) -> None:
    root, out = shared / "data" / "shanghaitech" / "part_A", tmp_path / "out"
    export(root, out, layout="shanghaitech", limit=3)
    for split in ("train", "test"):
        old, new = pycc.data.open(root, split=split, limit=3), pycc.data.open(out, split=split)
        assert old.names == new.names
        assert_same(old, new)
    root = shared / "data" / "ucf_cc_50"
    export(root, tmp_path / "small", split="test2", limit=5, max_side=512)
    old = pycc.data.open(root, split="test2", limit=5)
    new = pycc.data.open(tmp_path / "small", split="test2")
    for index in range(5):
        assert len(new.points(index)) == len(old.points(index))
        assert max(new[index].image.shape[1:]) <= 512
