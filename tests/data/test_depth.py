"""16-bit pictures of fewer bits, and pictures of very many pixels."""

from __future__ import annotations

import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pycc.data
from pycc.data import load_image
from pycc.data.dataset import data_fingerprint
from pycc.data.export import export
from pycc.data.images import image_size
from pycc.data.inspect import inspect
from pycc.data.reading import MAX_IMAGE_PIXELS, Reading

RNG = np.random.default_rng(8)
GREY = RNG.integers(0, 4096, (12, 20), np.uint16)
COLOUR = RNG.integers(0, 4096, (12, 20, 3), np.uint16)
GREY[3, 4] = COLOUR[3, 4, 1] = 4095


def png(path: Path, values: np.ndarray) -> None:
    """A 16-bit PNG of grey [H,W], or with 2, 3 or 4 channels, each row filtered by "sub"."""
    height, width = values.shape[:2]
    rows = values.astype(">u2").reshape(height, -1).view(np.uint8)
    filtered = rows.copy()
    pixel = rows.shape[1] // width
    filtered[:, pixel:] -= rows[:, :-pixel]
    lines = np.insert(filtered, 0, 1, axis=1).tobytes()
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[pixel // 2]
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    parts = [struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
             for name, data in chunks]  # fmt: skip
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def tiff(path: Path, values: np.ndarray, order: str, opacity: int | None = None) -> None:
    """An uncompressed 16-bit RGB TIFF, big-endian (">") or not ("<"); of what kind its opacity."""
    height, width, channels = values.shape
    tags = [(256, width), (257, height), (259, 1), (262, 2), (277, channels), (278, height),
            (284, 1)]  # fmt: skip
    if opacity is not None:
        tags.append((338, opacity))
    data = values.astype(f"{order}u2").tobytes()
    bits = 8 + 2 + 12 * (len(tags) + 3) + 4
    entries = [(tag, struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0)) for tag, value in tags]
    entries.append((258, struct.pack(f"{order}HHII", 258, 3, channels, bits)))
    start_of_data = bits + 2 * channels
    entries.append((273, struct.pack(f"{order}HHII", 273, 4, 1, start_of_data)))
    entries.append((279, struct.pack(f"{order}HHII", 279, 4, 1, len(data))))
    start = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HIH", 42, 8, len(entries))
    body = b"".join(entry for _, entry in sorted(entries)) + struct.pack(f"{order}I", 0)
    path.write_bytes(start + body + struct.pack(f"{order}{channels}H", *[16] * channels) + data)


def planes(values: np.ndarray, white: int) -> torch.Tensor:
    colour = values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=2)
    return torch.from_numpy((colour / white).transpose(2, 0, 1)).float()


