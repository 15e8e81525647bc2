"""Identify files that are not weights, and networks that are not counters; report bad files."""

from __future__ import annotations

import re
import tarfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from pycc.checks import lacks_memory, one_line
from pycc.models.options import shown
from pycc.models.python2 import MAGIC

_HEAD = 4096
_ZIP_END, _ZIP_COMMENT = 22, 65535
"""Bytes of the record at the end of a zip file, and at most of a comment in it."""
_LFS = re.compile(rb"version https://(git-lfs|hawser)\.github\.com/spec/")
_LFS_SIZE = re.compile(rb"^size (\d+)$", re.MULTILINE)
_TITLE = re.compile(rb"<title[^>]*>([^<]{1,200})", re.IGNORECASE)
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"Rar!\x1a\x07": "RAR",
}
_IMAGES = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG"}
_WEIGHTS = re.compile(r"\.(pth|pt|ckpt|param|model|h5|hdf5|npz|tar|onnx|safetensors)$", re.I)
_DOWNLOAD = "download the file itself"
_CUT_OFF = "it seems truncated: download or copy it again"
_INCOMPLETE = re.compile(
    r"unexpected EOF|bytes in a \w+, but only|not enough data in stream|exhausted before|"
    r"Ran out of input|truncated|IncompleteBuffer|incomplete metadata"
)
"""Messages of readers at the end of an incomplete file."""
_VGG = {8: "VGG-11", 10: "VGG-13", 13: "VGG-16", 16: "VGG-19", 5: "AlexNet"}
"""Convolutions of torchvision's networks whose layers are numbered under ``features``."""
_NETWORKS = (
    (r"layer[1-4]\.0\.conv1\.weight", "a ResNet backbone"),
    (r"features\.denseblock1\.", "a DenseNet backbone"),
    (r"features\.\d+\.\d+\.", "a MobileNet, EfficientNet or ConvNeXt backbone of torchvision"),
    (r"_?conv_stem\.weight", "a MobileNet or EfficientNet backbone"),
    (r"patch_embed\.proj\.weight|conv_proj\.weight", "a vision transformer"),
    (r"visual\.", "a CLIP archive"),
)


class Content(NamedTuple):
    """The kind of a file: its format, a description and a remedy."""

    format: str | None
    """Format of weights: "torch", "npz", "h5" or "safetensors"; None for files without weights."""
    words: str
    remedy: str


@contextmanager
def third_party(path: Path | str, problem: str) -> Iterator[None]:
    """Turn any exception of a reader into one ValueError that names the file; drop its warnings.

    If memory runs out, the exception is raised unchanged, since the file is not at fault.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    # For a damaged file zipfile, the unpickler or HDF5 fail at any depth and with any type
    # (AssertionError, struct.error, NotImplementedError, KeyError, ...), none of them documented.
    except Exception as error:
        if lacks_memory(error):
            raise
        truncated = f"; {_CUT_OFF}" if _INCOMPLETE.search(str(error)) else ""
        raise ValueError(f"weights: {path} {problem}: {one_line(error)}{truncated}") from None


def content_of(path: Path) -> Content | None:
    """Identify a file by its first bytes and, for archives, the names in it; None if unclear.

    A zip file without the directory at its end is incomplete.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        return Content(None, "empty (0 bytes)", "download or write it again")
    if _LFS.match(head):
        size = _LFS_SIZE.search(head)
        of = f" of {int(size[1]):,} bytes" if size else ""
        words = f"a Git LFS pointer, not the file{of} that it stands for"
        return Content(None, words, f"run 'git lfs pull' in its repository, or {_DOWNLOAD}")
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return Content("h5", "an HDF5 file", "rename it to end in .h5")
    if head.startswith(MAGIC):
        return Content("torch", "a torch file", "rename it to end in .pth")
    if _is_tensors(head, path.stat().st_size):
        return Content("safetensors", "a .safetensors file", "rename it to end in .safetensors")
    for magic, kind in _IMAGES.items():
        if head.startswith(magic):
            return Content(None, f"a {kind} image", "give the file of the weights")
    for magic, kind in _PACKED.items():
        if head.startswith(magic):
            return Content(None, f"a {kind} archive", "unpack it and give the weights in it")
    if head.startswith(b"PK\x03\x04") and not _has_directory(path):
        return Content(None, "an incomplete zip file", _CUT_OFF)
    if head.startswith(b"PK"):
        return _zip(path)
    if head[257:262] == b"ustar":
        return _tar(path)
    return _text(head)


def _is_tensors(head: bytes, size: int) -> bool:
    """Return whether a file begins as .safetensors: the length of a JSON object, and the object."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8


def _text(head: bytes) -> Content | None:
    """Identify a page, a server's reply or other text; None if the file is not text."""
    try:
        # The last character may be cut off.
        text = head.decode("utf-8-sig", "strict" if len(head) < _HEAD else "ignore").strip()
    except UnicodeDecodeError:
        return None
    if not all(character.isprintable() or character.isspace() for character in text):
        return None
    start = text[:200].lower()
    if re.match(r"(<!--.*?-->\s*)*<(!doctype html|html|head|body)\b", start, re.DOTALL):
        title = _TITLE.search(head)
        named = f" ({shown(title[1].decode(errors='replace').strip())})" if title else ""
        return Content(None, f"an HTML page{named}", f"{_DOWNLOAD} rather than the page about it")
    kind = "a JSON document" if text[:1] in ("{", "[") else "text"
    if start.startswith("<"):
        kind = "an XML document"
    return Content(None, f"{kind} ({shown(text)})", _DOWNLOAD)


def _has_directory(path: Path) -> bool:
    """Return whether a zip file ends with the record of its directory, which is written last."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _ZIP_END - _ZIP_COMMENT))
        tail = file.read()
    return 0 <= tail.rfind(b"PK\x05\x06") <= len(tail) - _ZIP_END


def _zip(path: Path) -> Content | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return None
    if any(name.rpartition("/")[2] in ("data.pkl", "constants.pkl") for name in names):
        return Content("torch", "a torch file", "rename it to end in .pth")
    if names and all(name.endswith(".npy") for name in names):
        return Content("npz", "an npz file", "rename it to end in .npz")
    return _archive("zip", names)


def _tar(path: Path) -> Content | None:
    try:
        with tarfile.open(path) as archive:
            names = archive.getnames()
    except (OSError, tarfile.TarError, ValueError):
        return None
    return None if {"pickle", "storages", "tensors"} <= set(names) else _archive("tar", names)


def _archive(kind: str, names: list[str]) -> Content:
    weights = [name for name in names if _WEIGHTS.search(name)]
    if weights:
        words = f"a {kind} archive that holds {_some(weights)}"
        return Content(None, words, "unpack it and give the weights in it")
    words = f"a {kind} archive of {_some(names) or 'nothing'}"
    return Content(None, words, "none of it is weights in a known format")


def _some(names: list[str], most: int = 3) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shown(name) for name in names[:most]) + rest


def network_of(state: Mapping[str, Tensor]) -> str | None:
    """Return the well-known network that has these keys, or None."""
    kernels = [k for k, v in state.items() if re.match(r"features\.\d+\.weight", k) and v.ndim == 4]
    if kernels:
        normalised = (
            " with batch normalisation" if _has(r"features\.\d+\.running_mean", state) else ""
        )
        return f"a {_VGG.get(len(kernels), 'VGG-like')} backbone{normalised}"
    return next((words for pattern, words in _NETWORKS if _has(pattern, state)), None)


def _has(pattern: str, state: Mapping[str, Tensor]) -> bool:
    return any(re.match(pattern, key) for key in state)
