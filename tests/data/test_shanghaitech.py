import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

import pycc.data
from pycc.data.shanghaitech import read_points


def save_mat(path: Path, location: object) -> None:
    """The published nesting, compressed: image_info{1}.location, .number."""
    info = np.empty((1, 1), object)
    info[0, 0] = {"location": location, "number": np.array([[1.0]])}
    scipy.io.savemat(path, {"image_info": info}, do_compression=True)


def make_split(folder: Path, truth: str, numbers: tuple[int, ...] = (1, 2, 10)) -> None:
    (folder / "images").mkdir(parents=True)
    (folder / truth).mkdir()
    for number in numbers:
        Image.new("RGB", (20, 10)).save(folder / "images" / f"IMG_{number}.jpg")
        save_mat(folder / truth / f"GT_IMG_{number}.mat", np.full((number, 2), 5.5))


@pytest.fixture(params=["ground-truth", "ground_truth"])
def part(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    for split in ("train", "test"):
        make_split(tmp_path / "part_A_final" / f"{split}_data", request.param)
    return tmp_path / "part_A_final"


def test_both_editions_and_both_entrances(part: Path) -> None:
    for root in (part, part / "test_data"):
        dataset = pycc.data.open(root, split="test")
        assert dataset.name == "part_A_final/test_data"
        assert dataset.names == ["IMG_1", "IMG_2", "IMG_10"]
        assert [sample.count for sample in dataset] == [1, 2, 10]
        assert dataset[0].points.tolist() == [[5.5, 5.5]]
    assert pycc.data.open(part, split="train").name == "part_A_final/train_data"
    assert pycc.data.open(part / "train_data").name == "part_A_final/train_data"


def test_what_is_missing_is_named(part: Path) -> None:
    with pytest.raises(ValueError, match="has splits train, test, got 'val'"):
        pycc.data.open(part, split="val")
    images = part / "test_data" / "images"
    (images / "IMG_2.jpg").rename(images / "IMG_3.jpg")
    with pytest.raises(ValueError, match=r"GT_IMG_2\.mat: annotation without image"):
        pycc.data.open(part)
    with pytest.warns(UserWarning, match="skipped") as warned:
        assert len(pycc.data.open(part, on_error="skip")) == 2
    assert len(warned) == 2
    shutil.rmtree(images)
    with pytest.raises(ValueError, match="images: cannot read the folder"):
        pycc.data.open(part)
    shutil.rmtree(part / "test_data")
    with pytest.raises(ValueError, match="part_A_final: has splits train, got 'test'"):
        pycc.data.open(part)


@pytest.mark.parametrize(
    ("location", "problem"),
    [
        (np.zeros((4, 3)), "must be N x 2 numbers"),
        (np.array(["ab", "cd"]), "must be N x 2 numbers"),
        (np.array([[1.0, np.nan]]), "points must be finite"),
    ],
)
def test_a_mat_of_wrong_points_is_refused(tmp_path: Path, location: object, problem: str) -> None:
    save_mat(tmp_path / "GT_IMG_1.mat", location)
    with pytest.raises(ValueError, match=rf"GT_IMG_1\.mat: .*{problem}"):
        read_points(tmp_path / "GT_IMG_1.mat")


@pytest.mark.parametrize("shape", [(0, 2), (0, 0), (1, 0), (0,)])
def test_nobody_is_a_count(part: Path, shape: tuple[int, ...]) -> None:
    save_mat(next((part / "test_data").glob("ground*/GT_IMG_2.mat")), np.zeros(shape))
    dataset = pycc.data.open(part, on_error="skip")
    assert [sample.count for sample in dataset] == [1, 0, 10]
    assert dataset[1].annotated
    assert dataset.points(1).shape == (0, 2)


def test_a_second_folder_of_annotation_without_any(part: Path) -> None:
    """Only a folder that holds .mat files is an edition of the ground truth."""
    split = part / "test_data"
    other = {"ground-truth": "ground_truth", "ground_truth": "ground-truth"}
    (truth,) = split.glob("ground*")
    empty = split / other[truth.name]
    empty.mkdir()
    (empty / "notes.txt").write_text("")
    for root in (part, split):
        assert [sample.count for sample in pycc.data.open(root)] == [1, 2, 10]
    shutil.copy(truth / "GT_IMG_1.mat", empty)
    with pytest.raises(ValueError, match=(
        r"expected ground-truth or ground_truth, found both: keep one of them; to .*--unannotated"
    )):  # fmt: skip
        pycc.data.open(part)


def test_train_data_that_is_something_else(tmp_path: Path) -> None:
    """A folder's name alone is no layout."""
    (tmp_path / "train_data" / "weights").mkdir(parents=True)
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    (tmp_path / "a.csv").write_text("1,2")
    assert [sample.count for sample in pycc.data.open(tmp_path)] == [1]
    split = tmp_path / "train_data"
    for folder in ("images", "ground_truth"):
        (split / folder).mkdir()
    Image.new("RGB", (20, 10)).save(split / "images" / "b.png")
    (split / "images" / "b.csv").write_text("1,2\n3,4\n")
    assert [sample.count for sample in pycc.data.open(split)] == [2], "no .mat in ground_truth"


def test_a_mat_without_points_is_refused(part: Path) -> None:
    path = next((part / "test_data").glob("ground*/GT_IMG_1.mat"))
    for content in ({"other": 1.0}, {"image_info": 1.0}, {"image_info": {"number": 1.0}}):
        scipy.io.savemat(path, content)
        dataset = pycc.data.open(part)
        with pytest.raises(ValueError, match=r"GT_IMG_1\.mat: no points: .*location is missing"):
            dataset[0]
        assert dataset[1].count == 2


@pytest.mark.parametrize(
    ("part", "split", "images", "heads"),
    [
        ("part_A", "train", 300, 162_413),
        ("part_A", "test", 182, 78_862),
        ("part_B", "train", 400, 49_151),
        ("part_B", "test", 316, 39_121),
    ],
)
def test_published_counts(shared: Path, part: str, split: str, images: int, heads: int) -> None:
    dataset = pycc.data.open(shared / "data" / "shanghaitech" / part, split=split)
    assert dataset.name == f"{part}/{split}_data"
    assert dataset.names == [f"IMG_{n}" for n in range(1, images + 1)]
    assert sum(len(dataset.points(index)) for index in range(images)) == heads


def test_real_samples_load(shared: Path) -> None:
    dataset = pycc.data.open(shared / "data" / "shanghaitech" / "part_A")
    for index in (0, 97, 181):
        sample = dataset[index]
        assert torch.equal(sample.points, dataset.points(index))
        height, width = sample.image.shape[1:]
        assert bool((sample.points >= 0).all())
        assert bool((sample.points < torch.tensor([width, height])).all())
        assert float(sample.image.min()) >= 0.0
        assert 0.5 < float(sample.image.max()) <= 1.0


def test_the_known_leak_is_seen_by_its_bytes(shared: Path) -> None:
    root = shared / "data" / "shanghaitech" / "part_A"
    leaked = pycc.data.open(root, split="test")[97]
    source = pycc.data.open(root, split="train")[120]
    assert (leaked.name, source.name) == ("IMG_98", "IMG_121")
    assert torch.equal(leaked.image, source.image)


@pytest.mark.parametrize(("part", "dropped", "total"), [("A", 402, 241_677), ("B", 216, 88_488)])
def test_the_final_edition_drops_points_outside(
    shared: Path, tmp_path: Path, part: str, dropped: int, total: int
) -> None:
    images = shared / "data" / "shanghaitech" / f"part_{part}"
    truths = shared / "data" / "shanghaitech_final_gt" / f"part_{part}_final"
    kept = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for split in ("train", "test"):
            folder = tmp_path / f"part_{part}_final" / f"{split}_data"
            folder.mkdir(parents=True)
            (folder / "images").symlink_to(images / f"{split}_data" / "images")
            (folder / "ground_truth").symlink_to(truths / f"{split}_data" / "ground_truth")
            dataset = pycc.data.open(tmp_path / f"part_{part}_final", split=split)
            kept += sum(len(dataset.points(index)) for index in range(len(dataset)))
    assert kept == total - dropped
    counts = [int(str(w.message).split("dropped ")[1].split()[0]) for w in caught]
    assert sum(counts) == dropped