WRITERS = {
    "grey.png": lambda path: png(path, GREY),
    "grey.tif": lambda path: Image.fromarray(GREY).save(path),
    "grey32.tif": lambda path: Image.fromarray(GREY.astype(np.int32)).save(path),
    "grey.pgm": lambda path: Image.fromarray(GREY).save(path),
    "colour.png": lambda path: png(path, COLOUR),
    "little.tif": lambda path: tiff(path, COLOUR, "<"),
    "big.tif": lambda path: tiff(path, COLOUR, ">"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_twelve_bits_in_sixteen(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    values = GREY if "grey" in name else COLOUR
    with pytest.warns(UserWarning, match="highest value is 4095 of the 65535") as warned:
        dark = load_image(path)
    (message,) = (str(w.message) for w in warned)
    assert message.startswith(f"{path}: ")
    assert message.endswith("take bit_depth=12 (--bit-depth 12)")
    upper = values if "grey" in name else values >> 8  # of colour the upper 8 bits
    assert torch.allclose(dark, planes(upper, 65535 if "grey" in name else 255), atol=1e-7)
    assert torch.equal(load_image(path, bit_depth=12), planes(values, 4095))
    assert torch.equal(load_image(path, bit_depth=16), planes(values, 65535))
    with pytest.raises(ValueError, match=rf"{name}.*at most 1023, those of 10 bits .*got 4095"):
        load_image(path, bit_depth=10)


@pytest.mark.parametrize(("highest", "bits"), [(200, 8), (1023, 10), (1024, 12), (4096, None)])
def test_the_fewest_bits_are_named(tmp_path: Path, highest: int, bits: int | None) -> None:
    for name, values in (("grey", GREY), ("colour", COLOUR)):
        png(tmp_path / f"{name}.png", np.minimum(values, 9) + np.uint16(highest - 9))
        if bits is None:
            load_image(tmp_path / f"{name}.png")  # warnings are errors
            continue
        with pytest.warns(UserWarning, match=rf"is {highest} of .*\(--bit-depth {bits}\)"):
            load_image(tmp_path / f"{name}.png")


def test_black_is_no_suspicion(tmp_path: Path) -> None:
    for name, shape in (("grey", (4, 5)), ("colour", (4, 5, 3))):
        png(tmp_path / f"{name}.png", np.zeros(shape, np.uint16))
        assert float(load_image(tmp_path / f"{name}.png").max()) == 0.0


@pytest.mark.parametrize("channels", [2, 4])
def test_transparency_is_laid_on_white(tmp_path: Path, channels: int) -> None:
    """What the warning advises works; opacity has 16 bits, and what it hides has no value."""
    path = tmp_path / "a.png"
    opacity = RNG.integers(1, 65536, (12, 20), np.uint16)
    opacity[0], opacity[1] = 65535, 0
    colours = COLOUR if channels == 4 else GREY[..., None]
    colours = np.where(opacity[..., None] > 0, colours, 60000).astype(np.uint16)
    png(path, np.concatenate([colours, opacity[..., None]], 2))
    share = opacity[..., None] / 65535
    for bits in (12, 16):
        expected = np.where(share > 0, colours / (2**bits - 1), 0) * share + 1 - share
        read = load_image(path, bit_depth=bits)
        assert read.shape == (3, 12, 20)
        assert torch.allclose(
            read, torch.from_numpy(expected.transpose(2, 0, 1)).float().expand(3, -1, -1), atol=1e-7
        )
    with pytest.raises(ValueError, match=r"a\.png.*at most 1023, those of 10 bits .*got 409"):
        load_image(path, bit_depth=10)
    colours = np.where(opacity[..., None] > 0, colours, 0)
    png(path, np.concatenate([colours, opacity[..., None]], 2).astype(np.uint16))
    with pytest.warns(UserWarning, match=r"a\.png: its highest value is 409\d .*--bit-depth 12"):
        load_image(path)


def test_a_colour_that_is_transparent(tmp_path: Path) -> None:
    """All its 16 bits are compared: one that differs in the lower ones is there."""
    path = tmp_path / "a.png"
    values = COLOUR.copy()
    values[5, 6], values[5, 7] = (1000, 2000, 3000), (1000, 2000, 3001)
    png(path, values)
    content = path.read_bytes()
    data = b"tRNS" + struct.pack(">3H", 1000, 2000, 3000)
    chunk = struct.pack(">I", 6) + data + struct.pack(">I", zlib.crc32(data))
    path.write_bytes(content[:33] + chunk + content[33:])
    expected = planes(values, 4095)
    expected[:, 5, 6] = 1.0
    assert torch.equal(load_image(path, bit_depth=12), expected)


def test_colour_multiplied_with_its_opacity(tmp_path: Path) -> None:
    """Its lower bits are not to be had: nothing is advised that would be refused."""
    path = tmp_path / "a.tif"
    values = np.full((4, 5, 4), 3000, np.uint16)
    values[..., 3] = 65535
    tiff(path, values, "<", opacity=1)
    image = load_image(path)  # warnings are errors
    assert torch.allclose(image, torch.full((3, 4, 5), (3000 >> 8) / 255), atol=1e-3)
    with pytest.raises(ValueError, match=r"a\.tif.*not multiplied with their opacity: save it so"):
        load_image(path, bit_depth=12)
    tiff(path, values, "<", opacity=2)
    read = load_image(path, bit_depth=12)
    assert torch.allclose(read, torch.full((3, 4, 5), 3000 / 4095))


def test_formats_that_state_their_depth(tmp_path: Path) -> None:
    """They need no option, which changes nothing then."""
    header = f"P5 {GREY.shape[1]} {GREY.shape[0]} 4095\n".encode()
    (tmp_path / "a.pgm").write_bytes(header + GREY.astype(">u2").tobytes())
    eight = COLOUR.astype(np.uint8)
    Image.fromarray(eight).save(tmp_path / "a.png")
    for options in ({}, {"bit_depth": 12}):
        image = load_image(tmp_path / "a.pgm", **options)
        assert torch.allclose(image, planes(GREY, 4095), atol=1 / 65535)
        assert torch.equal(load_image(tmp_path / "a.png", **options), planes(eight, 255))


def test_a_turned_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    png(tmp_path / "a.png", COLOUR)
    content = (tmp_path / "a.png").read_bytes()
    data = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    (tmp_path / "a.png").write_bytes(content[:33] + chunk + content[33:])
    turned = planes(COLOUR, 4095).rot90(-1, (1, 2))
    assert torch.equal(load_image(tmp_path / "a.png", bit_depth=12), turned)


@pytest.mark.parametrize("depth", [0, 17, -1])
def test_the_depth_has_a_range(tmp_path: Path, depth: int) -> None:
    png(tmp_path / "a.png", GREY)
    with pytest.raises(ValueError, match=r"bit_depth \(--bit-depth\) must be within \[1, 16\]"):
        load_image(tmp_path / "a.png", bit_depth=depth)
    with pytest.raises(ValueError, match="bit_depth"):
        pycc.data.open("synthetic", bit_depth=depth)
    with pytest.raises(ValueError, match=r"max_image_pixels .* must be at least 1, got 0"):
        load_image(tmp_path / "a.png", max_image_pixels=0)


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """One 12-bit picture in a 16-bit file, and one of 8 bits."""
    root = tmp_path / "deep"
    root.mkdir()
    png(root / "a.png", GREY)
    Image.fromarray(COLOUR.astype(np.uint8)).save(root / "b.png")
    for name in "ab":
        (root / f"{name}.csv").write_text("1,2\n")
    return root


def test_a_data_set_of_twelve_bits(deep: Path) -> None:
    samples = pycc.data.open(deep, bit_depth=12)
    assert torch.equal(samples[0].image, planes(GREY, 4095))
    assert float(samples[1].image.max()) == 1.0
    usual = pycc.data.open(deep)
    larger = pycc.data.open(deep, max_image_pixels=10**9)
    sets = (samples, usual, pycc.data.open(deep, bit_depth=14), larger)
    with pytest.warns(UserWarning, match="its highest value is 4095"):
        prints = [str(data_fingerprint(samples)) for samples in sets]
    assert len(set(prints)) == 3
    assert prints[3] == prints[1], "pixels do not depend on the limit"
    assert samples.first(1).reading == samples.reading
    for limit in (1, 2):
        skipping = pycc.data.open(deep, bit_depth=12, on_error="skip", limit=limit)
        assert torch.equal(skipping[0].image, samples[0].image)


def test_its_values_above_are_refused_or_skipped(deep: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.png: cannot read the image: expected values of at"):
        pycc.data.open(deep, bit_depth=10)[0]
    with pytest.warns(UserWarning, match=r"skipped: .*a\.png"):
        assert pycc.data.open(deep, bit_depth=10, on_error="skip").names == ["b"]


def test_it_is_exported_as_it_is_read(deep: Path, tmp_path: Path) -> None:
    reading = Reading(bit_depth=12)
    export(deep, tmp_path / "out", reading=reading)
    written = pycc.data.open(tmp_path / "out", split="all")
    for old, new in zip(pycc.data.open(deep, bit_depth=12), written, strict=True):
        assert torch.equal(pycc.data.quantize(old.image), new.image)
    copied = (tmp_path / "out" / "all" / "b.png").read_bytes()
    assert copied == (deep / "b.png").read_bytes()
    (split,) = inspect(deep, reading=reading).splits
    assert not split.broken
    with pytest.warns(UserWarning, match="highest value is 4095"):
        (usual,) = inspect(deep).splits
    pixels = [[item.pixels for item in report.items] for report in (split, usual)]
    assert pixels[0][0] != pixels[1][0]
    assert pixels[0][1] == pixels[1][1]


def test_pictures_of_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One limit, which the option raises; Pillow's own, with its warning, is not met."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # it would warn of 240, and refuse them
    path = tmp_path / "a.png"
    Image.fromarray(COLOUR.astype(np.uint8)).save(path)
    assert load_image(path).shape == (3, 12, 20)
    assert image_size(path) == (12, 20)
    assert Image.MAX_IMAGE_PIXELS == 100
    for read in (load_image, lambda path, **options: pycc.data.open(
        tmp_path, annotated=False, **options)[0]):  # fmt: skip
        with pytest.raises(ValueError, match=(
            r"a\.png: cannot read the image: expected at most 239 pixels, got 20 x 12; "
            r"max_image_pixels=240 \(--max-image-pixels 240\) reads it"
        )):  # fmt: skip
            read(path, max_image_pixels=239)
        read(path, max_image_pixels=240)


def test_between_pillows_warning_and_its_error(tmp_path: Path) -> None:
    """100 million pixels of one bit: no warning, and no error without its name."""
    path = tmp_path / "a.png"
    Image.new("1", (10_000, 10_000)).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert image_size(path) == (10_000, 10_000)
    Image.new("1", (20_000, 10_000)).save(path)
    assert MAX_IMAGE_PIXELS < 200_000_000
    with pytest.raises(ValueError, match="got 20000 x 10000; max_image_pixels=200000000"):
        load_image(path)


def test_threads_leave_pillows_limit_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(COLOUR.astype(np.uint8)).save(path)
    before = Image.MAX_IMAGE_PIXELS
    threads = [threading.Thread(target=lambda: [load_image(path) for _ in range(20)])
               for _ in range(4)]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert before == Image.MAX_IMAGE_PIXELS
