"""Which files of a folder are pictures."""

from __future__ import annotations

import warnings
from fnmatch import fnmatch
from pathlib import Path

from PIL import Image

from pycc.data.reading import BROKEN, open_picture

_NO_PHOTOGRAPHS = {
    "BUFR": "data that Pillow cannot decode",
    "EPS": "a page, not a photograph",
    "GRIB": "data that Pillow cannot decode",
    "HDF5": "data that Pillow cannot decode",
    "MPEG": "a video",
    "WMF": "a drawing, not a photograph",
}
"""Formats that Pillow knows by name, and why none of their files is a photograph to count."""
_BY_CONTENT = ("GIF", "JPEG", "JPEG2000", "PNG", "WEBP")
"""Formats that files without a known suffix are tried for: their first bytes are unmistakable. Not
TIFF: raw files of cameras look like it, and hold a small preview first."""
_BESIDE = frozenset(
    (
        *(".cfg", ".csv", ".h5", ".hdf", ".hdf5", ".html", ".ini", ".json", ".jsonl", ".log"),
        *(".mat", ".md", ".npy", ".npz", ".pkl", ".rst", ".tsv", ".txt", ".xml", ".yaml", ".yml"),
    )
)
"""Suffixes of annotation, density maps and notes, which lie beside pictures."""
_NOTES = frozenset(("citation", "copying", "licence", "license", "makefile", "readme"))
"""Names of notes that usually have no suffix."""
_REASONS = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIF: save as JPEG, or register pillow-heif"),
    **dict.fromkeys((".db", ".thm"), "thumbnails"),
    **dict.fromkeys(
        (".3gp", ".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mts", ".webm", ".wmv"), "a video"
    ),
    **dict.fromkeys(
        (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".raw", ".rw2"),
        "a camera's raw file: develop it",
    ),
    **dict.fromkeys((".ai", ".pdf", ".svg"), "a page or drawing, not a photograph"),
}
"""Why files of a suffix are left out."""
_SHOWN = 4
"""Files that the warning names."""


def listing(folder: Path) -> list[Path]:
    """Files and folders in a folder, hidden ones left out; ValueError if it cannot be read."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise ValueError(f"{folder}: cannot read the folder: {error.strerror}") from error


def pictures(folder: Path, *, published: str = "") -> list[Path]:
    """The picture files in a folder, those that Pillow opens, in the order of their names.

    One warning names the files that are neither that nor annotation or notes, and why they are left
    out. Hidden files and folders are not looked at, nor what matches the pattern ``published`` of
    other files in a published data set. ValueError if the folder cannot be read.
    """
    found, others = [], []
    for path in listing(folder):
        reason = None if fnmatch(path.name, published) else _reason(path)
        if reason == "":
            found.append(path)
        elif reason is not None:
            others.append(f"{path.name} ({reason})")
    if others:
        more = len(others) - _SHOWN
        named = ", ".join(others[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
        files = "1 file that is" if len(others) == 1 else f"{len(others)} files that are"
        warnings.warn(f"{folder}: left out {files} no picture: {named}", stacklevel=3)
    return found


def is_picture(path: Path) -> bool:
    """Whether ``pictures`` would return this file."""
    return _reason(path) == ""


def _reason(path: Path) -> str | None:
    """Why a file is left out: "" for a picture, None for what lies beside pictures anyway."""
    if path.is_dir():
        return None
    suffix = path.suffix.lower()
    kind = Image.registered_extensions().get(suffix)
    if kind in _NO_PHOTOGRAPHS:
        return None if suffix in _BESIDE else _NO_PHOTOGRAPHS[kind]
    if kind in Image.OPEN:
        return ""
    if suffix in _BESIDE or path.name.lower() in _NOTES:
        return None
    return _REASONS.get(suffix) or _by_content(path)


def _by_content(path: Path) -> str:
    if not path.is_file():  # a pipe would wait for its writer
        return "not a file"
    try:
        with open_picture(path, _BY_CONTENT):
            return ""
    except BROKEN:
        return "not a format that Pillow opens"
