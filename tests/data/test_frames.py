"""UCSD and Mall: frames of a camera, whose annotation is one file for many."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.io
from support.labelled import add_images

import pycc.data
from pycc.commands import main
from pycc.data.inspect import inspect


def cells(frames: list[list[list[float]]]) -> np.ndarray:
    """A cell array of structures as MATLAB stores it."""
    array = np.empty((1, len(frames)), object)
    for index, heads in enumerate(frames):
        array[0, index] = {"loc": np.array(heads, float) if heads else np.zeros((0, 0))}
    return array


def make_mall(root: Path, frames: list[list[list[float]]], images: int | None = None) -> Path:
    number = len(frames) if images is None else images
    add_images(root / "frames", *(f"seq_{n:06d}.jpg" for n in range(1, number + 1)))
    scipy.io.savemat(root / "mall_gt.mat", {"frame": cells(frames)})
    mask = {"mask": np.zeros((20, 40), np.uint8)}
    scipy.io.savemat(root / "perspective_roi.mat", {"roi": mask})
    return root


def test_mall(tmp_path: Path) -> None:
    samples = pycc.data.open(make_mall(tmp_path, [[[1.5, 2], [3, 4]], []]))
    assert samples.names == ["seq_000001", "seq_000002"]
    assert samples[0].points.tolist() == [[1.5, 2], [3, 4]]
    assert samples[1].points.shape == (0, 2)
    assert samples[0].roi is None
    assert inspect(tmp_path).layout == "mall"
    assert len(pycc.data.open(tmp_path, annotated=False)) == 2


def test_the_published_splits_of_mall(tmp_path: Path) -> None:
    heads = [[[1.0, 2.0]] * (n % 3) for n in range(2000)]
    make_mall(tmp_path, heads, images=0)
    for number in (1, 800, 801, 2000):
        add_images(tmp_path / "frames", f"seq_{number:06d}.jpg")
    for split, numbers in (("train", (1, 800)), ("test", (801, 2000))):
        with pytest.warns(UserWarning, match=r"skipped: .*frame\{.*\}\.loc: no image"):
            samples = pycc.data.open(tmp_path, split=split, on_error="skip")
        assert samples.names == [f"seq_{number:06d}" for number in numbers]
        assert [sample.count for sample in samples] == [(number - 1) % 3 for number in numbers]
        alone = pycc.data.open(tmp_path, split=split, annotated=False)
        assert alone.names == samples.names
    with pytest.raises(ValueError, match="has splits train, test, got 'val'"):
        pycc.data.open(tmp_path, split="val")


def test_frames_and_heads_must_match(tmp_path: Path) -> None:
    make_mall(tmp_path / "more", [[[1, 2]]], images=2)
    with pytest.raises(ValueError, match=r"seq_000002\.jpg: image without annotation in"):
        pycc.data.open(tmp_path / "more")
    make_mall(tmp_path / "less", [[[1, 2]], [[1, 2]]], images=1)
    with pytest.raises(ValueError, match=r"mall_gt\.mat: frame\{2\}\.loc: no image seq_000002"):
        pycc.data.open(tmp_path / "less")
    make_mall(tmp_path / "bad", [[[1, 2, 3, 4]]])
    with pytest.raises(ValueError, match=r"frame\{1\}\.loc must be N x 2 numbers, got 1 x 4"):
        pycc.data.open(tmp_path / "bad")
    scipy.io.savemat(tmp_path / "bad" / "mall_gt.mat", {"frame": np.ones((3, 3))})
    with pytest.raises(ValueError, match=r"mall_gt\.mat: frame must be a cell array of struct"):
        pycc.data.open(tmp_path / "bad")


@pytest.fixture(params=["vidf-cvpr", "gt/vidf"])
def ucsd(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Two clips of two frames; the left half of them is the region of interest."""
    labels = tmp_path / request.param
    labels.mkdir(parents=True)
    for clip, heads in (
        ("000", [[[1.5, 2, 1], [30, 4, 2]], []]),
        ("003", [[[3, 4, 1]], [[5, 6, 1]]]),
    ):
        add_images(tmp_path / f"ucsdpeds/vidf/vidf1_33_{clip}.y",
                   *(f"vidf1_33_{clip}_f{n:03d}.png" for n in (1, 2)))  # fmt: skip
        content = {"frame": cells(heads)}
        if request.param == "gt/vidf":
            content = {"fgt": content}
        scipy.io.savemat(labels / f"vidf1_33_{clip}_frame_full.mat", content)
    mask = np.zeros((20, 40), np.uint8)
    mask[:, :20] = 1
    scipy.io.savemat(labels / "vidf1_33_roi_mainwalkway.mat", {"roi": {"mask": mask}})
    return tmp_path


def test_ucsd(ucsd: Path) -> None:
    test, train = (pycc.data.open(ucsd, split=split) for split in ("test", "train"))
    assert test.names == ["vidf1_33_000_f001", "vidf1_33_000_f002"]
    assert [sample.points.tolist() for sample in test] == [[[1.5, 2]], []], "the region counts"
    assert [sample.points.tolist() for sample in train] == [[[3, 4]], [[5, 6]]]
    assert test[0].roi is not None
    assert int(test[0].roi.sum()) == 400
    assert (test.origin, inspect(ucsd).layout) == ("ucsd", "ucsd")
    assert pycc.data.open(ucsd, split="test", annotated=False)[0].roi is not None


def test_people_outside_the_region_are_hidden_in_a_conversion(ucsd: Path) -> None:
    out = ucsd.parent / f"{ucsd.name}-out"
    argv = ["convert", str(ucsd), str(out), "--layout", "coco"]
    assert main("data", argv) == 2
    assert not out.exists()
    assert main("data", [*argv, "--outside-roi", "black"]) == 0
    old, new = (pycc.data.open(root, split="test") for root in (ucsd, out))
    assert [sample.count for sample in new] == [1, 0]
    assert new[0].roi is None
    assert float(new[0].image[..., 20:].max()) == 0
    assert new[0].image[..., :20].equal(old[0].image[..., :20])


def test_broken_files_of_ucsd(ucsd: Path) -> None:
    (region,) = ucsd.rglob("*_roi_mainwalkway.mat")
    scipy.io.savemat(region, {"roi": {"mask": np.ones((2, 2))}})
    with pytest.raises(ValueError, match=r"roi\.mask must be 20 x 40 numbers, got 2 x 2"):
        pycc.data.open(ucsd, split="test")[0]
    region.unlink()
    with pytest.raises(ValueError, match=r"mainwalkway\.mat: no such file: it is the region"):
        pycc.data.open(ucsd, split="test")
    (heads,) = ucsd.rglob("*_000_frame_full.mat")
    scipy.io.savemat(heads, {"other": 1})
    with pytest.raises(ValueError, match=r"_frame_full\.mat: expected frame or fgt\.frame"):
        pycc.data.open(ucsd, split="test")
