"""Files that are no weights are called what they are, and what to do about it."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pycc import models
from pycc.models.base import CounterModel
from pycc.models.foreign import content_of

LFS = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    b"size 63712345\n"
)
PAGE = b"""\n<!DOCTYPE html><html><head><title>Google Drive - Virus scan
warning</title></head><body>can't scan</body></html>"""


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"...")
    return buffer.getvalue()


def tarred(*names: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return buffer.getvalue()


def image() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


FOREIGN: list[tuple[bytes, str]] = [
    (LFS, r"a Git LFS pointer, not the file of 63,712,345 bytes .*: run 'git lfs pull' in"),
    (
        PAGE,
        r"an HTML page \('Google Drive - Virus scan\\nwarning'\): download the file itself rather",
    ),
    (b"<html lang=en><body>404", "an HTML page: download the file itself rather than the page"),
    (b"<!-- x --><HTML>", "an HTML page: "),
    (b'<?xml version="1.0"?><Error><Code>AccessDenied', "an XML document .*AccessDenied.*download"),
    (json.dumps({"message": "Not Found"}).encode(), "a JSON document .*Not Found.*download the"),
    (b"404: Not Found\n", r"text \('404: Not Found'\): download the file itself"),
    ("\ufeffNicht gefunden: Größe".encode(), "text .*Größe"),
    (b"", r"empty \(0 bytes\): download or write it again"),
    (zipped("README.md", "mcnn/A.h5"), "a zip archive that holds 'mcnn/A.h5': unpack it and give"),
    (
        zipped("a.jpg", "b.jpg", "c.jpg", "d.jpg"),
        "a zip archive of 'a.jpg', .* and 1 more: none of",
    ),
    (zipped(), "a zip archive of nothing"),
    (tarred("code.py", "w.pth"), "a tar archive that holds 'w.pth': unpack it"),
    (b"\x1f\x8b\x08" + b"\x00" * 20, "a gzip archive: unpack it"),
    (image(), "a PNG image: give the file of the weights"),
]


@pytest.mark.parametrize("name", ["w.pth", "w.pth.tar", "w.h5", "w.npz"])
@pytest.mark.parametrize(("content", "message"), FOREIGN)
def test_files_that_are_something_else(
    tmp_path: Path, name: str, content: bytes, message: str, refused
) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, rf"{name} is not (an? [\w ]+) but {message}")


@pytest.mark.parametrize("name", ["w.bin", "w", "w.zip"])
@pytest.mark.parametrize(("content", "message"), FOREIGN)
def test_under_an_unknown_suffix(
    tmp_path: Path, name: str, content: bytes, message: str, refused
) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, f"{name}: unknown format '.*'; known: .*; the file is {message}")


@pytest.mark.parametrize(("content", "message"), FOREIGN)
def test_as_networks_of_an_exchange_format(
    tmp_path: Path, content: bytes, message: str, refused
) -> None:
    (tmp_path / "w.onnx").write_bytes(content)
    refused(tmp_path / "w.onnx", rf"w\.onnx cannot be read: it is {message}")
    (tmp_path / "w.pt").write_bytes(content)
    refused(
        tmp_path / "w.pt", rf"w\.pt cannot be read: it is {message}", name="black_box", stride=8
    )


def test_weights_under_another_formats_suffix(
    counter: CounterModel, tmp_path: Path, write_h5, refused
) -> None:
    state = counter.net.state_dict()
    kinds: dict[str, Callable[[Path], object]] = {
        "an HDF5 file: rename it to end in .h5": lambda path: write_h5(path, state),
        "a torch file: rename it to end in .pth": lambda path: torch.save(state, path),
        "a torch file: rename it to end in .pth ": lambda path: torch.save(
            state, path, _use_new_zipfile_serialization=False
        ),
        "an npz file: rename it to end in .npz": lambda path: path.write_bytes(
            numpy_file({key: value.numpy() for key, value in state.items()})
        ),
    }
    for words, write in kinds.items():
        right = words.split()[-1]
        for name in ("w.h5", "w.pth", "w.npz", "w.pkl"):
            write(tmp_path / name)
            if name.endswith(right):
                assert models.load(tmp_path / name).name == "mcnn"
            else:
                refused(tmp_path / name, words.strip() + "$")


def numpy_file(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def test_a_zip_file_without_its_directory_is_incomplete(tmp_path: Path) -> None:
    path = tmp_path / "w"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", b"content")
        archive.comment = b"comment " * 999
    intact = path.read_bytes()
    assert (content := content_of(path)) is not None
    assert content.words == "a torch file"
    end = intact.rindex(b"PK\x05\x06")
    for size in (4, 40, end, end + 21):
        path.write_bytes(intact[:size])
        assert (content := content_of(path)) is not None
        assert content.words == "an incomplete zip file"


def test_binary_files_are_not_guessed_at(tmp_path: Path) -> None:
    for content in (b"\x00\x01\x02", b"\x80\x02}q\x00.", b"PK\x01\x02 broken", b"caf\xe9 au lait"):
        (tmp_path / "w").write_bytes(content)
        assert content_of(tmp_path / "w") is None


class _Settings:
    """Stands for the settings of a library that is not here."""


@pytest.mark.parametrize("legacy", [False, True])
def test_a_class_among_the_contents_is_named(
    counter: CounterModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, legacy: bool, refused
) -> None:
    monkeypatch.setattr(_Settings, "__module__", __name__)
    path = tmp_path / "w.pth"
    for content, name in (
        ({"state_dict": counter.net.state_dict(), "cfg": _Settings()}, r"[\w.]*_Settings"),
        (counter.net, r"pycc\.models\.mcnn\.MCNNNet"),
        ({"model": counter.net}, r"pycc\.models\.mcnn\.MCNNNet"),
    ):
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(
            ValueError, match=rf"more than tensors \({name}\), which could"
        ) as caught:
            models.load(path)
        refused(path, r"save the state dict alone: torch\.save\(model\.state_dict\(\), FILE\)$")
        assert "weights_only" not in str(caught.value)
        assert "safe_globals" not in str(caught.value)
