from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pycc import report
from pycc.attack.evaluation.recorder import KEY
from pycc.data import save_image
from pycc.runs import Run

pytestmark = pytest.mark.command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of two images and six sizes, the second image without stored maps."""
    run = Run.create(tmp_path / "run", {}, key=KEY)
    for index in (0, 1):
        conditions = [("clean", None), *(("apam", size) for size in (4, 6, 8, 10, 12, 14))]
        for condition, size in conditions:
            file = f"000{index}-a.{condition}" + ("" if size is None else f"-{size}")
            image = run.file("images", f"{file}.png")
            assert image is not None
            save_image(image, torch.rand(3, 40, 56))
            place = {} if size is None else {"top_left": [3, 4], "side": size}
            run.append({
                "index": index, "condition": condition, "patch_size": size, "file": file,
                "image": "a", "count": 3.0, "truth": 5, "width": 56, "height": 40,
                "area": (size or 0) / 100,
                **place,
            })  # fmt: skip
            if index == 0:
                path = run.file("maps", f"{file}.npz")
                assert path is not None
                np.savez_compressed(path, density=np.random.default_rng(0).random((10, 14)))
    run.close()
    return tmp_path / "run"


def test_one_picture_per_image_with_stored_maps(folder: Path) -> None:
    reported: list[tuple[object, ...]] = []
    (path,) = report.draw(folder, progress=lambda *state: reported.append(state))
    assert path == folder / "pictures" / "0000-a.png"
    assert reported == [(1, 2, "drawing"), (2, 2, "drawing")]
    with Image.open(path) as picture:
        width, height = picture.size
    # Five columns (the clean image and the four largest patches) of two rows.
    assert width > 5 * 350
    assert height > 2 * 250


@pytest.mark.long
def test_existing_pictures_are_kept_unless_redo(folder: Path) -> None:
    (path,) = report.draw(folder)
    path.write_bytes(b"mine")
    report.draw(folder)
    assert path.read_bytes() == b"mine"
    report.draw(folder, redo=True)
    first = path.read_bytes()
    report.draw(folder, redo=True)
    assert path.read_bytes() == first, "the same results give the same picture"


def test_without_matplotlib(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"pip install 'pycc\[plot\]'"):
        report.draw(folder)
    assert not (folder / "pictures").exists()
