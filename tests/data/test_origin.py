"""Which published data set a folder is taken for."""

from __future__ import annotations

from pathlib import Path

import pytest
import scipy.io
from PIL import Image

import pycc.data
from pycc.data.origin import origin
from pycc.data.scaled import Scaled
from pycc.data.subset import Subset


def make_part(root: Path, train: int = 1, test: int = 1) -> Path:
    """ShanghaiTech's layout with so many images, which are empty files."""
    for split, number in (("train_data", train), ("test_data", test)):
        for folder in ("images", "ground-truth"):
            (root / split / folder).mkdir(parents=True)
        for index in range(1, number + 1):
            (root / split / "images" / f"IMG_{index}.jpg").touch()
            (root / split / "ground-truth" / f"GT_IMG_{index}.mat").touch()
    return root


NAMES = {
    "part_A": "a", "part_B": "b", "part_A_final": "a", "part_B_final": "b", "PartB": "b",
    "SHA": "a", "SHB": "b", "SHHA": "a", "SHTechB": "b", "ShanghaiTech_A": "a",
    "shanghaitech_part_b": "b", "Shanghai B": "b",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_part_tells_by_its_name(name: str, tmp_path: Path) -> None:
    root = make_part(tmp_path / "part_builds" / name)
    for folder in (root, root / "test_data", root / "train_data"):
        assert pycc.data.open(folder).origin == f"shanghaitech_{NAMES[name]}"


def test_a_link_tells_by_its_own_name(tmp_path: Path) -> None:
    link = tmp_path / "part_B"
    link.symlink_to(make_part(tmp_path / "store"), target_is_directory=True)
    for folder in (link, link / "test_data"):
        assert pycc.data.open(folder).origin == "shanghaitech_b"


@pytest.mark.parametrize("name", ["a", "B", "crowd", "part_builds", "part_c", "apart_b", "shanty"])
def test_other_names_tell_nothing(name: str, tmp_path: Path) -> None:
    """Nor do those of folders above the part's."""
    root = make_part(tmp_path / "part_B" / name)
    assert pycc.data.open(root).origin == pycc.data.open(root / "test_data").origin == ""


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        (300, 182, "shanghaitech_a"),
        (400, 316, "shanghaitech_b"),
        (400, 315, ""),
        (400, 182, ""),
        (0, 316, ""),
    ],
)
def test_the_numbers_tell_where_the_name_does_not(
    train: int, test: int, expected: str, tmp_path: Path
) -> None:
    root = make_part(tmp_path / "crowd", train, test)
    assert pycc.data.open(root, limit=1).origin == expected
    assert pycc.data.open(root / "test_data", limit=1).origin == expected
    # The name decides, not the numbers.
    root.rename(tmp_path / "part_A")
    assert pycc.data.open(tmp_path / "part_A", limit=1).origin == "shanghaitech_a"


def test_one_split_alone(tmp_path: Path) -> None:
    root = make_part(tmp_path / "crowd", 1, 316)
    (root / "test_data").rename(tmp_path / "mine")
    assert pycc.data.open(tmp_path / "mine", limit=1).origin == "shanghaitech_b"
    assert pycc.data.open(tmp_path / "mine", limit=1, annotated=False).origin == "shanghaitech_b"


def test_layouts_of_one_data_set_tell(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "1.jpg")
    scipy.io.savemat(tmp_path / "1_ann.mat", {"annPoints": [[1.0, 2.0]]})
    dataset = pycc.data.open(tmp_path, split="all")
    assert dataset.origin == "ucf_cc_50"
    for wrapped in (Subset(dataset, [0]), Scaled(dataset, 2.0)):
        assert wrapped.origin == "ucf_cc_50"
    (tmp_path / "2.jpg").touch()
    with pytest.warns(UserWarning, match="skipped"):
        assert pycc.data.open(tmp_path, split="all", on_error="skip").origin == "ucf_cc_50"
    assert pycc.data.open("synthetic").origin == "synthetic"
    known = {"ucf_qnrf": "ucf_qnrf", "worldexpo": "worldexpo10", "nwpu": "nwpu", "jhu": "jhu"}
    assert {layout: origin(layout, tmp_path) for layout in known} == known
    assert origin("folder", tmp_path / "part_B") == ""
