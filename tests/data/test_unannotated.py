"""Images that are opened without their annotation, or that have none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import pycc.data
from pycc.data.dataset import data_fingerprint
from pycc.data.export import export_samples
from pycc.data.scaled import Scaled
from pycc.data.subset import Subset
from pycc.types import Sample


def save(path: Path, grey: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 10), (grey,) * 3).save(path)


@pytest.fixture
def street(tmp_path: Path) -> Path:
    """Three images of which only the first is annotated."""
    for number in (1, 2, 10):
        save(tmp_path / "street" / f"img_{number}.png", number)
    (tmp_path / "street" / "img_1.csv").write_text("1,2\n")
    return tmp_path / "street"


def test_a_plain_folder_must_be_requested_without(street: Path) -> None:
    with pytest.raises(ValueError, match=r"img_2\.png: image without annotation"):
        pycc.data.open(street)
    dataset = pycc.data.open(street, annotated=False)
    assert dataset.names == ["img_1", "img_2", "img_10"]
    for index, sample in enumerate(dataset):
        assert sample.image.shape == (3, 10, 20)
        assert sample.roi is None
        assert not sample.annotated, "whether there is a file or not"
        with pytest.raises(ValueError, match=rf"{sample.name}.*: not annotated"):
            dataset.points(index)
    assert pycc.data.open(street, annotated=False, limit=2).names == ["img_1", "img_2"]


def test_the_fingerprint_is_that_of_the_images(street: Path) -> None:
    before = data_fingerprint(pycc.data.open(street, annotated=False))
    (street / "img_1.csv").write_text("3,4\n")
    for name in ("img_2", "img_10"):
        (street / f"{name}.csv").write_text("")
    assert data_fingerprint(pycc.data.open(street)) != before
    assert data_fingerprint(pycc.data.open(street, annotated=False)) == before
    save(street / "img_2.png", 200)
    assert data_fingerprint(pycc.data.open(street, annotated=False)) != before


def test_broken_images_are_named_and_skipped(street: Path) -> None:
    (street / "img_2.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"img_2\.png: cannot read the image"):
        pycc.data.open(street, annotated=False)[1]
    with pytest.warns(UserWarning, match=r"skipped: .*img_2\.png"):
        rest = pycc.data.open(street, annotated=False, on_error="skip")
    assert rest.names == ["img_1", "img_10"]
    save(street / "img_1.jpg")
    with pytest.raises(ValueError, match=r"img_1\.png: one file expected per name"):
        pycc.data.open(street, annotated=False)


LAYOUTS = {
    "shanghaitech": ("part_A/{split}_data/images/IMG_1.jpg", "part_A"),
    "ucf_qnrf": ("qnrf/{Split}/img_0001.jpg", "qnrf"),
    "jhu": ("jhu/{split}/images/0001.jpg", "jhu"),
    "folder": ("own/{split}/one.jpg", "own"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_layouts_without_any_annotation(layout: str, split: str, tmp_path: Path) -> None:
    image, root = LAYOUTS[layout]
    for split in ("train", "test"):
        save(tmp_path / image.format(split=split, Split=split.title()))
    (tmp_path / "jhu/train/gt").mkdir(parents=True)  # by which the layout is known
    (tmp_path / "qnrf/Train").mkdir(parents=True, exist_ok=True)
    (tmp_path / "qnrf/Train/img_0001_ann.mat").write_bytes(b"broken")
    (sample,) = pycc.data.open(tmp_path / root, split=split, annotated=False)
    assert not sample.annotated
    assert sample.image.shape == (3, 10, 20)


def test_drawn_scenes_always_know_their_heads() -> None:
    with pytest.raises(ValueError, match="annotated=False is for folders, synthetic is drawn"):
        pycc.data.open("synthetic", annotated=False)


def test_wrappers_keep_that_nothing_is_known(street: Path) -> None:
    dataset = pycc.data.open(street, annotated=False)
    (sample,) = Subset(dataset, [1])
    assert not sample.annotated
    scaled = Scaled(dataset, 0.5)[1]
    assert scaled.image.shape == (3, 5, 10)
    assert not scaled.annotated


def test_nothing_without_annotation_is_exported(tmp_path: Path) -> None:
    sample = Sample("one", torch.zeros(3, 4, 6), None)
    for layout in ("folder", "shanghaitech"):
        with pytest.raises(ValueError, match="one: not annotated, and exported layouts hold"):
            export_samples({"train": [sample]}, tmp_path / "out", layout=layout)
        assert not (tmp_path / "out").exists()
