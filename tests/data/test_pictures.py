"""Which files of a folder are images, and what is reported of the others."""

from __future__ import annotations

import io
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

import pycc.data
from pycc.data.export import export
from pycc.data.pictures import is_picture, pictures

PIXELS = np.random.default_rng(3).integers(0, 256, (12, 20, 3), np.uint8)
JPEG_NAMES = ("a.jpg", "b.jfif", "c.jpe", "d.jpeg", "e.JPG")


def encoded(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, kind)
    return stream.getvalue()


def image_folder(layout: str, root: Path) -> tuple[Path, Path, str]:
    """(folder to open, folder of its images, pattern of the annotations' paths) of a layout."""
    part = root / layout
    images, truth = {
        "folder": (part, "{name}.csv"),
        "inner": (part / "images", "../points/{name}.csv"),
        "shanghaitech": (part / "test_data/images", "../ground-truth/GT_{name}.mat"),
        "ucf_cc_50": (part, "{name}_ann.mat"),
        "jhu": (part / "test/images", "../gt/{name}.txt"),
        "nwpu": (part / "images", "../jsons/{name}.json"),
        "worldexpo": (part / "test_frame/104207", "../../test_label/104207/{name}.mat"),
    }[layout]
    images.mkdir(parents=True)
    return part, images, truth


