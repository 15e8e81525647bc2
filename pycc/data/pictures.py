"""Which files of a folder are pictures."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from PIL import Image

from pycc.data.reading import BROKEN, memory_errors, open_picture

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
_COPY = "a backup, by its name, of another picture here"
_SHOWN = 3
"""Names that a message shows of those of one kind."""


def listing(folder: Path) -> list[Path]:
    """Files and folders in a folder, hidden ones left out; ValueError if it cannot be read."""
    try:
        with memory_errors():
            return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise ValueError(f"{folder}: cannot read the folder: {error.strerror}") from error


def pictures(folder: Path, *, published: str = "") -> list[Path]:
    """The picture files in a folder, those that Pillow opens, in the order of their names.

    One warning names the files that are neither that nor annotation or notes, by the reason why
    they are left out. A backup such as ``a.jpg~`` is left out too: it has no suffix of pictures,
    but the name of another one. Hidden files and folders are not looked at, nor what matches the
    pattern ``published`` of other files in a published data set. ValueError if the folder cannot be
    read.
    """
    found, others = _sorted_out(folder, published)
    if others:
        kinds = sorted(others.items(), key=lambda kind: -len(kind[1]))
        named = "; ".join(f"{some(names)} ({reason})" for reason, names in kinds)
        total = sum(map(len, others.values()))
        files = "1 file that is" if total == 1 else f"{total} files that are"
        warnings.warn(f"{folder}: left out {files} no picture: {named}", stacklevel=3)
    return found


def number_of_pictures(folder: Path) -> int:
    """How many files ``pictures`` would return, without its warning."""
    return len(_sorted_out(folder, "")[0])


def is_picture(path: Path) -> bool:
    """Whether ``pictures`` would return this file if it were alone in its folder."""
    return _reason(path) == ""


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _sorted_out(folder: Path, published: str) -> tuple[list[Path], dict[str, list[str]]]:
    """The pictures in a folder, and names of files that are left out by the reason for it."""
    reasons = {path: _reason(path) for path in listing(folder) if not fnmatch(path.name, published)}
    by_suffix = [path for path, reason in reasons.items() if reason == "" and _has_suffix(path)]
    taken = {name for path in by_suffix for name in (path.stem, path.name)}
    found: list[Path] = []
    others: dict[str, list[str]] = {}
    for path, reason in reasons.items():
        if reason == "" and path.stem in taken and not _has_suffix(path):
            reason = _COPY
        if reason == "":
            found.append(path)
        elif reason is not None:
            others.setdefault(reason, []).append(path.name)
    return found, others


def _has_suffix(path: Path) -> bool:
    """Whether a file has the suffix of a format that Pillow opens."""
    return Image.registered_extensions().get(path.suffix.lower()) in Image.OPEN


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
