"""Photographs without and with the patch: pairs by name, error rates against the clean count."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from pycc.attack.physical.photo import PhotoSummary, photo_table, photographed
from pycc.data import load_image


class Reds(nn.Module):
    """A map that is linear in red: each cell of 4x4 pixels counts its mean red, times 10."""

    stride = 4
    receptive_field = 4

    def __init__(self, factor: float = 10.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        self.seen: list[tuple[bool, bool, tuple[int, ...]]] = []

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != (64, 64):  # the image by which counters are identified
            self.seen.append((self.training, self.factor.requires_grad, tuple(images.shape)))
        cells: Tensor = functional.avg_pool2d(images[:, :1], 4)
        return self.factor * cells


def photo(path: Path, red: int, shape: tuple[int, int] = (8, 12)) -> Path:
    path.parent.mkdir(exist_ok=True)
    pixels = np.zeros((*shape, 3), np.uint8)
    pixels[..., 0] = red
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Scenes 2 and 10, and one without any red, under the suffixes that phones like."""
    clean, attacked = tmp_path / "clean", tmp_path / "attacked"
    for folder, suffix, reds in ((clean, ".png", (51, 102, 0)), (attacked, ".bmp", (204, 51, 51))):
        for name, red in zip(("IMG_2", "IMG_10", "dark"), reds, strict=True):
            photo(folder / f"{name}{suffix}", red)
    return clean, attacked


def test_error_rates_by_hand(folders: tuple[Path, Path]) -> None:
    """6 cells of 10 · red / 255: 12 -> 48, 24 -> 12, 0 -> 12."""
    done = photographed(Reds(), *folders)
    assert [r.image for r in done.rows] == ["IMG_2", "IMG_10", "dark"], "2 before 10"
    assert [r.index for r in done.rows] == [0, 1, 2]
    assert {(r["condition"], r["patch_size"]) for r in done.run.records} == {("photo", None)}
    assert [r.clean for r in done.rows] == pytest.approx([12, 24, 0])
    assert [r.count for r in done.rows] == pytest.approx([48, 12, 12])
    assert [r.error_rate for r in done.rows[:2]] == pytest.approx([300, 50])
    assert done.rows[2].error_rate is None
    assert done.summary == PhotoSummary(
        images=3, mean_clean=pytest.approx(12), mean_count=pytest.approx(24),
        error_rate=pytest.approx(175), error_rate_undefined=1,
    )  # fmt: skip


def test_a_negative_clean_count_has_a_positive_error_rate(folders: tuple[Path, Path]) -> None:
    done = photographed(Reds(-10.0), *folders)
    assert [r.clean for r in done.rows[:2]] == pytest.approx([-12, -24])
    assert [r.error_rate for r in done.rows[:2]] == pytest.approx([300, 50])


def test_undefined_on_all_photos(tmp_path: Path) -> None:
    photo(tmp_path / "a" / "1.png", 0)
    photo(tmp_path / "b" / "1.png", 9)
    done = photographed(Reds(), tmp_path / "a", tmp_path / "b")
    assert done.summary.error_rate is None
    assert done.summary.error_rate_undefined == 1
    table = photo_table(done.summary, done.rows)
    assert "undefined on 1 photo: the clean prediction is 0" in table
    assert "nan" not in table
    assert "inf" not in table


def test_pairs_across_suffixes_and_sizes(tmp_path: Path) -> None:
    photo(tmp_path / "a" / "x.JPG", 102, (16, 8))
    photo(tmp_path / "b" / "x.png", 102, (8, 12))
    (tmp_path / "a" / "notes.txt").write_text("sunny")
    (tmp_path / "a" / ".hidden.png").write_bytes(b"")
    (tmp_path / "b" / "more.png").mkdir()
    counter = Reds()
    done = photographed(counter, tmp_path / "a", tmp_path / "b")
    assert [shape for _, _, shape in counter.seen] == [(1, 3, 16, 8), (1, 3, 8, 12)]
    (row,) = done.rows
    red = float(load_image(tmp_path / "a" / "x.JPG")[0].mean())
    assert row.clean == pytest.approx(80 * red)
    assert row.count == pytest.approx(24)


def test_every_picture_is_a_photo_and_the_rest_is_named(tmp_path: Path) -> None:
    clean, attacked = tmp_path / "clean", tmp_path / "attacked"
    for folder in (clean, attacked):
        for name in ("1", "2", "3", "4", "5"):
            photo(folder / f"{name}.jpg", 102)
    for name, suffix in (("1", "jfif"), ("2", "jpe"), ("3", "jpeg"), ("4", "JPG")):
        (clean / f"{name}.jpg").rename(clean / f"{name}.{suffix}")
    (clean / "6.mov").write_bytes(b"")
    with pytest.warns(
        UserWarning, match=r"clean: left out 1 file .*: 6\.mov \(a video\)"
    ) as warned:
        done = photographed(Reds(), clean, attacked)
    assert len(warned) == 1
    assert [row.image for row in done.rows] == ["1", "2", "3", "4", "5"]
    assert [row.error_rate for row in done.rows] == [0.0] * 5


