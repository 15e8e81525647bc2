"""The print kit: true sizes, exact pixels, marks where they belong, and nothing after an error."""

from __future__ import annotations

import io
import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pycc.attack.physical import printing
from pycc.attack.physical.printing import Kit, print_kit
from pycc.data import load_image

Pixels = NDArray[np.uint8]


def noise(height: int, width: int, planes: int = 3) -> Pixels:
    return np.random.default_rng(3).integers(0, 256, (height, width, planes)).astype(np.uint8)


def saved(path: Path, pixels: Pixels) -> Path:
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def square(tmp_path: Path) -> Path:
    return saved(tmp_path / "0003-scene.apam-20.png", noise(20, 20))


def disc(side: int = 20) -> Pixels:
    pixels = noise(side, side, 4)
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    pixels[..., 3] = np.where(y * y + x * x <= side * side / 4, 255, 0)
    return pixels


def page(kit: Kit) -> tuple[NDArray[np.int64], list[float]]:
    """The pixels [H,W,3] of the PDF's one page, and its MediaBox."""
    data = kit.page.read_bytes()
    assert data.count(b"/Type /Page\n") == 1
    (box,) = re.findall(rb"/MediaBox \[([^]]*)\]", data)
    with Image.open(io.BytesIO(data[data.index(b"\xff\xd8\xff") :])) as picture:
        return np.asarray(picture.convert("RGB")).astype(np.int64), [float(n) for n in box.split()]