def annotate(layout: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    heads = np.array([[3.5, 4.5]])
    if path.suffix == ".mat":
        info = np.empty((1, 1), object)
        info[0, 0] = {"location": heads}
        scipy.io.savemat(
            path, {"image_info": info, "annPoints": heads, "point_position": heads}
        )  # of each layout its own
    else:
        path.write_text({".csv": "3.5,4.5", ".txt": "3.5 4.5 1 1 0 0", ".json": "[[3.5, 4.5]]"}[
            path.suffix
        ])  # fmt: skip
    if layout == "worldexpo":
        corners = {"maskVerticesXCoordinates": [0, 20, 20, 0.0],
                   "maskVerticesYCoordinates": [0, 0, 12, 12.0]}  # fmt: skip
        scipy.io.savemat(path.with_name("roi.mat"), corners)


LAYOUTS = ["folder", "inner", "shanghaitech", "ucf_cc_50", "jhu", "nwpu", "worldexpo"]


@pytest.mark.parametrize("annotated", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_opens_what_pillow_opens(layout: str, annotated: bool, tmp_path: Path) -> None:
    root, images, truth = image_folder(layout, tmp_path)
    for name in JPEG_NAMES:
        (images / name).write_bytes(encoded("JPEG"))
        annotate(layout, images / truth.format(name=Path(name).stem))
    (images / "f.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (images / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    names = [Path(name).stem for name in JPEG_NAMES]
    if layout == "nwpu":
        (root / "test.txt").write_text("\n".join(names))
    split = {"ucf_cc_50": "all", "worldexpo": "S1"}.get(layout, "test")
    with pytest.warns(UserWarning, match="left out 2 files that are no images") as warned:
        dataset = pycc.data.open(root, split=split, annotated=annotated)
    (message,) = (str(w.message) for w in warned)
    assert message.startswith(f"{images}: ")
    assert "Thumbs.db (thumbnails); f.heic (HEIF: save as JPEG, or register pillow-heif)" in message
    assert dataset.names == names
    first = dataset[0].image
    assert all(torch.equal(sample.image, first) for sample in dataset)
    if annotated:
        assert [sample.count for sample in dataset] == [1] * 5


@pytest.mark.parametrize(
    ("name", "content", "is_image"),
    [
        ("a.jfif", "JPEG", True),
        ("a.mpo", "MPO", True),
        ("a.png", "JPEG", True),  # under another format's suffix
        ("a.jp2", "JPEG2000", True),
        ("a.tga", "TGA", True),
        ("a.dib", "DIB", True),
        ("a", "PNG", True),
        ("a.jpg_large", "JPEG", True),
        ("a.20240131", "WEBP", True),
        ("a.dng", "TIFF", False),
        ("a.thm", "JPEG", False),
        ("a.pdf", "PDF", False),
        ("a.eps", "EPS", False),
        ("a.txt", "PNG", False),
    ],
)
def test_by_suffix_and_by_content(tmp_path: Path, name: str, content: str, is_image: bool) -> None:
    (tmp_path / name).write_bytes(encoded(content))
    assert is_picture(tmp_path / name) is is_image


def test_what_lies_beside_pictures_is_no_noise(tmp_path: Path) -> None:
    for name in ("a.csv", "a.json", "a.mat", "a.txt", "a.npy", "a.h5", "README", ".hidden.mp4"):
        (tmp_path / name).write_bytes(b"\x89HDF\r\n")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "b.png").write_bytes(encoded("PNG"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pictures(tmp_path) == [tmp_path / "b.png"]


def test_links_and_pipes(tmp_path: Path) -> None:
    """A link to nothing is a picture that cannot be read; a pipe is not waited for."""
    (tmp_path / "a.jpg").symlink_to(tmp_path / "gone.jpg")
    os.mkfifo(tmp_path / "pipe")
    with pytest.warns(UserWarning, match=r"pipe \(not a file\)"):
        dataset = pycc.data.open(tmp_path, annotated=False)
    with pytest.raises(ValueError, match=r"a\.jpg: cannot read the image: No such file"):
        dataset[0]


def test_the_warning_names_a_few_and_counts_all(tmp_path: Path) -> None:
    several = [f"a{n}.docx" for n in range(4)] + [f"z{n}.heic" for n in range(30)]
    for name in ("a.mp4", "b.mpg", "c.eps", "d.cr2", *several):
        (tmp_path / name).write_bytes(b"data")
    with pytest.warns(UserWarning, match="left out 38 files that are no images") as warned:
        assert pictures(tmp_path) == []
    (message,) = (str(w.message) for w in warned)
    assert message.endswith(
        "no images: "
        "z0.heic, z1.heic, z10.heic and 27 more (HEIF: save as JPEG, or register pillow-heif); "
        "a0.docx, a1.docx, a2.docx and 1 more (not a format that Pillow opens); "
        "a.mp4, b.mpg (a video); c.eps (a page, not a photograph); "
        "d.cr2 (a camera's raw file: develop it)"
    )
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "one.bin").write_bytes(b"data")
    with pytest.warns(
        UserWarning, match=r"left out 1 file that is not an image: one\.bin \(not a f"
    ):
        pictures(tmp_path / "sub")


@pytest.mark.parametrize("name", ["a.jpg~", "a.bak", "a", "a.jpg.orig", "a.jpg.~1~"])
def test_a_backup_of_a_picture_is_left_out(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded("JPEG"))
    (tmp_path / "a.csv").write_text("1,2")
    (tmp_path / name).write_bytes(encoded("PNG"))
    (tmp_path / "b.1").write_bytes(encoded("PNG"))  # of no other's name
    (tmp_path / "b.csv").write_text("")
    with pytest.warns(UserWarning, match="left out 1 file that is not an image: ") as warned:
        samples = pycc.data.open(tmp_path)
    (message,) = (str(w.message) for w in warned)
    assert message.endswith(f": {name} (by its name a backup of another image here)")
    assert [pair.image.name for pair in samples.pairs] == ["a.jpg", "b.1"]


def test_two_pictures_of_one_name_are_still_refused(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png"):
        (tmp_path / name).write_bytes(encoded("PNG"))
    with pytest.raises(ValueError, match=r"a\.png: one file expected per name"):
        pycc.data.open(tmp_path, annotated=False)


def test_a_registered_plugin_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a plugin of Pillow adds is opened without further ado."""
    Image.init()
    monkeypatch.setitem(Image.EXTENSION, ".heic", "HEIF")
    (tmp_path / "a.heic").write_bytes(b"")
    assert not is_picture(tmp_path / "a.heic"), "known by name, but nothing opens it"
    monkeypatch.setitem(Image.OPEN, "HEIF", Image.OPEN["PNG"])
    assert is_picture(tmp_path / "a.heic")


def test_export_keeps_them(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    for name, kind in (("a.jfif", "JPEG"), ("b.jp2", "JPEG2000"), ("c.tga", "TGA")):
        (root / name).write_bytes(encoded(kind))
        (root / name).with_suffix(".json").write_text(json.dumps([[1, 2]]))
    export(root, tmp_path / "plain")
    export(root, tmp_path / "part", layout="shanghaitech")
    assert sorted(path.name for path in (tmp_path / "plain" / "all").iterdir()) == [
        "a.jpg", "a.json", "b.jp2", "b.json", "c.json", "c.tga",
    ]  # fmt: skip
    kept = tmp_path / "part" / "all_data" / "images"
    assert sorted(path.name for path in kept.iterdir()) == ["IMG_1.jpg", "IMG_2.png", "IMG_3.png"]
    assert (kept / "IMG_1.jpg").read_bytes() == (root / "a.jfif").read_bytes()
