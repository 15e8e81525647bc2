import errno
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

import pycc.data
from pycc.commands import main
from pycc.data import load_image, mean_colour, quantize, save_image
from pycc.data.images import image_size, is_upright

RNG = np.random.default_rng(5)
RGB = RNG.integers(0, 256, (13, 17, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (13, 17), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (13, 17), dtype=np.uint16)


def planes(pixels: np.ndarray) -> torch.Tensor:
    """[H,W,3] 8-bit -> [3,H,W] float32."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float() / 255


def grey_planes(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))[None].expand(3, -1, -1)


def check(path: Path, expected: torch.Tensor, tolerance: float = 1e-6) -> None:
    image = load_image(path)
    assert image.dtype == torch.float32
    assert image.is_contiguous()
    assert image.shape == expected.shape
    assert image_size(path) == tuple(expected.shape[1:])
    assert float((image - expected).abs().max()) <= tolerance


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm"])
def test_rgb_is_exact(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RGB).save(path)
    check(path, planes(RGB), 0)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "pgm"])
def test_grey_becomes_three_equal_planes(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(GREY).save(path)
    check(path, grey_planes(GREY / 255))


def test_grey_jpeg_keeps_its_planes_equal(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(GREY).save(path, quality=95)
    image = load_image(path)
    assert torch.equal(image[0], image[1])
    assert torch.equal(image[0], image[2])


def test_bilevel(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(GREY > 127).save(path)
    check(path, grey_planes(GREY > 127), 0)


def test_transparent_pictures_lie_on_white(tmp_path: Path) -> None:
    alpha = RNG.integers(0, 256, GREY.shape, dtype=np.uint8)
    alpha[0], alpha[1] = 0, 255
    share = alpha[..., None] / 255
    path = tmp_path / "rgba.png"
    Image.fromarray(np.dstack([RGB, alpha])).save(path)
    on_white = RGB / 255 * share + 1 - share
    check(path, torch.from_numpy(on_white.transpose(2, 0, 1)).float())
    path = tmp_path / "la.png"
    Image.fromarray(np.dstack([GREY, alpha])).save(path)
    check(path, grey_planes(GREY / 255 * share[..., 0] + 1 - share[..., 0]))


def test_palette_with_and_without_transparency(tmp_path: Path) -> None:
    colours = RNG.integers(0, 256, (4, 3), dtype=np.uint8)
    index = RNG.integers(0, 4, GREY.shape, dtype=np.uint8)
    picture = Image.frombytes("P", index.shape[::-1], index.tobytes())
    picture.putpalette(colours.tobytes())
    picture.save(tmp_path / "opaque.png")
    check(tmp_path / "opaque.png", planes(colours[index]), 0)
    picture.save(tmp_path / "one.png", transparency=2)
    seen = colours.copy()
    seen[2] = 255
    check(tmp_path / "one.png", planes(seen[index]), 0)
    picture.save(tmp_path / "several.png", transparency=bytes([0, 255, 51, 255]))
    share = np.array([0, 1, 0.2, 1])[:, None]
    mixed = (colours / 255 * share + 1 - share)[index]
    check(tmp_path / "several.png", torch.from_numpy(mixed.transpose(2, 0, 1)).float())
    picture.save(tmp_path / "one.gif", transparency=2)
    check(tmp_path / "one.gif", planes(seen[index]), 0)


def test_cmyk(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    flat = np.zeros((16, 24, 4), np.uint8)
    flat[:, :12] = (255, 0, 0, 0)
    flat[:, 12:] = (0, 255, 255, 51)
    Image.frombytes("CMYK", (24, 16), flat.tobytes()).save(path, quality=100)
    image = load_image(path)
    cyan, dark_red = image[:, 8, 4], image[:, 8, 20]
    assert torch.allclose(cyan, torch.tensor([0.0, 1.0, 1.0]), atol=0.03)
    assert torch.allclose(dark_red, torch.tensor([0.8, 0.0, 0.0]), atol=0.03)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_deep_grey_keeps_its_16_bits(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(DEEP).save(path)
    with Image.open(path) as picture:
        assert picture.mode.startswith("I")
    check(path, grey_planes(DEEP / 65535), 1e-7)


def test_32_bit_integers_and_floats_must_have_a_known_range(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(DEEP.astype(np.int32)).save(path)
    check(path, grey_planes(DEEP / 65535), 1e-7)
    Image.fromarray((GREY / 255).astype(np.float32)).save(path)
    check(path, grey_planes(GREY / 255))
    for wild in (DEEP.astype(np.int32) * 4, DEEP.astype(np.float32), np.full((3, 3), np.nan, "f")):
        Image.fromarray(wild).save(path)
        with pytest.raises(ValueError, match=r"a\.tif: cannot read the image: grey values"):
            load_image(path)


def test_deep_colour_png(tmp_path: Path) -> None:
    deep = RNG.integers(0, 65536, (13, 17, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 17, 13, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    path = tmp_path / "a.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )
    )
    check(path, torch.from_numpy((deep / 65535).transpose(2, 0, 1)).float(), 1 / 255)


TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", sorted(TURNS))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    check(tmp_path / "a.png", planes(TURNS[orientation](RGB)), 0)
    Image.fromarray(DEEP).save(tmp_path / "deep.png", exif=exif)
    check(tmp_path / "deep.png", grey_planes(TURNS[orientation](DEEP) / 65535), 1e-7)
    smooth = np.indices((40, 64)).sum(0).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", exif=exif, quality=95)
    check(tmp_path / "a.jpg", grey_planes(TURNS[orientation](smooth) / 255), 0.02)
    assert is_upright(tmp_path / "a.jpg") == (orientation == 1)


@pytest.mark.parametrize("orientation", [None, 0, 9])
def test_an_orientation_that_is_none_turns_nothing(tmp_path: Path, orientation: int | None) -> None:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    check(tmp_path / "a.png", planes(RGB), 0)
    assert is_upright(tmp_path / "a.png")


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.7, 0.95, 0.999])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(RNG.integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=rf"cut\.{suffix}: cannot read the image") as error:
        load_image(path)
    assert "\n" not in str(error.value)
    assert str(error.value).count("cut") == 1


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    for name in ("text.jpg", "empty.png", "folder.png", "missing.png"):
        with pytest.raises(ValueError, match=name):
            load_image(tmp_path / name)
        with pytest.raises(ValueError, match=name):
            image_size(tmp_path / name)


@settings(max_examples=25)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_saving_and_loading_is_quantize(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, seed: int
) -> None:
    path = tmp_path_factory.mktemp("saved") / "a.png"
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))
    image = image * 1.0018 - 0.0009  # as far outside as rounding may leave it
    save_image(path, image)
    back = load_image(path)
    assert torch.equal(back, quantize(image))
    assert torch.equal(quantize(back), back)
    assert float((back - image.clamp(0, 1)).abs().max()) <= 0.5 / 255 + 1e-6


def test_quantize_hits_every_8_bit_level() -> None:
    levels = torch.arange(256) / torch.tensor(255.0)
    assert torch.equal(quantize(levels), levels)
    assert torch.equal(quantize(levels + 0.49 / 255), levels)
    assert torch.equal(quantize(torch.tensor([-1.0, 2.0])), torch.tensor([0.0, 1.0]))
    wanted = torch.tensor([0.25, 0.5], requires_grad=True)
    assert not quantize(wanted).requires_grad


def test_saving_replaces_the_file_whole_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    save_image(path, torch.zeros(3, 4, 5))
    save_image(path, torch.ones(3, 6, 7))
    assert load_image(path).shape == (3, 6, 7)
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_a_failed_save_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    save_image(path, torch.zeros(3, 4, 5))
    before = path.read_bytes()

    def fill_the_disk(self: Image.Image, stream, format: str) -> None:
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fill_the_disk)
    with pytest.raises(OSError, match="No space"):
        save_image(path, torch.ones(3, 4, 5))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    "image",
    [torch.zeros(1, 4, 5), torch.zeros(4, 5), torch.zeros(3, 0, 5), torch.full((3, 2, 2), np.nan),
     torch.full((3, 2, 2), 200.0), torch.ones(3, 2, 2, dtype=torch.uint8)],
)  # fmt: skip
def test_bad_tensors_are_not_saved(tmp_path: Path, image: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="save_image: image must "):
        save_image(tmp_path / "a.png", image)
    with pytest.raises(ValueError, match="mean_colour: image must "):
        mean_colour([torch.zeros(3, 2, 2), image])
    assert not list(tmp_path.iterdir())


def test_the_mean_colour_weighs_images_alike() -> None:
    white, red = torch.ones(3, 2, 2), torch.zeros(3, 40, 30)
    red[0] = 1.0
    assert mean_colour([white, red]) == (1.0, 0.5, 0.5)
    with pytest.raises(ValueError, match="expected images, got none"):
        mean_colour([])


def test_arrays_are_no_tensors(tmp_path: Path) -> None:
    pixels = np.zeros((3, 2, 2), np.float32)
    with pytest.raises(TypeError, match="save_image: image must be a tensor, got ndarray"):
        save_image(tmp_path / "a.png", pixels)
    with pytest.raises(TypeError, match="mean_colour: image must be a tensor, got ndarray"):
        mean_colour([pixels])


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [("tif", "pages"), ("gif", "frames"), ("webp", "frames"), ("png", "frames")],
)
def test_only_the_first_of_several_pages_is_read(tmp_path: Path, suffix: str, kind: str) -> None:
    path = tmp_path / f"a.{suffix}"
    pages = [Image.new("RGB", (20, 10), (0, 80 * n, 0)) for n in range(3)]
    options = {"compression": "tiff_lzw"} if suffix == "tif" else {}
    if suffix == "webp":
        options = {"lossless": True}
    pages[0].save(path, save_all=True, append_images=pages[1:], **options)
    with pytest.warns(UserWarning, match=rf"a\.{suffix}: only the first of its 3 {kind} is read"):
        image = load_image(path)
    assert torch.equal(image, torch.zeros(3, 10, 20))
    pages[0].save(path, **options)
    load_image(path)  # warnings are errors


def test_previews_are_no_pages(tmp_path: Path) -> None:
    """Nor the further pictures of an MPO, nor pages of a TIFF that say they are small copies."""
    pages = [Image.new("RGB", (20, 10), (0, 80 * n, 0)) for n in range(3)]
    pages[0].save(tmp_path / "a.mpo", save_all=True, append_images=pages[1:])
    with Image.open(tmp_path / "a.mpo") as picture:
        assert picture.n_frames == 3
    assert load_image(tmp_path / "a.mpo").shape == (3, 10, 20)
    pages = [page.copy() for page in pages]
    for page in pages[1:]:
        page.encoderinfo = {"tiffinfo": {254: 1}}
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with Image.open(tmp_path / "a.tif") as picture:
        assert picture.n_frames == 3
        picture.seek(1)
        assert picture.tag_v2[254] == 1
    assert load_image(tmp_path / "a.tif").shape == (3, 10, 20)


def test_a_broken_further_page_does_not_break_the_first(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    pages = [Image.new("RGB", (20, 10), (0, 80 * n, 0)) for n in range(2)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    with Image.open(path) as picture:
        picture.seek(1)
        second = picture._frame_pos[1]
    path.write_bytes(path.read_bytes()[: second + 10])
    with (
        pytest.warns(UserWarning, match="Corrupt EXIF data"),  # Pillow's own
        pytest.warns(UserWarning, match=r"a\.tif: only the first of its pages is read; the others"),
    ):
        assert torch.equal(load_image(path), torch.zeros(3, 10, 20))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        OSError("out of memory when reading image file"),
        MemoryError(),
    ],
)
def test_a_lack_of_memory_is_no_fault_of_the_file(
    tmp_path: Path,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is not skipped, as broken pictures are, and the error names the image."""
    save_image(tmp_path / "a.png", torch.zeros(3, 4, 5))
    (tmp_path / "a.csv").write_text("1,2")

    def fail(*arguments: object, **options: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(ImageFile.ImageFile, "load", fail)
        for on_error in ("raise", "skip"):
            with pytest.raises(MemoryError):
                _ = pycc.data.open(tmp_path, on_error=on_error)[0]
        assert main("data", ["inspect", str(tmp_path)]) == 2
    assert "error: out of memory at image a: take smaller images" in capsys.readouterr().err
    (tmp_path / "b.unknown").write_bytes((tmp_path / "a.png").read_bytes())
    (tmp_path / "b.csv").write_text("1,2")
    for target, name in ((Image, "open"), (Path, "read_bytes"), (Path, "iterdir")):
        with monkeypatch.context() as patched:
            patched.setattr(target, name, fail)
            with pytest.raises(MemoryError):
                _ = pycc.data.open(tmp_path, on_error="skip")[0]