def inside(kit: Kit) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of the patch on the page."""
    top, left = json.loads(kit.facts.read_text())["top_left_dots"]
    return top, left, top + kit.dots[0], left + kit.dots[1]


@pytest.mark.parametrize(("width_mm", "dpi"), [(25.4, 300), (33.3, 150), (80, 97.5), (4, 1200)])
def test_every_dot_is_the_pixel_it_lies_in(square: Path, tmp_path: Path, width_mm, dpi) -> None:
    kit = print_kit(square, tmp_path / "kit", width_mm=width_mm, dpi=dpi)
    assert kit.dots == (round(width_mm / 25.4 * dpi),) * 2
    with Image.open(kit.patch) as picture:
        levels = np.asarray(picture)
    place = [int((dot + 0.5) * 20 / kit.dots[0]) for dot in range(kit.dots[0])]
    assert np.array_equal(levels, noise(20, 20)[place][:, place])


def test_a_whole_enlargement_is_blocks(square: Path, tmp_path: Path) -> None:
    kit = print_kit(square, tmp_path / "kit", width_mm=25.4, dpi=140)
    with Image.open(kit.patch) as picture:
        assert np.array_equal(np.asarray(picture), noise(20, 20).repeat(7, 0).repeat(7, 1))


@pytest.mark.long
@pytest.mark.parametrize(("width_mm", "dpi"), [(50, 300), (123.4, 72), (1000, 50), (10, 2400)])
def test_files_print_at_the_true_size(square: Path, tmp_path: Path, width_mm, dpi) -> None:
    kit = print_kit(square, tmp_path / "kit", width_mm=width_mm, dpi=dpi)
    dot = 25.4 / dpi
    assert abs(kit.width_mm - width_mm) <= dot / 2
    with Image.open(kit.patch) as picture:
        across, down = picture.info["dpi"]
        sizes = picture.width / across * 25.4, picture.height / down * 25.4
    assert sizes == pytest.approx((kit.width_mm, kit.height_mm), abs=dot / 2)
    shown, box = page(kit)
    top, left, bottom, right = inside(kit)
    points = box[2] / shown.shape[1]
    assert (right - left) * points / 72 * 25.4 == pytest.approx(kit.width_mm, rel=1e-6)
    assert box[:2] == [0, 0]
    assert box[3] / shown.shape[0] == pytest.approx(points, rel=1e-6)
    assert top == shown.shape[0] - bottom, "in the middle"
    assert left == shown.shape[1] - right
    assert min(top, left) * dot >= 10


def test_the_height_follows_from_the_aspect(tmp_path: Path) -> None:
    picture = saved(tmp_path / "wide.png", noise(7, 30))
    kit = print_kit(picture, tmp_path / "kit", width_mm=60, dpi=254)
    assert (kit.dots, kit.pixels) == ((140, 600), (7, 30))
    assert (kit.width_mm, kit.height_mm) == pytest.approx((60, 14))
    assert kit.pixels_per_inch == pytest.approx(30 / 60 * 25.4)


def test_the_page_shows_the_patch_and_nothing_in_it(square: Path, tmp_path: Path) -> None:
    kit = print_kit(square, tmp_path / "kit", width_mm=30, dpi=200)
    top, left, bottom, right = inside(kit)
    shown = page(kit)[0][top:bottom, left:right]
    with Image.open(kit.patch) as picture:
        assert np.abs(shown - np.asarray(picture)).max() <= 5


def test_crop_marks_end_2_mm_before_the_patch(tmp_path: Path) -> None:
    """10 dots a millimetre and a white patch: all that is dark above the text are the marks."""
    picture = saved(tmp_path / "white.png", np.full((5, 5, 3), 255, np.uint8))
    kit = print_kit(picture, tmp_path / "kit", width_mm=20, dpi=254)
    top, left, bottom, right = inside(kit)
    expected = np.zeros(page(kit)[0].shape[:2], bool)
    for row in (top - 1, bottom):
        expected[row, [*range(left - 70, left - 20), *range(right + 20, right + 70)]] = True
    for column in (left - 1, right):
        expected[[*range(top - 70, top - 20), *range(bottom + 20, bottom + 70)], column] = True
    above_text = bottom + 70
    dark = page(kit)[0].max(2) < 128
    assert np.array_equal(dark[:above_text], expected[:above_text])
    assert dark[above_text:].any()


def test_the_scale_bar_is_50_mm(square: Path, tmp_path: Path) -> None:
    kit = print_kit(square, tmp_path / "kit", width_mm=20, dpi=254)
    below = page(kit)[0][inside(kit)[2] + 80 :].max(2) < 128
    line = np.flatnonzero(below[below.sum(1).argmax()])
    bar = line[: 1 + int(np.argmax(np.diff(line, append=10_000) > 1))]
    assert bar[-1] - bar[0] + 1 == 500
    edge = 5 * 10
    assert not below[-edge + 2 :].any(), "printers leave out the paper's edge"
    assert not below[:, : edge - 2].any()
    assert not below[:, -edge + 2 :].any()


@pytest.mark.parametrize("name", ["p.png", f"{'long-' * 40}.png"])
def test_the_text_stays_on_the_page(name: str, tmp_path: Path) -> None:
    kit = print_kit(saved(tmp_path / name, noise(4, 4)), tmp_path / "kit", width_mm=5, dpi=100)
    shown = page(kit)[0].max(2)
    assert shown[:, [0, -1]].min() > 200
    assert shown.shape[1] / 100 * 25.4 < 210, "fits A4"


def test_what_is_transparent_is_printed_white(tmp_path: Path) -> None:
    pixels = disc()
    picture = saved(tmp_path / "disc.png", pixels)
    kit = print_kit(picture, tmp_path / "kit", width_mm=25.4, dpi=60)
    with Image.open(kit.patch) as printed:
        levels = np.asarray(printed)
    assert np.array_equal(levels[..., 3], pixels[..., 3].repeat(3, 0).repeat(3, 1))
    hole = levels[..., 3] == 0
    assert hole.any()
    assert (levels[hole][:, :3] == 255).all(), "white also for a program that ignores alpha"
    assert np.array_equal(levels[~hole], pixels.repeat(3, 0).repeat(3, 1)[~hole])
    top, left, *_ = inside(kit)
    assert page(kit)[0][top + 1 : top + 4, left + 1 : left + 4].min() >= 250
    assert load_image(kit.patch).shape == (3, 60, 60)


def test_alpha_without_holes_is_an_opaque_patch(tmp_path: Path) -> None:
    pixels = noise(6, 6, 4)
    pixels[..., 3] = 255
    kit = print_kit(saved(tmp_path / "p.png", pixels), tmp_path / "kit", width_mm=25.4, dpi=60)
    with Image.open(kit.patch) as printed:
        assert printed.mode == "RGB"


def test_a_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 1], [1, 1]], np.uint8)).convert("P")
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.save(tmp_path / "p.png", transparency=0)
    kit = print_kit(tmp_path / "p.png", tmp_path / "kit", width_mm=25.4, dpi=2)
    with Image.open(kit.patch) as printed:
        levels = np.asarray(printed)
    assert levels.tolist() == [
        [[255, 255, 255, 0], [200, 100, 50, 255]],
        [[200, 100, 50, 255], [200, 100, 50, 255]],
    ]


def test_too_few_dots_are_told(square: Path, tmp_path: Path) -> None:
    message = r"10x10 printed dots cannot show 20x20 pixels: at 25\.4 mm they are 20\.0 per inch"
    with pytest.warns(UserWarning, match=message) as warned:
        kit = print_kit(square, tmp_path / "kit", width_mm=25.4, dpi=10)
    assert warned[0].filename == __file__
    assert kit.pixels_per_inch == pytest.approx(20.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        print_kit(square, tmp_path / "enough", width_mm=25.4, dpi=20)


def test_the_numbers_are_kept_and_the_bytes_repeat(square: Path, tmp_path: Path) -> None:
    first = print_kit(square, tmp_path / "a", width_mm=41, dpi=150)
    second = print_kit(square, tmp_path / "b" / "c", width_mm=41, dpi=150)
    for one, other in ((first.patch, second.patch), (first.page, second.page)):
        assert one.read_bytes() == other.read_bytes()
    assert b"Date" not in first.page.read_bytes(), "or they differ a second later"
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "kit.json",
        "page.pdf",
        "patch.png",
    ]
    facts = json.loads(first.facts.read_text())
    assert facts == json.loads(second.facts.read_text())
    assert facts["picture"] == square.name
    assert facts["dots"] == list(first.dots)
    assert facts["width_mm"] == first.width_mm
    assert facts["page_dots"] == list(page(first)[0].shape[:2])


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"width_mm": 0}, r"width_mm must be in \(0, 5000\], got 0"),
    ({"width_mm": -3.5}, "got -3.5"),
    ({"width_mm": 5001}, "got 5001"),
    ({"width_mm": float("nan")}, "width_mm must be .*, got nan"),
    ({"width_mm": float("inf")}, "width_mm must be .*, got inf"),
    ({"dpi": 0}, r"dpi must be in \(0, 4800\], got 0"),
    ({"dpi": 4801}, "got 4801"),
    ({"dpi": float("nan")}, "dpi must be .*, got nan"),
    ({"width_mm": 5000, "dpi": 4800}, "at most 20000 dots a side"),
    ({"width_mm": 1690}, r"at most 20000 dots a side, got 20\d\d\dx20\d\d\d"),
    ({"width_mm": 0.01}, "at least one dot"),
]


@pytest.mark.parametrize(("flags", "says"), REFUSED, ids=str)
def test_refusals_leave_nothing_behind(flags, says, square: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=says):
        print_kit(square, tmp_path / "new" / "kit", **{"width_mm": 50, **flags})
    assert sorted(tmp_path.rglob("*")) == before


def broken(kind: str, path: Path) -> str:
    """Makes a picture that is no patch; what the error must say, beside its name."""
    if kind == "missing":
        return "cannot read the image"
    if kind == "text":
        path.write_text("no picture")
        return "cannot read the image"
    pixels = noise(6, 6, 4)
    pixels[..., 3] = 0
    if kind == "nothing":
        saved(path, pixels)
        return "nothing but transparent pixels"
    pixels[..., 3] = 255
    pixels[2, 3:5, 3] = (1, 254)
    saved(path, pixels)
    return "got 2 partially transparent"


@pytest.mark.parametrize("kind", ["missing", "text", "nothing", "partial"])
def test_pictures_that_are_no_patch_are_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.png"
    says = broken(kind, path)
    with pytest.raises(ValueError, match=rf"bad\.png: .*{says}"):
        print_kit(path, tmp_path / "kit", width_mm=50)
    assert not (tmp_path / "kit").exists()


def test_a_folder_that_holds_files_is_refused(square: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="new or empty folder"):
        print_kit(square, tmp_path, width_mm=50)
    with pytest.raises(NotADirectoryError, match="no folder"):
        print_kit(square, square / "kit", width_mm=50)
    assert list(tmp_path.iterdir()) == [square]


@pytest.mark.parametrize("there", [True, False])
def test_a_full_disk_leaves_nothing_behind(there, square, tmp_path, monkeypatch) -> None:
    whole = printing.write_atomic
    folder = tmp_path / "new" / "kit"
    if there:
        folder.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))

    def full(path: Path, content: bytes) -> None:
        if path.name == "page.pdf":
            path.with_name(f".{path.name}.part").write_bytes(content[:10])
            raise OSError(28, "No space left on device", str(path))
        whole(path, content)

    monkeypatch.setattr(printing, "write_atomic", full)
    with pytest.raises(OSError, match="No space left"):
        print_kit(square, folder, width_mm=50)
    assert sorted(tmp_path.rglob("*")) == before