def test_photos_of_twelve_bits(tmp_path: Path) -> None:
    """Grey of 2048 in each pixel: 6 cells of 10 times it."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        grey = np.full((8, 12), 2048, np.uint16)
        Image.fromarray(grey).save(tmp_path / folder / "1.png")
    folders = (tmp_path / "a", tmp_path / "b")
    with pytest.warns(UserWarning, match="its highest value is 2048"):
        dark = photographed(Reds(), *folders)
    bright = photographed(Reds(), *folders, bit_depth=12)
    assert dark.rows[0].clean == pytest.approx(60 * 2048 / 65535)
    assert bright.rows[0].clean == pytest.approx(60 * 2048 / 4095)
    prints = [done.run.manifest["fingerprints"]["data"] for done in (dark, bright)]
    assert prints[0] != prints[1]
    with pytest.raises(ValueError, match=r"a/1\.png: .* at most 95 pixels, got 12 x 8"):
        photographed(Reds(), *folders, max_image_pixels=95)


def test_the_counter_is_frozen_meanwhile(folders: tuple[Path, Path]) -> None:
    counter = Reds().train()
    photographed(counter, *folders)
    assert {(training, wants) for training, wants, _ in counter.seen} == {(False, False)}
    assert counter.training
    assert counter.factor.requires_grad
    assert counter.factor.grad is None


def test_the_run_folder(folders: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    reported: list[tuple[float, float, str]] = []
    done = photographed(
        Reds(),
        *folders,
        out=out,
        progress=lambda *now: reported.append(now),
        command=["--photo"],
    )
    lines = (out / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == done.run.records
    assert '"error_rate": null' in lines[2]
    assert json.loads((out / "summary.json").read_text()) == asdict(done.summary)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["kind"] == "photo"
    assert manifest["command"] == ["--photo"]
    assert manifest["settings"]["attacked"] == str(folders[1])
    assert [done for done, _, _ in reported] == [0, 1, 2, 3]
    assert {total for _, total, _ in reported} == {3}


def test_the_fingerprints_tell_photos_and_weights(folders: tuple[Path, Path]) -> None:
    def prints(counter: Reds) -> dict[str, object]:
        return dict(photographed(counter, *folders).run.manifest["fingerprints"])

    first = prints(Reds())
    assert prints(Reds()) == first
    assert prints(Reds(9.0))["weights"] != first["weights"]
    photo(folders[1] / "dark.bmp", 52)
    assert prints(Reds())["data"] != first["data"]


def test_the_table(folders: tuple[Path, Path]) -> None:
    done = photographed(Reds(), *folders)
    assert photo_table(done.summary, done.rows[::-1]).splitlines() == [
        "photo   clean count  attacked count  error rate %",
        "-------------------------------------------------",
        "IMG_2          12.0            48.0         300.0",
        "IMG_10         24.0            12.0          50.0",
        "dark            0.0            12.0             -",
        "-------------------------------------------------",
        "mean           12.0            24.0         175.0",
        "photos: 3; error rate against the clean prediction",
        "error rate undefined on 1 photo: the clean prediction is 0",
    ]


def spoil(kind: str, clean: Path, attacked: Path) -> str:
    """Spoils the folders; the pattern of the error."""
    if kind == "no attacked photo":
        (attacked / "IMG_10.bmp").unlink()
        return r"clean/IMG_10\.png: .* same name in \S*attacked, got none"
    if kind == "no clean photo":
        (clean / "dark.png").unlink()
        return r"attacked/dark\.bmp: .* same name in \S*clean, got none"
    if kind == "two of a name":
        photo(attacked / "dark.jpg", 7)
        return r"attacked/dark\.jpg: expected one photo of a name, got dark\.bmp too"
    if kind == "truncated":
        path = attacked / "dark.bmp"
        path.write_bytes(path.read_bytes()[:-30])
        return r"attacked/dark\.bmp: cannot read the image"
    if kind == "small":
        photo(clean / "dark.png", 7, (3, 9))
        return r"clean/dark\.png: image must have at least one cell of 4x4 pixels, got 3x9"
    for path in clean.iterdir():
        path.unlink()
    if kind == "no folder":
        clean.rmdir()
        return r"clean: cannot read the folder"
    return r"clean: expected a folder of photos, got none in it"


@pytest.mark.parametrize(
    "kind",
    [
        "no attacked photo",
        "no clean photo",
        "two of a name",
        "truncated",
        "small",
        "no folder",
        "empty",
    ],
)
def test_bad_input_is_named_before_any_work(kind, folders, tmp_path: Path) -> None:
    says, counter = spoil(kind, *folders), Reds()
    with pytest.raises(ValueError, match=says):
        photographed(counter, *folders, out=tmp_path / "run")
    assert not counter.seen
    assert not (tmp_path / "run").exists()


def test_an_output_folder_that_holds_files(folders: tuple[Path, Path]) -> None:
    counter = Reds()
    with pytest.raises(ValueError, match="new or empty folder"):
        photographed(counter, *folders, out=folders[0])
    assert not counter.seen


class Infinite(Reds):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) / 0


def test_a_map_that_is_not_finite(folders: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match=r"IMG_2\.png: the counter's map must be finite"):
        photographed(Infinite(), *folders)
